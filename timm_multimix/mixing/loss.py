"""`mixed_cross_entropy`: the method's loss, for MultiMix and Dense MultiMix alike."""
from __future__ import annotations

from typing import Optional, Union

import torch
from torch import Tensor

from ..config import NORMALIZATIONS
from ..errors import SettingError
from .autograd import MixedCrossEntropy
from .dirichlet import LamSampler


def mixed_cross_entropy(
        logits: Tensor,
        target: Tensor,
        lam: Union[Tensor, LamSampler],
        attention: Optional[Tensor] = None,
        *,
        label_smoothing: float = 0.0,
        normalize: str = 'position',
        engine: str = 'auto',
        over_ranks: bool = False,
        binary: bool = False,
        keep_norm: bool = False,
) -> Tensor:
    """Cross-entropy of n mixtures of the mini-batch at every position (arXiv 2311.05538).

    The classifier is linear and mixing weights sum to one, so mixing logits *is* mixing embeddings: Wᵀ(ZΛ)+β =
    (WᵀZ+β)Λ. `mixing/reference.py` writes the same function out with embeddings; the two agree to rounding.

    For one's own loop and any modality: `logits` are the classifier's outputs per position, of the unmixed batch.

    Args:
        logits: (B, P, C), or (B, C) for one position. Any floating dtype; computed in float32 (float64 stays),
            also under autocast.
        target: class indices (B,), or soft targets (B, C).
        lam: Λ, (N, P, B) from `sample_lam`: rows along the last axis sum to 1. Not differentiated. Or a `LamSampler`,
            from which Λ is drawn in tiles as it is needed and never held whole: N may be a million.
        attention: a, (B, P) from `attention`; weights the factors of Dense MultiMix. None is uniform. Differentiated
            if it requires grad.
        label_smoothing: as in `torch.nn.functional.cross_entropy`, of the targets before they are mixed.
        normalize: 'position': each position's weighted sum over its own total weight, then the mean over positions.
            'all': over the total weight of all positions.
        engine: 'torch', 'triton' (CUDA), or 'auto', Triton on CUDA where it can (it says so once in the log where it
            cannot) and torch elsewhere.
        over_ranks: every rank of `torch.distributed` holds the same logits, targets and attention (`mixing.gather`)
            and mixes a share of the mixtures, `lam`. The loss is that of all mixtures together, the same on every
            rank; its gradient is that of this rank's share, times the number of ranks: averaged over the ranks, as
            DistributedDataParallel does with what follows from it, it is that of the loss.
        binary: binary cross-entropy: every class for itself, with mixed targets as its probability, and the mean over
            the classes, as `torch.nn.functional.binary_cross_entropy_with_logits` has it. Targets then need not sum
            to 1.
        keep_norm: divide the logits of each mixture by ‖λ‖₂ (dense: of its factors, λ weighted by the attention and
            normalised). Embeddings that are unlike have a short mean, and to classify it the network lengthens them
            all, which makes it too sure of itself; divided, it is about as long as they are. Not in the paper. The
            attention must not require grad.

    Returns:
        A scalar, float32 (float64 for float64 logits). Differentiable once, in `logits` and `attention`.

    Raises:
        SettingError: shapes that do not fit, an engine that cannot, or (checked on the CPU only, where it costs no
            wait) targets outside the classes.
    """
    if logits.ndim == 2:
        logits = logits.unsqueeze(1)
    if logits.ndim != 3 or not logits.is_floating_point():
        raise SettingError(f'logits must be floating (B, P, C) or (B, C), not {logits.dtype} {tuple(logits.shape)}.')
    B, P, C = logits.shape
    if len(lam.shape) != 3 or tuple(lam.shape[1:]) != (P, B):
        raise SettingError(f'lam must be (N, P, B) = (N, {P}, {B}) to fit the logits, not {tuple(lam.shape)}.')
    if isinstance(lam, Tensor) and lam.requires_grad:
        raise SettingError('lam requires grad, but the interpolation vectors are drawn, not learned: detach them.')
    if attention is not None and attention.shape != (B, P):
        raise SettingError(f'attention must be (B, P) = ({B}, {P}) to fit the logits, not {tuple(attention.shape)}.')
    if keep_norm and attention is not None and attention.requires_grad:
        raise SettingError('keep_norm takes the attention as a constant, but it requires grad: detach it.')
    if normalize not in NORMALIZATIONS:
        raise SettingError(f'normalize is {normalize!r}, but it must be one of {", ".join(NORMALIZATIONS)}.')
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    y = soft_target(target, C, dtype, label_smoothing)
    if y.shape != (B, C):
        raise SettingError(f'target must be ({B},) class indices or ({B}, {C}) soft targets, not '
                           f'{tuple(target.shape)}.')
    if isinstance(lam, Tensor):
        lam = lam.to(dtype)
    elif lam.device != logits.device or lam.dtype != dtype:
        raise SettingError(f'lam samples {lam.dtype} on {lam.device}, but the loss is {dtype} on {logits.device}: give '
                           f'LamSampler device=… and dtype=….')
    with torch.autocast(logits.device.type, enabled=False):
        loss: Tensor = MixedCrossEntropy.apply(
            logits, None if attention is None else attention.to(dtype), y, lam, normalize == 'all', engine, over_ranks,
            binary, keep_norm)
        return loss / C if binary else loss


def soft_target(target: Tensor, num_classes: int, dtype: torch.dtype, label_smoothing: float = 0.0) -> Tensor:
    """Y, (B, C): one-hot rows of class indices, or the given soft targets; smoothed on request."""
    if target.ndim == 1:
        if target.is_floating_point():
            raise SettingError(f'target is {target.dtype} ({len(target)},): class indices must be integers.')
        if target.device.type == 'cpu' and target.numel() and not torch.compiler.is_compiling():
            low, high = int(target.min()), int(target.max())
            if low < 0 or high >= num_classes:
                raise SettingError(f'target holds class {low if low < 0 else high}, but the model has the '
                                   f'{num_classes} classes 0 to {num_classes - 1}.')
        y = torch.zeros(len(target), num_classes, dtype=dtype, device=target.device)
        y.scatter_(1, target.long().unsqueeze(1), 1)
    else:
        y = target.to(dtype)
    return y * (1 - label_smoothing) + label_smoothing / num_classes if label_smoothing else y
