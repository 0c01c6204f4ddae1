"""The Triton engine: natively where there is a GPU, in Triton's interpreter elsewhere; compiled for GPUs anywhere."""
from __future__ import annotations

import logging
import os
import subprocess
import sys
from dataclasses import replace
from typing import Optional

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from timm_multimix import SettingError, attention, mixed_cross_entropy, sample_lam
from timm_multimix.mixing import LamSampler, TeacherTargets, engines, extensions
from timm_multimix.mixing.options import LossOptions

pytest.importorskip('triton')
from timm_multimix.mixing.engines import triton_engine  # noqa: E402

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
pytestmark = pytest.mark.skipif(
    DEVICE == 'cpu' and not triton_engine.INTERPRETED, reason='no GPU, and TRITON_INTERPRET is not 1')


def literal(Z: Tensor, W: Tensor, beta: Tensor, Y: Tensor, lam: Tensor, a: Optional[Tensor], normalize: str,
            keep_norm: bool = False, w: Optional[Tensor] = None, v: Optional[Tensor] = None) -> Tensor:
    a = torch.full(Z.shape[:2], 1 / Z.shape[1], dtype=Z.dtype, device=Z.device) if a is None else a
    return extensions.dense_multimix_loss(Z, Y, lam, a, W, beta, normalize, keep_norm=keep_norm, w=w, v=v)


def value_and_grad(loss: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    grad, = torch.autograd.grad(loss, logits)
    return loss.detach(), grad


TF32 = 2**-11  # its rounding, by which halves are multiplied

SHAPES = [  # B, P, C, N: ragged, smaller and larger than a block in every way
    (1, 1, 2, 1), (5, 3, 7, 9), (33, 2, 65, 70), (128, 1, 64, 64), (130, 2, 70, 131), (16, 12, 3, 33)]


@pytest.mark.parametrize('shape, dtype', [
    # Triton's interpreter takes a second for the largest, in which halves are what float32 is.
    pytest.param(shape, dtype, marks=[pytest.mark.slow] if dtype != torch.float32 and i > 3 and DEVICE == 'cpu' else [])
    for i, shape in enumerate(SHAPES) for dtype in (torch.float32, torch.bfloat16, torch.float16)])
@pytest.mark.parametrize('kind', ['none', 'gap', 'zeros'])
@pytest.mark.parametrize('keep_norm', [False, True])
def test_equals_the_equations(
        shape: tuple[int, int, int, int], dtype: torch.dtype, kind: str, keep_norm: bool) -> None:
    B, P, C, N = shape
    soft, normalize = kind == 'gap', 'all' if kind == 'zeros' else 'position'
    L = (3 * torch.randn(B, P, C, device=DEVICE)).to(dtype).requires_grad_()
    target = torch.randint(0, C, (B,), device=DEVICE)
    if soft:
        target = torch.rand(B, C, device=DEVICE) / C  # rows sum to < 1
    Y = (target if soft else torch.nn.functional.one_hot(target, C)).double()
    lam = sample_lam(N, P, B, 0.2, device=DEVICE)
    a = None if kind == 'none' else attention(torch.randn(B, P, 8, device=DEVICE))
    if kind == 'zeros':  # an image nobody looks at, a position nobody looks at, mixtures that miss all who do
        assert a is not None
        a[0] = 0
        a[:, 0] = 0
        lam[0] = 0
        lam[0, :, 0] = 1

    eye = torch.eye(C, dtype=torch.float64, device=DEVICE)
    exact = L.detach().double().requires_grad_()
    truth = value_and_grad(literal(
        exact, eye, 0 * eye[0], Y, lam.double(), None if a is None else a.double(), normalize, keep_norm), exact)
    found = value_and_grad(mixed_cross_entropy(
        L, target, lam, a, normalize=normalize, engine='triton', keep_norm=keep_norm), L)
    plain = value_and_grad(literal(
        L, eye.to(dtype), 0 * eye[0].to(dtype), Y.to(dtype), lam.to(dtype), None if a is None else a.to(dtype),
        normalize, keep_norm), L)
    for got, low, want in zip(found, plain, truth):
        scale = max(float(want.abs().max()), 0.1 / N)
        error = float((got - want).abs().max()) / scale
        yardstick = float((low.double() - want).abs().max()) / scale  # what the equations lose in this precision
        rounding = torch.finfo(dtype).eps if got.dtype == dtype else 0  # of the result itself
        assert error <= max(rounding, 1e-5 if dtype == torch.float32 else max(TF32, 0.5 * yardstick))
        assert torch.isfinite(got).all()


SIZES = dict(seed=st.integers(0, 2**31), B=st.integers(1, 40), P=st.integers(1, 3), C=st.integers(2, 80),
             N=st.integers(1, 70))  # up to two blocks of classes, and up to three of mixtures


@given(**SIZES, smoothing=st.sampled_from([0.0, 0.1]), m=st.booleans(), keep_norm=st.booleans())
@settings(max_examples=25, deadline=None)
def test_equals_the_torch_engine(
        seed: int, B: int, P: int, C: int, N: int, smoothing: float, m: bool, keep_norm: bool) -> None:
    g = torch.Generator().manual_seed(seed)
    L = torch.randn(B, P, C, generator=g).to(DEVICE).requires_grad_()
    lam = sample_lam(N, P, B, 0.05, g, m=max(1, B // 2) if m else None).to(DEVICE)
    y, a = torch.randint(0, C, (B,), generator=g).to(DEVICE), attention(torch.randn(B, P, 5, generator=g)).to(DEVICE)
    for got, want in zip(*(value_and_grad(mixed_cross_entropy(
            L, y, lam, a, label_smoothing=smoothing, engine=engine, keep_norm=keep_norm), L)
            for engine in ('triton', 'torch'))):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-6)


@given(**SIZES, smoothing=st.sampled_from([0.0, 0.1]), soft=st.booleans(), attending=st.booleans(),
       normalize=st.sampled_from(['position', 'all']), keep_norm=st.booleans(), zeros=st.booleans(),
       half=st.booleans())
@settings(max_examples=40, deadline=None)
def test_class_weights_equal_the_equations(
        seed: int, B: int, P: int, C: int, N: int, smoothing: float, soft: bool, attending: bool, normalize: str,
        keep_norm: bool, zeros: bool, half: bool) -> None:
    g = torch.Generator().manual_seed(seed)
    L = torch.randn(B, P, C, generator=g)
    L = (L.bfloat16() if half else L).to(DEVICE).requires_grad_()
    target = torch.randn(B, C, generator=g).softmax(1) if soft else torch.randint(0, C, (B,), generator=g)
    plain = (target if soft else torch.nn.functional.one_hot(target, C)).double().to(DEVICE)
    lam, w = sample_lam(N, P, B, 0.2, g), torch.rand(C, generator=g)
    a = attention(torch.randn(B, P, 5, generator=g)) if attending else None
    if zeros:  # classes that weigh nothing, an image nobody looks at, mixtures that miss all others
        w[1:] *= (torch.rand(C - 1, generator=g) > 0.5)
        lam[0, :] = torch.eye(B)[0]
        if a is not None:
            a[0] = 0
    lam, a = lam.to(DEVICE), None if a is None else a.to(DEVICE)

    got = value_and_grad(mixed_cross_entropy(
        L, target.to(DEVICE), lam, a, label_smoothing=smoothing, normalize=normalize, engine='triton',
        keep_norm=keep_norm, class_weight=w.to(DEVICE)), L)
    exact, weights = L.detach().double().requires_grad_(), w.double().to(DEVICE)
    eye = torch.eye(C, dtype=torch.float64, device=DEVICE)
    want = value_and_grad(literal(
        exact, eye, 0 * eye[0], extensions.smooth(plain, smoothing, weights), lam.double(),
        None if a is None else a.double(), normalize, keep_norm, weights, extensions.weigh(plain, weights)), exact)
    for found, true in zip(got, want):  # bfloat16: of its gradient eight bits are left, and products are TF32's
        scale = max(float(true.abs().max()), 0.1 / N)
        assert float((found - true).abs().max()) <= (1e-2 if half else 1e-5) * scale


def test_a_batch_without_weight_is_0_and_has_no_gradient() -> None:
    L, y = torch.randn(8, 2, 5, device=DEVICE, requires_grad=True), torch.zeros(8, dtype=torch.long, device=DEVICE)
    w = torch.tensor([0.0, 1, 1, 1, 1], device=DEVICE)
    for a in (None, torch.rand(8, 2, device=DEVICE)):
        value, grad = value_and_grad(mixed_cross_entropy(
            L, y, sample_lam(20, 2, 8, 1.0).to(DEVICE), a, label_smoothing=0.1, engine='triton', class_weight=w), L)
        assert value == 0 and not grad.any()


@pytest.mark.parametrize('chunk', [1 << 9, 1 << 10])
def test_streams(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(engines.stream.CHUNK, DEVICE, chunk)
    drawn: list[Tensor] = []
    draw = LamSampler.draw
    monkeypatch.setattr(LamSampler, 'draw', lambda self, p, n: drawn.append(draw(self, p, n)) or drawn[-1])
    L, y, a = torch.randn(8, 2, 5, device=DEVICE), torch.arange(8, device=DEVICE) % 5, torch.rand(8, 2, device=DEVICE)
    got = mixed_cross_entropy(L, y, LamSampler(100, 2, 8, 0.1, device=DEVICE), a, engine='triton')
    assert len(drawn) > 1
    halves = len(drawn) // 2 if len(drawn[0]) == 1 else len(drawn)
    lam = torch.cat([torch.cat(drawn[i:i + halves], 1) for i in range(0, len(drawn), halves)])
    torch.testing.assert_close(got, mixed_cross_entropy(L, y, lam.transpose(0, 1), a, engine='torch'))


# 9 GB of address space, of which only some pages are ever touched.
@(pytest.mark.slow if DEVICE == 'cpu' else lambda test: test)
def test_strides_beyond_32_bits() -> None:
    N, B, stride = 70, 4, 2**31 // 64
    lam = torch.empty(N * stride, device=DEVICE).as_strided((N, 1, B), (stride, B, 1))
    lam.copy_(sample_lam(N, 1, B, 0.5))
    L, y = torch.randn(B, 1, 5, device=DEVICE, requires_grad=True), torch.arange(B, device=DEVICE)
    for got, want in zip(*(value_and_grad(mixed_cross_entropy(L, y, lam, engine=engine), L)
                           for engine in ('triton', 'torch'))):
        torch.testing.assert_close(got, want)


def test_forward_only() -> None:
    L, y, lam = torch.randn(8, 2, 5, device=DEVICE), torch.arange(8, device=DEVICE) % 5, sample_lam(20, 2, 8, 1.0)
    got = mixed_cross_entropy(L, y, lam.to(DEVICE), engine='triton')
    assert not got.requires_grad
    torch.testing.assert_close(got, mixed_cross_entropy(L, y, lam.to(DEVICE), engine='torch'))


def test_what_it_cannot_do_is_an_error_by_name_and_a_line_in_the_log_otherwise(
        monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    engines._say_once.cache_clear()
    caplog.set_level(logging.INFO)
    cuda = torch.device('cuda')
    assert engines.choose(LossOptions(), cuda, torch.float32) is triton_engine.ENGINE
    assert engines.choose(LossOptions(engine='torch'), cuda, torch.float32) is engines.torch_engine.ENGINE
    assert not caplog.records
    for dtype, options, word in (
            (torch.float64, LossOptions(), 'float64'),
            (torch.float32, LossOptions(attention_grad=True), 'attention_detach'),
            (torch.float32, LossOptions(binary=True), 'no binary cross-entropy')):
        for _ in range(3):
            assert engines.choose(options, cuda, dtype) is engines.torch_engine.ENGINE
        assert sum(word in record.message for record in caplog.records) == 1
        with pytest.raises(SettingError, match=f'triton.*{word}'):
            engines.choose(replace(options, engine='triton'), cuda, dtype)
    monkeypatch.setattr(triton_engine, 'INTERPRETED', False)
    assert engines.choose(LossOptions(), torch.device('cpu'), torch.float32) is engines.torch_engine.ENGINE
    with pytest.raises(SettingError, match='run on CUDA, and the logits are on cpu'):
        engines.choose(LossOptions(engine='triton'), torch.device('cpu'), torch.float32)
    with pytest.raises(SettingError, match="engine is 'tritn'.*Did you mean triton"):
        engines.choose(LossOptions(engine='tritn'), cuda, torch.float32)


@given(**SIZES, attending=st.booleans(), at_positions=st.booleans(), keep_norm=st.booleans(),
       weighted=st.booleans(), zeros=st.booleans(), half=st.booleans(),
       reading=st.sampled_from(['targets', 'logits']), normalize=st.sampled_from(['position', 'all']))
@settings(max_examples=40, deadline=None)
def test_a_teacher_equals_the_equations(
        seed: int, B: int, P: int, C: int, N: int, attending: bool, at_positions: bool, keep_norm: bool, weighted: bool,
        zeros: bool, half: bool, reading: str, normalize: str) -> None:
    g = torch.Generator().manual_seed(seed)
    L, T = torch.randn(B, P, C, generator=g), 2 * torch.randn(B, P, C, generator=g)
    L = (L.bfloat16() if half else L).to(DEVICE).requires_grad_()
    T = T if at_positions else T[:, :1].expand(B, P, C)
    y, lam, w = torch.randint(0, C, (B,), generator=g), sample_lam(N, P, B, 0.2, g), torch.rand(C, generator=g)
    a = attention(torch.randn(B, P, 5, generator=g)) if attending else None
    if zeros:
        lam[0, :] = torch.eye(B)[0]
        if a is not None:
            a[0] = 0
    y, lam, w, T = (t.to(DEVICE) for t in (y, lam, w, T))
    a = None if a is None else a.to(DEVICE)
    weights = w if weighted else None
    got = value_and_grad(mixed_cross_entropy(
        L, y, lam, a, normalize=normalize, engine='triton', keep_norm=keep_norm, class_weight=weights,
        teacher=TeacherTargets(T if at_positions else T[:, 0], 0.4, 1.5, reading)), L)
    exact, eye = L.detach().double().requires_grad_(), torch.eye(C, dtype=torch.float64, device=DEVICE)
    Y = torch.nn.functional.one_hot(y, C).double()
    full = torch.full((B, P), 1 / P, dtype=torch.float64, device=DEVICE) if a is None else a.double()
    want = value_and_grad(extensions.dense_multimix_loss(
        exact, Y, lam.double(), full, eye, 0 * eye[0], normalize, keep_norm=keep_norm,
        w=w.double() if weighted else None, v=extensions.weigh(Y, w.double()) if weighted else None,
        teacher=extensions.Teacher(T.double(), 0.4, 1.5, reading)), exact)
    for found, true in zip(got, want):
        scale = max(float(true.abs().max()), 0.1 / N)
        assert float((found - true).abs().max()) <= (1e-2 if half else 2e-5) * scale


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'timm_multimix.mixing.engines.triton_engine', None)
    monkeypatch.delattr(engines, 'triton_engine')
    assert engines.choose(LossOptions(), torch.device('cuda'), torch.float32) is engines.torch_engine.ENGINE
    with pytest.raises(SettingError, match='does not import'):
        engines.choose(LossOptions(engine='triton'), torch.device('cuda'), torch.float32)


def test_a_triton_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """It compiles its driver on first use, and a container may have no C compiler."""
    class Driver:
        @property
        def active(self) -> None:
            raise RuntimeError('Failed to find C compiler.')

    monkeypatch.setattr(engines.triton_engine, 'INTERPRETED', False)
    monkeypatch.setattr('triton.runtime.driver', Driver())
    engines.triton_engine.why_it_does_not_start.cache_clear()
    try:
        assert engines.choose(LossOptions(), torch.device('cuda'), torch.float32) is engines.torch_engine.ENGINE
        with pytest.raises(SettingError, match='it does not start here .RuntimeError: Failed to find C compiler'):
            engines.choose(LossOptions(engine='triton'), torch.device('cuda'), torch.float32)
    finally:
        engines.triton_engine.why_it_does_not_start.cache_clear()


COMPILE = '''
import inspect, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import compiler as nvidia
from triton.compiler import ASTSource
from timm_multimix.mixing.engines import triton_engine as engine

NAMED = 'constexprs' in inspect.signature(ASTSource).parameters  # triton of torch 2.6 leaves them out of the signature
WHOLE = {'N', 'B', 'C', 'lam_p', 'lam_k', 'L_p', 'L_b', 'T_p', 'T_b', 'row_p', 'CLASSES', 'SPLITS', 'ROWS', 'out_split'}
for capability in map(int, sys.argv[1:]):
    for precision, block_n in engine.BLOCK_N.items():
        for kernel, block_b in ((engine._lse, 0), (engine._grad, engine.BLOCK_B), (engine._pair, engine.PAIR),
                                (engine._said, 0)):
            fixed = dict(TINY=engine.TINY, HAS_A=True, HAS_MASS=True, KEEP_NORM=True, BLOCK_N=block_n, BLOCK_B=block_b,
                         BLOCK_C=engine.BLOCK_C, STEP=engine.STEP, PRECISION=precision)
            fixed = {name: value for name, value in fixed.items() if name in kernel.arg_names}
            signature = {name: 'constexpr' if name in fixed else 'i32' if name in WHOLE else '*fp32'
                         for name in kernel.arg_names if name not in fixed or NAMED}
            done = triton.compile(ASTSource(kernel, signature, fixed),
                                  target=GPUTarget('cuda', capability, 32), options=engine.LAUNCH)
            print(kernel.__name__, capability, precision, done.metadata.shared)
'''


@pytest.mark.parametrize('capability', ['80', pytest.param('90', marks=pytest.mark.slow)])
def test_compiles_for_gpus(capability: str) -> None:
    """For an A100 and an H100, from here. Shared memory fits into every GPU's since Ampere (99 KiB)."""
    env = {**os.environ, 'TRITON_INTERPRET': '0'}
    done = subprocess.run([sys.executable, '-c', COMPILE, capability], capture_output=True, text=True, env=env,
                          timeout=600)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 8
    assert all(int(shared) <= 99 * 1024 for *_, shared in lines), done.stdout


@pytest.mark.parametrize('shape', [(5, 3, 7, 9), (33, 4, 65, 70)])
@pytest.mark.parametrize('kind', ['none', 'gap'])
@pytest.mark.parametrize('normalize', ['position', 'all'])
def test_positions_that_do_not_exist(shape: tuple[int, int, int, int], kind: str, normalize: str) -> None:
    """Ragged lengths, a position of nobody, and an example of none; NaN where nothing is."""
    B, P, C, N = shape
    mask = torch.arange(P, device=DEVICE) < torch.randint(0, P, (B, 1), device=DEVICE)
    mask[0] = False
    L, z = torch.randn(B, P, C, device=DEVICE), torch.randn(B, P, 8, device=DEVICE)
    y, lam = torch.randint(0, C, (B,), device=DEVICE), sample_lam(N, P, B, 0.2, device=DEVICE)
    a = None if kind == 'none' else attention(z, mask=mask)

    padded = L.masked_fill(~mask[..., None], float('nan')).requires_grad_()
    got = value_and_grad(mixed_cross_entropy(padded, y, lam, a, mask=mask, normalize=normalize, engine='triton'),
                         padded)
    exact = L.double().requires_grad_()
    maps = (attention(z, 'uniform', mask=mask) if a is None else a).double()
    want = value_and_grad(extensions.dense_multimix_loss(
        exact, torch.nn.functional.one_hot(y, C).double(), lam.double(), maps, torch.eye(C, device=DEVICE).double(),
        torch.zeros(C, device=DEVICE).double(), normalize, mask=mask), exact)
    for one, other in zip(got, want):
        torch.testing.assert_close(one, other.float(), rtol=1e-4, atol=1e-6)
