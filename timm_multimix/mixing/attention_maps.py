"""Attention maps: where in each image its label is to be believed (Dense MultiMix, step 1)."""
from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor

from ..config import ATTENTION_NORMS
from ..errors import SettingError
from .masks import check_mask, uniform_map
from .targets import check_target

KINDS = ('gap', 'cam', 'uniform')  # of config.ATTENTIONS those that features tell


def attention(
        features: Tensor,
        kind: str = 'gap',
        norm: str = 'l1_relu',
        *,
        target: Optional[Tensor] = None,
        weight: Optional[Tensor] = None,
        mask: Optional[Tensor] = None,
) -> Tensor:
    """a_i = h(z_iᵀ u_i): one map over the positions of every example (arXiv 2311.05538, dense attention).

    Args:
        features: z, (B, P, D), any floating dtype; computed in float32 (float64 stays).
        kind: u. 'gap': the mean of the example's own features. 'cam': the classifier's row of its class (for soft
            targets the rows weighted by the target). 'uniform': every position 1/P.
        norm: h. 'l1_relu': negative scores to 0, then divided by their sum; a map without a positive score falls
            back to 1/P. 'softmax': over the positions.
        target: for 'cam': class indices (B,) or soft targets (B, C).
        weight: for 'cam': the classifier's weight, (C, D).
        mask: (B, P), bool, True where a position exists (padding does not). A map is of the positions of its example
            that exist, 'gap' their mean; whatever the features hold elsewhere.

    Returns:
        (B, P), non-negative, each row sums to 1. With a mask 0 where a position does not exist, so the row of an
        example without any is 0.

    Raises:
        SettingError: an unknown kind or norm; features of another shape or dtype, or without a number; 'cam' without
            a target and a weight that fit; a mask that does not fit.
    """
    if kind not in KINDS or norm not in ATTENTION_NORMS:
        raise SettingError(f'attention is ({kind!r}, {norm!r}), but kind is one of {", ".join(KINDS)} and norm '
                           f'one of {", ".join(ATTENTION_NORMS)}.')
    if features.ndim != 3 or not features.is_floating_point() or not features.numel():
        raise SettingError(f'features must be floating (B, P, D), of P positions of D features each, not '
                           f'{features.dtype} {tuple(features.shape)}.')
    B, P, D = features.shape
    z = features if features.dtype == torch.float64 else features.float()
    if mask is not None:
        check_mask(mask, B, P, features.device)
        z = z.masked_fill(~mask.unsqueeze(-1), 0)
    if kind == 'uniform':
        return z.new_full((B, P), 1 / P) if mask is None else uniform_map(mask, z.dtype)
    if kind == 'cam':
        if target is None or weight is None:
            raise SettingError("attention 'cam' needs target=… and weight=…, the classifier's (C, D) weight.")
        if weight.ndim != 2 or weight.shape[1] != D:
            raise SettingError(f"weight must be the classifier's (C, {D}), not {tuple(weight.shape)}.")
        check_target(target, len(weight), binary=True, batch=B)
    with torch.autocast(z.device.type, enabled=False):
        if kind == 'cam':
            w = weight.to(z.dtype)  # type: ignore[union-attr]
            u = w[target.long()] if target.ndim == 1 else target.to(z.dtype) @ w  # type: ignore[union-attr]
        else:
            u = z.mean(1) if mask is None else z.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        score = torch.einsum('bpd,bd->bp', z, u)
    return normalize_map(score, norm, mask)


def normalize_map(score: Tensor, norm: str, mask: Optional[Tensor] = None) -> Tensor:
    """h: (B, P) scores → maps that sum to 1 over the positions, those that exist."""
    if norm == 'softmax':
        # Of features that are not finite, as l1_relu: a uniform map, and the loss becomes NaN by the logits.
        score = torch.where(score.isfinite().all(1, keepdim=True), score, 0)
        if mask is None:
            return score.softmax(1)
        return score.masked_fill(~mask, torch.finfo(score.dtype).min).softmax(1).masked_fill(~mask, 0)
    score = score.relu() if mask is None else score.relu().masked_fill(~mask, 0)
    # Scores are scaled by their largest first: their sum neither overflows nor, for a tiny map, vanishes.
    peak = score.amax(1, keepdim=True)
    alive = peak > 0
    a = score / torch.where(alive, peak, 1).detach()
    a = a / torch.where(alive, a.sum(1, keepdim=True), 1)
    return torch.where(alive, a, 1 / score.shape[1] if mask is None else uniform_map(mask, a.dtype))
