"""One pass over the images: logits, and the embeddings that the last linear layer takes."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Optional, Union

import torch
import torch.nn as nn
from timm.utils.model import unwrap_model
from torch import Tensor
from tqdm import tqdm

from ..errors import SettingError
from ..heads import adapter_of, classifier_leaves
from ..heads.positions import evaluating

Loader = Iterable[Sequence[Tensor]]


@dataclass(frozen=True)
class Outputs:
    """What a model says about a set of images, on the CPU.

    Attributes:
        logits: (N, C), float32.
        target: (N,), int64.
        embedding: (N, D), float32: what the last linear layer was given.
    """
    logits: Tensor
    target: Tensor
    embedding: Tensor

    def __len__(self) -> int:
        return len(self.target)


Source = Union[Loader, Outputs]


def last_linear(model: nn.Module) -> nn.Module:
    """The layer whose input is the embedding: a timm model's classifier, else the last nn.Linear.

    Raises:
        SettingError: there is none.
    """
    plain = unwrap_model(model)
    try:
        return classifier_leaves(adapter_of(model))[0]
    except SettingError:
        linear = [m for m in plain.modules() if isinstance(m, nn.Linear)]
        if not linear:
            raise SettingError(f'{type(plain).__name__} has no linear layer, so there is nothing whose input could be '
                               f'its embedding.') from None
        return linear[-1]


def device_of(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    return torch.device('cpu') if parameter is None else parameter.device


def bar(loader: Iterable[Any], text: str, progress: bool) -> Any:
    """A tqdm bar over batches, where a person watches and `progress` is asked for."""
    return tqdm(loader, desc=text, unit='batch', leave=False, disable=None if progress else True, dynamic_ncols=True)


@torch.no_grad()
def collect(model: nn.Module, loader: Source, *, progress: bool = False, text: str = 'Images') -> Outputs:
    """Run a model in eval mode over (images, target) batches; its own mode comes back afterwards.

    Every evaluation takes what this returns in place of its loader, so that several need one pass only.

    Args:
        model: gives logits (B, C) of images (B, 3, H, W); any nn.Module with a linear layer at its end.
        loader: of batches (images, target, …), normalised as the model takes them. `Outputs` come back as they are.
        progress: show a bar.

    Raises:
        SettingError: no images, targets outside the classes, outputs that are not finite logits (B, C).
    """
    if isinstance(loader, Outputs):
        return loader
    device, found = device_of(model), [(torch.empty(0),) * 3][:0]
    seen: list[Tensor] = []
    leaf = last_linear(model)
    hook = leaf.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        with evaluating(model):
            for images, target, *_ in bar(loader, text, progress):
                seen.clear()
                logits = logits_of(model, images.to(device))
                if not seen or seen[-1].flatten(1).shape[0] != len(images):
                    raise SettingError(f'The last linear layer of {type(unwrap_model(model)).__name__} is not given '
                                       f'one embedding per image, so embeddings cannot be taken from it.')
                found.append((logits.float().cpu(), target.long().cpu(), seen[-1].flatten(1).float().cpu()))
    finally:
        hook.remove()
    if not found:
        raise SettingError('The loader holds no images.')
    outputs = Outputs(*(torch.cat(part) for part in zip(*found)))
    check_target(outputs.target, outputs.logits.shape[1])
    if not outputs.logits.isfinite().all():
        bad = int((~outputs.logits.isfinite().all(1)).sum())
        raise SettingError(f'{type(unwrap_model(model)).__name__} gives logits that are not finite for {bad} of '
                           f'{len(outputs)} images: its weights are damaged, or it was trained to NaN.')
    return outputs


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """The model's output, checked to be logits (B, C)."""
    logits: Optional[Any] = model(images)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        what = f'a tensor {tuple(logits.shape)}' if isinstance(logits, Tensor) else type(logits).__name__
        raise SettingError(f'{type(unwrap_model(model)).__name__} returns {what}, but logits (B, C) are evaluated.')
    return logits


def check_target(target: Tensor, num_classes: int) -> None:
    """Raise `SettingError` for classes the model does not have."""
    low, high = int(target.min()), int(target.max())
    if low < 0 or high >= num_classes:
        raise SettingError(f'The images have class {low if low < 0 else high}, but the model has the {num_classes} '
                           f'classes 0 to {num_classes - 1}: it was trained on other data.')
