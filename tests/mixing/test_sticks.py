"""Mixtures as a few sticks and a shared rest: the distribution, and the engine that looks rows up."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from tests.mixing.test_loss import values_and_grads
from timm_multimix import mixed_cross_entropy
from timm_multimix.mixing import LamSampler, reference
from timm_multimix.mixing.dirichlet import TAILS, Sticks
from timm_multimix.mixing.engines import sticks as engine


@pytest.mark.parametrize(('alpha', 'batch', 'dtype'), [
    (1 / 128, 128, torch.float32), (0.02, 128, torch.float64), (0.05, 60, torch.float32), (2.0, 5, torch.float32)])
def test_each_vector_is_of_the_whole_distribution(alpha: float, batch: int, dtype: torch.dtype) -> None:
    """Though few of its sticks are its own: one component, and the joint distribution, against a Dirichlet's."""
    n = 6000
    sampler = LamSampler(1, n, batch, alpha, torch.Generator().manual_seed(1), dtype=dtype)
    lam = sampler.draw_sticks(n, 1).dense()[:, 0].double().numpy()  # of one position each: nothing is shared
    true = np.random.default_rng(0).dirichlet([alpha] * batch, n)
    for view in (lambda x: x.max(1), lambda x: np.sort(x, 1)[:, -2], lambda x: (x**2).sum(1),
                 lambda x: np.maximum(x[:, 0], 1e-5), lambda x: np.log(np.sort(x, 1)[:, -4] + 1e-6)):
        assert stats.ks_2samp(view(lam), view(true)).pvalue > 1e-3


@pytest.mark.parametrize('alpha', [1 / 256, 1 / 64, 1.0])
def test_little_is_shared(alpha: float) -> None:
    sampler = LamSampler(4000, 1, 128, alpha, torch.Generator().manual_seed(1))
    sticks = sampler.draw_sticks(1, 4000)
    assert sticks.tails.shape == (1, TAILS, 128)
    assert (sticks.example[..., -1] >= 128).all() and (sticks.example[..., :-1] < 128).all()
    assert sticks.example[..., -1].unique().numel() == TAILS
    assert float(sticks.share[..., -1].square().mean()) < 2**-11
    torch.testing.assert_close(sticks.dense().sum(-1), torch.ones(1, 4000))


def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Sticks]:
    """The sticks that a loss draws from now on."""
    found: list[Sticks] = []
    draw = LamSampler.draw_sticks
    monkeypatch.setattr(LamSampler, 'draw_sticks', lambda self, p, n: found.append(draw(self, p, n)) or found[-1])
    return found


@pytest.mark.parametrize(('tile', 'rows'), [(1 << 20, 1), (400, 1), (64, 7), (1000, 1)])
@pytest.mark.parametrize('C', [5, 150])
@pytest.mark.parametrize('spread', [1, 300, 1e5])  # of logits; where it is large, all powers of a mixture underflow
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_tiles_and_distant_logits(
        tile: int, rows: int, C: int, spread: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tile of several positions, of some mixtures of one, in several blocks of classes; the last of them smaller."""
    monkeypatch.setitem(engine.TILE, 'cpu', tile)
    monkeypatch.setattr(engine, 'ROWS', rows)
    compare(C, spread, dtype, (64, 3, 40), monkeypatch)


def test_more_places_than_16_bits_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    compare(5, 1, torch.float64, (64, 600, 4), monkeypatch)


def compare(C: int, spread: float, dtype: torch.dtype, shape: tuple[int, int, int],
            monkeypatch: pytest.MonkeyPatch) -> None:
    B, P, N = shape
    L, y, a = spread * torch.randn(B, P, C, dtype=dtype), torch.arange(B) % C, torch.rand(B, P, dtype=dtype)
    found = drawn(monkeypatch)
    got = values_and_grads(
        lambda L: mixed_cross_entropy(L, y, LamSampler(N, P, B, 0.5 / B, dtype=dtype), a), L)
    sticks, = found
    eye = torch.eye(C, dtype=torch.float64)
    want = values_and_grads(lambda L: reference.dense_multimix_loss(
        L, eye[y], sticks.dense().transpose(0, 1).double(), a.double(), eye, 0 * eye[0]), L.double())
    for x, t in zip(got, want):
        tolerance = (1e-5 if dtype == torch.float32 else 1e-11) * max(1.0, spread / 10)
        assert float((x - t).abs().max()) <= tolerance * float(t.abs().max())


def test_the_value_alone_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    found = drawn(monkeypatch)
    L, y = torch.randn(64, 3, 100), torch.arange(64)

    def loss(L: Tensor) -> Tensor:
        return mixed_cross_entropy(L, y, LamSampler(40, 3, 64, 0.01, torch.Generator().manual_seed(0)))

    torch.testing.assert_close(loss(L), loss(L.requires_grad_()).detach())
    assert len(found) == 2
