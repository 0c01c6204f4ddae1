"""The production loss against the literal equations, in value and every gradient."""
from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Optional, Union

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.measure import peak_mib
from timm_multimix import SettingError, attention, mixed_cross_entropy, sample_lam
from timm_multimix.mixing import LamSampler, extensions, reference
from timm_multimix.mixing.attention_maps import normalize_map
from timm_multimix.mixing.dirichlet import Sticks
from timm_multimix.mixing.engines import stream, torch_engine

KINDS = [('uniform', 'l1_relu'), ('gap', 'l1_relu'), ('gap', 'softmax'), ('cam', 'l1_relu'), ('cam', 'softmax')]


def values_and_grads(loss: Callable[..., Tensor], *tensors: Tensor) -> list[Tensor]:
    leaves = [t.clone().requires_grad_() for t in tensors]
    value = loss(*leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)]


def compare(fast: Callable[..., Tensor], literal: Callable[..., Tensor], *tensors: Tensor, slack: float = 4) -> None:
    """Value and gradients of both sides, each with the truth in float64: to 1e-5 in float32 and 1e-10 in float64.

    That is relative to the largest entry, or to 1/10 where a sum of terms near 1 cancels to less. Float32 may be worse
    where the literal side is bad too, up to `slack` times: the gradient of attention divides by weights that may be
    next to nothing, and which side is luckier then varies.
    """
    tolerance = 1e-5 if tensors[0].dtype == torch.float32 else 1e-10
    truth = values_and_grads(literal, *(t.double() for t in tensors))
    for got, plain, want in zip(values_and_grads(fast, *tensors), values_and_grads(literal, *tensors), truth):
        error, yardstick = float((got - want).abs().max()), float((plain - want).abs().max())
        assert error <= max(tolerance * max(float(want.abs().max()), 0.1), slack * yardstick)


@st.composite
def problem(draw: st.DrawFn) -> dict:
    seed = draw(st.integers(0, 2**31))
    g = torch.Generator().manual_seed(seed)
    B, P, D, C, N = (draw(st.integers(low, high)) for low, high in ((1, 9), (1, 6), (1, 8), (2, 9), (1, 14)))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    soft = draw(st.booleans())
    smoothing = draw(st.sampled_from([0.0, 0.1]))
    y = torch.randint(0, C, (B,), generator=g)
    target = torch.rand(B, C, generator=g, dtype=torch.float64).softmax(1).to(dtype) if soft else y
    Y = target if soft else torch.nn.functional.one_hot(y, C).to(dtype)
    m = draw(st.integers(1, B))
    alpha = draw(st.sampled_from([1e-3, 0.05, 1.0, (0.5, 2.0)]))
    return dict(
        Z=torch.randn(B, P, D, generator=g, dtype=dtype), W=torch.randn(C, D, generator=g, dtype=dtype),
        beta=torch.randn(C, generator=g, dtype=dtype), target=target, Y=extensions.smooth(Y, smoothing),
        lam=sample_lam(N, P, B, alpha, g, m=m, dtype=dtype), smoothing=smoothing, dtype=dtype,
        small_alpha=alpha in (1e-3, 0.05))


@given(p=problem(), kind=st.sampled_from(KINDS), normalize=st.sampled_from(['position', 'all']), detach=st.booleans(),
       binary=st.booleans(), keep_norm=st.booleans())
@settings(max_examples=200, deadline=None)
def test_dense_equals_the_equations(
        p: dict, kind: tuple[str, str], normalize: str, detach: bool, binary: bool, keep_norm: bool) -> None:
    what, norm = kind
    detach = detach or keep_norm
    B, P, _ = p['Z'].shape
    hard = p['target'] if p['target'].ndim == 2 else torch.nn.functional.one_hot(
        p['target'], p['W'].shape[0]).to(p['dtype'])
    maybe = (lambda a: a.detach()) if detach else (lambda a: a)

    def literal(Z: Tensor, W: Tensor, beta: Tensor) -> Tensor:
        if what == 'uniform':
            a = torch.full((B, P), 1 / P, dtype=Z.dtype)
        else:
            scores = reference.gap_scores(Z) if what == 'gap' else reference.cam_scores(Z, hard.to(Z.dtype), W)
            a = maybe(reference.l1_relu(scores) if norm == 'l1_relu' else scores.softmax(1))
        given = Z, p['Y'].to(Z.dtype), p['lam'].to(Z.dtype), a, W, beta, normalize
        if binary or keep_norm:
            return extensions.dense_multimix_loss(*given, binary, keep_norm)
        return reference.dense_multimix_loss(*given)

    def fast(Z: Tensor, W: Tensor, beta: Tensor) -> Tensor:
        a = None if what == 'uniform' else maybe(attention(Z, what, norm, target=p['target'], weight=W))
        return mixed_cross_entropy(Z @ W.t() + beta, p['target'], p['lam'], a, label_smoothing=p['smoothing'],
                                   normalize=normalize, binary=binary, keep_norm=keep_norm)

    # With a small α attention's gradient divides by weights next to nothing: a comparison for float64.
    assume(detach or not p['small_alpha'] or p['dtype'] == torch.float64)
    compare(fast, literal, p['Z'], p['W'], p['beta'], slack=4 if detach else 100)


@given(p=problem(), binary=st.booleans(), keep_norm=st.booleans())
@settings(max_examples=100, deadline=None)
def test_multimix_equals_the_equations(p: dict, binary: bool, keep_norm: bool) -> None:
    Z, lam = p['Z'][:, 0], p['lam'][:, :1]

    def fast(Z: Tensor, W: Tensor, beta: Tensor) -> Tensor:
        return mixed_cross_entropy(Z @ W.t() + beta, p['target'], lam, label_smoothing=p['smoothing'], binary=binary,
                                   keep_norm=keep_norm)

    def literal(Z: Tensor, W: Tensor, beta: Tensor) -> Tensor:
        given = Z, p['Y'].to(Z.dtype), lam[:, 0].to(Z.dtype), W, beta
        if binary or keep_norm:
            return extensions.multimix_loss(*given, binary, keep_norm)
        return reference.multimix_loss(*given)

    compare(fast, literal, Z, p['W'], p['beta'])


@given(p=problem(), normalize=st.sampled_from(['position', 'all']))
@settings(max_examples=50, deadline=None)
def test_extensions_that_are_not_used_leave_the_papers_losses(p: dict, normalize: str) -> None:
    a = torch.rand(p['Z'].shape[:2], dtype=p['dtype'])
    dense = p['Z'], p['Y'], p['lam'], a, p['W'], p['beta'], normalize
    torch.testing.assert_close(extensions.dense_multimix_loss(*dense), reference.dense_multimix_loss(*dense))
    plain = p['Z'][:, 0], p['Y'], p['lam'][:, 0], p['W'], p['beta']
    torch.testing.assert_close(extensions.multimix_loss(*plain), reference.multimix_loss(*plain))


@given(p=problem(), zero_map=st.booleans(), zero_position=st.booleans(), everything=st.booleans())
@settings(max_examples=80, deadline=None)
def test_attention_with_nothing_in_it(p: dict, zero_map: bool, zero_position: bool, everything: bool) -> None:
    """Zero maps, zero positions, mixtures that miss every attended example: finite, and as the equations say."""
    Z, W, beta = p['Z'], p['W'], p['beta']
    B, P, _ = Z.shape
    scores = torch.randn(B, P, dtype=p['dtype'])
    if zero_map:
        scores[0] = -1
    a = normalize_map(scores, 'l1_relu')
    if zero_position:
        a[:, P - 1] = 0
    if everything:
        a = torch.zeros_like(a)

    def fast(L: Tensor, a: Tensor) -> Tensor:
        return mixed_cross_entropy(L, p['target'], p['lam'], a, label_smoothing=p['smoothing'])

    def literal(L: Tensor, a: Tensor) -> Tensor:
        eye = torch.eye(L.shape[-1], dtype=L.dtype)
        return reference.dense_multimix_loss(
            L, p['Y'].to(L.dtype), p['lam'].to(L.dtype), a, eye, torch.zeros_like(eye[0]))

    L = Z @ W.t() + beta
    assert all(torch.isfinite(t).all() for t in values_and_grads(fast, L, a))
    compare(lambda L: fast(L, a.to(L)), lambda L: literal(L, a.to(L)), L)
    if p['dtype'] == torch.float64:  # its gradient here divides by weights that are next to nothing: not for float32
        compare(fast, literal, L, a)


@pytest.mark.parametrize('tile', [1, 7, 64, 1 << 20])
def test_tiles_do_not_change_the_result(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    L, a = torch.randn(6, 5, 7, dtype=torch.float64), torch.rand(6, 5, dtype=torch.float64).softmax(1)
    lam, y = sample_lam(23, 5, 6, 0.3, dtype=torch.float64), torch.randint(0, 7, (6,))

    def loss(L: Tensor, a: Tensor) -> Tensor:
        return mixed_cross_entropy(L, y, lam, a)

    want = values_and_grads(loss, L, a)
    monkeypatch.setitem(torch_engine.TILE, 'cpu', tile)
    monkeypatch.setattr(torch_engine, 'ROWS', 1)
    for x, t in zip(values_and_grads(loss, L, a), want):
        torch.testing.assert_close(x, t, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize('chunk', [3, 40, 200, 1 << 20])
@pytest.mark.parametrize('detach', [True, False])
def test_drawn_in_tiles_or_given_whole(chunk: int, detach: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stream.CHUNK, 'cpu', chunk)
    tiles: list[Tensor] = []
    draw = LamSampler.draw
    monkeypatch.setattr(LamSampler, 'draw', lambda self, p, n: tiles.append(draw(self, p, n)) or tiles[-1])
    L, a, y = torch.randn(6, 5, 7, dtype=torch.float64), torch.rand(6, 5, dtype=torch.float64), torch.arange(6)

    def loss(L: Tensor, a: Tensor) -> Tensor:
        return mixed_cross_entropy(L, y, lam, a.detach() if detach else a)

    lam: Union[Tensor, LamSampler] = LamSampler(23, 5, 6, 0.3, dtype=torch.float64)
    got = values_and_grads(loss, L, a)
    rows: list[Tensor] = []  # of tiles, joined along n first, then along the positions
    for tile in tiles:
        if rows and rows[-1].shape[1] < 23:
            rows[-1] = torch.cat([rows[-1], tile], 1)
        else:
            rows.append(tile)
    lam = torch.cat(rows).transpose(0, 1)
    assert lam.shape == (23, 5, 6) and (len(tiles) > 1) == (chunk < 1 << 20)
    for x, t in zip(got, values_and_grads(loss, L, a)):
        torch.testing.assert_close(x, t, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize('w', [None, torch.linspace(0, 1, 20)], ids=['', 'class weights'])
def test_memory_does_not_depend_on_n(w: Optional[Tensor]) -> None:
    L, a, y = torch.randn(16, 3, 20, requires_grad=True), torch.rand(16, 3).softmax(1), torch.arange(16)

    def peak(n: int) -> float:
        return peak_mib(lambda: torch.autograd.grad(
            mixed_cross_entropy(L, y, LamSampler(n, 3, 16, 0.1), a, class_weight=w), L), 'cpu')

    small, large = peak(200_000), peak(500_000)
    assert small > 5 and large <= 1.05 * small


def test_a_sampler_must_fit() -> None:
    with pytest.raises(SettingError, match=r'LamSampler device=… and dtype='):
        call(lam=LamSampler(5, 2, 4, 1.0, dtype=torch.float64))
    with pytest.raises(SettingError, match=r'\(N, 2, 4\) to fit the logits, not \(5, 2, 3\)'):
        call(lam=LamSampler(5, 2, 3, 1.0))


def test_gradcheck() -> None:
    lam, y = sample_lam(9, 3, 4, 0.5, dtype=torch.float64), torch.rand(4, 5, dtype=torch.float64).softmax(1)
    L = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
    a = torch.rand(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda L, a: mixed_cross_entropy(L, y, lam, a, normalize='all'), (L, a))


@pytest.mark.parametrize('case', ['one class', 'b = 1', 'confident', 'huge logits', 'one-hot mixtures'])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_never_nan(case: str, dtype: torch.dtype) -> None:
    B, P, C = (1 if case == 'b = 1' else 8), 4, 5
    y = torch.zeros(B, dtype=torch.long) if case == 'one class' else torch.arange(B) % C
    z = torch.randn(B, P, C)
    if case == 'confident':
        z = z + 100 * torch.nn.functional.one_hot(y, C)[:, None]
    if case == 'huge logits':
        z = z * 10_000
    z = z.to(dtype).requires_grad_()
    lam = sample_lam(50, P, B, 1e-3 if case == 'one-hot mixtures' else 1.0)
    loss = mixed_cross_entropy(z, y, lam, attention(z.detach()))
    loss.backward()
    assert loss.dtype == torch.float32 and torch.isfinite(loss) and loss >= -1e-4
    assert z.grad.dtype == dtype and torch.isfinite(z.grad).all()


@pytest.mark.parametrize('w', [None, torch.linspace(0, 1, 6)], ids=['', 'class weights'])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_autocast_computes_in_float32(dtype: torch.dtype, w: Optional[Tensor]) -> None:
    L, lam, y = torch.randn(8, 4, 6), sample_lam(20, 4, 8, 0.2), torch.arange(8) % 6
    a = torch.rand(8, 4).softmax(1)
    want = mixed_cross_entropy(L, y, lam, a, class_weight=w)
    with torch.autocast('cpu', dtype=dtype):
        assert torch.equal(mixed_cross_entropy(L, y, lam, a, class_weight=w), want)
        low = mixed_cross_entropy(L.to(dtype), y, lam, a.to(dtype), class_weight=w)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, want, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize('shape', [  # B, P, C, N
    (1, 1, 2, 1), (33, 2, 65, 70), (128, 1, 64, 64), (130, 2, 270, 131), (16, 40, 3, 33)])
@pytest.mark.parametrize('lam', ['given', 'sticks', 'few'])
@pytest.mark.parametrize('kind', ['none', 'gap', 'learned'])
@pytest.mark.parametrize('keep_norm', [False, True])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_loses_no_more_than_the_equations_in_it(
        shape: tuple[int, int, int, int], lam: str, kind: str, keep_norm: bool, dtype: torch.dtype,
        monkeypatch: pytest.MonkeyPatch) -> None:
    """Products in bfloat16 too, which the engine leaves to CPUs that have them."""
    if kind == 'learned' and (keep_norm or lam != 'given'):
        pytest.skip('refused, or the same as given')
    monkeypatch.setattr(torch_engine, '_multiplies_bfloat16', lambda device: True)
    B, P, C, N = shape
    L, y, eye = (3 * torch.randn(B, P, C)).to(dtype), torch.randint(0, C, (B,)), torch.eye(C, dtype=torch.float64)
    a = None if kind == 'none' else attention(torch.randn(B, P, 8))
    drawn: list[Union[Tensor, Sticks]] = []
    draw, draw_sticks = LamSampler.draw_many, LamSampler.draw_sticks
    monkeypatch.setattr(LamSampler, 'draw_many', lambda self, p, n: drawn.append(draw(self, p, n)) or drawn[-1])
    monkeypatch.setattr(
        LamSampler, 'draw_sticks', lambda self, p, n: drawn.append(draw_sticks(self, p, n)) or drawn[-1])
    mixtures = sample_lam(N, P, B, 0.2) if lam == 'given' else LamSampler(N, P, B, 0.5 / B if lam == 'sticks' else 1.0)

    def fast(L: Tensor, *a: Tensor) -> Tensor:
        return mixed_cross_entropy(L, y, mixtures, *a, keep_norm=keep_norm)

    leaves = () if a is None else (a,)
    if kind == 'gap':
        got = values_and_grads(lambda L: fast(L, *leaves), L)
    else:
        got = values_and_grads(fast, L, *leaves)
    if isinstance(mixtures, LamSampler):
        last = drawn[-1]
        mixtures = (last if isinstance(last, Tensor) else last.dense()).transpose(0, 1)

    def literal(L: Tensor, *a: Tensor) -> Tensor:
        given = a[0] if a else (torch.full((B, P), 1 / P) if kind == 'none' else leaves[0])
        return extensions.dense_multimix_loss(
            L, eye[y].to(L), mixtures.to(L), given.to(L), eye.to(L), 0 * eye[0].to(L), keep_norm=keep_norm)

    inputs = (L,) if kind == 'gap' else (L, *leaves)
    low, truth = values_and_grads(literal, *inputs), values_and_grads(literal, *(t.double() for t in inputs))
    for x, plain, want in zip(got, low, truth):
        scale = max(float(want.abs().max()), 0.1 / N)
        error, yardstick = (float((t.double() - want).abs().max()) / scale for t in (x, plain))
        assert error <= max(1e-5, torch.finfo(dtype).eps if x.dtype == dtype else 0, yardstick)


def test_mixing_identical_examples_is_plain_cross_entropy() -> None:
    L, y = torch.randn(1, 1, 6).expand(5, 1, 6), torch.full((5,), 2)
    loss = mixed_cross_entropy(L, y, sample_lam(10, 1, 5, 1.0))
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(L[:, 0], y))


def test_order_of_the_batch_does_not_matter() -> None:
    L, y, lam, a = torch.randn(7, 3, 4).double(), torch.randint(0, 4, (7,)), sample_lam(9, 3, 7, 1.0).double(), \
        torch.rand(7, 3).double()
    order = torch.randperm(7)
    torch.testing.assert_close(
        mixed_cross_entropy(L[order], y[order], lam[:, :, order], a[order]), mixed_cross_entropy(L, y, lam, a))


def test_no_gradient_is_computed_where_none_is_asked_for() -> None:
    loss = mixed_cross_entropy(torch.randn(4, 2, 3), torch.zeros(4, dtype=torch.long), sample_lam(5, 2, 4, 1.0))
    assert not loss.requires_grad


def test_double_backward_is_refused() -> None:
    L = torch.randn(4, 2, 3, requires_grad=True)
    loss = mixed_cross_entropy(L, torch.zeros(4, dtype=torch.long), sample_lam(5, 2, 4, 1.0))
    with pytest.raises(RuntimeError, match='differentiable once'):
        torch.autograd.grad(loss, L, create_graph=True)


def test_binary_is_torchs_where_nothing_is_mixed_and_takes_any_targets() -> None:
    L, y = torch.randn(5, 3) * 30, (torch.rand(5, 3) > 0.5).float()  # none, one or several classes
    got = mixed_cross_entropy(L, y, torch.eye(5).unsqueeze(1), binary=True)
    torch.testing.assert_close(got, torch.nn.functional.binary_cross_entropy_with_logits(L, y))
    with pytest.raises(SettingError, match='no binary cross-entropy'):
        mixed_cross_entropy(L, y, torch.eye(5).unsqueeze(1), binary=True, engine='triton')


def test_mixtures_that_keep_their_length() -> None:
    L, y = torch.randn(8, 3, 4), torch.arange(8) % 4
    alone = torch.eye(8).unsqueeze(1).expand(8, 3, 8)  # a mixture of one is as long as it is
    plain = [mixed_cross_entropy(L, y, alone, keep_norm=keep) for keep in (False, True)]
    torch.testing.assert_close(plain[0], plain[1])
    alike = torch.full((1, 3, 8), 1 / 8)  # the mean of eight orthogonal ones is √8 shorter
    longer = -(8 ** 0.5 * L.mean(0)).log_softmax(-1).mean()  # of uniform targets
    torch.testing.assert_close(mixed_cross_entropy(L, y, alike, keep_norm=True), longer)
    with pytest.raises(SettingError, match='keep_norm takes the attention as a constant'):
        mixed_cross_entropy(L, y, alike, torch.rand(8, 3, requires_grad=True), keep_norm=True)


@pytest.mark.parametrize('binary, keep_norm', [(False, False), (True, False), (False, True)])
def test_compiles(binary: bool, keep_norm: bool) -> None:
    L, y, lam = torch.randn(4, 2, 3, requires_grad=True), torch.tensor([0, 1, 2, 0]), sample_lam(5, 2, 4, 1.0)
    a = torch.rand(4, 2)
    how = {'binary': binary, 'keep_norm': keep_norm}
    compiled = torch.compile(lambda L: mixed_cross_entropy(L * 2, y, lam, a, **how), backend='aot_eager')
    want, = torch.autograd.grad(mixed_cross_entropy(L * 2, y, lam, a, **how), L)
    got, = torch.autograd.grad(compiled(L), L)
    torch.testing.assert_close(got, want)


def test_compiles_with_a_sampler_without_breaks_and_unrolls_nothing() -> None:
    L, y, a = torch.randn(4, 2, 3, requires_grad=True), torch.tensor([0, 1, 2, 0]), torch.rand(4, 2)
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list) -> Callable:
        graphs.append(graph)
        return aot_eager(graph, inputs)

    def loss(L: Tensor) -> Tensor:
        return mixed_cross_entropy(L * 2, y, LamSampler(20_000, 2, 4, (0.2, 1.0)), a)

    aot_eager = torch._dynamo.lookup_backend('aot_eager')
    compiled = torch.compile(loss, backend=backend, fullgraph=True)
    for _ in range(2):
        got, = torch.autograd.grad(compiled(L), L)
        want, = torch.autograd.grad(loss(L), L)
        torch.testing.assert_close(got, want, rtol=0.2, atol=0.02)  # other mixtures, the same distribution
    assert len(graphs) == 1 and len(graphs[0].graph.nodes) < 100


@pytest.mark.parametrize('compiled', [False, True])
@pytest.mark.parametrize('C, binary', [(6, False), (200, False), (6, True)])
def test_a_sampler_of_ones_own_is_asked(C: int, binary: bool, compiled: bool) -> None:
    """However much there is to mix: neither sticks nor another operator stand in for what its `draw` gives."""

    class First(LamSampler):
        def draw(self, positions: int, n: int) -> Tensor:
            return torch.eye(1, self.batch).expand(positions, n, -1)

    L, y = torch.randn(64, 2, C), torch.arange(64) % C

    def loss(L: Tensor) -> Tensor:
        return mixed_cross_entropy(L, y, First(2000, 2, 64, 0.02), binary=binary)

    got = (torch.compile(loss, backend='aot_eager') if compiled else loss)(L)
    Y = torch.nn.functional.one_hot(y[:1], C).float().expand(2, -1)
    how = torch.nn.functional.binary_cross_entropy_with_logits if binary else torch.nn.functional.cross_entropy
    torch.testing.assert_close(got, how(L[0], Y))


def call(**changes: Union[Tensor, LamSampler, str, None]) -> Tensor:
    arguments = dict(logits=torch.randn(4, 2, 3), target=torch.tensor([0, 1, 2, 0]), lam=sample_lam(5, 2, 4, 1.0))
    return mixed_cross_entropy(**{**arguments, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize('changes, words', [
    (dict(target=torch.tensor([0, 1, 3, 0])), 'class 3, but the model has the 3 classes'),
    (dict(target=torch.tensor([0, -1, 2, 0])), 'class -1'),
    (dict(target=torch.tensor([0.0, 1, 2, 0])), 'must be integers'),
    (dict(target=torch.zeros(4, 5)), r'\(4, 3\) soft targets'),
    (dict(target=torch.zeros(3, dtype=torch.long)), r'\(4,\) class indices'),
    (dict(logits=torch.randn(4)), r'\(B, P, C\)'),
    (dict(logits=torch.zeros(4, 2, 3, dtype=torch.long)), 'floating'),
    (dict(lam=torch.rand(5, 3, 4)), r'\(N, 2, 4\)'),
    (dict(lam=torch.rand(5, 2, 4, requires_grad=True)), 'drawn, not learned'),
    (dict(attention=torch.rand(2, 4)), r'\(4, 2\)'),
    (dict(normalize='batch'), 'position, all'),
    (dict(engine='cuda'), 'auto, torch, triton'),
])
def test_bad_input(changes: dict, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        call(**changes)


@pytest.mark.skipif(not any(map(shutil.which, ('cc', 'gcc', 'clang'))), reason='no C compiler')
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_by_inductor_of_logits_in_any_order(dtype: torch.dtype) -> None:
    """It believes what the operator says of its results, their strides too."""
    z, W, y = torch.randn(5, 9, 12, dtype=dtype), torch.randn(7, 12, dtype=dtype), torch.arange(5) % 7
    lam, a = sample_lam(20, 9, 5, 0.3), attention(torch.randn(5, 9, 4))

    def loss(W: Tensor) -> Tensor:
        logits = (z @ W.t()).transpose(1, 2).contiguous().transpose(1, 2)
        return mixed_cross_entropy(logits, y, lam, a)

    for got, want in zip(values_and_grads(torch.compile(loss, fullgraph=True), W), values_and_grads(loss, W)):
        torch.testing.assert_close(got, want, rtol=2e-3, atol=1e-5)


def test_float16_has_all_of_a_gradient_that_is_scaled() -> None:
    """As a gradient scaler does in backward: before, a position's share of it is below what float16 can hold."""
    B, P, C, scale = 32, 196, 1000, 2.0**16
    y, a, lam = torch.randint(0, C, (B,)), torch.rand(B, P).softmax(1), sample_lam(40, P, B, 0.05)
    half = torch.randn(B, P, C).half()
    want, = torch.autograd.grad(mixed_cross_entropy(x := half.float().requires_grad_(), y, lam, a), x)
    got, = torch.autograd.grad(mixed_cross_entropy(x := half.requires_grad_(), y, lam, a) * scale, x)
    assert got.dtype == torch.float16 and torch.isfinite(got).all()
    wrong = torch.arange(C) != y.view(B, 1, 1)
    error = (got.float() / scale - want)[wrong.expand_as(want)].norm() / want[wrong.expand_as(want)].norm()
    assert error < 1e-3
