"""WRN-16-8, registered with timm as `wideresnet16_8` (timm's `wide_resnet50_2` is another family).

Zagoruyko, Komodakis, *Wide Residual Networks* (arXiv 1605.07146): pre-activation basic blocks, three stages of
(16 − 4) / 6 = 2 blocks, 8 times as wide as 16, 32 and 64 channels, behind a stem of 16.
"""
from __future__ import annotations

from typing import Any

import torch.nn as nn
from timm.models import generate_default_cfgs, register_model

from .preact_resnet import cfg, create

default_cfgs = generate_default_cfgs({'wideresnet16_8': {**cfg(), 'pool_size': (8, 8)}})


@register_model
def wideresnet16_8(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """WRN-16-8 for 32-pixel images: 10.96 M parameters with 10 classes, 8×8 positions."""
    return create('wideresnet16_8', pretrained, depths=(2, 2, 2), widths=(128, 256, 512), stem_chs=16, **kwargs)
