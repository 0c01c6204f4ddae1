"""Balanced mixtures of batches that are not: shares of the concentration, and what is drawn with them."""
from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.models import build, quiet_wrap
from timm_multimix import SettingError, mixed_cross_entropy, sample_lam
from timm_multimix.mixing import LamSampler, balanced_shares, extensions

COUNTS = (20, 8, 3, 1)  # of a batch's classes: a long tail


def long_tail() -> Tensor:
    return torch.repeat_interleave(torch.arange(4), torch.tensor(COUNTS))


def one_hot(target: Tensor, classes: int = 6) -> Tensor:
    return torch.nn.functional.one_hot(target, classes).double()


@given(seed=st.integers(0, 2**31), B=st.integers(1, 20), balance=st.sampled_from([0.0, 0.3, 1.0]))
@settings(max_examples=100, deadline=None)
def test_shares_are_the_equation(seed: int, B: int, balance: float) -> None:
    Y = one_hot(torch.randint(0, 6, (B,), generator=torch.Generator().manual_seed(seed)))
    alpha = extensions.balanced(Y, 0.25, balance)
    torch.testing.assert_close(balanced_shares(Y, balance) * B * 0.25, alpha)
    torch.testing.assert_close(alpha.sum(), torch.tensor(0.25 * B, dtype=torch.float64))


# α as sticks, as gammas through their logarithms, and where equal shares would be exponentials
@pytest.mark.parametrize('alpha', [1 / 32, 0.4, 1.0])
@pytest.mark.parametrize('balance', [0.0, 0.5, 1.0])
def test_what_is_expected_of_the_mixed_targets(alpha: float, balance: float) -> None:
    """With balance 1 every class that is in the batch has as much of the mean target, whatever the batch has of it."""
    Y = one_hot(long_tail())
    shares = balanced_shares(Y, balance)
    sampler = LamSampler(20_000, 2, 32, alpha, torch.Generator().manual_seed(1), shares=shares, dtype=torch.float64)
    assert (sampler.sticks > 0) == (alpha == 1 / 32)
    lam = sampler.draw(2, 20_000)
    assert lam.shape == (2, 20_000, 32) and float(lam.min()) >= 0
    torch.testing.assert_close(lam.sum(-1), torch.ones(2, 20_000, dtype=torch.float64))
    got = (lam @ Y).mean((0, 1))
    counts = torch.tensor(COUNTS, dtype=torch.float64)
    want = torch.cat([counts ** (1 - balance) / (counts ** (1 - balance)).sum(), torch.zeros(2)])
    torch.testing.assert_close(got, want, rtol=0, atol=0.012)  # four standard errors at least
    spread = lam[0, :, 0].var()  # of a Dirichlet: m(1 − m)/(Σα + 1)
    m = shares[0]
    torch.testing.assert_close(spread, m * (1 - m) / (32 * alpha + 1), rtol=0.12, atol=0)


def test_within_tuples() -> None:
    """m of the batch, drawn as ever; within each the rare ones weigh more, and nobody else weighs anything."""
    Y = one_hot(long_tail())
    lam = sample_lam(4000, 1, 32, 0.5, torch.Generator().manual_seed(1), m=3, shares=balanced_shares(Y, 1.0))[:, 0]
    assert int((lam > 0).sum(-1).max()) == 3
    torch.testing.assert_close(lam.sum(-1), torch.ones(4000))
    plain = sample_lam(4000, 1, 32, 0.5, torch.Generator().manual_seed(1), m=3)[:, 0]
    rare = Y[:, 2:4].sum(1).float()
    assert float((lam @ rare).mean()) > 2 * float((plain @ rare).mean())


def test_soft_targets_and_several_labels() -> None:
    Y = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0], [0.5, 0.5, 0]], dtype=torch.float64)
    n = Y.sum(0)  # 2.5, 1.5, 0
    r = torch.tensor([(1 / n[0] + 1 / n[1]) / 2, 1 / n[0], 1.0, (0.5 / n[0] + 0.5 / n[1])])
    torch.testing.assert_close(balanced_shares(Y, 1.0), (r / r.sum()).double())


def test_a_step_is_balanced() -> None:
    """wrap(balance=1): Λ of the step has the shares of its batch."""
    net, _, _ = build('resnet')
    images, target = torch.randn(8, 3, 64, 64), torch.tensor([0, 0, 0, 0, 0, 0, 1, 2])
    drawn: list[LamSampler] = []
    model = quiet_wrap(net, 'multimix', balance=1.0, n=50, sampler=lambda lam, y, logits: drawn.append(lam) or lam)
    assert model(images, target).loss.isfinite()
    torch.testing.assert_close(drawn[0].shares, torch.tensor([1 / 18] * 6 + [1 / 3] * 2))
    other = quiet_wrap(net, 'multimix', n=50, sampler=lambda lam, y, logits: drawn.append(lam) or lam)
    other(images, target)
    assert drawn[1].shares is None


@pytest.mark.parametrize('layer', ['embedding', 'layer3'])
@pytest.mark.parametrize('settings', [{}, {'bce_loss': True}, {'mixup': 1e-6}, {'mixup': 1e-6, 'bce_loss': True},
                                      {'mixup': 1e-6, 'class_weight': [1.0] * 5}], ids=str)
def test_smoothed_labels_are_balanced_as_plain_ones(settings: dict, layer: str) -> None:
    """Smoothing puts some of every label on every class, which would then look as if nearly balanced."""
    net, _, _ = build('resnet')
    images, target = torch.randn(8, 3, 64, 64), torch.tensor([0, 0, 0, 0, 0, 0, 1, 2])
    drawn: list[LamSampler] = []
    model = quiet_wrap(net, 'multimix', preset='embeddings', balance=1.0, n='batch', layer=layer, label_smoothing=0.1,
                       sampler=lambda lam, y, logits: drawn.append(lam) or lam, **settings)
    model(images, target)
    shares = drawn[0].shares  # mixup of so small an α leaves each image as it is, or puts another in its place
    assert shares is not None
    torch.testing.assert_close(shares.sort().values, torch.tensor([1 / 18] * 6 + [1 / 3] * 2))


def test_who_has_no_share_is_in_no_tuple() -> None:
    """Neither nothing over nothing, nor a place that is lost to one who is not mixed."""
    shares, classes = torch.tensor([1.0, 1, 0, 0, 0, 0]), torch.tensor([0, 0, 0, 1, 1, 1])
    for how in (dict(m=2), dict(tuples='across', classes=classes), dict(tuples='within', m=1, classes=classes),
                dict(tuples='across', m=1, classes=classes)):
        lam = sample_lam(200, 1, 6, 0.2, shares=shares, **how)[:, 0]
        torch.testing.assert_close(lam.sum(-1), torch.ones(200))
        assert float(lam[:, 2:].max()) == 0 and float(lam[:, :2].max(0).values.min()) > 0.5
    pairs = sample_lam(50, 1, 6, 0.2, shares=shares, m=2)[:, 0]
    assert ((pairs > 0).sum(-1) == 2).all()


def test_compiled_draws_with_shares() -> None:
    shares = torch.tensor([0.0, 0.0, 1.0, 1.0])
    L, y = torch.zeros(4, 1, 3), torch.arange(4) % 3
    L[:2] = 1e4 * torch.eye(3)[1]

    def loss(L: Tensor) -> Tensor:
        return mixed_cross_entropy(L, y, LamSampler(30, 1, 4, 0.1, shares=shares))

    got = torch.compile(loss, backend='aot_eager')(L)
    assert float(got) == pytest.approx(float(loss(L)), rel=1e-4)  # the first two, of huge logits, are in no mixture


def test_errors() -> None:
    with pytest.raises(SettingError, match=r'must be floating \(4,\), one for each example'):
        LamSampler(3, 1, 4, 0.1, shares=torch.ones(3))
