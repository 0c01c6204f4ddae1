"""The paper's equations, literally: embeddings are interpolated, classified, and compared with mixed targets.

Slow and large on purpose. It is the oracle of the tests and the text to read first; `loss.py` computes the same.

    Z  (B, P, D)  embeddings, P positions (1 for MultiMix)     Y  (B, C)     targets
    Λ  (N, P, B)  interpolation vectors, λ ~ Dir(α)            a  (B, P)     attention maps
    W  (C, D), β  the linear classifier                        s  (N, P)     confidence of each mixed example
"""
from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .engines.stream import TINY


def compare(X: Tensor, Y: Tensor, binary: bool = False) -> Tensor:
    """Cross-entropy of every row of logits X (N, C) with its target; binary: of every class, their mean. (N,)"""
    if binary:
        return -(Y * logsigmoid(X) + (1 - Y) * logsigmoid(-X)).mean(-1)
    return -(Y * X.log_softmax(-1)).sum(-1)


def lengthen(X: Tensor, lam: Tensor) -> Tensor:
    """`keep_norm`, not of the paper: logits X (N, C) over ‖λ‖₂ of their factors (N, B). (N, C)"""
    return X / lam.norm(dim=-1, keepdim=True)


def multimix_loss(Z: Tensor, Y: Tensor, lam: Tensor, W: Tensor, beta: Tensor, binary: bool = False,
                  keep_norm: bool = False) -> Tensor:
    """MultiMix. Z (B, D), Y (B, C), lam (N, B) → scalar: the mean over the N mixed examples."""
    Z_mix = lam @ Z  # Z̃ = ZΛ
    Y_mix = lam @ Y  # Ỹ = YΛ
    X = Z_mix @ W.t() + beta
    return compare(lengthen(X, lam) if keep_norm else X, Y_mix, binary).mean()


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
        binary: bool = False, keep_norm: bool = False) -> Tensor:
    """Dense MultiMix. Z (B, P, D), Y (B, C), lam (N, P, B), a (B, P) → scalar."""
    P = Z.shape[1]
    sums, weights = [], []
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
        sums.append((s * compare(X, Y_mix, binary)).sum())
        weights.append(s.sum())
    if not sums:
        return (Z * 0).sum()
    if normalize == 'all':
        return torch.stack(sums).sum() / torch.stack(weights).sum()
    return torch.stack([x / w for x, w in zip(sums, weights)]).mean()


def smooth(Y: Tensor, label_smoothing: Optional[float] = None) -> Tensor:
    """Label smoothing of the targets, before they are mixed. (B, C) → (B, C)."""
    return Y if not label_smoothing else Y * (1 - label_smoothing) + label_smoothing / Y.shape[1]
