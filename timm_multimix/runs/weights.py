"""Weights in a file, whoever wrote it. Nothing of it is unpickled but tensors and plain values."""
from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import SettingError, reason
from .find import load

PARTS = ('state_dict_ema', 'model_ema', 'state_dict', 'model')  # of a checkpoint, in the order that timm prefers
PREFIXES = ('module.', '_orig_mod.', 'model.')  # of DataParallel and DDP, of torch.compile, of Lightning


def read_weights(path: str, what: str = '') -> tuple[dict[str, Tensor], str]:
    """The weights of a file, by the names that timm gives them.

    Args:
        path: a .safetensors, or what torch.save wrote: a state_dict, or a checkpoint of timm, Lightning or train.py.
        what: how messages begin; default the path.

    Returns:
        The weights, and what was done to find them: '' or 'averaged weights (state_dict_ema), "module." stripped'.

    Raises:
        SettingError: it is a pickle of more than weights, such as a whole model; it is damaged; it holds no weights.
    """
    what = what or repr(path)
    try:
        found: Any = load_file(path) if path.endswith('.safetensors') else load(path)
    except pickle.UnpicklingError as e:
        raise SettingError(_more_than_weights(path, what, str(e))) from e
    except Exception as e:  # broken bytes break the reader in any way
        kind = ' (safetensors)' if isinstance(e, SafetensorError) else ''
        raise SettingError(f'{what} cannot be read as weights{kind}: {reason(e, 1)}') from e
    if not isinstance(found, Mapping):
        raise SettingError(f'{what} holds a {type(found).__name__}, not weights.')
    part = next((name for name in PARTS if isinstance(found.get(name), Mapping)), None)
    state = dict(found if part is None else found[part])
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise SettingError(f'{what} holds no weights: it has {", ".join(map(str, list(found)[:6])) or "nothing"}.')
    said = [f'averaged weights ({part})'] if part in ('state_dict_ema', 'model_ema') else []
    stripped = ''
    # A module beside the model, such as a loss with weights, is in a Lightning checkpoint too.
    while prefix := next((p for p in PREFIXES if 2 * sum(k.startswith(p) for k in state) > len(state)), ''):
        beside = [k for k in state if not k.startswith(prefix)]
        state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        stripped += prefix
        said += [f'left out, since it is no part of the model: {", ".join(beside[:3])}'] if beside else []
    return state, ', '.join([*said, *([f'{stripped!r} stripped from the names'] if stripped else [])])


def _more_than_weights(path: str, what: str, error: str) -> str:
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # of an old format
        names = []
    names = names or re.findall(r'GLOBAL ([\w.]+) was not an allowed', error)
    names = sorted(names, key=lambda name: (name.startswith('torch.'), '.models.' not in name, name))  # telling first
    if not names:
        return f'{what} cannot be read as weights: it is damaged, or no checkpoint.'
    whole = any(name.startswith(('timm.', 'torch.nn.modules.', 'torchvision.models.')) for name in names)
    return (f'{what} is {"a whole pickled model" if whole else "a pickle of more than weights"} '
            f'({", ".join(names[:3])}{", …" * (len(names) > 3)}), and opening that can run any code, so it is not '
            f'opened. If it is your own, save its weights alone, in Python:\n  torch.save(torch.load({path!r}, '
            f'weights_only=False){".state_dict()" if whole else "[" + repr("state_dict") + "]"}, "weights.pth")')
