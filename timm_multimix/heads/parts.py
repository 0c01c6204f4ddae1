"""`Parts`: a network that is not timm's, told in three pieces how it ends."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Optional, Union

import torch
import torch.nn as nn
from timm.utils.model import unwrap_model
from torch import Tensor

from ..errors import SettingError

LAYOUTS = ('NCHW', 'NHWC', 'NLC')


@dataclass(frozen=True)
class Parts:
    """How a network that is not timm's becomes logits: `classifier(embed(features(images)))`.

        parts = timm_multimix.Parts(
            features=lambda net, x: net.layer4(net.layer3(net.layer2(net.layer1(net.maxpool(net.relu(net.bn1(
                net.conv1(x)))))))),
            embed=lambda net, f: net.avgpool(f).flatten(1),
            classifier='fc')
        model = timm_multimix.wrap(torchvision.models.resnet18(num_classes=10), 'dense', parts=parts)

    A network of sequences, such as of texts of unlike lengths, also says which positions there are:

        parts = timm_multimix.Parts(
            features=lambda net, ids: net.encode(ids),                                        # (B, P, D)
            embed=lambda net, f, mask: (f * mask[..., None]).sum(1) / mask.sum(1, keepdim=True),
            classifier='fc', layout='NLC', mask=lambda net, ids: ids != PADDING, example=torch.ones(1, 8).long())
        model = timm_multimix.wrap(net, 'dense', preset='embeddings', parts=parts)

    The functions are given the network, so that its copies (averaged weights, replicas) run their own layers. A
    network that has timm's methods (`forward_features`, `forward_head` with `pre_logits`, `get_classifier`, and
    `num_classes`) needs none of this. What it takes is one tensor, batch first.

    Attributes:
        features: (network, images) → features that still have positions.
        embed: (network, features) → embeddings (B, D) that the classifier takes, pooled. It is also given single
            positions as feature maps of their own, (B·P, D, 1, 1) or as `layout` has it, and must take them. With
            `mask` it is given the mask as well.
        classifier: the name of the last linear layer, as in `named_modules()`.
        layout: of the features: 'NCHW', 'NHWC', or 'NLC' for tokens.
        prefix_tokens: tokens in front of the patch tokens that are no positions ('NLC' only).
        mask: (network, images) → (B, P), bool, True where a position exists, without prefix tokens. None: all do.
        example: an input of one example to try the network with, (1, …), where it takes no images. Its values should
            differ from each other.
    """
    features: Callable[[Any, Tensor], Tensor]
    embed: Callable[..., Tensor]
    classifier: str
    layout: str = 'NCHW'
    prefix_tokens: int = 0
    mask: Optional[Callable[[Any, Tensor], Tensor]] = None
    example: Optional[Tensor] = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in ('features', 'embed', *(('mask',) if self.mask is not None else ())):
            if not callable(getattr(self, name)):
                raise SettingError(f'{name} of Parts is {getattr(self, name)!r}, but it must be a function of the '
                                   f'network and a tensor.')
        if self.layout not in LAYOUTS:
            raise SettingError(f'layout of Parts is {self.layout!r}, but it must be one of {", ".join(LAYOUTS)}.')
        if self.example is not None and (not isinstance(self.example, Tensor) or self.example.ndim < 1
                                         or len(self.example) != 1):
            given = tuple(self.example.shape) if isinstance(self.example, Tensor) else repr(self.example)
            raise SettingError(f'example of Parts is {given}, but it must be a tensor of one example, (1, …).')


class TimmAdapter:
    """A network with `Parts`, answering to the names by which timm's models are asked; all else is the network's."""

    def __init__(self, net: nn.Module, parts: Parts) -> None:
        self.net, self.parts = net, parts
        try:
            leaf = net.get_submodule(parts.classifier)
        except AttributeError as e:
            raise SettingError(f'classifier of Parts is {parts.classifier!r}, but {type(net).__name__} has no such '
                               f'layer. Its last ones: {", ".join([n for n, _ in net.named_modules()][-4:])}.') from e
        if not isinstance(leaf, (nn.Linear, nn.Conv2d)):
            raise SettingError(f'classifier of Parts is {parts.classifier!r}, a {type(leaf).__name__}, but it must '
                               f'name the last linear layer itself.')
        self.num_classes = leaf.out_features if isinstance(leaf, nn.Linear) else leaf.out_channels
        self.output_fmt, self.num_prefix_tokens = parts.layout, parts.prefix_tokens

    def __getattr__(self, name: str) -> Any:
        if name == 'net':  # while being copied
            raise AttributeError(name)
        return getattr(self.net, name)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.parts.features(self.net, x)

    def mask_of(self, x: Tensor) -> Optional[Tensor]:
        """Which positions exist, (B, P); None where all do."""
        return None if self.parts.mask is None else self.parts.mask(self.net, x)

    def forward_head(self, features: Tensor, pre_logits: bool = False, mask: Optional[Tensor] = None) -> Tensor:
        if self.parts.mask is None:
            z = self.parts.embed(self.net, features)
        else:  # single positions exist
            there = torch.ones(_positions(features, self.parts), dtype=torch.bool, device=features.device)
            z = self.parts.embed(self.net, features, there if mask is None else mask)
        return z if pre_logits else self.get_classifier()(z)  # type: ignore[no-any-return]

    def get_classifier(self) -> nn.Module:
        return self.net.get_submodule(self.parts.classifier)


def _positions(features: Tensor, parts: Parts) -> tuple[int, int]:
    """(B, P) of features."""
    B, *sizes = features.shape
    if len(sizes) == 2:
        return B, sizes[0] - parts.prefix_tokens
    return B, sizes[-1] * sizes[-2] if parts.layout == 'NCHW' else sizes[0] * sizes[1]


Model = Union[nn.Module, TimmAdapter]


def adapter_of(model: Model) -> Any:
    """What answers to timm's names: the model, from under DDP, torch.compile and EMA, or a wrapped one's `Parts`."""
    plain = unwrap_model(model)
    return getattr(getattr(plain, 'multimix', None), 'timm_adapter', plain)
