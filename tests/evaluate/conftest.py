"""Small models and loaders that several tests share."""
from __future__ import annotations

import pytest
import timm
import torch
import torch.nn as nn
from torch import Tensor


def batches(images: Tensor, target: Tensor, size: int = 16) -> list[tuple[Tensor, Tensor]]:
    return list(zip(images.split(size), target.split(size)))


@pytest.fixture(scope='module')
def resnet() -> nn.Module:
    """A tiny ResNet with 4×4 positions at 32 pixels, untrained, with statistics of its own images."""
    torch.manual_seed(0)
    model = timm.create_model('test_resnet', num_classes=10, output_stride=8)
    with torch.no_grad():
        model.train()
        for _ in range(20):
            model(torch.randn(32, 3, 32, 32))
    return model.eval()


@pytest.fixture
def loader() -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    return batches(torch.randn(80, 3, 32, 32, generator=g), torch.arange(80) % 10)
