"""Mixtures of one class, and of one example of each: which examples, how much of them, and what it makes of targets."""
from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.mixing.test_values import ENGINES
from tests.models import build, quiet_wrap
from timm_multimix import MultiMixConfig, SettingError, mixed_cross_entropy, sample_lam
from timm_multimix.mixing import LamSampler, balanced_shares, extensions

CLASSES = torch.tensor([5, 5, 5, 5, 5, 0, 0, 0, 9, 9])


@given(seed=st.integers(0, 2**31), B=st.integers(2, 12), C=st.integers(1, 40), m=st.integers(1, 12),
       alpha=st.sampled_from([0.05, 0.4, 1.0, 3.0]), tuples=st.sampled_from(['within', 'across']))
@settings(max_examples=60, deadline=None)
def test_what_a_mixture_has(seed: int, B: int, C: int, m: int, alpha: float, tuples: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    m, classes = min(m, B), torch.randint(0, C, (B,), generator=generator)
    lam = sample_lam(50, 3, B, alpha, generator, m=m, classes=classes, tuples=tuples)
    torch.testing.assert_close(lam.sum(-1), torch.ones(50, 3))
    for row in lam.flatten(0, 1):
        has = classes[row > 0]
        assert len(has) <= m
        assert len(has.unique()) == (1 if tuples == 'within' else len(has))


@pytest.mark.parametrize('alpha', [0.1, 1.0])
def test_moments_are_those_of_the_equations(alpha: float) -> None:
    """Mean and mean square of λ: averages over the anchors, and over the choices of one example of each class."""
    Y, n = torch.nn.functional.one_hot(CLASSES).double(), 40_000
    one_of_each = [[a, b, c] for a in range(5) for b in range(5, 8) for c in (8, 9)]
    for tuples, drawn in (('within', [extensions.within(Y, alpha, b) for b in range(10)]),
                          ('across', [extensions.across(Y, alpha, list(chosen)) for chosen in one_of_each])):
        lam = sample_lam(n, 1, 10, alpha, torch.Generator().manual_seed(1), classes=CLASSES, tuples=tuples,
                         dtype=torch.float64)[:, 0]
        a, total = torch.stack(drawn), 10 * alpha
        torch.testing.assert_close(lam.mean(0), (a / total).mean(0), rtol=0, atol=0.01)
        square = a * (a + 1) / (total * (total + 1))
        torch.testing.assert_close(lam.square().mean(0), square.mean(0), rtol=0, atol=0.01)


def test_what_they_make_of_the_mixed_targets() -> None:
    Y = torch.nn.functional.one_hot(CLASSES).float()
    generator = torch.Generator().manual_seed(1)
    within = sample_lam(500, 1, 10, 0.4, generator, classes=CLASSES, tuples='within')[:, 0] @ Y
    assert within.max(1).values.min() > 1 - 1e-6  # one-hot
    even = sample_lam(20_000, 1, 10, 0.4, generator, classes=CLASSES, tuples='across')[:, 0] @ Y
    torch.testing.assert_close(even.mean(0)[[0, 5, 9]], torch.full((3,), 1 / 3), rtol=0, atol=0.01)
    few = sample_lam(20_000, 1, 10, 0.4, generator, m=2, classes=CLASSES, tuples='across')[:, 0]
    assert ((few > 0).sum(1) <= 2).all()
    torch.testing.assert_close((few @ Y).mean(0)[[0, 5, 9]], torch.full((3,), 1 / 3), rtol=0, atol=0.01)
    both = sample_lam(20_000, 1, 10, 0.4, generator, classes=CLASSES, tuples='within',
                      shares=balanced_shares(Y, 1.0))[:, 0] @ Y
    torch.testing.assert_close(both.mean(0)[[0, 5, 9]], torch.full((3,), 1 / 3), rtol=0, atol=0.015)


@pytest.mark.parametrize('mode', ['multimix', 'dense'])
def test_a_step_mixes_within_its_classes(mode: str) -> None:
    net, _, _ = build('resnet')
    drawn: list[LamSampler] = []
    target = CLASSES.unique(return_inverse=True)[1]  # of a network of five classes
    model = quiet_wrap(net, mode, tuples='within', n=50, sampler=lambda lam, y, logits: drawn.append(lam) or lam)
    assert model(torch.randn(10, 3, 64, 64), target).loss.isfinite()
    assert drawn[0].tuples == 'within'
    rows = drawn[0].draw(1, 200)[0]
    assert all(len(target[row > 0].unique()) == 1 for row in rows)


@pytest.mark.parametrize('engine', ENGINES)
@pytest.mark.parametrize('alpha', [0.02, 0.4, 1.0])  # of the torch engine's sticks, gammas and exponentials
def test_the_loss_mixes_them_with_every_way_to_draw(alpha: float, engine: str) -> None:
    """Logits that are sure of two classes: mixtures within a class have no loss, and those of both have one."""
    y = torch.arange(64) % 2
    L = 1e4 * torch.nn.functional.one_hot(y, 2).float().unsqueeze(1)

    def loss(tuples: str) -> float:
        lam = LamSampler(30, 1, 64, alpha, torch.Generator().manual_seed(0), classes=y, tuples=tuples)
        return float(mixed_cross_entropy(L, y, lam, engine=engine))

    assert loss('within') < 1e-3 < 1 < loss('across') and loss('any') > 1


def test_compiled_tuples() -> None:
    """Only mixtures of both classes have a loss here, so tuples within a class have none."""
    y, L = torch.tensor([0, 0, 1, 1]), torch.zeros(4, 1, 2)
    L[:2, :, 0] = L[2:, :, 1] = 1e4

    def loss(tuples: str) -> torch.Tensor:
        lam = LamSampler(64, 1, 4, 0.5, classes=y, tuples=tuples)
        return mixed_cross_entropy(L, torch.nn.functional.one_hot(y, 2).float(), lam)

    compiled = torch.compile(loss, fullgraph=True, backend='eager')
    assert float(compiled('within')) < 1e-3 < 1 < float(compiled('across'))


def test_bad_tuples() -> None:
    for change, says in (({'tuples': 'inside'}, 'tuples is'), ({'tuples': 'within'}, 'classes are missing'),
                         ({'tuples': 'across', 'classes': CLASSES.float()}, 'classes are torch.float32'),
                         ({'tuples': 'across', 'classes': CLASSES[:3]}, r'classes are torch.int64 \(3,\)')):
        with pytest.raises(SettingError, match=says):
            LamSampler(5, 1, 10, **change)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match='give one of the two'):
        MultiMixConfig('dense', tuples='across', balance=0.5)
    with pytest.warns(UserWarning, match="tuples .* is 'within', but it has no effect"):
        MultiMixConfig('dense', tuples='within', prob=0)
