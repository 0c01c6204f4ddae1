"""What is not in the paper, written out as literally as the paper is in `reference.py`, whose notation this is.

`binary`, `keep_norm`, class weights, masks and a teacher change a step of the two losses each; without them, the losses
are those of `reference.py`. Label smoothing comes before all.

    w  (C,)       weights of the classes                       v  (B,)       weights of the examples, `weigh`
    T  (B, P, C)  logits of a teacher                          t             its share of the targets
    mask  (B, P)  which positions exist
"""
from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Optional

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .reference import TINY, attention_at, cross_entropy, factors


def smooth(Y: Tensor, label_smoothing: float = 0.0, w: Optional[Tensor] = None) -> Tensor:
    """Label smoothing of the targets, before they are mixed. With weights of the classes they then weigh at most ten
    times what they did. (B, C) → (B, C)."""
    smoothed = Y * (1 - label_smoothing) + label_smoothing / Y.shape[1]
    if w is None:
        return smoothed
    return torch.stack([y if w @ y <= 10 * (w @ before) else y * 10 * (w @ before) / (w @ y)
                        for y, before in zip(smoothed, Y)])


def balanced(Y: Tensor, alpha: float, balance: float) -> Tensor:
    """`balance`: the concentrations of λ ~ Dir(α_1 … α_B). (B,)

    α_b = Bα r_b / Σ r with r_b = n^−balance, where n is how many of the batch are of b's class: Y (B, C), one-hot.
    E[λ_b] = α_b / Σα. With balance 1 the expected mixed target is 1/K for each of the K classes of the batch.
    """
    r = torch.stack([Y[:, y.argmax()].sum() ** -balance for y in Y])
    return len(Y) * alpha * r / r.sum()


def within(Y: Tensor, alpha: float, b: int) -> Tensor:
    """`tuples` 'within': the concentrations of λ, whose examples are of b's class. b is drawn, uniformly. (B,)"""
    alike = (Y.argmax(1) == Y[b].argmax()).to(Y.dtype)
    return len(Y) * alpha * alike / alike.sum()


def across(Y: Tensor, alpha: float, chosen: list[int]) -> Tensor:
    """`tuples` 'across': the concentrations of λ of `chosen`, one example of each class of Y, drawn uniformly. (B,)"""
    found = torch.zeros_like(Y[:, 0])
    found[chosen] = len(Y) * alpha / len(chosen)
    return found


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


class Teacher(NamedTuple):
    """Self-distillation that interpolates the targets: what `taught` needs. τ is the temperature."""
    T: Tensor
    t: float
    tau: float = 1.0
    reading: str = 'targets'


def said(T: Tensor, M_hat: Tensor, teacher: Teacher, binary: bool, keep_norm: bool) -> Tensor:
    """What a teacher with logits T (B, C) says of the mixtures M̂ (N, B). (N, C)

    'targets': the mixture of its probabilities, M̂ softmax(T/τ).
    'logits': its probabilities of the mixture, softmax(M̂T/τ), where M̂T are its logits of the mixed embedding.
    """
    def probabilities(X: Tensor) -> Tensor:
        return X.sigmoid() if binary else X.softmax(-1)

    if teacher.reading == 'targets':
        return M_hat @ probabilities(T / teacher.tau)
    X = M_hat @ T
    return probabilities((lengthen(X, M_hat) if keep_norm else X) / teacher.tau)


def taught(Y_mix: Tensor, says: Tensor, t: float) -> Tensor:
    """Targets of mixtures: the labels' Ỹ and what the teacher says, (1 − t)Ỹ + tQ. (N, C)"""
    return (1 - t) * Y_mix + t * says


def learned_attention(Z: Tensor, u: Tensor) -> Tensor:
    """`learned` attention: softmax over the positions of z_iᵀu. Z (B, P, D), u (D,) → (B, P)."""
    return torch.stack([(z @ u).softmax(0) for z in Z])


def learned_attention_loss(Z: Tensor, Y: Tensor, u: Tensor, W: Tensor, beta: Tensor) -> Tensor:
    """What u learns by, and nothing else does: the cross-entropy of embeddings that are averaged by the attention."""
    a = learned_attention(Z, u)
    pooled = torch.stack([a_i @ z_i for a_i, z_i in zip(a, Z)])
    return cross_entropy(pooled @ W.t() + beta, Y).mean()


def multimix_loss(
        Z: Tensor, Y: Tensor, lam: Tensor, W: Tensor, beta: Tensor, binary: bool = False, keep_norm: bool = False,
        w: Optional[Tensor] = None, v: Optional[Tensor] = None, teacher: Optional[Teacher] = None) -> Tensor:
    """`reference.multimix_loss`, extended. With w and v the weighted mean, and 0 if nothing weighs anything."""
    X, Y_mix, V = lam @ Z @ W.t() + beta, lam @ Y, None if v is None else lam @ v
    if teacher is not None:
        Q = said(teacher.T[:, 0], lam, teacher, binary, keep_norm)
        Y_mix = taught(Y_mix, Q, teacher.t)
        V = None if V is None or w is None else (1 - teacher.t) * V + teacher.t * weigh(Q, w)
    loss = compare(lengthen(X, lam) if keep_norm else X, Y_mix, binary, w)
    if w is None or V is None:
        return loss.mean()
    weight = V.sum()  # Σ_k v_k: a mixture weighs what is mixed of its examples' weights
    return loss.sum() / weight if weight > TINY * w.max() else (Z * 0).sum()


def dense_multimix_loss(
        Z: Tensor, Y: Tensor, lam: Tensor, a: Tensor, W: Tensor, beta: Tensor, normalize: str = 'position',
        binary: bool = False, keep_norm: bool = False, w: Optional[Tensor] = None, v: Optional[Tensor] = None,
        mask: Optional[Tensor] = None, teacher: Optional[Teacher] = None,
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
        Y_mix, V = M_hat @ Y[b], None if v is None else M_hat @ v[b]
        if teacher is not None:
            Q = said(teacher.T[b, j], M_hat, teacher, binary, keep_norm)
            Y_mix = taught(Y_mix, Q, teacher.t)
            V = None if V is None or w is None else (1 - teacher.t) * V + teacher.t * weigh(Q, w)
        loss = (s * compare(X, Y_mix, binary, w)).sum()
        weight = s.sum() if V is None else (s * V).sum()  # Σ_k s_k, or Σ_k s_k v_k
        sums.append(loss)
        weights.append(weight)
        if weight > TINY * a_j.max() * (1 if w is None else w.max()):
            means.append(loss / weight)
    if not means:
        return (Z * 0).sum()
    if normalize == 'all':
        return torch.stack(sums).sum() / torch.stack(weights).sum()
    return torch.stack(means).mean()
