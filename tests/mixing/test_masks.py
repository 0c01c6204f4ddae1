"""Positions that do not exist for some examples: the loss, its gradients and the diagnostics against the equations."""
from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.mixing.test_loss import compare, values_and_grads
from timm_multimix import SettingError, attention, mixed_cross_entropy, sample_lam
from timm_multimix.mixing import LamSampler, extensions, reference, signal


@st.composite
def ragged(draw: st.DrawFn) -> dict[str, Any]:
    """A batch of sequences of unlike lengths, or with holes; an example or a position may be of nobody."""
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    B, P, D, C, N = (draw(st.integers(low, high)) for low, high in ((1, 8), (1, 7), (1, 6), (2, 6), (1, 20)))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    if draw(st.booleans()):
        mask = torch.arange(P) < torch.randint(0, P + 1, (B, 1), generator=g)
    else:
        mask = torch.rand(B, P, generator=g) < draw(st.sampled_from([0.1, 0.5, 0.9]))
    y = torch.randint(0, C, (B,), generator=g)
    return dict(
        Z=torch.randn(B, P, D, generator=g, dtype=dtype), W=torch.randn(C, D, generator=g, dtype=dtype),
        beta=torch.randn(C, generator=g, dtype=dtype), target=y,
        Y=torch.nn.functional.one_hot(y, C).to(dtype), mask=mask, dtype=dtype,
        lam=sample_lam(N, P, B, draw(st.sampled_from([0.3, 1.0])), g, dtype=dtype))


def with_garbage(x: Tensor, mask: Tensor, garbage: float) -> Tensor:
    """What a network may compute at padding."""
    return torch.where(mask.view(*mask.shape, *[1] * (x.ndim - 2)), x, garbage)


MAPS = {'l1_relu': lambda z: reference.l1_relu(reference.gap_scores(z)),
        'softmax': lambda z: reference.gap_scores(z).softmax(1),
        'uniform': lambda z: torch.full_like(z[..., 0], 1 / z.shape[1])}


@given(p=ragged(), norm=st.sampled_from(['l1_relu', 'softmax', 'uniform']), garbage=st.sampled_from([7.0, math.nan]))
@settings(max_examples=150, deadline=None)
def test_maps_are_of_an_examples_own_positions(p: dict[str, Any], norm: str, garbage: float) -> None:
    mask = p['mask']

    def fast(Z: Tensor) -> Tensor:
        a = attention(with_garbage(Z, mask, garbage), *(('uniform',) if norm == 'uniform' else ('gap', norm)),
                      mask=mask)
        assert not a[~mask].any()
        return (a * torch.arange(a.numel()).view_as(a)).sum() + 0 * Z.sum()  # a uniform map needs no gradient

    def literal(Z: Tensor) -> Tensor:
        a = extensions.masked_maps(MAPS[norm], Z, mask)
        return (a * torch.arange(a.numel()).view_as(a)).sum() + 0 * Z.sum()  # a uniform map needs no gradient

    Z = p['Z'].double()
    for got, want in zip(values_and_grads(fast, Z), values_and_grads(literal, Z)):
        torch.testing.assert_close(got, want)


@given(p=ragged())
@settings(max_examples=50, deadline=None)
def test_cam_too(p: dict[str, Any]) -> None:
    Z, W, y, mask = p['Z'], p['W'], p['target'], p['mask']
    got = attention(with_garbage(Z, mask, math.nan), 'cam', target=y, weight=W, mask=mask)
    for b in range(len(Z)):
        own = attention(Z[b:b + 1, mask[b]], 'cam', target=y[b:b + 1], weight=W)[0] if mask[b].any() else got[b, :0]
        torch.testing.assert_close(got[b, mask[b]], own)


@given(p=ragged(), kind=st.sampled_from(['none', 'l1_relu', 'softmax']), detach=st.booleans(),
       normalize=st.sampled_from(['position', 'all']), binary=st.booleans(), keep_norm=st.booleans(),
       weighted=st.booleans(), garbage=st.sampled_from([3.0, math.nan, math.inf]))
@settings(max_examples=150, deadline=None)
def test_the_loss_equals_the_equations(
        p: dict[str, Any], kind: str, detach: bool, normalize: str, binary: bool, keep_norm: bool, weighted: bool,
        garbage: float) -> None:
    mask, Y, lam = p['mask'], p['Y'], p['lam']
    detach, weighted = detach or keep_norm, weighted and not binary
    w = torch.linspace(0.5, 2, Y.shape[1], dtype=p['dtype']) if weighted else None

    def fast(Z: Tensor, W: Tensor, beta: Tensor) -> Tensor:
        a = None if kind == 'none' else attention(Z, 'gap', kind, mask=mask)
        if a is not None:
            a = with_garbage(a.detach() if detach else a, mask, 0.7)  # it is left out, whatever it says
        return mixed_cross_entropy(with_garbage(Z @ W.t() + beta, mask, garbage), p['target'], lam, a, mask=mask,
                                   normalize=normalize, binary=binary, keep_norm=keep_norm, class_weight=w)

    def literal(Z: Tensor, W: Tensor, beta: Tensor) -> Tensor:
        a = extensions.masked_maps(MAPS['uniform' if kind == 'none' else kind], Z, mask)
        to = Z.dtype
        weight = None if w is None else (w / w.max()).to(to)
        return extensions.dense_multimix_loss(
            Z, Y.to(to), lam.to(to), a.detach() if detach else a, W, beta, normalize, binary, keep_norm, weight,
            None if weight is None else extensions.weigh(Y.to(to), weight), mask)

    compare(fast, literal, p['Z'], p['W'], p['beta'], slack=4 if detach or kind == 'none' else 100)


@given(p=ragged(), normalize=st.sampled_from(['position', 'all']))
@settings(max_examples=60, deadline=None)
def test_padding_to_another_length_changes_nothing(p: dict[str, Any], normalize: str) -> None:
    L, mask, lam = p['Z'] @ p['W'].t(), p['mask'], p['lam']
    B, P, C = L.shape
    more = torch.cat([mask, torch.zeros(B, 3, dtype=torch.bool)], 1)
    longer = torch.cat([L, torch.full((B, 3, C), math.nan, dtype=L.dtype)], 1).requires_grad_()
    lam_more = torch.cat([lam, sample_lam(len(lam), 3, B, dtype=lam.dtype)], 1)
    want, grad = values_and_grads(lambda x: mixed_cross_entropy(
        x, p['target'], lam, mask=mask, normalize=normalize), L)
    got = mixed_cross_entropy(longer, p['target'], lam_more, mask=more, normalize=normalize)
    got.backward()
    torch.testing.assert_close(got.detach(), want)
    torch.testing.assert_close(longer.grad[:, :P], grad)  # type: ignore[index]
    assert not longer.grad[~more].any()  # type: ignore[index]


@given(p=ragged(), normalize=st.sampled_from(['position', 'all']), kind=st.sampled_from(['none', 'gap']))
@settings(max_examples=60, deadline=None)
def test_a_mask_of_all_is_no_mask(p: dict[str, Any], normalize: str, kind: str) -> None:
    L, every = p['Z'] @ p['W'].t(), torch.ones_like(p['mask'])
    a, a_masked = (None, None) if kind == 'none' else (attention(p['Z']), attention(p['Z'], mask=every))
    if a is not None:
        torch.testing.assert_close(a, a_masked)
    plain = values_and_grads(lambda x: mixed_cross_entropy(x, p['target'], p['lam'], a, normalize=normalize), L)
    masked = values_and_grads(lambda x: mixed_cross_entropy(
        x, p['target'], p['lam'], a_masked, mask=every, normalize=normalize), L)
    for got, want in zip(masked, plain):
        torch.testing.assert_close(got, want)
    for got, want in zip(signal(p['lam'], p['Y'], a, mask=every).values(), signal(p['lam'], p['Y'], a).values()):
        torch.testing.assert_close(got, want)


@given(p=ragged(), kind=st.sampled_from(['none', 'gap']), normalize=st.sampled_from(['position', 'all']))
@settings(max_examples=80, deadline=None)
def test_the_signal_is_that_of_what_exists(p: dict[str, Any], kind: str, normalize: str) -> None:
    Z, mask, Y, lam = (p[name].double() if p[name].is_floating_point() else p[name]
                       for name in ('Z', 'mask', 'Y', 'lam'))
    a = extensions.masked_maps(MAPS['uniform' if kind == 'none' else 'l1_relu'], Z, mask)
    weight = effective = entropy = 0.0
    for j in range(Z.shape[1]):
        if not mask[:, j].any():
            continue
        w, s = reference.factors(lam[:, j, mask[:, j]], extensions.attention_of_some(a, mask, j))
        y = w @ Y[mask[:, j]]
        if normalize == 'position':
            s = s / s.sum() if s.sum() else s
        weight += float(s.sum())
        effective += float((s / w.square().sum(1)).sum())
        entropy += float((s * -torch.xlogy(y, y).sum(1)).sum())
    whole = Y[mask.any(1)].mean(0)
    whole_entropy = float(-torch.xlogy(whole, whole).sum())
    got = signal(lam, Y, None if kind == 'none' else a, mask=mask, normalize=normalize)
    if weight:
        assert float(got['effective']) == pytest.approx(effective / weight)
        want = entropy / weight / whole_entropy if whole_entropy > 1e-6 else 1
        assert float(got['target_entropy']) == pytest.approx(min(want, 1), abs=1e-6)
    else:
        assert all(bool(value.isfinite()) for value in got.values())


def test_drawn_in_tiles_and_in_half_precision() -> None:
    """A sampler that draws sticks; logits in half precision."""
    B, P, C = 16, 12, 5
    mask = torch.arange(P) < torch.randint(1, P, (B, 1))
    L, y = torch.randn(B, P, C), torch.randint(0, C, (B,))
    sampler = LamSampler(4000, P, B, 0.05, torch.Generator().manual_seed(1))
    assert sampler.sticks
    lam = sample_lam(4000, P, B, 0.05, torch.Generator().manual_seed(2))
    drawn, given_ = (float(mixed_cross_entropy(L, y, x, mask=mask)) for x in (sampler, lam))
    assert drawn == pytest.approx(given_, rel=0.05)  # both are means of 4 000
    half = L.bfloat16().masked_fill(~mask[..., None], math.nan).requires_grad_()
    loss = mixed_cross_entropy(half, y, lam, mask=mask)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(given_, rel=0.01)
    assert half.grad.dtype == torch.bfloat16 and not half.grad[~mask].any()  # type: ignore[union-attr, index]


def test_compiled() -> None:
    mask, L, y = torch.arange(4) < torch.tensor([[1], [3], [4]]), torch.randn(3, 4, 5), torch.tensor([0, 4, 2])
    lam = sample_lam(9, 4, 3)

    @torch.compile(fullgraph=True, backend='eager')
    def loss(x: Tensor) -> Tensor:
        return mixed_cross_entropy(x, y, lam, attention(x.detach(), mask=mask), mask=mask)

    want = mixed_cross_entropy(L, y, lam, attention(L, mask=mask), mask=mask)
    torch.testing.assert_close(loss(L), want)


def test_nobody_is_there() -> None:
    L = torch.randn(3, 2, 4, requires_grad=True)
    mask = torch.zeros(3, 2, dtype=torch.bool)
    loss = mixed_cross_entropy(L, torch.tensor([0, 1, 2]), sample_lam(5, 2, 3), mask=mask)
    loss.backward()
    assert loss == 0 and not L.grad.any()  # type: ignore[union-attr]


def test_nan_where_something_is_stays_nan() -> None:
    mask = torch.tensor([[True, False], [True, True]])
    L, y, lam, a = torch.randn(2, 2, 4), torch.tensor([0, 1]), sample_lam(5, 2, 2), torch.full((2, 2), 0.5)
    a[1, 1] = math.nan
    with pytest.raises(SettingError, match='attention holds'):
        mixed_cross_entropy(L, y, lam, a, mask=mask)
    assert mixed_cross_entropy(L, y, lam, a, mask=mask, validate=False).isnan()
    L[0, 0, 0] = math.nan
    assert mixed_cross_entropy(L, y, lam, mask=mask).isnan()


@pytest.mark.parametrize('mask', [torch.ones(3, 2), torch.ones(2, 3, dtype=torch.bool), [[True, False]] * 3, None])
def test_what_is_no_mask(mask: Any) -> None:
    L, y, lam = torch.randn(3, 2, 4), torch.tensor([0, 1, 2]), sample_lam(5, 2, 3)
    if mask is None:  # of another device
        mask = torch.ones(3, 2, dtype=torch.bool, device='meta')
    for call in (lambda: mixed_cross_entropy(L, y, lam, mask=mask), lambda: attention(L, mask=mask),
                 lambda: signal(lam, torch.eye(4)[y], mask=mask)):
        with pytest.raises(SettingError, match='mask '):
            call()
