"""What is not in the paper, written out as literally as the paper is in `reference.py`, whose notation this is.

`binary`, `keep_norm`, class weights and masks change a step of the two losses each; without them, the losses are those
of `reference.py`. Label smoothing comes before both.

    w  (C,)       weights of the classes                       v  (B,)       weights of the examples, `weigh`
    mask  (B, P)  which positions exist
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Optional

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .reference import TINY, attention_at, cross_entropy, factors


def smooth(Y: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Label smoothing of the targets, before they are mixed. (B, C) → (B, C)."""
    return Y * (1 - label_smoothing) + label_smoothing / Y.shape[1]


def binary_cross_entropy(X: Tensor, Y: Tensor) -> Tensor:
    """`binary`: of every class for itself, their mean; X, Y (N, C). (N,)"""
    return -(Y * logsigmoid(X) + (1 - Y) * logsigmoid(-X)).mean(-1)


def weigh(Y: Tensor, w: Tensor) -> Tensor:
    """What examples weigh, of targets (B, C) that are not smoothed: v_b = Σ_c w_c y_bc, w of its class. (B,)"""
    return (w * Y).sum(-1)


def lengthen(X: Tensor, M_hat: Tensor) -> Tensor:
    """`keep_norm`: logits X (N, C) over ‖λ‖₂ of their factors (N, B). (N, C)"""
    return X / M_hat.norm(dim=-1, keepdim=True)


def masked_maps(maps: Callable[[Tensor], Tensor], Z: Tensor, mask: Tensor) -> Tensor:
    """`mask`: the map of each example's own positions, and 0 elsewhere. Z (B, P, D); maps (1, p, D) → (1, p). (B, P)"""
    found = []
    for z, there in zip(Z, mask):
        a = torch.zeros_like(z[:, 0])
        found.append(a.masked_scatter(there, maps(z[there][None])[0]) if there.any() else a)
    return torch.stack(found)


def attention_of_some(a: Tensor, mask: Tensor, j: int) -> Tensor:
    """`mask`: a^j of the b examples that have position j; uniform over their own where none attends. (b,)"""
    there = mask[:, j]
    if bool((a[there, j] > TINY).any()):
        return a[there, j]
    return 1 / mask[there].sum(1).to(a.dtype)


def compare(X: Tensor, Y: Tensor, binary: bool, w: Optional[Tensor]) -> Tensor:
    """The loss of every row. A weighted class counts as often: −Σ_c w_c y_c log p_c. (N,)"""
    if binary:
        return binary_cross_entropy(X, Y)
    return cross_entropy(X, Y if w is None else w * Y)


def multimix_loss(
        Z: Tensor, Y: Tensor, lam: Tensor, W: Tensor, beta: Tensor, binary: bool = False, keep_norm: bool = False,
        w: Optional[Tensor] = None, v: Optional[Tensor] = None) -> Tensor:
    """`reference.multimix_loss`, extended. With w and v the weighted mean, and 0 if nothing weighs anything."""
    X = lam @ Z @ W.t() + beta
    loss = compare(lengthen(X, lam) if keep_norm else X, lam @ Y, binary, w)
    if w is None or v is None:
        return loss.mean()
    weight = (lam @ v).sum()  # Σ_k v_k: a mixture weighs what is mixed of its examples' weights
    return loss.sum() / weight if weight > TINY * w.max() else (Z * 0).sum()


def dense_multimix_loss(
        Z: Tensor, Y: Tensor, lam: Tensor, a: Tensor, W: Tensor, beta: Tensor, normalize: str = 'position',
        binary: bool = False, keep_norm: bool = False, w: Optional[Tensor] = None, v: Optional[Tensor] = None,
        mask: Optional[Tensor] = None,
) -> Tensor:
    """`reference.dense_multimix_loss`, extended. With w and v the weighted mean; with a mask, at every position of
    the examples that have it.

    A position where nothing weighs anything has no part in the mean over positions.
    """
    sums, weights, means = [], [], []
    for j in range(Z.shape[1]):
        b = torch.ones_like(a[:, j], dtype=torch.bool) if mask is None else mask[:, j]
        if not b.any():
            continue
        a_j = attention_at(a, j) if mask is None else attention_of_some(a, mask, j)
        M_hat, s = factors(lam[:, j, b], a_j)
        X = M_hat @ Z[b, j] @ W.t() + beta
        if keep_norm:
            X = lengthen(X, M_hat)
        loss = (s * compare(X, M_hat @ Y[b], binary, w)).sum()
        weight = s.sum() if v is None else (s * (M_hat @ v[b])).sum()  # Σ_k s_k, or Σ_k s_k v_k
        sums.append(loss)
        weights.append(weight)
        if weight > TINY * a_j.max() * (1 if w is None else w.max()):
            means.append(loss / weight)
    if not means:
        return (Z * 0).sum()
    if normalize == 'all':
        return torch.stack(sums).sum() / torch.stack(weights).sum()
    return torch.stack(means).mean()
