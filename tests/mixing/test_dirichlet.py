"""Interpolation vectors: exact distribution, reproducible, never degenerate."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from timm_multimix import SettingError, sample_lam
from timm_multimix.mixing import LamSampler, effective_examples


@given(n=st.integers(1, 30), positions=st.integers(1, 5), batch=st.integers(1, 40),
       alpha=st.floats(1e-3, 50), seed=st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_rows_lie_on_the_simplex(n: int, positions: int, batch: int, alpha: float, seed: int) -> None:
    lam = sample_lam(n, positions, batch, alpha, torch.Generator().manual_seed(seed))
    assert lam.shape == (n, positions, batch) and lam.dtype == torch.float32
    assert torch.isfinite(lam).all() and (lam >= 0).all()
    torch.testing.assert_close(lam.sum(-1), torch.ones(n, positions))


# Sticks (with 24 bits and 53), gammas in logarithms, gammas, exponentials; a batch of one has nothing to share out.
@pytest.mark.parametrize(('alpha', 'batch', 'dtype', 'sticks'), [
    (0.01, 8, torch.float32, True), (1 / 128, 128, torch.float32, True), (0.02, 128, torch.float64, True),
    (0.05, 128, torch.float32, True), (0.3, 8, torch.float32, False), (0.3, 40, torch.float64, False),
    (0.5, 8, torch.float32, False), (1.0, 8, torch.float32, False), (2.5, 8, torch.float64, False)])
def test_marginals_are_beta(alpha: float, batch: int, dtype: torch.dtype, sticks: bool) -> None:
    n = 6000
    sampler = LamSampler(n, 1, batch, alpha, torch.Generator().manual_seed(3), dtype=dtype)
    assert bool(sampler.sticks) == sticks
    lam = sampler.draw(1, n)[0].double().numpy()
    beta = stats.beta(alpha, (batch - 1) * alpha)
    for found in (lam[:, 0], lam[:, batch - 1]):
        # Where α is tiny, so are most weights; only their logarithm, not they, would tell such distributions apart.
        x = np.sort(found)
        told = (x > 1e-5) & (x < 1 - 1e-5)
        steps = np.arange(n + 1) / n
        distance = max(abs(beta.cdf(x) - steps[1:])[told].max(), abs(beta.cdf(x) - steps[:-1])[told].max())
        p = stats.kstwo(n).sf(distance)
        assert p > 1e-3, f'Dir({alpha}) of {batch} is not Beta in one component: p = {p}'


@pytest.mark.parametrize(('alpha', 'batch'), [(1 / 128, 128), (0.05, 60), (1.0, 60), (0.7, 60)])
def test_the_largest_weights_are_those_of_gammas(alpha: float, batch: int) -> None:
    """The joint distribution, beyond one component: largest, second, and Σλ² against the definition of a Dirichlet."""
    n = 6000
    lam = sample_lam(n, 1, batch, alpha, torch.Generator().manual_seed(0))[:, 0].numpy()
    true = np.random.default_rng(0).dirichlet([alpha] * batch, n)
    for view in (lambda x: x.max(1), lambda x: np.sort(x, 1)[:, -2], lambda x: (x**2).sum(1)):
        assert stats.ks_2samp(view(lam), view(true)).pvalue > 1e-3


@pytest.mark.parametrize(('alpha', 'batch'), [(1 / 128, 128), (0.2, 8), (0.7, 8), (1.0, 8)])
def test_as_on_an_accelerator(alpha: float, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """There torch draws, and α is not read."""
    monkeypatch.setattr(LamSampler, '_streams', lambda self: None)
    generator = torch.Generator().manual_seed(5)
    lam = sample_lam(6000, 1, batch, alpha, generator)[:, 0].double().numpy()
    again = sample_lam(6000, 1, batch, alpha, generator.manual_seed(5))[:, 0].double().numpy()
    assert (lam == again).all()
    true = np.random.default_rng(0).dirichlet([alpha] * batch, 6000)
    for view in (lambda x: x.max(1), lambda x: (x**2).sum(1), lambda x: np.maximum(x[:, 0], 1e-5)):
        assert stats.ks_2samp(view(lam), view(true)).pvalue > 1e-3


def test_examples_are_treated_alike() -> None:
    lam = sample_lam(20_000, 1, 16, 0.02, torch.Generator().manual_seed(0))[:, 0]
    wins = torch.bincount(lam.argmax(1), minlength=16).numpy()
    assert stats.chisquare(wins).pvalue > 1e-3


@pytest.mark.parametrize('alpha', [0.05, 1.0, 3.0])
def test_moments(alpha: float) -> None:
    B = 6
    lam = sample_lam(40_000, 1, B, alpha, torch.Generator().manual_seed(1))[:, 0].double()
    torch.testing.assert_close(lam.mean(0), torch.full((B,), 1 / B, dtype=torch.float64), atol=6e-3, rtol=0)
    square = (alpha + 1) / (B * alpha + 1)  # E[Σλ²]
    assert abs(float(lam.square().sum(1).mean()) / square - 1) < 0.02
    covariance = -1 / (B * B * (B * alpha + 1))
    centred = lam - 1 / B
    assert abs(float((centred[:, 0] * centred[:, 1]).mean()) / covariance - 1) < 0.1


@pytest.mark.parametrize(('alpha', 'm'), [(0.7, 8), (1.0, 8), (0.3, 5)])
def test_many_are_few_in_other_orders_of_the_examples(alpha: float, m: int) -> None:
    sampler = LamSampler(8001, 2, 8, alpha, torch.Generator().manual_seed(2), m=m)
    lam = sampler.draw_many(2, 8001)
    assert lam.shape == (2, 8001, 8)
    true = sampler.draw(1, 8001)[0, :, 0]
    weights = lam.sort(-1).values
    for start in range(0, 8001, 2001):  # each of these alone is of independent vectors
        for example in (0, 5):
            assert stats.ks_2samp(lam[1, start:start + 2000, example].numpy(), true.numpy()).pvalue > 1e-3
        assert (weights[0, start:start + 1998] == weights[0, :1998]).all()
    assert len(lam.flatten(0, 1).unique(dim=0)) == 16002
    wins = torch.bincount(lam.flatten(0, 1).argmax(1), minlength=8).numpy()
    assert stats.chisquare(wins).pvalue > 1e-3


def test_few_vectors_and_unequal_shares_have_weights_of_their_own() -> None:
    seed = torch.Generator().manual_seed(0)
    few = LamSampler(100, 3, 8, 1.0, seed).draw_many(3, 100)
    uneven = LamSampler(500, 1, 8, 1.0, seed, shares=torch.arange(1., 9)).draw_many(1, 500)
    within = LamSampler(500, 1, 8, 1.0, seed, classes=torch.arange(8) % 3, tuples='within').draw_many(1, 500)
    for lam, rows in ((few, 300), (uneven, 500), (within, 500)):
        assert len(lam.flatten(0, 1).sort(-1).values.unique(dim=0)) == rows
    torch.testing.assert_close(uneven.mean((0, 1)), torch.arange(1., 9) / 36, atol=0.02, rtol=0)


def test_positions_and_tuples_are_independent_draws() -> None:
    lam = sample_lam(50, 4, 8, 1.0, torch.Generator().manual_seed(0))
    assert len(lam.flatten(0, 1).unique(dim=0)) == 200


def test_a_range_draws_one_alpha_per_call() -> None:
    generator = torch.Generator().manual_seed(0)
    means = [float(effective_examples(sample_lam(400, 1, 64, (0.05, 5.0), generator)).mean()) for _ in range(12)]
    assert max(means) / min(means) > 1.3  # between calls α differs …
    one = effective_examples(sample_lam(4000, 1, 64, (0.05, 5.0), generator))[:, 0]
    assert abs(float(one[:2000].mean() / one[2000:].mean()) - 1) < 0.05  # … within a call it does not


@given(batch=st.integers(1, 20), data=st.data())
@settings(max_examples=30, deadline=None)
def test_m_examples_per_tuple(batch: int, data: st.DataObject) -> None:
    m = data.draw(st.integers(1, batch))
    lam = sample_lam(40, 3, batch, 1.0, torch.Generator().manual_seed(batch), m=m)
    assert ((lam > 0).sum(-1) == m).all()
    torch.testing.assert_close(lam.sum(-1), torch.ones(40, 3))


def test_every_example_is_chosen_equally_often() -> None:
    lam = sample_lam(6000, 1, 10, 1.0, torch.Generator().manual_seed(0), m=3)
    counts = (lam[:, 0] > 0).sum(0).numpy()
    assert stats.chisquare(counts).pvalue > 1e-3


def test_same_generator_same_draw() -> None:
    a, b = (sample_lam(5, 2, 7, (0.5, 2.0), torch.Generator().manual_seed(9), m=4) for _ in range(2))
    assert torch.equal(a, b)
    assert not torch.equal(a, sample_lam(5, 2, 7, (0.5, 2.0), torch.Generator().manual_seed(10), m=4))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype(dtype: torch.dtype) -> None:
    assert sample_lam(3, 1, 4, 0.01, dtype=dtype).dtype == dtype


@pytest.mark.parametrize('kwargs, words', [
    (dict(n=0), 'n is 0'), (dict(batch=0), 'batch is 0'), (dict(positions=0), 'positions is 0'),
    (dict(alpha=0.0), 'alpha is 0.0'), (dict(alpha=-1.0), 'alpha'), (dict(alpha=(2.0, 1.0)), 'smaller end'),
    (dict(alpha=float('nan')), 'alpha'), (dict(m=9), 'a batch of 8 has no 9'), (dict(m=0), 'm is 0'),
])
def test_bad_input(kwargs: dict, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        sample_lam(**{'n': 4, 'positions': 1, 'batch': 8, 'alpha': 1.0, **kwargs})
