"""`mixed_cross_entropy`: the method's loss, for MultiMix and Dense MultiMix alike."""
from __future__ import annotations

from dataclasses import replace
from typing import Optional, Union

import torch
from torch import Tensor

from ..config import NORMALIZATIONS
from ..errors import SettingError
from .autograd import MixedCrossEntropy
from .dirichlet import LamSampler
from .engines.stream import Targets
from .masks import check_mask, masked_attention
from .options import LossOptions
from .targets import check_class_weight, reads_values, smooth, soft_target
from .teacher import TeacherTargets


def mixed_cross_entropy(
        logits: Tensor,
        target: Tensor,
        lam: Union[Tensor, LamSampler],
        attention: Optional[Tensor] = None,
        *,
        mask: Optional[Tensor] = None,
        label_smoothing: float = 0.0,
        normalize: str = 'position',
        engine: str = 'auto',
        over_ranks: bool = False,
        binary: bool = False,
        keep_norm: bool = False,
        class_weight: Optional[Tensor] = None,
        teacher: Optional[TeacherTargets] = None,
        validate: Optional[bool] = None,
) -> Tensor:
    """Cross-entropy of n mixtures of the mini-batch at every position (arXiv 2311.05538).

    The classifier is linear and mixing weights sum to one, so mixing logits *is* mixing embeddings: Wᵀ(ZΛ)+β =
    (WᵀZ+β)Λ. `mixing/reference.py` writes the same function out with embeddings; the two agree to rounding.

    For one's own loop and any modality: `logits` are the classifier's outputs per position, of the unmixed batch.

    A class whose logits are −∞ is masked: it is as if it were not there, and a target on it makes the loss huge, 1e30
    times its share, where `torch.nn.functional.cross_entropy` of the mixture gives inf; it is never NaN,
    unless all classes of an example are masked. (`label_smoothing` puts a target on every class. A masked class of
    `binary` adds 0 to the mean over all C.) A logit that is NaN or +∞ makes loss and gradient NaN, whichever mixtures
    have it; an attention does too, where `validate` lets it through.

    Args:
        logits: (B, P, C), or (B, C) for one position. Any floating dtype; computed in float32 (float64 stays),
            also under autocast. With bfloat16 logits, a CPU that multiplies bfloat16 natively rounds factors and
            results of products to it.
        target: class indices (B,) of any integer dtype, or soft targets (B, C) with rows that sum to at most 1.
        lam: Λ, (N, P, B) from `sample_lam`: rows along the last axis sum to 1. Not differentiated. Or a `LamSampler`,
            from which Λ is drawn in tiles as it is needed and never held whole: N may be a million.
        attention: a, (B, P) from `attention`; weights the factors of Dense MultiMix. None is uniform. Differentiated
            if it requires grad.
        mask: (B, P), bool, True where a position exists (padding does not). What does not exist has no weight and no
            gradient, whatever logits and attention hold there: it is as attention 0, but that a position of nobody
            has no part in the mean. An attention of None is uniform over an example's own positions. Not in the paper.
        label_smoothing: as in `torch.nn.functional.cross_entropy`, of the targets before they are mixed.
        normalize: 'position': each position's weighted sum over its own total weight, then the mean over positions.
            'all': over the total weight of all positions.
        engine: 'torch', 'triton' (CUDA), or 'auto', Triton on CUDA where it can (it says so once in the log where it
            cannot) and torch elsewhere.
        over_ranks: every rank of `torch.distributed` holds the same logits, targets and attention
            (`distributed.gather`) and mixes a share of the mixtures, `lam`. The loss is that of all mixtures together,
            the same on every rank; its gradient is that of this rank's share, times the number of ranks: averaged over
            the ranks, as DistributedDataParallel does with what follows from it, it is that of the loss.
        binary: binary cross-entropy: every class for itself, with mixed targets as its probability, and the mean over
            the classes, as `torch.nn.functional.binary_cross_entropy_with_logits` has it. Targets then need not sum
            to 1.
        keep_norm: divide the logits of each mixture by ‖λ‖₂ (dense: of its factors, λ weighted by the attention and
            normalised). Embeddings that are unlike have a short mean, and to classify it the network lengthens them
            all, which makes it too sure of itself; divided, it is about as long as they are. Not in the paper. The
            attention must not require grad.
        class_weight: w, (C,), floating, ≥ 0: a weighted mean, as `torch.nn.functional.cross_entropy` has for class
            indices. An example weighs v = Σ_c w_c y_c, of its target before smoothing, and a mixture what its factors
            mix of that. The loss is Σ_k s_k Σ_c w_c ỹ_kc (−log p_kc) over Σ_k s_k v_k; 0, without a gradient, if that
            is 0. A smoothed target that weighs more than 10 v is scaled to that. Not in the paper. Not for `binary`.
        teacher: a teacher's logits of the unmixed batch, and how they become a share of the targets. Labels are
            smoothed, a teacher's predictions are not. `keep_norm` divides its mixed logits too. Not in the paper's
            last version. With reading 'logits' the attention must not require grad.
        validate: whether the values of `lam`, `attention`, `target` and `class_weight` are looked at. None: on the CPU
            only, where that costs no wait, and not under torch.compile. True: always, which waits for the device and
            breaks a compiled graph. False: never; what is no weight then gives a plausible number.

    Returns:
        A scalar, float32 (float64 for float64 logits). Differentiable once, in `logits` and `attention`.

    Raises:
        SettingError: shapes that do not fit, of the mask too; an engine that cannot; `label_smoothing` outside [0, 1).
            Of values, as far as `validate` has them looked at: `lam` or `attention` that is negative or not finite,
            rows of `lam` that do not sum to 1, targets that `soft_target` refuses, class weights that
            `check_class_weight` refuses.
    """
    if logits.ndim == 2:
        logits = logits.unsqueeze(1)
    if logits.ndim != 3 or not logits.is_floating_point():
        raise SettingError(f'logits must be floating (B, P, C) or (B, C), not {logits.dtype} {tuple(logits.shape)}.')
    B, P, C = logits.shape
    _check_shapes(logits, lam, attention)
    if mask is not None:
        check_mask(mask, B, P, logits.device)
    if keep_norm and attention is not None and attention.requires_grad:
        raise SettingError('keep_norm takes the attention as a constant, but it requires grad: detach it.')
    if normalize not in NORMALIZATIONS:
        raise SettingError(f'normalize is {normalize!r}, but it must be one of {", ".join(NORMALIZATIONS)}.')
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    if mask is not None:
        logits = logits.masked_fill(~mask.unsqueeze(-1), 0)
        attention = masked_attention(attention, mask, dtype)
    if reads_values(logits, validate):
        check_values(lam, attention)
    if binary and class_weight is not None:
        raise SettingError('class_weight has no place in binary cross-entropy (binary=True, --bce-loss): leave one of '
                           'them out.')
    plain = soft_target(target, C, dtype, binary=binary, batch=B, validate=validate)
    mass, said, w = None, None, None
    if class_weight is not None:
        w = check_class_weight(class_weight, logits, dtype, validate)
        w = w / w.amax().clamp(min=torch.finfo(dtype).tiny)  # only their ratios count: the largest is 1
    y = smooth(plain, label_smoothing, w)
    if teacher is not None:
        if not isinstance(teacher, TeacherTargets):
            raise SettingError(f'teacher is a {type(teacher).__name__}, but it must be TeacherTargets(logits).')
        teacher.check(B, P, C)
        if mask is not None and teacher.logits.ndim == 3:
            teacher = replace(teacher, logits=teacher.logits.masked_fill(~mask.unsqueeze(-1), 0))
        if teacher.reading == 'targets':
            y, plain = (teacher.blend(labels, binary) for labels in (y, plain))
        else:
            y, plain = (labels * (1 - teacher.weight) for labels in (y, plain))
            said = teacher.sharp(dtype)
            said = said.transpose(0, 1) if said.ndim == 3 else said
            if not binary:  # as those of the student, so that low precision rounds what is left
                said = said - said.amax(-1, keepdim=True)
            if attention is not None and attention.requires_grad:
                raise SettingError("A teacher's reading 'logits' takes the attention as a constant, but it requires "
                                   "grad: detach it, or choose reading 'targets'.")
    if w is not None:
        y, mass = y * w, (plain * w).sum(-1)
    if isinstance(lam, Tensor):
        lam = lam.to(dtype)
    elif lam.device != logits.device or lam.dtype != dtype:
        raise SettingError(f'lam samples {lam.dtype} on {lam.device}, but the loss is {dtype} on {logits.device}: give '
                           f'LamSampler device=… and dtype=….')
    grad = torch.is_grad_enabled()
    options = LossOptions(
        normalize, engine, over_ranks, binary, keep_norm, masked=mask is not None,
        teacher_weight=0.0 if teacher is None or said is None else teacher.weight,
        logits_grad=grad and logits.requires_grad,
        attention_grad=grad and attention is not None and attention.requires_grad)
    with torch.autocast(logits.device.type, enabled=False):
        loss: Tensor = MixedCrossEntropy.apply(
            logits, None if attention is None else attention.to(dtype), Targets(y, mass, said, w), lam, options)
    return loss


def _check_shapes(logits: Tensor, lam: Union[Tensor, LamSampler], attention: Optional[Tensor]) -> None:
    B, P, C = logits.shape
    if not (B and P and C):
        raise SettingError(f'logits are {tuple(logits.shape)}, but there must be an example, a position and a class.')
    check_lam(lam, P, B)
    if attention is not None and not attention.is_floating_point():
        raise SettingError(f'attention is {attention.dtype}, but weights must be floating.')
    if attention is not None and attention.shape != (B, P):
        raise SettingError(f'attention must be (B, P) = ({B}, {P}) to fit the logits, not {tuple(attention.shape)}.')


def check_lam(lam: Union[Tensor, LamSampler], P: int, B: int) -> None:
    """Raise `SettingError` unless Λ is (N, P, B), floating, without a gradient."""
    if isinstance(lam, Tensor) and not lam.is_floating_point():
        raise SettingError(f'lam is {lam.dtype}, but weights must be floating.')
    if len(lam.shape) != 3 or tuple(lam.shape[1:]) != (P, B):
        raise SettingError(f'lam must be (N, P, B) = (N, {P}, {B}) to fit the logits, not {tuple(lam.shape)}.')
    if lam.shape[0] < 1:
        raise SettingError(f'lam is {tuple(lam.shape)}, but there must be a mixture.')
    if isinstance(lam, Tensor) and lam.requires_grad:
        raise SettingError('lam requires grad, but the interpolation vectors are drawn, not learned: detach them.')


def check_values(lam: Union[Tensor, LamSampler], attention: Optional[Tensor] = None) -> None:
    """Raise `SettingError` for weights that are no weights, which would give a plausible number."""
    if isinstance(lam, Tensor):
        low, sums = float(lam.min()), lam.sum(-1, dtype=torch.float32)
        off = float((sums - 1).abs().max())
        if not (low >= -1e-6 and off <= max(1e-3, 8 * float(torch.finfo(lam.dtype).eps))):
            what = f'holds {low:g}' if not low >= -1e-6 else f'has a row that sums to 1 ± {off:.3g}'
            raise SettingError(f'lam {what}, but mixing weights are at least 0 and those of a mixture sum to 1, along '
                               f'the last axis.')
    if attention is not None:
        low, high = (float(end) for end in attention.detach().aminmax())
        if not (low >= 0 and high < float('inf')):
            raise SettingError(f'attention holds {high if low >= 0 else low:g}, but it must be finite and at least 0.')
