"""The tiles as Triton kernels, for CUDA: mixed logits exist in registers only.

For position p, with g = λa (λ without attention), s = Σ_b g, w = g/s, ρ = Σ_c Y, L the logits, X = gL/r, where r is s,
or s‖w‖ to keep the length of embeddings; and μ what the examples weigh, 1 without class weights:

    _lse     per block of mixtures: Σ_b gμ (its part of S), 1/r, v = Σ_b gρ (= sτ), and logsumexp(X), online over
             blocks of classes
    _grad    per block of classes and of examples: a ∘ λᵀ(v/r · softmax(X)), X computed again, over all mixtures
    _pair    per block of pairs of examples: gᵀ(g/r), over all mixtures
    _said    where a teacher with logits T predicts mixtures, Q = softmax(gT/r): per block of mixtures its logsumexp,
             Σ_c Q and Σ_c QX, online as well. Q's part of the gradient is `_grad` of T, with −s for v

Each block of a sum has one owner, so results do not depend on the order of execution. Where there are too few blocks
to fill a GPU, mixtures are split among several owners, whose sums are added after.

Set TRITON_INTERPRET=1 before the first import to run the kernels in Python on the CPU; that is how they are tested
without a GPU.
"""
# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import inspect
import os
from functools import cache
from typing import Optional, Union

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from triton import runtime

from ...errors import reason
from ..dirichlet import Sticks
from ..targets import MASKED
from .stream import TINY, Batch, Engine, Sums

INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'

# Of classes, of examples (at most), and of examples on either side of a pair in a block; of examples in a step of a
# product. Mixtures in a block: float32's digits cost three products, and the registers for them. Chosen by compiling
# for sm_80 and sm_90 (as tests/mixing/test_triton.py does): nothing spills but 16 bytes of float32's _grad on sm_90.
BLOCK_C, BLOCK_B, PAIR, STEP = 64, 128, 64, 32
BLOCK_N = {'tf32': 64, 'tf32x3': 32}
LAUNCH = dict(num_warps=8, num_stages=2)
ROWS = 64  # mixtures are split by multiples of this, which every block of them divides
BLOCKS_WANTED = 256  # about two for every multiprocessor of a large GPU
ALIGNED = 16  # rows of logits are filled up to a multiple, so that they are loaded by 16 bytes and not by 4

# Triton compiles a kernel anew for a whole number that is 1 or a multiple of 16. These change from call to call, and
# are no part of an address that is loaded by 16 bytes.
VARIES = ['N', 'row_p', 'SPLITS', 'ROWS', 'out_split']


def _jit(kernel):
    taken = inspect.signature(kernel).parameters
    return triton.jit(do_not_specialize=[name for name in VARIES if name in taken])(kernel)


@triton.jit
def _load_g(lam, a, p, k, b, N, B, lam_p, lam_k, HAS_A: tl.constexpr):
    """g = λa of mixtures k and examples b, (len(k), len(b)); 0 outside."""
    # A given Λ, (N, P, B), is strided, and may have more elements than fit into 32 bits.
    at = lam + p * lam_p + k[:, None].to(tl.int64) * lam_k + b[None, :]
    g = tl.load(at, mask=(k < N)[:, None] & (b < B)[None, :], other=0.0)
    if HAS_A:
        g *= tl.load(a + p * B + b, mask=b < B, other=0.0)[None, :]
    return g


@triton.jit
def _load_lam_t(lam, p, k, b, N, B, lam_p, lam_k):
    """λᵀ of the same, (len(b), len(k))."""
    at = lam + p * lam_p + k[None, :].to(tl.int64) * lam_k + b[:, None]
    return tl.load(at, mask=(k < N)[None, :] & (b < B)[:, None], other=0.0)


@triton.jit
def _add(out, acc, a, p, i, j, B, J, HAS_A: tl.constexpr):
    """out += a ∘ acc, at examples i and columns j of J."""
    if HAS_A:
        acc *= tl.load(a + p * B + i, mask=i < B, other=0.0)[:, None]
    to = out + (p * B + i[:, None]) * J + j[None, :]
    inside = (i < B)[:, None] & (j < J)[None, :]
    tl.store(to, tl.load(to, mask=inside, other=0.0) + acc, mask=inside)


@triton.jit
def _dot(x, y, total, PRECISION: tl.constexpr):
    """total + xy. The tensor cores cut off the digits for which TF32 has no room, and all would come out too small: so
    they are rounded before."""
    if PRECISION == 'tf32':
        x = ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
        y = ((y.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return tl.dot(x, y, total, input_precision=PRECISION)


@triton.jit
def _mix(lam, L, a, p, k, c, N, B, C, lam_p, lam_k, L_p, L_b,
         HAS_A: tl.constexpr, STEP: tl.constexpr, PRECISION: tl.constexpr):
    """gL of mixtures k and classes c, (len(k), len(c)), in float32."""
    x = tl.zeros((k.shape[0], c.shape[0]), dtype=tl.float32)
    for b0 in range(0, B, STEP):
        b = b0 + tl.arange(0, STEP)
        g = _load_g(lam, a, p, k, b, N, B, lam_p, lam_k, HAS_A)
        l = tl.load(L + p * L_p + b[:, None] * L_b + c[None, :], mask=(b < B)[:, None] & (c < C)[None, :], other=0.0)
        x = _dot(g, l, x, PRECISION)
    return x


@_jit
def _lse(lam, L, a, rowsum, mass, weight_out, inverse_out, v_out, lse_out, N, B, C, lam_p, lam_k, L_p, L_b, row_p,
         TINY: tl.constexpr, HAS_A: tl.constexpr, HAS_MASS: tl.constexpr, KEEP_NORM: tl.constexpr,
         BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, STEP: tl.constexpr, PRECISION: tl.constexpr):
    p = tl.program_id(1).to(tl.int64)
    k = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    s = tl.zeros((BLOCK_N,), dtype=tl.float32)
    v = tl.zeros((BLOCK_N,), dtype=tl.float32)
    weight = tl.zeros((BLOCK_N,), dtype=tl.float32)
    for b0 in range(0, B, STEP):
        b = b0 + tl.arange(0, STEP)
        g = _load_g(lam, a, p, k, b, N, B, lam_p, lam_k, HAS_A)
        s += tl.sum(g, 1)
        v += tl.sum(g * tl.load(rowsum + p * row_p + b, mask=b < B, other=0.0)[None, :], 1)
        if HAS_MASS:
            weight += tl.sum(g * tl.load(mass + p * row_p + b, mask=b < B, other=0.0)[None, :], 1)
    if HAS_A:
        some = s > TINY
        s = tl.where(some, s, 0.0)
        v = tl.where(some, v, 0.0)
        weight = tl.where(some, weight, 0.0)
        inverse = tl.where(some, 1 / tl.where(some, s, 1.0), 0.0)
    else:
        s = tl.full((BLOCK_N,), 1.0, dtype=tl.float32)
        inverse = s
    if not HAS_MASS:
        weight = s
    if KEEP_NORM:  # of factors already normalised: the squares of small ones would be lost in float32
        square = tl.zeros((BLOCK_N,), dtype=tl.float32)
        for b0 in range(0, B, STEP):
            w = _load_g(lam, a, p, k, b0 + tl.arange(0, STEP), N, B, lam_p, lam_k, HAS_A) * inverse[:, None]
            square += tl.sum(w * w, 1)
        inverse = tl.where(square > 0, inverse / tl.sqrt(tl.where(square > 0, square, 1.0)), 0.0)
    top = tl.full((BLOCK_N,), float('-inf'), dtype=tl.float32)
    total = tl.zeros((BLOCK_N,), dtype=tl.float32)
    for c0 in range(0, C, BLOCK_C):
        c = c0 + tl.arange(0, BLOCK_C)
        x = _mix(lam, L, a, p, k, c, N, B, C, lam_p, lam_k, L_p, L_b, HAS_A, STEP, PRECISION)
        x = tl.where((c < C)[None, :], x * inverse[:, None], float('-inf'))
        higher = tl.maximum(top, tl.max(x, 1))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(x - higher[:, None]), 1)
        top = higher
    tl.store(weight_out + p * N + k, weight, mask=k < N)
    tl.store(inverse_out + p * N + k, inverse, mask=k < N)
    tl.store(v_out + p * N + k, v, mask=k < N)
    tl.store(lse_out + p * N + k, top + tl.log(total), mask=k < N)


@_jit
def _said(lam, L, T, cw, a, inverse_in, s_out, share_out, cross_out, lse_out, N, B, C, lam_p, lam_k, L_p, L_b, T_p,
          T_b, CLASSES, TINY: tl.constexpr, HAS_A: tl.constexpr, HAS_MASS: tl.constexpr, BLOCK_N: tl.constexpr,
          BLOCK_C: tl.constexpr, STEP: tl.constexpr, PRECISION: tl.constexpr):
    p = tl.program_id(1).to(tl.int64)
    k = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inverse = tl.load(inverse_in + p * N + k, mask=k < N, other=0.0)
    s = tl.full((BLOCK_N,), 1.0, dtype=tl.float32)
    if HAS_A:
        s = tl.zeros((BLOCK_N,), dtype=tl.float32)
        for b0 in range(0, B, STEP):
            s += tl.sum(_load_g(lam, a, p, k, b0 + tl.arange(0, STEP), N, B, lam_p, lam_k, HAS_A), 1)
        s = tl.where(s > TINY, s, 0.0)
    top = tl.full((BLOCK_N,), float('-inf'), dtype=tl.float32)
    total = tl.zeros((BLOCK_N,), dtype=tl.float32)
    share = tl.zeros((BLOCK_N,), dtype=tl.float32)
    cross = tl.zeros((BLOCK_N,), dtype=tl.float32)
    for c0 in range(0, C, BLOCK_C):
        c = c0 + tl.arange(0, BLOCK_C)
        t = _mix(lam, T, a, p, k, c, N, B, C, lam_p, lam_k, T_p, T_b, HAS_A, STEP, PRECISION)
        t = tl.where((c < C)[None, :], t * inverse[:, None], float('-inf'))
        higher = tl.maximum(top, tl.max(t, 1))
        before = tl.exp(top - higher)
        q = tl.exp(t - higher[:, None])
        total = total * before + tl.sum(q, 1)
        if HAS_MASS:
            q *= tl.load(cw + c, mask=c < CLASSES, other=0.0)[None, :]
        x = _mix(lam, L, a, p, k, c, N, B, C, lam_p, lam_k, L_p, L_b, HAS_A, STEP, PRECISION)
        share = share * before + tl.sum(q, 1)
        cross = cross * before + tl.sum(q * x * inverse[:, None], 1)
        top = higher
    tl.store(s_out + p * N + k, s, mask=k < N)
    tl.store(share_out + p * N + k, share / total, mask=k < N)
    tl.store(cross_out + p * N + k, cross / total, mask=k < N)
    tl.store(lse_out + p * N + k, top + tl.log(total), mask=k < N)


@_jit
def _grad(lam, L, a, inverse_in, v_in, lse_in, out, N, B, C, lam_p, lam_k, L_p, L_b, CLASSES, SPLITS, ROWS, out_split,
          HAS_A: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr,
          STEP: tl.constexpr, PRECISION: tl.constexpr):
    p = (tl.program_id(2) // SPLITS).to(tl.int64)
    split = (tl.program_id(2) % SPLITS).to(tl.int64)
    own = tl.program_id(1) * BLOCK_B + tl.arange(0, BLOCK_B)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    acc = tl.zeros((BLOCK_B, BLOCK_C), dtype=tl.float32)
    for k0 in range(split * ROWS, tl.minimum(split * ROWS + ROWS, N), BLOCK_N):
        k = k0 + tl.arange(0, BLOCK_N)
        inverse = tl.load(inverse_in + p * N + k, mask=k < N, other=0.0)
        v = tl.load(v_in + p * N + k, mask=k < N, other=0.0)
        lse = tl.load(lse_in + p * N + k, mask=k < N, other=0.0)
        x = _mix(lam, L, a, p, k, c, N, B, C, lam_p, lam_k, L_p, L_b, HAS_A, STEP, PRECISION)
        prob = tl.exp(x * inverse[:, None] - lse[:, None]) * (v * inverse)[:, None]
        mine = _load_lam_t(lam, p, k, own, N, B, lam_p, lam_k)
        acc = _dot(mine, prob, acc, PRECISION)
    _add(out + split * out_split, acc, a, p, own, c, B, CLASSES, HAS_A)


@_jit
def _pair(lam, a, inverse_in, out, N, B, lam_p, lam_k, SPLITS, ROWS, out_split,
          HAS_A: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr, PRECISION: tl.constexpr):
    p = (tl.program_id(2) // SPLITS).to(tl.int64)
    split = (tl.program_id(2) % SPLITS).to(tl.int64)
    i = tl.program_id(1) * BLOCK_B + tl.arange(0, BLOCK_B)
    j = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    acc = tl.zeros((BLOCK_B, BLOCK_B), dtype=tl.float32)
    for k0 in range(split * ROWS, tl.minimum(split * ROWS + ROWS, N), BLOCK_N):
        k = k0 + tl.arange(0, BLOCK_N)
        inverse = tl.load(inverse_in + p * N + k, mask=k < N, other=0.0)
        left = _load_lam_t(lam, p, k, i, N, B, lam_p, lam_k)
        right = _load_g(lam, a, p, k, j, N, B, lam_p, lam_k, HAS_A) * inverse[:, None]
        acc = _dot(left, right, acc, PRECISION)
    _add(out + split * out_split, acc, a, p, i, j, B, B, HAS_A)


def add_mixtures(sums: Sums, batch: Batch, lam: Union[Tensor, Sticks]) -> None:
    """See `stream.Engine`. float32; the attention is a constant."""
    if isinstance(lam, Sticks):
        lam = lam.dense()
    p, N, B = lam.shape
    L, a, C = _aligned(batch.logits), batch.attention, batch.logits.shape[-1]
    if lam.stride(-1) != 1:
        lam = lam.contiguous()
    weight, inverse, v, lse = (lam.new_empty(p, N) for _ in range(4))
    # Products of half-precision logits need no more digits than they have; float32 ones get about all of theirs.
    precision = 'tf32' if batch.came.itemsize < 4 else 'tf32x3'
    sizes = (N, B, L.shape[-1], lam.stride(0), lam.stride(1), L.stride(0), L.stride(1))
    block_n, block_b = BLOCK_N[precision], min(BLOCK_B, max(32, triton.next_power_of_2(B)))
    fixed = dict(HAS_A=a is not None, BLOCK_N=block_n, PRECISION=precision, **LAUNCH)
    any_a = lam if a is None else a.contiguous()
    any_mass = batch.rowsum if batch.mass is None else batch.mass
    with torch.cuda.device_of(lam):
        _lse[triton.cdiv(N, block_n), p](
            lam, L, any_a, batch.rowsum, any_mass, weight, inverse, v, lse, *sizes,
            B if batch.rowsum.ndim == 2 else 0, TINY=TINY,
            HAS_MASS=batch.mass is not None, KEEP_NORM=batch.options.keep_norm, BLOCK_C=BLOCK_C, STEP=STEP, **fixed)
        T, share = batch.teacher, batch.options.teacher_weight
        if T is not None:
            T, cw = _aligned(T), batch.class_weight
            of_teacher = T.stride(0) if T.ndim == 3 else 0, T.stride(-2)
            s, says, cross, lse_t = (lam.new_empty(p, N) for _ in range(4))
            _said[triton.cdiv(N, block_n), p](
                lam, L, T, batch.rowsum if cw is None else cw, any_a, inverse, s, says, cross, lse_t, *sizes,
                *of_teacher, C, TINY=TINY, HAS_MASS=cw is not None, BLOCK_C=BLOCK_C, STEP=STEP, **fixed)
            s = share * s
            v = v + s * says
            sums.loss -= (s * cross).sum(1)
            if cw is not None:
                weight = weight + s * says
        sums.loss += (v * lse).sum(1)
        sums.weight += weight.sum(1)
        assert sums.pair is not None
        blocks = triton.cdiv(B, PAIR), triton.cdiv(B, PAIR)
        with _Split(sums.pair, N, blocks) as to:
            _pair[blocks[0], blocks[1], p * to.splits](
                lam, any_a, inverse, to.out, N, B, lam.stride(0), lam.stride(1), to.splits, to.rows, to.stride,
                BLOCK_B=PAIR, **fixed)
        if sums.logits is not None:
            blocks = triton.cdiv(C, BLOCK_C), triton.cdiv(B, block_b)
            with _Split(sums.logits, N, blocks) as to:
                _grad[blocks[0], blocks[1], p * to.splits](
                    lam, L, any_a, inverse, v, lse, to.out, *sizes, C, to.splits, to.rows, to.stride,
                    BLOCK_B=block_b, BLOCK_C=BLOCK_C, STEP=STEP, **fixed)
            if T is not None:
                part = torch.zeros_like(sums.logits)
                with _Split(part, N, blocks) as to:
                    _grad[blocks[0], blocks[1], p * to.splits](
                        lam, T, any_a, inverse, s, lse_t, to.out, *sizes[:5], *of_teacher, C, to.splits, to.rows,
                        to.stride, BLOCK_B=block_b, BLOCK_C=BLOCK_C, STEP=STEP, **fixed)
                sums.logits -= part if cw is None else part * cw


def _aligned(logits: Tensor) -> Tensor:
    """With classes behind that no mixture has, so that each row begins where many numbers can be loaded at once."""
    missing = -logits.shape[-1] % ALIGNED  # padding by nothing would copy them all the same
    return F.pad(logits, (0, missing), value=MASKED) if missing else logits.contiguous()


@cache
def why_it_does_not_start() -> Optional[str]:
    """Why not, if so: on first use Triton compiles its driver, by a C compiler and Python's headers."""
    try:
        runtime.driver.active.get_current_target()
    except Exception as error:  # whatever is missing
        return f'it does not start here ({type(error).__name__}: {reason(error, 1)}).'
    return None


class _Split:
    """Where a kernel adds its sums over N mixtures to, `total` (p, …); and among how many owners they are split."""

    def __init__(self, total: Tensor, N: int, blocks: tuple[int, int]) -> None:
        self.total = total
        few = BLOCKS_WANTED // (len(total) * blocks[0] * blocks[1])
        self.splits = max(1, min(few, triton.cdiv(N, ROWS)))
        self.rows = triton.cdiv(triton.cdiv(N, self.splits), ROWS) * ROWS
        self.out = total if self.splits == 1 else total.new_zeros((self.splits, *total.shape))
        self.stride = total.numel()

    def __enter__(self) -> _Split:
        return self

    def __exit__(self, *_: object) -> None:
        if self.splits > 1:
            self.total += self.out.sum(0)


ENGINE = Engine(add_mixtures)
