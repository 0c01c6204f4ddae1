"""The paper's equations, literally: embeddings are interpolated, classified, and compared with mixed targets.

Slow and large on purpose. It is the oracle of the tests and the text to read first; `loss.py` computes the same. What
is not in the paper stands beside it, in `extensions.py`.

    Z  (B, P, D)  embeddings, P positions (1 for MultiMix)     Y  (B, C)     targets
    Λ  (N, P, B)  interpolation vectors, λ ~ Dir(α)            a  (B, P)     attention maps
    W  (C, D), β  the linear classifier                        s  (N, P)     confidence of each mixture

Where the paper divides 0 by 0, `l1_relu`, `attention_at` and `factors` say what is taken instead.
"""
from __future__ import annotations

import torch
from torch import Tensor

TINY = 1e-30  # a sum of factors below this, relative to the position's largest attention, counts as 0


def cross_entropy(X: Tensor, Y: Tensor) -> Tensor:
    """Of every row of logits X (N, C) with its target Y (N, C). (N,)"""
    return -(Y * X.log_softmax(-1)).sum(-1)


def multimix_loss(Z: Tensor, Y: Tensor, lam: Tensor, W: Tensor, beta: Tensor) -> Tensor:
    """MultiMix. Z (B, D), Y (B, C), lam (N, B) → scalar: the mean over the N mixtures."""
    Z_mix = lam @ Z  # Z̃ = ZΛ
    Y_mix = lam @ Y  # Ỹ = YΛ
    return cross_entropy(Z_mix @ W.t() + beta, Y_mix).mean()


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


def attention_at(a: Tensor, j: int) -> Tensor:
    """a^j; uniform where nobody attends. (B, P) → (B,)."""
    return a[:, j] if bool((a[:, j] > TINY).any()) else torch.full_like(a[:, j], 1 / a.shape[1])


def factors(lam_j: Tensor, a_j: Tensor) -> tuple[Tensor, Tensor]:
    """M̂^j and s^j of a position's Λ^j (N, B) and a^j (B,): (K, B) and (K,), one row per mixture.

    A mixture of examples that do not attend here has no weight, and is left out: K ≤ N.
    """
    M = lam_j * a_j  # M^j = diag(a^j) Λ^j
    s = M.sum(-1)  # s^j = 1ᵀM^j
    some = s > TINY * a_j.max()
    M, s = M[some], s[some]
    return M / s[:, None], s  # M̂^j: ℓ1 over the examples


def dense_multimix_loss(
        Z: Tensor, Y: Tensor, lam: Tensor, a: Tensor, W: Tensor, beta: Tensor, normalize: str = 'position') -> Tensor:
    """Dense MultiMix. Z (B, P, D), Y (B, C), lam (N, P, B), a (B, P) → scalar.

    A position that no mixture weighs has no part in the mean over positions.
    """
    sums, weights = [], []
    for j in range(Z.shape[1]):
        M_hat, s = factors(lam[:, j], attention_at(a, j))
        Z_mix = M_hat @ Z[:, j]  # Z̃^j = Z^j M̂^j
        Y_mix = M_hat @ Y  # Ỹ^j = Y M̂^j
        X = Z_mix @ W.t() + beta  # the dense classifier: a 1×1 convolution, no pooling
        sums.append((s * cross_entropy(X, Y_mix)).sum())
        weights.append(s.sum())
    means = [loss / weight for loss, weight in zip(sums, weights) if weight > 0]
    if not means:
        return (Z * 0).sum()
    if normalize == 'all':
        return torch.stack(sums).sum() / torch.stack(weights).sum()
    return torch.stack(means).mean()
