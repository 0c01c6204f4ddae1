"""The tiles in plain torch, on any device: the engine everywhere but on CUDA, and for what Triton does not do."""
from __future__ import annotations

import torch
from torch import Tensor

from .stream import TINY, Batch, Sums, factors

# Elements of X in a tile. On a CPU it should stay in cache; on a GPU it should keep the device busy.
TILE = {'cpu': 1 << 18, 'cuda': 1 << 25}


def add_mixtures(sums: Sums, batch: Batch, lam: Tensor) -> None:
    """See `stream.Engine`."""
    p_all, N, B = lam.shape
    C = batch.logits.shape[-1]
    size = TILE.get(lam.device.type, TILE['cuda'])
    n = max(1, min(N, size // C))
    p_size = max(1, min(p_all, size // (C * n)))
    for p in range(0, p_all, p_size):
        for k in range(0, N, n):
            _add_tile(sums, batch, slice(p, p + p_size), lam[p:p + p_size, k:k + n])


def _add_tile(sums: Sums, batch: Batch, p: slice, lam: Tensor) -> None:
    L = batch.logits[p]
    w, s = (lam, None) if batch.attention is None else factors(lam, batch.attention[p])
    x = torch.bmm(w, L)
    tau = w @ batch.rowsum
    weight = tau if s is None else s * tau
    if sums.logits is None and sums.attention is None:
        sums.loss[p] += (weight * x.logsumexp(-1)).sum(-1)
    else:
        prob = x.softmax(-1)
        lse = x.amax(-1) - prob.amax(-1).log()  # cheaper than a logsumexp on top
        sums.loss[p] += (weight * lse).sum(-1)
    sums.weight[p] += w.shape[1] if s is None else s.sum(-1)
    wt = w.transpose(1, 2)
    sums.pair[p] = torch.baddbmm(sums.pair[p], wt, w if s is None else w * s.unsqueeze(-1))
    if sums.attention is not None:
        assert s is not None
        _add_attention(sums, batch, p, lam, w, s, tau, lse, prob)
    if sums.logits is not None:
        sums.logits[p] = torch.baddbmm(sums.logits[p], wt, prob.mul_(weight.unsqueeze(-1)))


def _add_attention(
        sums: Sums, batch: Batch, p: slice, lam: Tensor, w: Tensor, s: Tensor, tau: Tensor, lse: Tensor,
        prob: Tensor) -> None:
    """∂/∂a_i Σ_k s_k loss_k = Σ_k λ_ki (loss_k + q_ki − q_k·w_k), where q_k = ∂loss_k/∂w_k, and s w_i = λ_i a_i."""
    assert sums.attention is not None and sums.reference is not None and sums.lam is not None
    L = batch.logits[p]
    G = L @ batch.y.t()
    wg = torch.bmm(w, G)
    loss = tau * lse - (wg * w).sum(-1)
    q = lse.unsqueeze(-1) * batch.rowsum + tau.unsqueeze(-1) * torch.bmm(prob, L.transpose(1, 2))
    q -= wg + torch.bmm(w, G.transpose(1, 2))
    q -= (q * w).sum(-1, keepdim=True)
    first = sums.reference[p].isnan()
    mean = (s * loss).sum(-1) / s.sum(-1).clamp(min=TINY)
    sums.reference[p] = torch.where(first, mean, sums.reference[p])
    counts = lam * (s > 0).unsqueeze(-1)
    sums.attention[p] += (counts * (q + (loss - sums.reference[p].unsqueeze(-1)).unsqueeze(-1))).sum(1)
    sums.lam[p] += counts.sum(1)
