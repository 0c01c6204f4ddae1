"""torchvision's detectors on a timm backbone."""
from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn as nn
from timm.layers import freeze_batch_norm_2d
from torch import Tensor
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from ...errors import SettingError, in_words
from ...heads.positions import evaluating
from ...wrapper import unwrap


class Pyramid(nn.Module):
    """The last feature map of each resolution of a timm model: images (B, 3, H, W) → {'0': (B, C, h, w), …}.

    A copy: the classifier is dropped and batch norms are frozen, as is usual for the few images of a batch of
    detection. Coarser maps come later.

    Args:
        model: a timm model with `forward_intermediates`, wrapped or not.
        size: of a square image to find its resolutions with.
        levels: at most so many, the coarsest, of a quarter of the image's resolution or less.

    Raises:
        SettingError: no intermediate features, or all of one resolution.
    """

    def __init__(self, model: nn.Module, size: int, levels: int) -> None:
        super().__init__()
        plain = unwrap(model)
        name = type(plain).__name__
        if not hasattr(plain, 'forward_intermediates'):
            raise SettingError(f'{name} has no forward_intermediates(), so it cannot be the backbone of a detector.')
        net: Any = copy.deepcopy(plain).cpu()
        if getattr(net, 'num_classes', 0):
            net.reset_classifier(0)
        net = freeze_batch_norm_2d(net)
        with evaluating(net), torch.no_grad():
            try:
                maps = net.forward_intermediates(torch.zeros(1, 3, size, size), output_fmt='NCHW',
                                                 intermediates_only=True)
            except Exception as e:  # such as a fixed image size
                raise in_words(f'{name} cannot take images of {size}×{size}, so it cannot be the backbone of a '
                               f'detector of that size: {e}', e) from e
        # a later map of the same size replaces; finer ones than a quarter cost much and are not usual
        last = {x.shape[-1]: (i, x.shape[1]) for i, x in enumerate(maps) if x.shape[-1] * 4 <= size}
        chosen = sorted(last.items(), reverse=True)[-levels:]
        if len(chosen) < 2:
            raise SettingError(f'{name} has features of one resolution only, but these detectors need a pyramid: use '
                               f'a network with stages, such as a ResNet, ConvNeXt or Swin.')
        self.net = net
        self.indices = [i for _, (i, _) in chosen]
        self.channels = [c for _, (_, c) in chosen]
        self.strides = [round(size / side) for side, _ in chosen]

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        maps = self.net.forward_intermediates(images, indices=self.indices, output_fmt='NCHW', intermediates_only=True)
        return OrderedDict((str(i), x) for i, x in enumerate(maps))


class _WithFPN(nn.Module):
    def __init__(self, pyramid: Pyramid, channels: int = 256) -> None:
        super().__init__()
        self.pyramid, self.out_channels = pyramid, channels
        self.fpn = FeaturePyramidNetwork(pyramid.channels, channels, LastLevelMaxPool())

    def forward(self, images: Tensor) -> Any:
        return self.fpn(self.pyramid(images))


class _WithExtras(nn.Module):
    """SSD's own coarser maps behind the backbone's, each half the size, down to one position."""

    def __init__(self, pyramid: Pyramid, size: int) -> None:
        super().__init__()
        self.pyramid = pyramid
        self.extras = nn.ModuleList()
        channels, side = pyramid.channels[-1], -(-size // pyramid.strides[-1])
        while side > 1:
            wide = max(64, min(256, channels // 2))
            self.extras.append(nn.Sequential(
                nn.Conv2d(channels, wide // 2, 1), nn.ReLU(inplace=True),
                nn.Conv2d(wide // 2, wide, 3, stride=2, padding=1), nn.ReLU(inplace=True)))
            channels, side = wide, -(-side // 2)
        for layer in self.extras.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        maps = self.pyramid(images)
        x = next(reversed(maps.values()))
        for i, extra in enumerate(self.extras):
            x = extra(x)
            maps[f'extra{i}'] = x
        return maps


def faster_rcnn(model: nn.Module, num_classes: int, size: int, mean: Sequence[float], std: Sequence[float],
                **kwargs: Any) -> nn.Module:
    """Faster R-CNN (arXiv 1506.01497) with a feature pyramid (arXiv 1612.03144) on the last four resolutions.

    Args:
        model: the timm backbone, wrapped or not; copied.
        num_classes: without the background.
        size: shorter side of the images, in pixels; the longer is at most 5/3 of it.
        mean, std: of the backbone's images.
        **kwargs: further arguments of torchvision's `FasterRCNN`, such as box_batch_size_per_image.
    """
    pyramid = Pyramid(model, size, 4)
    # 32 pixels for stride 4 and twice as much a level, as the sources have it
    anchors = [8 * s for s in pyramid.strides]
    anchors.append(2 * anchors[-1])
    return FasterRCNN(
        _WithFPN(pyramid), num_classes + 1, min_size=size, max_size=size * 5 // 3, image_mean=list(mean),
        image_std=list(std), rpn_anchor_generator=AnchorGenerator(tuple((a,) for a in anchors),
                                                                  ((0.5, 1.0, 2.0),) * len(anchors)),
        box_roi_pool=MultiScaleRoIAlign([str(i) for i in range(len(pyramid.channels))], 7, 2), **kwargs)


def ssd(model: nn.Module, num_classes: int, size: int, mean: Sequence[float], std: Sequence[float],
        **kwargs: Any) -> nn.Module:
    """SSD (arXiv 1512.02325) on the last three resolutions and coarser ones of its own; images are size × size.

    Arguments as of `faster_rcnn`.
    """
    backbone = _WithExtras(Pyramid(model, size, 3), size)
    levels = len(backbone.pyramid.channels) + len(backbone.extras)
    aspects = [[2]] + [[2, 3]] * max(0, levels - 3) + [[2]] * min(2, levels - 1)
    return SSD(backbone, DefaultBoxGenerator(aspects), (size, size), num_classes + 1, image_mean=list(mean),
               image_std=list(std), **kwargs)


DETECTORS = {'faster_rcnn': faster_rcnn, 'ssd': ssd}
# torchvision's take any argument and drop those they do not know
ARGUMENTS = {'faster_rcnn': tuple(inspect.signature(FasterRCNN).parameters),
             'ssd': tuple(inspect.signature(SSD).parameters)}
