"""`Parts`: a network that is not timm's, told in three pieces how it ends."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Union

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

    The functions are given the network, so that its copies (averaged weights, replicas) run their own layers. A
    network that has timm's methods (`forward_features`, `forward_head` with `pre_logits`, `get_classifier`, and
    `num_classes`) needs none of this.

    Attributes:
        features: (network, images) → features that still have positions.
        embed: (network, features) → embeddings (B, D) that the classifier takes, pooled. It is also given single
            positions as feature maps of their own, (B·P, D, 1, 1) or as `layout` has it, and must take them.
        classifier: the name of the last linear layer, as in `named_modules()`.
        layout: of the features: 'NCHW', 'NHWC', or 'NLC' for tokens.
        prefix_tokens: tokens in front of the patch tokens that are no positions ('NLC' only).
    """
    features: Callable[[Any, Tensor], Tensor]
    embed: Callable[[Any, Tensor], Tensor]
    classifier: str
    layout: str = 'NCHW'
    prefix_tokens: int = 0

    def __post_init__(self) -> None:
        for name in ('features', 'embed'):
            if not callable(getattr(self, name)):
                raise SettingError(f'{name} of Parts is {getattr(self, name)!r}, but it must be a function of the '
                                   f'network and a tensor.')
        if self.layout not in LAYOUTS:
            raise SettingError(f'layout of Parts is {self.layout!r}, but it must be one of {", ".join(LAYOUTS)}.')


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

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        z = self.parts.embed(self.net, features)
        return z if pre_logits else self.get_classifier()(z)  # type: ignore[no-any-return]

    def get_classifier(self) -> nn.Module:
        return self.net.get_submodule(self.parts.classifier)


Model = Union[nn.Module, TimmAdapter]


def adapter_of(model: Model) -> Any:
    """What answers to timm's names: the model, from under DDP, torch.compile and EMA, or a wrapped one's `Parts`."""
    plain = unwrap_model(model)
    return getattr(getattr(plain, 'multimix', None), 'timm_adapter', plain)
