"""What counts as a target, and the loss of targets that are not mixed, against torch's own."""
from __future__ import annotations

from collections.abc import Callable
from typing import Optional

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.mixing.test_loss import values_and_grads
from timm_multimix import SettingError, mixed_cross_entropy, sample_lam
from timm_multimix.mixing import cross_entropy, soft_target, targets

B, C = 8, 4
INDEX = torch.tensor([0, 1, 2, 3, 3, 2, 0, 1])
ONE_HOT = F.one_hot(INDEX, C)
INTEGERS = [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64]
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def mixed(target: Tensor, binary: bool = False) -> Tensor:
    torch.manual_seed(0)
    return mixed_cross_entropy(torch.randn(B, 2, C), target, sample_lam(20, 2, B, 0.3), binary=binary)


def plain(target: Tensor) -> Tensor:
    torch.manual_seed(0)
    return cross_entropy(torch.randn(B, C), target)


def rows(target: Tensor) -> Tensor:
    return soft_target(target, C, torch.float32, batch=B)


TAKERS = [rows, mixed, plain]


@pytest.mark.parametrize('take', TAKERS)
@pytest.mark.parametrize('dtype', INTEGERS, ids=str)
def test_integers_of_every_dtype_are_classes(take: Callable[..., Tensor], dtype: torch.dtype) -> None:
    assert torch.equal(take(INDEX.to(dtype)), take(INDEX))
    with pytest.raises(SettingError, match='class 9, but the model has the 4 classes 0 to 3'):
        take(torch.tensor([0, 1, 2, 3, 9, 2, 0, 1]).to(dtype))


@pytest.mark.parametrize('take', TAKERS)
@pytest.mark.parametrize('dtype', [*FLOATS, *INTEGERS, torch.bool], ids=str)
def test_rows_of_every_dtype_are_soft_targets(take: Callable[..., Tensor], dtype: torch.dtype) -> None:
    torch.testing.assert_close(take(ONE_HOT.to(dtype)), take(INDEX))


def broken(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
    y = ONE_HOT.clone().to(dtype)
    y[3, 1] = value
    return y


@pytest.mark.parametrize('take', TAKERS)
@pytest.mark.parametrize('target, words', [
    (INDEX.float(), r'torch.float32 \(8,\), but class indices must be integers.*\(8, 4\) soft targets'),
    (INDEX.half(), 'torch.float16.*must be integers'),
    (INDEX.bool(), 'torch.bool.*must be integers'),
    (INDEX[:, None], r'\(8, 1\), but class indices must be \(8,\), as target.squeeze\(1\) is'),
    (INDEX[:, None].float(), r'squeeze\(1\)'),
    (INDEX[:, None, None], r'\(8, 1, 1\), but it must be \(8,\) class indices or \(8, 4\) soft targets'),
    (INDEX[0], r'\(\), but it must be \(8,\) class indices or \(8, 4\) soft targets'),
    (ONE_HOT.to(torch.complex64), 'complex64'),
    (F.one_hot(INDEX, 5).float(), r'5 columns, but the model has 4 classes.*\(8, 4\) soft targets'),
    (F.one_hot(INDEX, 5), '5 columns, but the model has 4 classes'),
    (INDEX[:6], r'6 examples, but the batch has 8: it must be \(8,\) class indices'),
    (ONE_HOT.float()[:6], '6 examples, but the batch has 8'),
    (torch.where(torch.arange(B) < 2, -100, INDEX), 'ignore_index of torch.*leave those images out of the batch'),
    (torch.where(torch.arange(B) < 2, -100, INDEX).int(), 'ignore_index'),
    (torch.where(torch.arange(B) < 2, -1, INDEX), 'class -1'),
    (INDEX + 1, 'class 4, but the model has the 4 classes 0 to 3'),
    (broken(float('nan')), 'holds nan, but soft targets must be finite and at least 0'),
    (broken(float('inf')), 'holds inf'),
    (broken(-0.25), 'holds -0.25'),
    (broken(float('nan'), torch.float64), 'holds nan'),
    (broken(float('nan'), torch.float16), 'holds nan'),
    (broken(0.01), r'sums to 1.01, but.*share 1.*bce_loss \(--bce-loss'),
    (broken(0.1, torch.bfloat16), 'sums to 1.1'),
    (broken(1, torch.int64), 'sums to 2'),
    (broken(1, torch.bool), 'sums to 2'),
])
def test_what_is_no_target_is_refused(take: Callable[..., Tensor], target: Tensor, words: str) -> None:
    with pytest.raises(SettingError, match=words) as caught:
        take(target)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('take', TAKERS)
@pytest.mark.parametrize('target', [broken(5e-4), broken(0.02, torch.bfloat16), 0.5 * ONE_HOT, 0.0 * ONE_HOT])
def test_rows_may_sum_to_less_than_1_and_to_1_as_their_dtype_rounds(
        take: Callable[..., Tensor], target: Tensor) -> None:
    assert torch.isfinite(take(target)).all()
    assert torch.equal(rows(target), target.float())


@given(dtype=st.sampled_from(FLOATS), classes=st.integers(2, 3000), share=st.floats(0, 1), seed=st.integers(0, 2**31))
@settings(max_examples=100, deadline=None)
def test_probabilities_and_mixup_in_any_precision_pass(
        dtype: torch.dtype, classes: int, share: float, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    p = torch.randn(4, classes, generator=g).softmax(1).to(dtype)
    hot = F.one_hot(torch.randint(0, classes, (4,), generator=g), classes).to(dtype)
    for y in (p, hot * share + hot.flip(0) * (1 - share), p * share + hot * (1 - share)):
        assert torch.equal(soft_target(y, classes, torch.float32), y.float())
        assert torch.equal(soft_target(y, classes, torch.float32, binary=True), y.float())


def test_binary_rows_are_probabilities_each_for_itself() -> None:
    several = torch.rand(B, C)
    assert torch.equal(soft_target(several, C, torch.float32, binary=True), several)
    assert torch.equal(mixed(INDEX, binary=True), mixed(ONE_HOT, binary=True))
    rounded = broken(1 + 1e-6)  # as mixup of two images of one class may
    assert torch.equal(soft_target(rounded, C, torch.float32, binary=True), rounded)
    for value in (1.5, -0.5, float('nan'), float('inf')):
        for take in (lambda t: soft_target(t, C, torch.float32, binary=True), lambda t: mixed(t, binary=True)):
            with pytest.raises(SettingError, match=f'holds {value}, but soft targets must be from 0 to 1'):
                take(broken(value))


def test_one_class_is_a_column() -> None:
    y = torch.rand(B, 1)
    assert torch.equal(soft_target(y, 1, torch.float32, binary=True), y)


def test_values_are_not_read_from_a_device() -> None:
    for target in (INDEX, ONE_HOT, ONE_HOT.float()):  # a meta tensor has none, and says so
        assert soft_target(target.to('meta'), C, torch.float32).shape == (B, C)
    w = torch.zeros(C, device='meta')
    assert targets.check_class_weight(w, torch.empty(B, C, device='meta'), torch.float32) is w
    with pytest.raises(SettingError, match='5 columns'):
        soft_target(F.one_hot(INDEX, 5).to('meta'), C, torch.float32)


@pytest.mark.parametrize('smoothing', [-0.1, 1.0, 1.5, float('nan')])
@pytest.mark.parametrize('target', [INDEX, ONE_HOT])
def test_label_smoothing_outside_its_range(smoothing: float, target: Tensor) -> None:
    for take in (
            lambda: soft_target(target, C, torch.float32, smoothing),
            lambda: cross_entropy(torch.randn(B, C), target, label_smoothing=smoothing),
            lambda: mixed_cross_entropy(torch.randn(B, C), target, sample_lam(5, 1, B), label_smoothing=smoothing)):
        with pytest.raises(SettingError, match=f'label_smoothing is {smoothing}, but it must be at least 0 and below'):
            take()


WEIGHTS = {'random': torch.rand(C) + 0.1, 'spread': torch.tensor([100, 1, 1e-4, 1e-6]),
           'some zero': torch.tensor([0.0, 2, 0, 1])}


@pytest.mark.parametrize('weight', [None, *WEIGHTS])
@pytest.mark.parametrize('smoothing', [0.0, 0.1])
@pytest.mark.parametrize('dtype', FLOATS, ids=str)
@pytest.mark.parametrize('integer', [torch.int64, torch.int32, torch.uint8], ids=str)
def test_cross_entropy_of_classes_is_torchs(
        weight: Optional[str], smoothing: float, dtype: torch.dtype, integer: torch.dtype) -> None:
    w = None if weight is None else WEIGHTS[weight].to(torch.float64 if dtype == torch.float64 else torch.float32)

    def want(logits: Tensor) -> Tensor:
        logits = logits if dtype == torch.float64 else logits.float()
        return F.cross_entropy(logits, INDEX, w, label_smoothing=smoothing)

    def got(logits: Tensor) -> Tensor:
        with torch.autocast('cpu', dtype=torch.bfloat16):
            return cross_entropy(logits, INDEX.to(integer), label_smoothing=smoothing, class_weight=w)

    for a, b in zip(values_and_grads(got, L := torch.randn(B, C).to(dtype)), values_and_grads(want, L)):
        assert a.dtype == b.dtype
        if w is None:
            assert torch.equal(a, b)
        else:
            torch.testing.assert_close(a, b)


@given(seed=st.integers(0, 2**31), dtype=st.sampled_from([torch.float32, torch.float64]), weighted=st.booleans(),
       smoothing=st.sampled_from([0.0, 0.2]), share=st.floats(0.1, 1))
@settings(max_examples=100, deadline=None)
def test_cross_entropy_of_soft_targets_is_the_equation(
        seed: int, dtype: torch.dtype, weighted: bool, smoothing: float, share: float) -> None:
    g = torch.Generator().manual_seed(seed)
    L, y = torch.randn(B, C, generator=g, dtype=dtype), torch.randn(B, C, generator=g).softmax(1).to(dtype) * share
    w = torch.rand(C, generator=g).to(dtype) if weighted else None

    def want(L: Tensor) -> Tensor:
        if w is None:
            return F.cross_entropy(L, y)
        return -(w * y * L.log_softmax(1)).sum() / (w * y).sum()

    def got(L: Tensor) -> Tensor:  # smoothing is of class indices
        return cross_entropy(L, y, label_smoothing=smoothing, class_weight=w)

    for a, b in zip(values_and_grads(got, L), values_and_grads(want, L)):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    hard = cross_entropy(L, INDEX, class_weight=w)
    torch.testing.assert_close(cross_entropy(L, ONE_HOT, class_weight=w), hard)


@pytest.mark.parametrize('target', [torch.zeros(B, dtype=torch.long), 1.0 * F.one_hot(torch.zeros(B).long(), C)])
@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_cross_entropy_of_examples_without_weight_is_0(target: Tensor, smoothing: float) -> None:
    w = torch.tensor([0.0, 1, 1, 1])
    value, grad = values_and_grads(
        lambda L: cross_entropy(L, target, label_smoothing=smoothing, class_weight=w), torch.randn(B, C))
    assert value == 0 and not grad.any()


def test_cross_entropy_wants_logits_of_images() -> None:
    for logits in (torch.randn(B, 2, C), torch.zeros(B, C, dtype=torch.long)):
        with pytest.raises(SettingError, match=r'logits must be floating \(B, C\)'):
            cross_entropy(logits, INDEX)


@pytest.mark.parametrize('target', [INDEX, INDEX.int(), ONE_HOT, ONE_HOT.float()])
def test_compiles_without_breaks_for_batches_of_every_size(target: Tensor) -> None:
    torch._dynamo.reset()
    weight = torch.rand(C)

    def losses(logits: Tensor, target: Tensor) -> Tensor:
        lam = torch.eye(len(logits)).unsqueeze(1)
        return torch.stack([take for w in (None, weight) for take in (
            cross_entropy(logits, target, class_weight=w),
            mixed_cross_entropy(logits, target, lam, class_weight=w))])

    compiled = torch.compile(losses, backend='eager', fullgraph=True, dynamic=True)
    for n in (B, 5):
        L = torch.randn(n, C)
        torch.testing.assert_close(compiled(L, target[:n]), losses(L, target[:n]))
