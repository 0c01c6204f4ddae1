"""Class weights: a weighted mean, against the literal equations and against torch's own."""
from __future__ import annotations

import math
from typing import Any, Optional

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.mixing.test_loss import KINDS, compare, problem, values_and_grads
from timm_multimix import MultiMixTask, SettingError, attention, mixed_cross_entropy, sample_lam, wrap
from timm_multimix.mixing import LamSampler, cross_entropy, extensions, reference
from timm_multimix.mixing.dirichlet import Sticks
from timm_multimix.mixing.engines import stream, torch_engine
from timm_multimix.policy import InputMixing

KINDS_OF_WEIGHTS = ['random', 'spread', 'some zero', 'all but one zero']


def class_weights(kind: str, C: int, dtype: torch.dtype = torch.float64) -> Tensor:
    g = torch.Generator().manual_seed(C)
    w = torch.rand(C, generator=g, dtype=torch.float64) + 0.1
    if kind == 'spread':
        w = 10 ** (8 * w - 6)
    if kind == 'some zero':
        w[::2] = 0
    if kind == 'all but one zero':
        w[1:] = 0
    return w.to(dtype)


def attention_may_require_grad(p: dict[str, Any], weights: str) -> bool:
    """Where its gradient does not divide by weights so near to nothing that the equations lose their digits, too."""
    return not p['small_alpha'] or (weights == 'random' and p['dtype'] == torch.float64)


def one_hot(target: Tensor, C: int, dtype: torch.dtype) -> Tensor:
    return target if target.ndim == 2 else F.one_hot(target, C).to(dtype)


@given(p=problem(), kind=st.sampled_from(KINDS), normalize=st.sampled_from(['position', 'all']), detach=st.booleans(),
       keep_norm=st.booleans(), weights=st.sampled_from(KINDS_OF_WEIGHTS))
@settings(max_examples=200, deadline=None)
def test_dense_equals_the_equations(
        p: dict[str, Any], kind: tuple[str, str], normalize: str, detach: bool, keep_norm: bool, weights: str) -> None:
    what, norm = kind
    detach = detach or keep_norm
    B, P, _ = p['Z'].shape
    C = p['W'].shape[0]
    plain, w = one_hot(p['target'], C, p['dtype']), class_weights(weights, C, p['dtype'])
    maybe = (lambda a: a.detach()) if detach else (lambda a: a)

    def literal(Z: Tensor, W: Tensor, beta: Tensor) -> Tensor:
        if what == 'uniform':
            a = torch.full((B, P), 1 / P, dtype=Z.dtype)
        else:
            scores = reference.gap_scores(Z) if what == 'gap' else reference.cam_scores(Z, plain.to(Z.dtype), W)
            a = maybe(reference.l1_relu(scores) if norm == 'l1_relu' else scores.softmax(1))
        v = extensions.weigh(plain.to(Z.dtype), w.to(Z.dtype))
        Y = extensions.smooth(plain.to(Z.dtype), p['smoothing'], w.to(Z.dtype))
        return extensions.dense_multimix_loss(Z, Y, p['lam'].to(Z.dtype), a, W, beta, normalize,
                                              keep_norm=keep_norm, w=w.to(Z.dtype), v=v)

    def fast(Z: Tensor, W: Tensor, beta: Tensor) -> Tensor:
        a = None if what == 'uniform' else maybe(attention(Z, what, norm, target=p['target'], weight=W))
        return mixed_cross_entropy(Z @ W.t() + beta, p['target'], p['lam'], a, label_smoothing=p['smoothing'],
                                   normalize=normalize, keep_norm=keep_norm, class_weight=w)

    assume(detach or attention_may_require_grad(p, weights))
    compare(fast, literal, p['Z'], p['W'], p['beta'], slack=4 if detach else 100)


@given(p=problem(), keep_norm=st.booleans(), weights=st.sampled_from(KINDS_OF_WEIGHTS))
@settings(max_examples=100, deadline=None)
def test_multimix_equals_the_equations(p: dict[str, Any], keep_norm: bool, weights: str) -> None:
    Z, lam = p['Z'][:, 0], p['lam'][:, :1]
    C = p['W'].shape[0]
    plain, w = one_hot(p['target'], C, p['dtype']), class_weights(weights, C, p['dtype'])

    def fast(Z: Tensor, W: Tensor, beta: Tensor) -> Tensor:
        return mixed_cross_entropy(Z @ W.t() + beta, p['target'], lam, label_smoothing=p['smoothing'],
                                   keep_norm=keep_norm, class_weight=w)

    def literal(Z: Tensor, W: Tensor, beta: Tensor) -> Tensor:
        v = extensions.weigh(plain.to(Z.dtype), w.to(Z.dtype))
        Y = extensions.smooth(plain.to(Z.dtype), p['smoothing'], w.to(Z.dtype))
        return extensions.multimix_loss(Z, Y, lam[:, 0].to(Z.dtype), W, beta, keep_norm=keep_norm,
                                        w=w.to(Z.dtype), v=v)

    compare(fast, literal, Z, p['W'], p['beta'])


@given(p=problem(), normalize=st.sampled_from(['position', 'all']), weights=st.sampled_from(KINDS_OF_WEIGHTS),
       tile=st.sampled_from([1, 12, 1 << 18]), zeros=st.sampled_from(['', 'map', 'position', 'everything']))
@settings(max_examples=100, deadline=None)
def test_given_attention_with_or_without_anything_in_it(
        p: dict[str, Any], normalize: str, weights: str, tile: int, zeros: str) -> None:
    """The attention's own gradient, over tiles, of which the first may weigh nothing."""
    assume(attention_may_require_grad(p, weights))
    L = (p['Z'] @ p['W'].t() + p['beta']).double()
    C = L.shape[-1]
    plain, w = one_hot(p['target'], C, torch.float64).double(), class_weights(weights, C)
    a = torch.rand(L.shape[:2], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    if zeros:
        a[{'map': (0,), 'position': (slice(None), 0), 'everything': ()}[zeros]] = 0

    def fast(L: Tensor, a: Tensor) -> Tensor:
        return mixed_cross_entropy(L, p['target'], p['lam'], a, label_smoothing=p['smoothing'], normalize=normalize,
                                   class_weight=w)

    def literal(L: Tensor, a: Tensor) -> Tensor:
        eye = torch.eye(C, dtype=torch.float64)
        return extensions.dense_multimix_loss(L, extensions.smooth(plain, p['smoothing'], w), p['lam'].double(), a, eye,
                                              0 * eye[0], normalize, w=w, v=extensions.weigh(plain, w))

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(torch_engine.TILE, 'cpu', tile)
        patch.setattr(torch_engine, 'ROWS', 1)
        size = max(1.0, float(literal(L, a)))  # over a weight next to nothing, the smoothing's share of a loss is large
        compare(lambda L, a: fast(L, a) / size, lambda L, a: literal(L, a) / size, L, a, slack=100)


def test_a_first_tile_of_little_weight_leaves_the_attentions_gradient_its_digits(
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(torch_engine.TILE, 'cpu', 1)
    monkeypatch.setattr(torch_engine, 'ROWS', 1)
    y, w = torch.arange(4), torch.tensor([0.0, 1, 2, 3], dtype=torch.float64)
    lam, L, a = sample_lam(9, 2, 4, 1.0, dtype=torch.float64), torch.randn(4, 2, 4).double(), torch.rand(4, 2).double()
    lam[0] *= 1e-13
    lam[0, :, 0] = 1  # the example that weighs nothing; smoothed, it has a loss
    eye = torch.eye(4, dtype=torch.float64)

    def literal(L: Tensor, a: Tensor) -> Tensor:
        return extensions.dense_multimix_loss(
            L, extensions.smooth(eye, 0.1, w), lam, a, eye, 0 * eye[0], w=w, v=extensions.weigh(eye, w))

    compare(lambda L, a: mixed_cross_entropy(L, y, lam, a, label_smoothing=0.1, class_weight=w), literal, L, a)


@pytest.mark.parametrize('dtype, batch', [(torch.float32, 64), (torch.float64, 128)])
@pytest.mark.parametrize('C', [5, 150])  # fewer and more than examples: targets are mixed, or examples paired
@pytest.mark.parametrize('attending', [False, True])
@pytest.mark.parametrize('keep_norm', [False, True])
def test_sticks_equal_the_equations(
        dtype: torch.dtype, batch: int, C: int, attending: bool, keep_norm: bool,
        monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Sticks] = []
    draw = LamSampler.draw_sticks
    monkeypatch.setattr(LamSampler, 'draw_sticks', lambda self, p, n: drawn.append(draw(self, p, n)) or drawn[-1])
    P, soft = 3, keep_norm
    L, w = torch.randn(batch, P, C, dtype=dtype), class_weights('some zero', C, dtype)
    target = torch.randn(batch, C).softmax(1).to(dtype) if soft else torch.arange(batch) % C
    plain = one_hot(target, C, dtype).double()
    a = torch.rand(batch, P, dtype=dtype) if attending else None
    sampler = LamSampler(40, P, batch, 0.5 / batch, dtype=dtype)
    found = values_and_grads(lambda L: mixed_cross_entropy(
        L, target, sampler, a, label_smoothing=0.1, keep_norm=keep_norm, class_weight=w), L)
    sticks, = drawn
    lam = sticks.dense().transpose(0, 1)
    eye = torch.eye(C, dtype=torch.float64)
    want = values_and_grads(lambda L: extensions.dense_multimix_loss(
        L, extensions.smooth(plain, 0.1, w.double()), lam.double(),
        torch.ones(batch, P).double() if a is None else a.double(), eye, 0 * eye[0],
        keep_norm=keep_norm, w=w.double(), v=extensions.weigh(plain, w.double())), L.double())
    whole = values_and_grads(lambda L: mixed_cross_entropy(
        L, target, lam, a, label_smoothing=0.1, keep_norm=keep_norm, class_weight=w), L)
    for got, given_, exact in zip(found, whole, want):
        scale = float(exact.abs().max())
        tolerance = 1e-5 if dtype == torch.float32 else 1e-11
        assert max(float((got - exact).abs().max()), float((got - given_).abs().max())) <= tolerance * scale


@pytest.mark.parametrize('normalize', ['position', 'all'])
def test_gradcheck(normalize: str) -> None:
    lam, y = sample_lam(9, 3, 4, 0.5, dtype=torch.float64), torch.tensor([0, 1, 1, 4])
    L = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
    a = torch.rand(4, 3, dtype=torch.float64, requires_grad=True)
    w = class_weights('random', 5)
    assert torch.autograd.gradcheck(lambda L, a: mixed_cross_entropy(
        L, y, lam, a, label_smoothing=0.1, normalize=normalize, class_weight=w), (L, a))


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_nothing_mixed_is_torchs(smoothing: float) -> None:
    L, y, w = torch.randn(7, 1, 4), torch.tensor([0, 1, 2, 3, 3, 0, 1]), torch.tensor([0.02, 1, 0.5, 0.1])
    got = values_and_grads(lambda L: mixed_cross_entropy(
        L, y, torch.eye(7).unsqueeze(1), label_smoothing=smoothing, class_weight=w), L)
    want = values_and_grads(lambda L: F.cross_entropy(L[:, 0], y, w, label_smoothing=smoothing), L)
    for x, t in zip(got, want):
        torch.testing.assert_close(x, t)


@pytest.mark.parametrize('scale', [1e-34, 1e-6, 3.0, 1e34])
def test_only_ratios_count(scale: float) -> None:
    L, y, lam, a = torch.randn(6, 3, 4), torch.tensor([0, 1, 2, 3, 1, 1]), sample_lam(9, 3, 6, 0.3), torch.rand(6, 3)

    def loss(w: Optional[Tensor]) -> list[Tensor]:
        return values_and_grads(lambda L, a: mixed_cross_entropy(L, y, lam, a, class_weight=w), L, a)

    w = class_weights('random', 4, torch.float32)
    for pair in ((loss(w * scale), loss(w)), (loss(torch.full((4,), scale)), loss(None))):
        for x, t in zip(*pair):
            torch.testing.assert_close(x, t, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
@pytest.mark.parametrize('normalize', ['position', 'all'])
@pytest.mark.parametrize('detach', [False, True])
@pytest.mark.parametrize('size', [1.0, 1e12])
def test_a_batch_without_weight_is_0_and_has_no_gradient(
        smoothing: float, normalize: str, detach: bool, size: float) -> None:
    w, y = torch.tensor([0.0, 1, 1]), torch.zeros(4, dtype=torch.long)
    lam = sample_lam(9, 2, 4, 1.0)
    found = values_and_grads(lambda L, a: mixed_cross_entropy(
        L, y, lam, a.detach() if detach else a, label_smoothing=smoothing, normalize=normalize, class_weight=w),
        torch.randn(4, 2, 3) * size, torch.rand(4, 2))
    assert not any(t.any() for t in found)  # NaN would be something


@pytest.mark.parametrize('normalize', ['position', 'all'])
def test_a_position_without_weight(normalize: str) -> None:
    """Only an example of a class that weighs nothing attends to it: it has no part in the loss."""
    L, lam, y = torch.randn(4, 2, 4).double(), sample_lam(9, 2, 4, 1.0, dtype=torch.float64), torch.arange(4)
    a, w = torch.rand(4, 2).double(), torch.tensor([0.0, 1, 2, 3]).double()
    a[1:, 0] = 0

    def loss(L: Tensor, positions: slice, how: str) -> Tensor:
        return mixed_cross_entropy(L[:, positions], y, lam[:, positions], a[:, positions], label_smoothing=0.1,
                                   normalize=how, class_weight=w)

    found = values_and_grads(lambda L: loss(L, slice(0, 2), normalize), L)
    without = values_and_grads(lambda L: loss(L, slice(1, 2), normalize), L)
    for x, t in zip(found, without):
        torch.testing.assert_close(x, t)


@pytest.mark.parametrize('engine', ['torch', 'triton'])
def test_mixtures_that_do_not_count_weigh_nothing(engine: str) -> None:
    """Their factors sum to less than what counts as something, though many such sums do not."""
    if engine == 'triton' and not pytest.importorskip('timm_multimix.mixing.engines.triton_engine').INTERPRETED:
        pytest.skip('needs the interpreter')
    L, lam, y = torch.randn(4, 2, 4), sample_lam(100, 2, 4, 1.0), torch.arange(4)
    a, w = torch.rand(4, 2), torch.tensor([4.0, 1, 2, 3])
    a[1:, 0] = 0
    lam[:, 0, 0] = 5e-31
    lam[:, 0, 1:] /= lam[:, 0, 1:].sum(-1, keepdim=True)
    got = values_and_grads(lambda L: mixed_cross_entropy(L, y, lam, a, engine=engine, class_weight=w), L)
    want = values_and_grads(lambda L: mixed_cross_entropy(L[:, 1:], y, lam[:, 1:], a[:, 1:], class_weight=w), L)
    for x, t in zip(got, want):
        torch.testing.assert_close(x, t, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('normalize', ['position', 'all'])
def test_ranks_share_the_mixtures(normalize: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks, one after the other: each sees the sum of what both bring to `total`."""
    L, a, y = torch.randn(5, 3, 4).double(), torch.rand(5, 3).double(), torch.tensor([0, 1, 2, 3, 1])
    lam, w = sample_lam(11, 3, 5, 0.5, dtype=torch.float64), class_weights('some zero', 4)
    brought: list[Tensor] = []
    monkeypatch.setattr(stream, 'world', lambda: 2)

    def loss(L: Tensor, a: Tensor, lam: Tensor, over_ranks: bool) -> Tensor:
        return mixed_cross_entropy(L, y, lam, a, label_smoothing=0.1, normalize=normalize, over_ranks=over_ranks,
                                   class_weight=w)

    monkeypatch.setattr(stream, 'total', lambda x: brought.append(x) or x)
    for rank in (0, 1):
        loss(L, a, lam[rank::2], True)
    monkeypatch.setattr(stream, 'total', lambda x: brought[0] + brought[1])
    ranks = [values_and_grads(lambda L, a: loss(L, a, lam[rank::2], True), L, a) for rank in (0, 1)]  # noqa: B023
    for one, other, want in zip(*ranks, values_and_grads(lambda L, a: loss(L, a, lam, False), L, a)):
        torch.testing.assert_close((one + other) / 2, want)


@pytest.mark.parametrize('keep_norm', [False, True])
def test_compiles(keep_norm: bool) -> None:
    L, y, lam = torch.randn(4, 2, 3, requires_grad=True), torch.tensor([0, 1, 2, 0]), sample_lam(5, 2, 4, 1.0)
    a, w = torch.rand(4, 2, requires_grad=not keep_norm), torch.tensor([0.5, 0.0, 2.0])

    def loss(L: Tensor) -> Tensor:
        return mixed_cross_entropy(L * 2, y, lam, a, keep_norm=keep_norm, label_smoothing=0.1, class_weight=w)

    compiled = torch.compile(loss, backend='aot_eager', fullgraph=True)
    leaves = (L,) if keep_norm else (L, a)
    value, want = loss(L), loss(L)
    torch.testing.assert_close(compiled(L), value)
    for x, t in zip(torch.autograd.grad(compiled(L), leaves), torch.autograd.grad(want, leaves)):
        torch.testing.assert_close(x, t)


@pytest.mark.parametrize('weight, words', [
    ([1.0, 1, 1], r'floating tensor \(3,\), one weight for each class, not \[1.0, 1, 1\]'),
    (torch.tensor([1, 1, 1]), r'not torch.int64 \(3,\)'),
    (torch.ones(4), r'floating tensor \(3,\).*not torch.float32 \(4,\)'),
    (torch.ones(1, 3), r'\(1, 3\)'),
    (torch.ones(3, device='meta'), 'class_weight is on meta, but the logits are on cpu'),
    (torch.ones(3, requires_grad=True), 'class_weight requires grad'),
    (torch.tensor([1, -0.5, 1]), 'holds -0.5, but weights must be finite and at least 0'),
    (torch.tensor([1, float('nan'), 1]), 'holds nan'),
    (torch.tensor([1, float('inf'), 1]), 'holds inf'),
    (torch.tensor([1, 1e300, 1], dtype=torch.float64), 'holds inf'),  # in the loss's float32
    (torch.zeros(3), '0 for every class'),
])
def test_what_are_no_class_weights(weight: Any, words: str) -> None:
    L, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    with pytest.raises(SettingError, match=words):
        mixed_cross_entropy(L, y, sample_lam(5, 1, 4), class_weight=weight)
    with pytest.raises(SettingError, match=words):
        cross_entropy(L, y, class_weight=weight)


def test_not_for_binary_cross_entropy() -> None:
    with pytest.raises(SettingError, match='class_weight has no place in binary cross-entropy'):
        mixed_cross_entropy(torch.randn(4, 3), torch.rand(4, 3), sample_lam(5, 1, 4), binary=True,
                            class_weight=torch.ones(3))


@pytest.mark.parametrize('config', [None, 'multimix', 'dense'])
def test_mixed_inputs_weigh_as_unmixed_ones(config: Optional[str]) -> None:
    """Smoothing by timm's Mixup comes before the weights; what an example weighs is of its class alone."""
    weights, smoothing = (0.2, 3.0, 4.0, 5.0), 0.1
    images, target = torch.randn(8, 3, 32, 32), torch.tensor([0, 0, 0, 0, 0, 0, 0, 1])
    model = timm.create_model('test_resnet', num_classes=4)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0
    for lam in (1.0, 0.5):  # nothing is mixed; each image with the one at the other end
        mixup = FixedMixup(lam, smoothing)
        expected = F.cross_entropy(model(images), target, torch.tensor(weights), label_smoothing=smoothing)
        if lam < 1:
            x = lam * images + (1 - lam) * images.flip(0)
            y = lam * F.one_hot(target, 4) + (1 - lam) * F.one_hot(target.flip(0), 4)
            w = torch.tensor(weights)
            smooth = (1 - smoothing) * y + smoothing / 4
            expected = -(smooth * w * model(x).log_softmax(1)).sum() / (y * w).sum()
        if config is None:
            task = MultiMixTask(model, mixup_fn=mixup, class_weight=weights, label_smoothing=smoothing, verbose=False)
            loss = task(images, target)['loss']
        else:
            wrapped = wrap(model, config, prob=0.0, ramp=0.0, mixup_fn=mixup, class_weight=weights,
                           label_smoothing=smoothing)
            loss = wrapped(images, target).loss
        torch.testing.assert_close(loss, expected)


class FixedMixup(InputMixing):
    """timm's Mixup by a λ that is given."""

    def __init__(self, lam: float, smoothing: float) -> None:
        super().__init__(1.0, 0.0, label_smoothing=smoothing, num_classes=4)
        self.lam = lam

    def _params_per_batch(self) -> tuple[float, bool]:
        self.way = 'mixup' if self.lam < 1 else ''
        return self.lam, False


def test_a_position_of_images_that_weigh_next_to_nothing_has_a_loss_with_bounds() -> None:
    """Label smoothing puts something on the classes that do weigh."""
    L, y, w = torch.zeros(4, 1, 3), torch.tensor([0, 1, 2, 1]), torch.tensor([0.0, 1, 1])
    lam = torch.full((5, 1, 4), 0.25)
    for there in (1.0, 1e-2, 1e-4, 1e-8, 1e-20):
        a = torch.tensor([[1.0], [there], [there], [there]])
        loss = float(mixed_cross_entropy(L, y, lam, a, label_smoothing=0.1, class_weight=w))
        assert 1 < loss <= 10 * math.log(3) + 1e-3
