"""The loss in plain torch, any device: streamed in tiles, its gradient taken in the same pass.

Notation, for one position: L (B, C) logits, Y (B, C) targets, w (N, B) mixing factors with rows of sum 1, X = wL the
mixed logits. Since the mixed target is wY,

    loss_k = τ_k · logsumexp(X_k) − w_k G w_kᵀ,     G = L Yᵀ (B, B),     τ_k = Σ_c (wY)_kc  (1 for proper targets)

so neither mixed embeddings nor mixed targets exist; only a tile of X does, and it becomes its own gradient in place:

    ∂/∂L = wᵀ diag(ω) diag(τ) softmax(X) − (wᵀ diag(ω) w) Y,     ω_k the weight of term k in the mean
"""
from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor

# Elements of X, or of w where that is wider, in a tile. On a CPU it should stay in cache; on a GPU it should keep the
# device busy.
TILE = {'cpu': 1 << 20, 'cuda': 1 << 25}

# Below this a column sum of factors counts as nothing: 0/0 is not far, and float32 division is about to lose digits.
TINY = 1e-30


def mixed_cross_entropy_torch(
        logits: Tensor, y: Tensor, lam: Tensor, attention: Optional[Tensor], over_all: bool) -> Tensor:
    """See `mixing.loss.mixed_cross_entropy`. logits (B, P, C), y (B, C), lam (N, P, B), attention (B, P): one dtype."""
    return _MixedCrossEntropy.apply(logits, attention, y, lam, over_all)  # type: ignore[no-any-return]


def term_weights(lam: Tensor, attention: Optional[Tensor]) -> tuple[Tensor, Tensor]:
    """Column sums s of the factors λa, before they are normalised, (P, N); and which positions have any, (P,).

    A position where all of them vanish (no example attends to it) gets uniform attention, as a map without a positive
    score does: s = 1/P for every term.
    """
    N, P, _ = lam.shape
    if attention is None:
        return lam.new_full((P, N), 1 / P), lam.new_ones(P, dtype=torch.bool)
    s = torch.bmm(lam.permute(1, 0, 2), attention.t().unsqueeze(-1)).squeeze(-1)
    s = torch.where(s > TINY, s, 0)
    alive = (s > 0).any(1)
    return torch.where(alive[:, None], s, 1 / P), alive


class _MixedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
            ctx: Any, logits: Tensor, attention: Optional[Tensor], y: Tensor, lam: Tensor, over_all: bool) -> Tensor:
        need_l, need_a = ctx.needs_input_grad[:2]
        N, P, B = lam.shape
        C = y.shape[1]
        L = logits.permute(1, 0, 2)  # position first: (P, B, C)
        # Shifting an example's logits changes nothing; from 0 downwards, confident ones do not cancel in the loss.
        L = L - L.amax(-1, keepdim=True)
        lam_p = lam.permute(1, 0, 2)
        rowsum = y.sum(1)
        s, alive = term_weights(lam, attention)
        total = s.sum() if over_all else s.sum(1, keepdim=True) * P
        omega = s / total

        loss_k = torch.empty_like(s)
        grad_l = torch.zeros_like(L) if need_l else None
        grad_a = logits.new_zeros(P, B) if need_a else None
        p_tiles, k_tiles = _tiles(P, N, max(B, C), logits.device.type)
        for p in p_tiles:
            G = L[p] @ y.t()
            pair = torch.zeros_like(G)
            for k in k_tiles:
                lam_t = lam_p[p, k]
                w = _factors(lam_t, attention, p, s[p, k], alive[p])
                x = torch.bmm(w, L[p])
                tau = w @ rowsum
                lse = x.logsumexp(-1)
                wg = torch.bmm(w, G)
                loss_t = tau * lse - (wg * w).sum(-1)
                loss_k[p, k] = loss_t
                if not (need_l or need_a):
                    continue
                x.sub_(lse.unsqueeze(-1)).exp_()  # softmax, in place of the logits
                if grad_a is not None:
                    # ∂loss_k/∂w_k; the 1/s of the normalisation cancels against the term's own weight s.
                    q = lse.unsqueeze(-1) * rowsum + tau.unsqueeze(-1) * torch.bmm(x, L[p].transpose(1, 2))
                    q -= wg + torch.bmm(w, G.transpose(1, 2))
                    q -= (q * w).sum(-1, keepdim=True)
                    kept = (s[p, k] > 0) & alive[p, None]
                    grad_a[p] += torch.where(kept.unsqueeze(-1), q * lam_t, 0).sum(1)
                if grad_l is not None:
                    x *= (omega[p, k] * tau).unsqueeze(-1)
                    wt = w.transpose(1, 2)
                    grad_l[p] += torch.bmm(wt, x)
                    pair += torch.bmm(wt, w * omega[p, k].unsqueeze(-1))
            if grad_l is not None:
                grad_l[p] -= pair @ y
        loss_p = (omega * loss_k).sum(1)
        loss = loss_p.sum()
        if grad_l is not None:
            grad_l = grad_l.permute(1, 0, 2)
        if grad_a is not None:
            # The terms' weights themselves, ∂/∂a of Σ s·loss / Σ s. The difference is taken before anything is summed:
            # the total weight may be next to nothing, and what does not cancel here is divided by it.
            mean = loss if over_all else loss_p.unsqueeze(1) * P
            above = torch.where((s > 0) & alive[:, None], loss_k - mean, 0)
            grad_a = ((grad_a + torch.einsum('pnb,pn->pb', lam_p, above)) / total).t()
        ctx.save_for_backward(grad_l, grad_a)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Optional[Tensor], ...]:  # type: ignore[override]
        if torch.is_grad_enabled():  # create_graph=True: what follows would silently count as constant
            raise RuntimeError('mixed_cross_entropy takes its gradient in the forward pass and is differentiable once; '
                               'create_graph=True is not supported. mixing/reference.py is differentiable twice.')
        grads = [None if g is None else g * grad for g in ctx.saved_tensors]
        return *grads, None, None, None


def _tiles(P: int, N: int, width: int, device: str) -> tuple[list[slice], list[slice]]:
    size = TILE.get(device, TILE['cuda'])
    n = max(1, min(N, size // width))
    p = max(1, min(P, size // (width * n)))
    return [slice(i, min(i + p, P)) for i in range(0, P, p)], [slice(j, min(j + n, N)) for j in range(0, N, n)]


def _factors(lam: Tensor, attention: Optional[Tensor], p: slice, s: Tensor, alive: Tensor) -> Tensor:
    """M̂: λa over its column sum, (P, N, B); λ itself where that sum is nothing."""
    if attention is None:
        return lam.contiguous()
    kept = ((s > 0) & alive[:, None]).unsqueeze(-1)
    return torch.where(kept, lam * attention.t()[p].unsqueeze(1) / torch.where(kept, s.unsqueeze(-1), 1), lam)
