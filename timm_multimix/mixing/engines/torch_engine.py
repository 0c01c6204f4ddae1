"""The tiles in plain torch, on any device: the engine everywhere but on CUDA, and for what Triton does not do.

Here X is a product; `sticks.py` is for mixtures of a few examples.
"""
from __future__ import annotations

from functools import cache
from typing import Optional, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from ..dirichlet import Sticks
from ..teacher import probabilities
from .sticks import add_sticks
from .stream import TINY, Batch, Engine, Sums, at, factors

# Elements of X in a tile. On a CPU it should stay in cache; on a GPU it should keep the device busy.
TILE = {'cpu': 1 << 18, 'cuda': 1 << 25}
ROWS = 128  # mixtures in a tile, at least, however many classes: with fewer, products wait for memory


def add_mixtures(sums: Sums, batch: Batch, lam: Union[Tensor, Sticks]) -> None:
    """See `stream.Engine`."""
    if isinstance(lam, Sticks):
        add_sticks(sums, batch, lam)
        return
    p_all, N, _ = lam.shape
    C = batch.logits.shape[-1]
    size = TILE.get(batch.logits.device.type, TILE['cuda'])
    n = min(N, max(ROWS, size // C))
    p_size = max(1, min(p_all, size // (C * n)))
    for i in range(0, p_all, p_size):
        for j in range(0, N, n):
            p, k = slice(i, i + p_size), slice(j, j + n)
            _add_tile(sums, batch, p, lam[p, k])


# A product with 128 weights takes about as long as a sum over 80 rows that are looked up.
ENGINE = Engine(add_mixtures, sticks=1 / 2, mixes_targets=True)


def _add_tile(sums: Sums, batch: Batch, p: slice, lam: Tensor) -> None:
    L, y = batch.logits[p], at(batch.y, p, 3)
    rowsum, mass, teacher = at(batch.rowsum, p, 2), at(batch.mass, p, 2), at(batch.teacher, p, 3)
    assert y is not None and rowsum is not None
    a = None if batch.attention is None else batch.attention[p].unsqueeze(1)
    w, s = (lam, None) if a is None else factors(lam, a)
    low = batch.came == torch.bfloat16 and not batch.options.keep_norm  # which divides, and so enlarges the rounding
    product, add = ((_in_bfloat16, _add_in_bfloat16) if low and _multiplies_bfloat16(L.device.type) else
                    (torch.matmul, torch.Tensor.baddbmm_))
    x = product(w, L)
    h: Optional[Tensor] = None
    if batch.options.keep_norm:
        h = w.norm(dim=-1, keepdim=True).clamp_min(TINY)
        x.div_(h)
    tau = torch.ones_like(w[..., 0]) if batch.options.binary else _mix_numbers(w, rowsum)
    v = None if mass is None else _mix_numbers(w, mass)
    said: Optional[Tensor] = None
    if teacher is not None:
        of_mixtures = product(w, teacher)
        said = probabilities(of_mixtures if h is None else of_mixtures / h, batch.options.binary)
        said *= batch.options.teacher_weight
        if batch.class_weight is not None:
            said *= batch.class_weight
        if not batch.options.binary:
            tau = tau + said.sum(-1)
        if v is not None:
            v = v + said.sum(-1)
    weight = tau if s is None else s * tau
    if v is None:
        sums.weight[p] += w.shape[1] if s is None else s.sum(-1)
    else:
        sums.weight[p] += (v if s is None else s * v).sum(-1)
    if batch.options.binary:
        prob, lse = x.sigmoid(), -F.logsigmoid(-x).sum(-1)
        sums.loss[p] += (weight * lse).sum(-1)
    elif sums.logits is None and sums.attention is None:
        sums.loss[p] += (weight * x.logsumexp(-1)).sum(-1)
    else:
        prob = x.softmax(-1)
        lse = x.amax(-1) - prob.amax(-1).log()  # cheaper than a logsumexp on top
        sums.loss[p] += (weight * lse).sum(-1)
    wt = w.transpose(1, 2)
    if sums.pair is None:
        mixed = product(w, y)
        if said is not None:
            mixed += said
        if s is not None:
            mixed *= s.unsqueeze(-1)
        sums.loss[p] -= (mixed * x).sum((1, 2))
        if sums.logits is not None:
            back = prob.mul_(weight.unsqueeze(-1)).sub_(mixed)
            add(sums.logits[p], wt, back if h is None else back.div_(h))
        return
    pairs = w if s is None else w * s.unsqueeze(-1)
    add(sums.pair[p], wt, pairs if h is None else pairs / h)
    if sums.attention is not None:
        assert s is not None
        _add_attention(sums, batch, p, lam, w, s, v, tau, lse, prob)
    if said is not None and s is not None:
        said *= s.unsqueeze(-1)
    if said is not None:
        sums.loss[p] -= (said * x).sum((1, 2))
    if sums.logits is not None:
        back = prob.mul_(weight.unsqueeze(-1))
        if said is not None:
            back -= said
        add(sums.logits[p], wt, back if h is None else back.div_(h))


def _in_bfloat16(a: Tensor, b: Tensor) -> Tensor:
    """Their product where the logits have no more digits than that: factors and result are rounded, sums are not."""
    return (a.bfloat16() @ b.bfloat16()).float()


def _add_in_bfloat16(sums: Tensor, a: Tensor, b: Tensor) -> None:
    sums += _in_bfloat16(a, b)


@cache
def _multiplies_bfloat16(device: str) -> bool:
    """Whether it does so natively; elsewhere a CPU takes longer than in float32."""
    return device == 'cpu' and getattr(torch.cpu, '_is_avx512_bf16_supported', bool)()


def _mix_numbers(w: Tensor, numbers: Tensor) -> Tensor:
    """Of the examples, (B,) or (p, B), by w (p, n, B): (p, n)."""
    return w @ numbers if numbers.ndim == 1 else (w @ numbers.unsqueeze(-1)).squeeze(-1)


def _add_attention(
        sums: Sums, batch: Batch, p: slice, lam: Tensor, w: Tensor, s: Tensor, v: Optional[Tensor], tau: Tensor,
        lse: Tensor, prob: Tensor) -> None:
    """∂/∂a_i Σ_k s_k loss_k = Σ_k λ_ki (loss_k + q_ki − q_k·w_k), where q_k = ∂loss_k/∂w_k, and s w_i = λ_i a_i.

    ∂S/∂a_i = Σ_k λ_ki mass_i, so relative to a mean loss r every loss_k becomes loss_k − r mass_i.
    """
    assert sums.attention is not None and sums.reference is not None and sums.lam is not None
    L = batch.logits[p]
    G = L @ at(batch.y, p, 3).transpose(-1, -2)  # type: ignore[union-attr]
    mass = at(batch.mass, p, 2)
    wg = torch.bmm(w, G)
    loss = tau * lse - (wg * w).sum(-1)
    q = tau.unsqueeze(-1) * torch.bmm(prob, L.transpose(1, 2))
    if not batch.options.binary:
        q += lse.unsqueeze(-1) * at(batch.rowsum, p, 2).unsqueeze(-2)  # type: ignore[union-attr]
    q -= wg + torch.bmm(w, G.transpose(1, 2))
    q -= (q * w).sum(-1, keepdim=True)
    first = sums.reference[p].isnan()
    weight = s.sum(-1)
    if v is not None and mass is not None:  # a tile that weighs next to nothing tells little about the others
        weight = torch.maximum((s * v).sum(-1), 1e-3 * mass.max() * weight)
    mean = torch.where(weight > TINY, (s * loss).sum(-1) / weight.clamp(min=TINY), 0)
    reference = sums.reference[p] = torch.where(first, mean, sums.reference[p])
    counts = lam * (s > 0).unsqueeze(-1)
    if mass is None:
        excess = (loss - reference.unsqueeze(-1)).unsqueeze(-1)
    else:
        excess = loss.unsqueeze(-1) - reference.view(-1, 1, 1) * mass.unsqueeze(-2)
    sums.attention[p] += (counts * (q + excess)).sum(1)
    sums.lam[p] += counts.sum(1)
