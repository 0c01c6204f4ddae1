"""Where in the network to mix, other than the embedding: the input, a stage, or any module by its name."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn as nn
from torch import Tensor

from ..config import Layer
from ..errors import SettingError, nearest


def stages(model: nn.Module) -> list[str]:
    """Names of the modules whose outputs timm counts as features, as `features_only=True` numbers them."""
    info: Any = getattr(model, 'feature_info', None) or []
    info = info if isinstance(info, list) else info.get_dicts()
    return [stage['module'] for stage in info if isinstance(stage, dict) and stage.get('module')]


def layer_name(model: nn.Module, layer: Layer) -> str:
    """The module whose output is mixed; '' is the input.

    Args:
        model: a timm model, or any network where layers are named.
        layer: 'input', the number of a stage as timm's `out_indices` count them, or a name of `named_modules()`.

    Raises:
        SettingError: no such layer.
    """
    if layer == 'input':
        return ''
    names = [name for name, _ in model.named_modules() if name]
    if layer in names:
        return str(layer)
    number = int(layer) if isinstance(layer, int) or layer.isdigit() else None
    if number is not None:
        found = stages(model)
        if not found:
            raise SettingError(f'layer (--multimix-layer) is {layer}, but timm names no stages of '
                               f'{type(model).__name__}: give the name of a module, or input.')
        if number >= len(found):
            raise SettingError(f'layer (--multimix-layer) is {layer}, but {type(model).__name__} has the stages 0 to '
                               f'{len(found) - 1}: {", ".join(found)}.')
        return found[number]
    raise SettingError(f'layer (--multimix-layer) is {layer!r}, but {type(model).__name__} has no such module.'
                       f'{nearest(str(layer), names)} It may also be input, embedding, or the number of a stage'
                       + (f': {", ".join(f"{i} {name}" for i, name in enumerate(stages(model)))}.'
                          if stages(model) else '.'))


@contextmanager
def output_of(model: nn.Module, name: str, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While inside, the module's output (B, …) is what `change` makes of it.

    Raises:
        SettingError: on the way out, when the module did not run or gave no tensor.
    """
    ran: list[Any] = []

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        ran.append(type(output).__name__)
        return change(output) if isinstance(output, Tensor) else None

    handle = model.get_submodule(name).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
    if not ran or not ran[0].endswith(('Tensor', 'Parameter')):
        what = f'gives a {ran[0]}, not a tensor' if ran else 'does not run'
        raise SettingError(f'layer (--multimix-layer) is {name!r}, but that module of {type(model).__name__} {what}: '
                           f'choose another.')
