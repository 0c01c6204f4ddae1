"""A teacher's share of the targets: the fast loss against the literal equations of both readings."""
from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Optional

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.mixing.test_loss import values_and_grads
from timm_multimix import MultiMixConfig, SettingError, mixed_cross_entropy, sample_lam
from timm_multimix.mixing import LamSampler, TeacherTargets, extensions, reference
from timm_multimix.mixing.engines import stream, torch_engine
from timm_multimix.mixing.losses import Losses


@st.composite
def problem(draw: st.DrawFn) -> dict:
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    B, P, D, C, N = (draw(st.integers(low, high)) for low, high in ((1, 9), (1, 5), (1, 6), (2, 12), (1, 14)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    at_positions = draw(st.booleans())
    T = 2 * normal(B, P, C)
    labels = torch.randint(0, C, (B,), generator=g)
    soft = draw(st.booleans())
    a: Optional[Tensor] = torch.rand(B, P, generator=g, dtype=torch.float64) if draw(st.booleans()) else None
    if a is not None and draw(st.booleans()):
        a[0], a[:, 0] = 0, 0
    w = torch.rand(C, generator=g, dtype=torch.float64) if draw(st.booleans()) else None
    return dict(
        Z=normal(B, P, D), W=normal(C, D), beta=normal(C), a=a, w=w, T=T if at_positions else T[:, :1].expand(B, P, C),
        logits=T if at_positions else T[:, 0], target=normal(B, C).softmax(1) if soft else labels, one_hot=labels,
        lam=sample_lam(N, P, B, draw(st.sampled_from([0.05, 1.0])), g, m=draw(st.integers(1, B)), dtype=torch.float64),
        weight=draw(st.sampled_from([0.3, 1.0])), temperature=draw(st.sampled_from([0.5, 1.0, 4.0])),
        smoothing=draw(st.sampled_from([0.0, 0.1])), C=C)


@given(p=problem(), reading=st.sampled_from(['targets', 'logits']), normalize=st.sampled_from(['position', 'all']),
       binary=st.booleans(), keep_norm=st.booleans())
@settings(max_examples=200, deadline=None)
def test_both_readings_equal_the_equations(
        p: dict, reading: str, normalize: str, binary: bool, keep_norm: bool) -> None:
    w = None if binary else p['w']
    Y = p['target'] if p['target'].ndim == 2 else torch.nn.functional.one_hot(p['target'], p['C']).double()
    v = None if w is None else extensions.weigh(Y, w)
    says = extensions.Teacher(p['T'], p['weight'], p['temperature'], reading)
    a = torch.full(p['Z'].shape[:2], 1 / p['Z'].shape[1], dtype=torch.float64) if p['a'] is None else p['a']

    def literal(Z: Tensor, W: Tensor, beta: Tensor) -> Tensor:
        smoothed = extensions.smooth(Y, p['smoothing'], w)
        return extensions.dense_multimix_loss(Z, smoothed, p['lam'], a, W, beta, normalize,
                                              binary, keep_norm, w, v, teacher=says)

    def fast(Z: Tensor, W: Tensor, beta: Tensor) -> Tensor:
        return mixed_cross_entropy(
            Z @ W.t() + beta, p['target'], p['lam'], p['a'], label_smoothing=p['smoothing'], normalize=normalize,
            binary=binary, keep_norm=keep_norm, class_weight=w,
            teacher=TeacherTargets(p['logits'], p['weight'], p['temperature'], reading))

    for got, want in zip(values_and_grads(fast, p['Z'], p['W'], p['beta']),
                         values_and_grads(literal, p['Z'], p['W'], p['beta'])):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)


@given(p=problem(), reading=st.sampled_from(['targets', 'logits']), keep_norm=st.booleans())
@settings(max_examples=100, deadline=None)
def test_multimix_is_the_case_of_one_position(p: dict, reading: str, keep_norm: bool) -> None:
    Z, T, lam = p['Z'][:, 0], p['T'][:, :1], p['lam'][:, :1]
    Y = p['target'] if p['target'].ndim == 2 else torch.nn.functional.one_hot(p['target'], p['C']).double()
    v = None if p['w'] is None else extensions.weigh(Y, p['w'])

    def literal(Z: Tensor) -> Tensor:
        return extensions.multimix_loss(
            Z, Y, lam[:, 0], p['W'], p['beta'], keep_norm=keep_norm, w=p['w'], v=v,
            teacher=extensions.Teacher(T, p['weight'], p['temperature'], reading))

    def fast(Z: Tensor) -> Tensor:
        return mixed_cross_entropy(
            Z @ p['W'].t() + p['beta'], p['target'], lam, keep_norm=keep_norm, class_weight=p['w'],
            teacher=TeacherTargets(T[:, 0], p['weight'], p['temperature'], reading))

    for got, want in zip(values_and_grads(fast, Z), values_and_grads(literal, Z)):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize('weighted', [False, True])
def test_the_first_reading_with_attention_that_is_learned_from(weighted: bool) -> None:
    L, a = torch.randn(6, 4, 5, dtype=torch.float64), torch.rand(6, 4, dtype=torch.float64)
    T, y, lam = torch.randn(6, 4, 5, dtype=torch.float64), torch.arange(6) % 5, sample_lam(9, 4, 6, 1.0).double()
    w = torch.rand(5, dtype=torch.float64) if weighted else None
    eye, Y = torch.eye(5, dtype=torch.float64), torch.nn.functional.one_hot(y, 5).double()

    def fast(L: Tensor, a: Tensor) -> Tensor:
        return mixed_cross_entropy(L, y, lam, a, class_weight=w, teacher=TeacherTargets(T, 0.4, 2.0))

    def literal(L: Tensor, a: Tensor) -> Tensor:
        return extensions.dense_multimix_loss(
            L, Y, lam, a, eye, eye[0] * 0, w=w, v=None if w is None else extensions.weigh(Y, w),
            teacher=extensions.Teacher(T, 0.4, 2.0))

    for got, want in zip(values_and_grads(fast, L, a), values_and_grads(literal, L, a)):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)


@given(p=problem(), reading=st.sampled_from(['targets', 'logits']))
@settings(max_examples=60, deadline=None)
def test_readings_agree_where_nothing_is_mixed(p: dict, reading: str) -> None:
    """Λ = identity is the clean term, class weights, smoothing and all; a mixture's smoothed target is scaled beside
    smaller weights than these, a clean one's never."""
    w = None if p['w'] is None else p['w'].clamp(min=0.05)
    config = MultiMixConfig('multimix', label_smoothing=p['smoothing'], class_weight=None if w is None else w.tolist())
    L = (p['Z'] @ p['W'].t() + p['beta'])[:, 0]
    teacher = TeacherTargets(p['T'][:, 0], p['weight'], p['temperature'], reading)
    eye = torch.eye(len(L), dtype=torch.float64).unsqueeze(1)

    def mixed(L: Tensor) -> Tensor:
        return mixed_cross_entropy(L, p['one_hot'], eye, label_smoothing=p['smoothing'], class_weight=w,
                                   teacher=teacher)

    def clean(L: Tensor) -> Tensor:
        return Losses(config)(L, p['one_hot'], teacher=teacher)

    for got, want in zip(values_and_grads(mixed, L), values_and_grads(clean, L)):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize('reading', ['targets', 'logits'])
def test_positions_that_do_not_exist(reading: str) -> None:
    """What a teacher says of padding does not count, whatever it is."""
    L, T, a = torch.randn(6, 4, 5, dtype=torch.float64), torch.randn(6, 4, 5, dtype=torch.float64), torch.rand(6, 4)
    mask, y, lam = torch.rand(6, 4) < 0.6, torch.arange(6) % 5, sample_lam(9, 4, 6, 1.0, dtype=torch.float64)
    a, eye, Y = a.double() * mask, torch.eye(5, dtype=torch.float64), torch.nn.functional.one_hot(y, 5).double()

    def literal(L: Tensor) -> Tensor:
        return extensions.dense_multimix_loss(L, Y, lam, a, eye, eye[0] * 0, mask=mask,
                                              teacher=extensions.Teacher(T, 0.4, 2.0, reading))

    def fast(L: Tensor) -> Tensor:
        said = TeacherTargets(T.masked_fill(~mask.unsqueeze(-1), torch.nan), 0.4, 2.0, reading)
        return mixed_cross_entropy(L, y, lam, a, mask=mask, teacher=said)

    for got, want in zip(values_and_grads(fast, L), values_and_grads(literal, L)):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)


def test_a_teacher_as_the_label_is_the_label() -> None:
    """A teacher that is sure of the labels says nothing new: the loss is the paper's, in both readings."""
    L, y, lam = torch.randn(7, 4, dtype=torch.float64), torch.arange(7) % 4, sample_lam(9, 1, 7, 0.3).double()
    sure = 1e4 * torch.nn.functional.one_hot(y, 4).double()
    want = reference.multimix_loss(L, sure / 1e4, lam[:, 0], torch.eye(4).double(), torch.zeros(4).double())
    got = mixed_cross_entropy(L, y, lam, teacher=TeacherTargets(sure, 0.7))
    torch.testing.assert_close(got, want)
    other = mixed_cross_entropy(L, y, lam, teacher=TeacherTargets(sure, 0.7, reading='logits'))
    assert abs(float(other - want)) > 0.01  # the prediction of a mixture is that of its largest example


@pytest.mark.parametrize('keep_norm', [False, True])
def test_what_all_classes_have_in_common_costs_no_digits(keep_norm: bool) -> None:
    """A teacher's logits are multiplied as low as those of the network came, and may be far from zero."""
    L, T, lam = torch.randn(16, 50).bfloat16(), 3 * torch.randn(16, 50), sample_lam(40, 1, 16, 1.0)

    def loss(L: Tensor, far: float) -> Tensor:
        teacher = TeacherTargets(T + far * torch.rand(16, 1), 1.0, reading='logits')
        return mixed_cross_entropy(L, torch.arange(16), lam, teacher=teacher, keep_norm=keep_norm)

    (near, grad), (far, grad_far) = (values_and_grads(partial(loss, far=by), L) for by in (0.0, 1000.0))
    torch.testing.assert_close(far, near, rtol=1e-2, atol=0)
    torch.testing.assert_close(grad_far, grad, rtol=0, atol=0.02 * float(grad.abs().max()))


@pytest.mark.parametrize('tile', [1, 7, 1 << 20])
@pytest.mark.parametrize('classes', [3, 30])
@pytest.mark.parametrize('reading', ['targets', 'logits'])
def test_tiles_do_not_change_the_result(
        tile: int, classes: int, reading: str, monkeypatch: pytest.MonkeyPatch) -> None:
    L, a = torch.randn(6, 5, classes, dtype=torch.float64), torch.rand(6, 5, dtype=torch.float64)
    lam, y = sample_lam(23, 5, 6, 0.3, dtype=torch.float64), torch.randint(0, classes, (6,))
    teacher = TeacherTargets(torch.randn(6, 5, classes, dtype=torch.float64), reading=reading)

    def loss(L: Tensor) -> Tensor:
        return mixed_cross_entropy(L, y, lam, a, teacher=teacher)

    want = values_and_grads(loss, L)
    monkeypatch.setitem(torch_engine.TILE, 'cpu', tile)
    monkeypatch.setattr(torch_engine, 'ROWS', 1)
    monkeypatch.setitem(stream.CHUNK, 'cpu', max(tile, 40))
    for x, t in zip(values_and_grads(loss, L), want):
        torch.testing.assert_close(x, t, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize('reading', ['targets', 'logits'])
@pytest.mark.parametrize('positions', [True, False])
def test_sticks_and_dense_draws_are_the_same_loss(reading: str, positions: bool) -> None:
    """Large n and a small α, so that Λ comes as sticks: near the loss of as many dense draws."""
    L, a = torch.randn(64, 2, 5), torch.rand(64, 2)
    teacher = TeacherTargets(torch.randn(64, 2, 5) if positions else torch.randn(64, 5), reading=reading)
    sampler = LamSampler(20_000, 2, 64, 1 / 64, torch.Generator().manual_seed(0))
    assert 0 < sampler.sticks <= 64 * torch_engine.ENGINE.sticks
    y = torch.arange(64) % 5
    drawn = mixed_cross_entropy(L, y, sampler, a, teacher=teacher)
    dense = mixed_cross_entropy(L, y, sample_lam(20_000, 2, 64, 1 / 64), a, teacher=teacher)
    torch.testing.assert_close(drawn, dense, rtol=0.02, atol=0)


@pytest.mark.parametrize('reading', ['targets', 'logits'])
def test_compiled_is_eager(reading: str) -> None:
    L, y, lam = torch.randn(6, 2, 5), torch.arange(6) % 5, sample_lam(9, 2, 6, 0.3)
    T, w = torch.randn(6, 2, 5), torch.rand(5)

    def loss(L: Tensor) -> Tensor:
        return mixed_cross_entropy(L, y, lam, class_weight=w, teacher=TeacherTargets(T, 0.3, 2.0, reading))

    compiled = torch.compile(loss, backend='aot_eager', fullgraph=True)
    for got, want in zip(values_and_grads(compiled, L), values_and_grads(loss, L)):
        torch.testing.assert_close(got, want)


def test_a_masked_class_stays_masked() -> None:
    L, T, y = torch.randn(5, 4), torch.randn(5, 4), torch.arange(5) % 3
    L[:, 3] = T[:, 3] = -torch.inf
    lam = sample_lam(9, 1, 5, 0.5)
    for reading in ('targets', 'logits'):
        whole = mixed_cross_entropy(L, y, lam, teacher=TeacherTargets(T, reading=reading))
        left = mixed_cross_entropy(L[:, :3], y, lam, teacher=TeacherTargets(T[:, :3], reading=reading))
        torch.testing.assert_close(whole, left)


def test_what_is_not_finite_is_not_hidden() -> None:
    L, y, lam = torch.randn(5, 4), torch.arange(5) % 4, torch.tensor([[[1.0, 0, 0, 0, 0]]])
    T = torch.randn(5, 4)
    T[4, 0] = torch.nan
    for reading in ('targets', 'logits'):
        assert mixed_cross_entropy(L, y, lam, teacher=TeacherTargets(T, reading=reading)).isnan()


def test_errors() -> None:
    L, y, lam, T = torch.randn(5, 4), torch.arange(5) % 4, sample_lam(3, 1, 5), torch.randn(5, 4)
    with pytest.raises(SettingError, match=r'\(5, 3\), but to fit the batch they must be \(5, 4\) or \(5, 1, 4\)'):
        mixed_cross_entropy(L, y, lam, teacher=TeacherTargets(T[:, :3]))
    for wrong in (dict(weight=0.0), dict(weight=1.5), dict(temperature=0.0), dict(reading='both'),
                  dict(logits=T.clone().requires_grad_()), dict(logits=T.long()), dict(logits=T[0]),
                  dict(logits=[[1.0]]), dict(weight='half'), dict(temperature=None)):
        with pytest.raises(SettingError, match='teacher'):
            replace(TeacherTargets(T), **wrong)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match='teacher is a Tensor, but it must be TeacherTargets'):
        mixed_cross_entropy(L, y, lam, teacher=T)  # type: ignore[arg-type]
    a = torch.rand(5, 1, requires_grad=True)
    with pytest.raises(SettingError, match="reading 'logits' takes the attention as a constant"):
        mixed_cross_entropy(L, y, lam, a, teacher=TeacherTargets(T, reading='logits'))
