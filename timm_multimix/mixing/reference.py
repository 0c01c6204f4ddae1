"""The paper's equations, literally: embeddings are interpolated, classified, and compared with mixed targets.

Slow and large on purpose. It is the oracle of the tests and the text to read first; `loss.py` computes the same.

    Z  (B, P, D)  embeddings, P positions (1 for MultiMix)     Y  (B, C)     targets
    Λ  (N, P, B)  interpolation vectors, λ ~ Dir(α)            a  (B, P)     attention maps
    W  (C, D), β  the linear classifier                        s  (N, P)     confidence of each mixed example

Not of the paper, and None where it is followed:

    w  (C,)       weights of the classes                       v  (B,)       weights of the examples, `weigh`
"""
from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .engines.stream import TINY


def compare(X: Tensor, Y: Tensor, binary: bool = False, w: Optional[Tensor] = None) -> Tensor:
    """Cross-entropy of every row of logits X (N, C) with its target; binary: of every class, their mean. (N,)"""
    if binary:
        return -(Y * logsigmoid(X) + (1 - Y) * logsigmoid(-X)).mean(-1)
    if w is not None:
        return -(w * Y * X.log_softmax(-1)).sum(-1)
    return -(Y * X.log_softmax(-1)).sum(-1)


def weigh(Y: Tensor, w: Tensor) -> Tensor:
    """What examples weigh, of targets (B, C) that are not smoothed: v_b = Σ_c w_c y_bc, w of its class. (B,)"""
    return (w * Y).sum(-1)


def lengthen(X: Tensor, lam: Tensor) -> Tensor:
    """`keep_norm`, not of the paper: logits X (N, C) over ‖λ‖₂ of their factors (N, B). (N, C)"""
    return X / lam.norm(dim=-1, keepdim=True)


def multimix_loss(Z: Tensor, Y: Tensor, lam: Tensor, W: Tensor, beta: Tensor, binary: bool = False,
                  keep_norm: bool = False, w: Optional[Tensor] = None, v: Optional[Tensor] = None) -> Tensor:
    """MultiMix. Z (B, D), Y (B, C), lam (N, B) → scalar: the mean over the N mixed examples.

    With w and v the weighted mean, and 0 if nothing weighs anything.
    """
    Z_mix = lam @ Z  # Z̃ = ZΛ
    Y_mix = lam @ Y  # Ỹ = YΛ
    X = Z_mix @ W.t() + beta
    loss = compare(lengthen(X, lam) if keep_norm else X, Y_mix, binary, w)
    if w is None or v is None:
        return loss.mean()
    weight = (lam @ v).sum()  # Σ_k v_k: mixed examples weigh what is mixed of their examples' weights
    return loss.sum() / weight if weight > TINY * w.max() else (Z * 0).sum()


def gap_scores(Z: Tensor) -> Tensor:
    """z_iᵀ u_i with u_i = GAP(z_i), the mean feature. (B, P, D) → (B, P)."""
    return torch.stack([z @ z.mean(0) for z in Z])


def cam_scores(Z: Tensor, Y: Tensor, W: Tensor) -> Tensor:
    """z_iᵀ u_i with u_i the classifier's row of the true class. (B, P, D) → (B, P)."""
    return torch.stack([z @ (y @ W) for z, y in zip(Z, Y)])


def l1_relu(scores: Tensor) -> Tensor:
    """h = ℓ1-normalise ∘ ReLU, per map; a map with nothing positive is uniform. (B, P) → (B, P)."""
    maps = []
    for score in scores:
        a = score.relu()
        maps.append(a / a.sum() if a.sum() > 0 else torch.full_like(a, 1 / len(a)))
    return torch.stack(maps)


def dense_multimix_loss(
        Z: Tensor, Y: Tensor, lam: Tensor, a: Tensor, W: Tensor, beta: Tensor, normalize: str = 'position',
        binary: bool = False, keep_norm: bool = False, w: Optional[Tensor] = None, v: Optional[Tensor] = None,
) -> Tensor:
    """Dense MultiMix. Z (B, P, D), Y (B, C), lam (N, P, B), a (B, P) → scalar.

    With w and v the weighted mean. A position where nothing weighs anything has no part in the mean over positions.
    """
    P = Z.shape[1]
    heaviest = 1 if w is None else w.max()
    sums, weights, means = [], [], []
    for j in range(P):
        a_j = a[:, j] if bool((a[:, j] > TINY).any()) else torch.full_like(a[:, j], 1 / P)  # nobody attends: uniform
        M = lam[:, j] * a_j  # M^j = diag(a^j) Λ^j, one row per mixed example
        s = M.sum(-1)  # s^j = 1ᵀM^j
        some = s > TINY * a_j.max()  # a mixed example of examples that do not attend here has no weight
        if not bool(some.any()):  # and no part in the mean has a position where all are like that
            continue
        M, s = M[some], s[some]
        M_hat = M / s[:, None]  # ℓ1 over the examples
        Z_mix = M_hat @ Z[:, j]  # Z̃^j = Z^j M̂^j
        Y_mix = M_hat @ Y  # Ỹ^j = Y M̂^j
        X = Z_mix @ W.t() + beta  # the dense classifier: a 1×1 convolution, no pooling
        if keep_norm:
            X = lengthen(X, M_hat)
        loss = (s * compare(X, Y_mix, binary, w)).sum()
        weight = s.sum() if v is None else (s * (M_hat @ v)).sum()  # Σ_k s_k, or Σ_k s_k v_k
        sums.append(loss)
        weights.append(weight)
        if weight > TINY * a_j.max() * heaviest:
            means.append(loss / weight)
    if not means:
        return (Z * 0).sum()
    if normalize == 'all':
        return torch.stack(sums).sum() / torch.stack(weights).sum()
    return torch.stack(means).mean()


def smooth(Y: Tensor, label_smoothing: Optional[float] = None) -> Tensor:
    """Label smoothing of the targets, before they are mixed. (B, C) → (B, C)."""
    return Y if not label_smoothing else Y * (1 - label_smoothing) + label_smoothing / Y.shape[1]
