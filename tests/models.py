"""Real timm models of every kind of ending, small."""
from __future__ import annotations

import warnings
from typing import Any

import timm
import torch
import torch.nn as nn

from timm_multimix import MultiMixModel, wrap

# timm's name, arguments, side of the images in pixels
MODELS: dict[str, tuple[str, dict[str, Any], int]] = {
    'vit class token': ('test_vit', {'img_size': 64}, 64),
    'vit averaged': ('test_vit2', {'img_size': 64}, 64),
    'vit attention pool': ('test_vit3', {'img_size': 64}, 64),
    'vit_small': ('vit_small_patch16_224', {'img_size': 32, 'depth': 2}, 32),
    'resnet': ('test_resnet', {}, 64),
    'resnet18': ('resnet18', {'output_stride': 8}, 32),
    'convnext': ('test_convnext', {}, 64),
    'swin': ('swin_tiny_patch4_window7_224', {'img_size': 64, 'depths': (1, 1, 1, 1)}, 64),
    'nhwc mlp head': ('test_mambaout', {}, 64),
    'conv head': ('mobilenetv3_small_050', {}, 64),
    'batch norm in the head': ('efficientvit_b0', {}, 64),
}


IMAGES = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TARGET = torch.arange(8) % 5


def a_resnet(mode: str = 'multimix', **kwargs: Any) -> MultiMixModel:
    """For IMAGES and TARGET."""
    return wrap(timm.create_model('test_resnet', num_classes=5), mode, **{'n': 10, **kwargs})


def build(name: str, **kwargs: Any) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    timm_name, args, side = MODELS[name]
    model = timm.create_model(timm_name, num_classes=5, **args, **kwargs)
    return model, torch.randn(6, 3, side, side), torch.tensor([0, 1, 2, 3, 4, 0])


def quiet_wrap(model: nn.Module, *args: Any, **kwargs: Any) -> MultiMixModel:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return wrap(model, *args, **{'n': 20, 'preset': 'embeddings', **kwargs})
