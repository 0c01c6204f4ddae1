"""Pre-activation ResNets for small images, and PreActResNet-18, registered with timm as `preactresnet18`.

He, Zhang, Ren, Sun, *Identity Mappings in Deep Residual Networks* (arXiv 1603.05027): norm and activation come before
each convolution, and once more after the last block; a shortcut is the identity, or, where size or width change, a 1×1
convolution of the activated input. The stem is a 3×3 convolution that keeps the resolution. timm's own `ResNetV2` has
the same blocks, which are used here, behind a stem for 224 pixels that would leave one position of a 32-pixel image.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional, Union

import torch
import torch.nn as nn
from timm.layers import BatchNormAct2d, ClassifierHead, calculate_drop_path_rates, create_conv2d
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models.resnetv2 import DownsampleConv, PreActBasic
from torch import Tensor

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # as in the recipes, hparams/README.md


class Stage(nn.Sequential):
    """Blocks of one width, the first of which changes it and halves the resolution if `stride` is 2."""

    def __init__(self, in_chs: int, out_chs: int, stride: int, drop_path_rates: Sequence[float], **dd: Any) -> None:
        super().__init__(*(
            PreActBasic(in_chs if i == 0 else out_chs, out_chs, stride=stride if i == 0 else 1, drop_path_rate=rate,
                        conv_layer=create_conv2d, norm_layer=BatchNormAct2d, proj_layer=DownsampleConv, **dd)
            for i, rate in enumerate(drop_path_rates)))
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self, x)
        for block in self:
            x = block(x)
        return x


class PreActResNet(nn.Module):
    """Pre-activation ResNet of basic blocks: a 3×3 stem, stages at resolution 1, 1/2, 1/4, …, norm, pool, linear.

    With 32-pixel images three stages end in 8×8 positions and four in 4×4.

    Args:
        depths: blocks of each stage.
        widths: channels of each stage.
        stem_chs: channels of the stem.
        num_classes, in_chans, global_pool, drop_rate, drop_path_rate: as everywhere in timm.
    """

    def __init__(
            self,
            depths: Sequence[int],
            widths: Sequence[int],
            stem_chs: int = 64,
            num_classes: int = 10,
            in_chans: int = 3,
            global_pool: str = 'avg',
            drop_rate: float = 0.0,
            drop_path_rate: float = 0.0,
            device: Any = None,
            dtype: Any = None,
    ) -> None:
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate
        self.stem = nn.Conv2d(in_chans, stem_chs, 3, padding=1, bias=False, **dd)
        self.feature_info = [dict(num_chs=stem_chs, reduction=1, module='stem')]
        rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        stages, in_chs = [], stem_chs
        for i, width in enumerate(widths):
            stages.append(Stage(in_chs, width, 1 if i == 0 else 2, rates[i], **dd))  # type: ignore[arg-type]
            self.feature_info.append(dict(num_chs=width, reduction=2 ** i, module=f'stages.{i}'))
            in_chs = width
        self.stages = nn.Sequential(*stages)
        self.norm: nn.Module = BatchNormAct2d(in_chs, **dd)
        self.num_features = self.head_hidden_size = in_chs
        self.head = ClassifierHead(in_chs, num_classes, pool_type=global_pool, drop_rate=drop_rate, **dd)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode='fan_out', nonlinearity='relu')

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return dict(stem=r'^stem', blocks=r'^stages\.(\d+)' if coarse else [
            (r'^stages\.(\d+)\.(\d+)', None), (r'^norm', (99999,))])

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        for stage in self.stages:
            stage.grad_checkpointing = enable  # type: ignore[assignment]

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: Optional[str] = None) -> None:
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)
        # timm < 1.0.31 does not keep the device and number format
        self.head.to(device=self.stem.weight.device, dtype=self.stem.weight.dtype)

    def forward_intermediates(
            self,
            x: Tensor,
            indices: Optional[Union[int, list[int]]] = None,
            norm: bool = False,
            stop_early: bool = False,
            output_fmt: str = 'NCHW',
            intermediates_only: bool = False,
    ) -> Union[list[Tensor], tuple[Tensor, list[Tensor]]]:
        """As in timm: outputs of the stem (0) and the stages (1, …), the last one behind the norm with `norm`."""
        assert output_fmt == 'NCHW', 'Output shape must be NCHW.'
        take, last = feature_take_indices(1 + len(self.stages), indices)
        stages = self.stages[:last] if stop_early else self.stages
        x = self.stem(x)
        found = [x] if 0 in take else []
        for i, stage in enumerate(stages, start=1):
            x = stage(x)
            if i in take:
                found.append(self.norm(x) if norm and i == len(self.stages) else x)
        if intermediates_only:
            return found
        return self.norm(x) if len(stages) == len(self.stages) else x, found

    def prune_intermediate_layers(
            self, indices: Union[int, list[int]] = 1, prune_norm: bool = False, prune_head: bool = True) -> list[int]:
        """As in timm: drop what the outputs at `indices` do not need."""
        take, last = feature_take_indices(1 + len(self.stages), indices)
        shorter = last < len(self.stages)
        self.stages = self.stages[:last]
        if prune_norm or shorter:
            self.norm = nn.Identity()
        if prune_head or shorter:
            self.reset_classifier(0, '')
        return take

    def forward_features(self, x: Tensor) -> Tensor:
        return self.norm(self.stages(self.stem(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def cfg(**kwargs: Any) -> dict[str, Any]:
    """What timm wants to know about a model of 32-pixel images without published weights."""
    return dict(url='', num_classes=10, input_size=(3, 32, 32), pool_size=(4, 4), crop_pct=1.0,
                interpolation='bicubic', mean=CIFAR_MEAN, std=CIFAR_STD, first_conv='stem', classifier='head.fc',
                license='apache-2.0', **kwargs)


def create(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    stages = len(kwargs['depths'])
    return build_model_with_cfg(PreActResNet, variant, pretrained, feature_cfg=dict(
        out_indices=tuple(range(1 + stages)), flatten_sequential=True), **kwargs)


default_cfgs = generate_default_cfgs({'preactresnet18': cfg()})


@register_model
def preactresnet18(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """PreActResNet-18 for 32-pixel images: 11.17 M parameters with 10 classes, 4×4 positions."""
    return create('preactresnet18', pretrained, depths=(2, 2, 2, 2), widths=(64, 128, 256, 512), **kwargs)
