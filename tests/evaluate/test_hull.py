"""Where mixtures lie, in cases that are known."""
from __future__ import annotations

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from timm_multimix import SettingError
from timm_multimix.evaluate import Outputs, hull
from timm_multimix.evaluate.tables.hull import DEFAULT, PAIRS, PAPER, draw_lam, nearest, place, reach


def cloud(n: int = 300, d: int = 6, classes: int = 4) -> Outputs:
    g = torch.Generator().manual_seed(0)
    target = torch.arange(n) % classes
    z = torch.randn(n, d, generator=g) + 3 * F.one_hot(target, d)
    return Outputs(torch.zeros(n, classes), target, z)


def test_ends_of_the_hull() -> None:
    Z, Y = cloud(20).embedding.double(), F.one_hot(torch.arange(20) % 4).double()
    corners, middle = torch.eye(20).double(), torch.full((3, 20), 1 / 20, dtype=torch.float64)
    at = place(Z, Y, corners, corners @ Z)
    assert at == pytest.approx({'effective examples': 1, 'to nearest example': 0, 'to mean': 1, 'target entropy': 0})
    at = place(Z, Y, middle, middle @ Z)
    radius = (Z - Z.mean(0)).norm(dim=1)
    assert at == pytest.approx({'effective examples': 20, 'to mean': 0, 'target entropy': 1,
                                'to nearest example': float(radius.min() / radius.mean())}, abs=1e-7)


def test_a_pair_by_hand() -> None:
    """Examples at 0, 4 and 8 on a line, the first two mixed 3 : 1."""
    Z, Y = torch.tensor([[0.0], [4], [8]]).double(), torch.eye(3).double()
    lam = torch.tensor([[0.75, 0.25, 0]]).double()
    at = place(Z, Y, lam, lam @ Z)  # at 1; the mean is 4, distances to it 4, 0, 4
    assert at['to nearest example'] == pytest.approx(1 / (8 / 3)) and at['to mean'] == pytest.approx(3 / (8 / 3))
    assert at['effective examples'] == pytest.approx(1 / (0.75 ** 2 + 0.25 ** 2))
    entropy = -(0.75 * torch.tensor(0.75).log() + 0.25 * torch.tensor(0.25).log())
    assert at['target entropy'] == pytest.approx(float(entropy / torch.tensor(3.0).log()))
    assert reach(Z, lam @ Z, torch.tensor([[1.0], [5]]).double()) == pytest.approx((0 + 4) / (1 + 1))


def test_nearest() -> None:
    x, points = torch.randn(300, 4).double(), torch.randn(50, 4).double()
    torch.testing.assert_close(nearest(x, points), (x[:, None] - points).norm(dim=2).amin(1))
    assert float(nearest(points + 1000, points + 1000).max()) == 0  # no rounding of large inner products


def test_draws() -> None:
    lam = draw_lam(200, 16, (0.01, 2.0), 4, torch.Generator().manual_seed(0))
    assert lam.shape == (200, 16) and lam.dtype == torch.float64
    torch.testing.assert_close(lam.sum(1), torch.ones(200).double())
    assert int((lam > 0).sum(1).max()) <= 4


def test_table() -> None:
    """More α, more of the batch, nearer to the mean, less of a class; more mixtures reach further."""
    table = hull(nn.Identity(), cloud(), batch=64, n=300, ns=(10, 100, 1000), batches=2)
    curve = table.data['over_alpha']['64']
    for what, sign in (('effective examples', 1), ('target entropy', 1), ('to mean', -1)):
        steps = torch.tensor(curve[what]).diff() * sign
        assert bool((steps > -0.02).all()), what
    pairs = table.data['over_alpha']['2']
    assert max(pairs['effective examples']) <= 2
    for preset in (PAIRS, DEFAULT, PAPER):
        reached = table.data['over_n'][preset]['reach']
        assert reached[0] > reached[1] > reached[2]
    assert 1.5 < table[f'{DEFAULT} | effective examples'] < 4
    assert table[f'{PAPER} | effective examples'] > 25 and table[f'{PAPER} | target entropy'] > 0.9
    # E[Σλ²] of Dir(α) over m is (α + 1)/(mα + 1); for pairs and α = 1 the mean of 1/Σλ² is π/2
    assert table[f'{PAIRS} | effective examples'] == pytest.approx(torch.pi / 2, rel=0.03)


@pytest.mark.parametrize('settings, says', [
    ({'batch': 1}, 'batch is 1'), ({'batch': 299}, 'batch is 299'), ({'batches': 0}, 'batches is 0'),
    ({'n': 0}, 'n is 0'), ({'ms': (300,), 'batch': 64}, 'm is 300'), ({'alphas': (0.0,), 'batch': 64}, 'alpha is')])
def test_settings(settings: dict, says: str) -> None:
    with pytest.raises(SettingError, match=says):
        hull(nn.Identity(), cloud(), **settings)
