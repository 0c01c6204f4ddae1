"""Alignment, uniformity, distances and Fisher ratio against torch.pdist and by hand."""
from __future__ import annotations

import math

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from tests.evaluate.test_accuracy import random_outputs
from timm_multimix import SettingError
from timm_multimix.evaluate import Outputs, embedding
from timm_multimix.evaluate.tables.embedding import CHUNK, fisher_ratio, pair_figures


def unit(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1)


@pytest.mark.parametrize('n', [40, CHUNK + 7])
def test_against_all_pairs(n: int) -> None:
    z, target = unit(n, 5), torch.arange(n) % 4
    found = pair_figures(z, target)
    i, j = torch.triu_indices(n, n, 1)
    distance, alike = torch.pdist(z), target[i] == target[j]
    assert found['alignment'] == pytest.approx(float(distance[alike].square().mean()))
    assert found['uniformity'] == pytest.approx(float(distance.square().mul(-2).exp().mean().log()))
    assert found['within-class distance'] == pytest.approx(float(distance[alike].mean()))
    assert found['between-class distance'] == pytest.approx(float(distance[~alike].mean()))


def test_by_hand() -> None:
    """Two classes of two: one at (1, 0) twice, one at (0, 1) and (0, −1)."""
    z = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, -1]]).double()
    target = torch.tensor([5, 5, 9, 9])  # classes need not be 0, 1, …
    found = pair_figures(z, target)
    assert found['alignment'] == pytest.approx((0 + 4) / 2)
    assert found['within-class distance'] == pytest.approx((0 + 2) / 2)
    assert found['between-class distance'] == pytest.approx(math.sqrt(2))
    assert found['uniformity'] == pytest.approx(math.log((1 + math.exp(-8) + 4 * math.exp(-4)) / 6))
    # class means (1, 0) and (0, 0), their mean (½, 0): between ¼, within (0 + 0 + 1 + 1)/4
    assert fisher_ratio(z, target) == pytest.approx(0.25 / 0.5)


def test_spread_and_collapsed() -> None:
    """Uniform on a sphere of many dimensions is near −4; a collapsed space is at 0, with nothing within a class."""
    assert pair_figures(unit(500, 300), torch.arange(500) % 2)['uniformity'] == pytest.approx(-4, abs=0.1)
    two = F.one_hot(torch.arange(50) % 2, 6).double()
    found = pair_figures(two, torch.arange(50) % 2)
    assert found['alignment'] == found['within-class distance'] == 0
    one = pair_figures(torch.ones(50, 1).double(), torch.arange(50) % 2)
    assert one['uniformity'] == pytest.approx(0)


def test_fisher_ratio_is_scatter_over_scatter() -> None:
    z, target = unit(60, 4), torch.arange(60) ** 2 % 5
    total = (z - z.mean(0)).square().sum()
    within = sum((z[target == c] - z[target == c].mean(0)).square().sum() for c in target.unique())
    assert fisher_ratio(z, target) == pytest.approx(float((total - within) / within))


def test_table() -> None:
    outputs = random_outputs(60, classes=3)
    table = embedding(nn.Identity(), outputs, map_images=40)
    scaled = Outputs(outputs.logits, outputs.target, 7 * outputs.embedding)  # the sphere forgets lengths
    assert embedding(nn.Identity(), scaled, map_images=0)['alignment'] == pytest.approx(table['alignment'], rel=1e-5)
    assert table.arrays['map'].shape == (40, 2)
    assert table['between / within'] == pytest.approx(
        table['between-class distance'] / table['within-class distance'])
    with pytest.raises(SettingError, match='one class only'):
        embedding(nn.Identity(), Outputs(outputs.logits, torch.zeros(60, dtype=torch.long), outputs.embedding))
    with pytest.raises(SettingError, match='no two of one class'):
        embedding(nn.Identity(), random_outputs(1, classes=3))
