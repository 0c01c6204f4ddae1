"""Where in the network to mix, other than the embedding: the input, a stage, or any module by its name."""
from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Optional

import torch
import torch.nn as nn
from torch import Tensor

from ..config import Layer
from ..errors import REFUSALS, SettingError, nearest
from .positions import evaluating, probe

# Where timm's models keep the blocks that gradient checkpointing computes again.
_BLOCKS = re.compile(r'blocks|stages|layers?\d*')


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


def check_not_again(model: Any, layer: Layer, name: str) -> None:
    """Raise `SettingError` where gradient checkpointing would compute what a layer gives once more, without mixing.

    A model says so of all of its blocks, and a stage of those in it.
    """
    parts = name.split('.')
    for i in range(len(parts)):
        around = model.get_submodule('.'.join(parts[:i]))
        if getattr(around, 'grad_checkpointing', False) and (i or _BLOCKS.fullmatch(parts[0])):
            raise SettingError(f'layer (--multimix-layer) is {layer!r}, which gradient checkpointing '
                               f"(--grad-checkpointing) computes once more, unmixed: choose one of both, or layer "
                               f"'embedding' or 'input'.")


@torch.no_grad()
def check_layer(model: Any, layer: Layer, name: str, logits: Callable[[Tensor], Any],
                input_size: Optional[tuple[int, ...]] = None) -> None:
    """Raise `SettingError` unless all that follows a module depends on its output alone, and on one output.

    Two images that are swapped there must come out swapped. A branch beside others, as within a residual block, and a
    module that runs more than once are no place to mix: features would be mixed in part, or twice.
    """
    check_not_again(model, layer, name)
    try:
        image = probe(model, input_size)
        images = torch.cat([image, _other(image)])
        with evaluating(model):
            plain = logits(images)
            with output_of(model, name, lambda z: z.flip(0)):
                swapped = logits(images)
        apart, error = ((plain - x).abs().max() for x in (plain.flip(0), swapped.flip(0)))
        bad = float(error) > 0.1 * float(apart) > 0
    except REFUSALS:  # not with this image, or not in eval mode: whoever trains it says why
        return
    if bad:
        raise SettingError(f'layer (--multimix-layer) is {layer!r}, but what that module gives is not all that the '
                           f'network goes on with: it is a branch beside others, or runs more than once. Choose a '
                           f'stage or a whole block.')


def _other(image: Tensor) -> Tensor:
    """Another input of the same kind. Numbers may stand for words, of which only those in the image are known."""
    other = -image if image.is_floating_point() else image.flip(1)
    if not torch.equal(other, image):
        return other
    return image + 1 if image.is_floating_point() else image.clone().index_fill_(1, image.new_zeros(1).long(), 0)


@contextmanager
def output_of(model: Any, name: str, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
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
