"""What a model ends in, in words: what a user looks up before choosing 'multimix' or 'dense' for it."""
from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import torch
import torch.nn as nn
from torch import Tensor

from ..errors import REFUSALS, SettingError
from .parts import Model, adapter_of
from .positions import HeadInfo, classifier_leaves, evaluating, inspect_head, name_of, probe, switch_class_token


@dataclass(frozen=True)
class Description:
    """How a model can be mixed. `str()` of it is the text that `describe` prints.

    Attributes:
        name: the class of the model.
        parameters: how many.
        input_size: (C, H, W) that was tried.
        classes: outputs.
        width: features that the last linear layer takes, D.
        classifiers: names of the linear layers that give the logits; several are averaged by the model.
        head: the layers that act between features and logits, in order: (name, layer).
        head_info: how features become logits position by position, or None where 'dense' cannot be.
        timm_args: arguments of `timm.create_model` that build what 'dense' trains, where it is not the model as it is.
        refused: why 'dense' cannot be, or None.
    """
    name: str
    parameters: int
    input_size: tuple[int, ...]
    classes: int
    width: int
    classifiers: tuple[str, ...]
    head: tuple[tuple[str, str], ...]
    head_info: Optional[HeadInfo]
    timm_args: dict[str, object]
    refused: Optional[str]

    def __str__(self) -> str:
        e, lines = self.head_info, [
            f'{self.name}: {self.parameters / 1e6:.1f} M parameters, '
            f'{"images" if len(self.input_size) == 3 else "input"} {"×".join(map(str, self.input_size))}, '
            f'{self.classes} classes']
        lines.append('head       ' + (' → '.join(f'{name} ({kind})' for name, kind in self.head) or 'no layers'))
        several = f'; the mean of {len(self.classifiers)} classifiers' if len(self.classifiers) > 1 else ''
        lines.append(f'multimix   mixes the pooled embedding of {self.width} features, before '
                     f'{" and ".join(self.classifiers)}{several}')
        if e is None:
            lines.append(f'dense      cannot be: {self.refused}')
            return '\n'.join(lines)
        where = {'NCHW': 'feature map', 'NHWC': 'feature map', 'NLC': 'patch tokens'}[e.layout]
        lines.append(f'dense      mixes {e.width} features at each of {e.positions} positions ({where}, {e.layout}'
                     + (f', behind {e.prefix} other token{"s" * (e.prefix > 1)}' if e.prefix else '') + ')')
        lines.append('           ' + (
            'by the classifier alone' if e.bare else 'by the head above, to one position at a time'))
        if e.batch_norms:
            lines.append(f'           {", ".join(e.batch_norms)}: running statistics for positions, learned from '
                         f'pooled features only')
        if self.timm_args:
            given = ', '.join(f'{k}={v!r}' for k, v in self.timm_args.items())
            lines.append(f'           switched from its class token to average pooling: timm.create_model(…, {given})')
        return '\n'.join(lines)


def description(model: Model, input_size: Optional[Sequence[int]] = None) -> Description:
    """Inspect a timm model, wrapped or not; the model stays as it is.

    Args:
        model: a timm model with a linear classifier.
        input_size: (C, H, W) to try, where it differs from what the model says.

    Raises:
        SettingError: there is no linear classifier, so nothing can be mixed.
    """
    model = adapter_of(model)
    leaves = classifier_leaves(model)
    twin = copy.deepcopy(model)  # switching to average pooling is not for the user's own
    example = probe(twin, tuple(input_size) if input_size else None)
    size = tuple(example.shape[1:])
    head_info, refused, args = None, None, {}
    try:
        args = switch_class_token(twin) if isinstance(twin, nn.Module) else {}
        head_info = inspect_head(twin, size)
    except SettingError as e:
        refused, args = str(e), {}
    names = {module: name for name, module in model.named_modules()}
    leaf = leaves[0]
    width = leaf.in_features if isinstance(leaf, nn.Linear) else leaf.in_channels
    return Description(
        name_of(model), sum(p.numel() for p in model.parameters()), size, int(model.num_classes),  # type: ignore
        int(width), tuple(names[m] for m in leaves), _head(twin, example), head_info, args, refused)  # type: ignore[arg-type]


def _head(model: Model, example: Tensor) -> tuple[tuple[str, str], ...]:
    """The layers that run in forward_head, in order, without those that do nothing."""
    ran: list[tuple[str, str]] = []
    with evaluating(model), torch.no_grad():
        try:
            features = model.forward_features(example)  # type: ignore[operator]
        except REFUSALS:  # no such method, or not for this image size: `refused` says it already
            return ()
        hooks = [m.register_forward_hook(lambda m, *_, name=name: ran.append((name, type(m).__name__)))
                 for name, m in model.named_modules()
                 if not list(m.children()) and not isinstance(m, (nn.Identity, nn.Dropout))]
        try:
            model.forward_head(features)  # type: ignore[operator]
        except REFUSALS:
            return ()
        finally:
            for hook in hooks:
                hook.remove()
    return tuple(ran)


def describe(model: Model, input_size: Optional[Sequence[int]] = None) -> None:
    """Print what a model ends in, and what 'multimix' and 'dense' would do with it. See `description`."""
    print(description(model, input_size))
