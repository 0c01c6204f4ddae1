"""From settings to data, model, optimizer and task."""
from __future__ import annotations

import importlib
import os
import sys
from typing import Optional

from ..errors import SettingError
from ..task import MultiMixTask


def find_task(name: Optional[str]) -> type[MultiMixTask]:
    """The class of `--multimix-task module:Class`; `MultiMixTask` where it is not given.

    Raises:
        SettingError: no such module or class, or it is no `MultiMixTask`. What fails while the module is imported
            keeps its own error.
    """
    if not name:
        return MultiMixTask
    module, _, cls = name.partition(':')
    if not module or not cls or module.startswith('.'):
        raise SettingError(f'--multimix-task is {name!r}, but it is module:Class.')
    sys.path.insert(0, os.getcwd())  # as `python -m` has it
    try:
        found = getattr(importlib.import_module(module), cls, None)
    except ModuleNotFoundError as e:
        if e.name is None or not (module == e.name or module.startswith(e.name + '.')):
            raise
        raise SettingError(f'--multimix-task is {name!r}, but there is no module {e.name!r}: it is module:Class, '
                           f'importable from here.') from e
    finally:
        sys.path.remove(os.getcwd())
    if not (isinstance(found, type) and issubclass(found, MultiMixTask)):
        raise SettingError(f'--multimix-task is {name!r}, but that is no subclass of timm_multimix.MultiMixTask: it '
                           f'is module:Class.')
    return found


def ema_note(decay: float, updates: int) -> str:
    """What to say when averaged weights will still be mostly the initial ones at the end."""
    return (f'--model-ema-decay {decay:g} over {updates} updates leaves {decay ** updates:.0%} of the untrained '
            f'weights in the average, which is validated and saved. Add --model-ema-warmup, or use a decay of about '
            f'{max(0.0, 1 - 10 / updates):.3g}.')
