"""A user's targets: checked once, and turned into Y; and the loss of them where nothing is mixed."""
from __future__ import annotations

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import SettingError

# A logit of −∞, which masks a class: far below any other, whatever it is multiplied by.
MASKED = -1e30

# A row of soft targets may sum to more than 1 by this, or by its dtype's rounding, a few times over.
# (timm's Mixup computes shares of bfloat16 images in bfloat16, and gives float32.)
SLACK = 8e-3

# What an example's smoothed target weighs, at most, as a multiple of what it did before. A position may have examples
# of classes with small weights alone. Divided by those, what smoothing puts on other classes would have no bounds.
MOST_SMOOTHED = 10


def soft_target(
        target: Tensor,
        num_classes: int,
        dtype: torch.dtype,
        label_smoothing: float = 0.0,
        *,
        binary: bool = False,
        batch: Optional[int] = None,
        validate: Optional[bool] = None,
) -> Tensor:
    """Y: one-hot rows of class indices, or the given soft targets; smoothed on request, whichever they are.

    Args:
        target: class indices (B,) of any integer dtype; or soft targets (B, C) of any floating dtype, with rows that
            sum to at most 1. One-hot rows may be integers or bool.
        num_classes: C.
        dtype: of Y, floating.
        label_smoothing: as in `torch.nn.functional.cross_entropy`.
        binary: the rows are the probabilities of each class for itself, and need not sum to 1.
        batch: B, if it is known; the target must then be of as many examples.
        validate: whether to look at the values; see `reads_values`.

    Returns:
        (B, C), of `dtype`.

    Raises:
        SettingError: anything else.
    """
    check_target(target, num_classes, binary=binary, batch=batch, validate=validate)
    if target.ndim == 1:
        y = torch.zeros(len(target), num_classes, dtype=dtype, device=target.device)
        y.scatter_(1, target.long().unsqueeze(1), 1.0)  # inductor of torch 2.11 makes whole numbers of 1
    else:
        y = target.to(dtype)
    return smooth(y, label_smoothing)


def smooth(y: Tensor, label_smoothing: float, class_weight: Optional[Tensor] = None) -> Tensor:
    """Label smoothing of Y, (B, C) → (B, C), before it is mixed. Raises `SettingError` if it is not of 0 ≤ x < 1.

    What then weighs more than `MOST_SMOOTHED` times what it did, by weights of the classes (C,), is scaled to that.
    """
    check_smoothing(label_smoothing)
    if not label_smoothing:
        return y
    smoothed = y * (1 - label_smoothing) + label_smoothing / y.shape[1]
    if class_weight is None:
        return smoothed
    most, weight = MOST_SMOOTHED * (y * class_weight).sum(-1), (smoothed * class_weight).sum(-1)
    return smoothed * (most / weight.clamp(min=torch.finfo(y.dtype).tiny)).clamp(max=1).unsqueeze(-1)


def unsmooth(y: Tensor, label_smoothing: float) -> Tensor:
    """Y, (B, C), before it was smoothed."""
    return (y - label_smoothing / y.shape[1]) / (1 - label_smoothing) if label_smoothing else y


def cross_entropy(
        logits: Tensor,
        target: Tensor,
        *,
        label_smoothing: float = 0.0,
        class_weight: Optional[Tensor] = None,
        smoothed: float = 0.0,
) -> Tensor:
    """Cross-entropy of images that are not mixed, the mean over the batch.

    Args:
        logits: (B, C), any floating dtype; computed in float32 (float64 stays), also under autocast.
        target: class indices (B,) or soft targets (B, C), as `soft_target` takes them.
        label_smoothing: of class indices. Soft targets stay as they are: where they come from, they were smoothed.
        class_weight: (C,), floating, ≥ 0. The mean is then weighted: the sum of −Σ_c w_c y_c log p_c over the examples,
            over the sum of their weights. An example weighs w of its class, a soft one Σ_c w_c y_c. torch has the same
            for class indices, and for soft targets divides by B instead.
        smoothed: by how much soft targets were smoothed already: an example weighs what it did before.

    Returns:
        A scalar, float32 (float64 for float64 logits). 0, without a gradient, if no example has weight.

    Raises:
        SettingError: logits of another shape or dtype; targets that `soft_target` refuses; class weights that
            `check_class_weight` refuses.
    """
    if logits.ndim != 2 or not logits.is_floating_point():
        raise SettingError(f'logits must be floating (B, C), not {logits.dtype} {tuple(logits.shape)}.')
    B, C = logits.shape
    check_target(target, C, batch=B)
    check_smoothing(label_smoothing)
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    x, hard = logits.to(dtype).clamp(min=MASKED), target.ndim == 1  # 0 · −∞ would be NaN
    y = target.long() if hard else target.to(dtype)
    label_smoothing = label_smoothing if hard else 0.0
    if class_weight is None:
        return F.cross_entropy(x, y, label_smoothing=label_smoothing)  # autocast leaves it its precision
    w = check_class_weight(class_weight, logits, dtype)
    if hard:
        total = w[y].sum()
        loss = F.cross_entropy(x, y, w, label_smoothing=label_smoothing, reduction='sum')
    else:
        total = (unsmooth(y, smoothed) * w).sum()
        loss = F.cross_entropy(x, y * w, reduction='sum')
    return torch.where(total > 0, loss / torch.where(total > 0, total, 1), 0)


def reads_values(tensor: Tensor, validate: Optional[bool] = None) -> bool:
    """Whether a check may look at what a tensor holds. None: on the CPU only, and not under torch.compile: elsewhere
    that waits for the device.
    """
    if validate is None:
        return tensor.device.type == 'cpu' and not torch.compiler.is_compiling()
    return validate


def check_target(
        target: Tensor, num_classes: int, *, binary: bool = False, batch: Optional[int] = None,
        validate: Optional[bool] = None) -> None:
    """Raise `SettingError` for what is not a target. Arguments and rules are those of `soft_target`."""
    shape, C = tuple(target.shape), num_classes
    if target.ndim not in (1, 2) or target.is_complex():
        raise SettingError(f'target is {target.dtype} {shape}, but it must be {_forms(batch, shape, C)}.')
    if shape[0] == 0:
        raise SettingError(f'target is {shape}, but there must be an example.')
    if target.ndim == 1 and (target.is_floating_point() or target.dtype == torch.bool):
        raise SettingError(f'target is {target.dtype} {shape}, but class indices must be integers, as target.long() '
                           f'is: it must be {_forms(batch, shape, C)}.')
    if target.ndim == 2 and shape[1] == 1 != C:
        raise SettingError(f'target is {shape}, but class indices must be ({shape[0]},), as target.squeeze(1) is.')
    if target.ndim == 2 and shape[1] != C:
        raise SettingError(f'target has {shape[1]} columns, but the model has {C} classes: it must be '
                           f'{_forms(batch, shape, C)}.')
    if batch is not None and shape[0] != batch:
        raise SettingError(f'target is of {shape[0]} examples, but the batch has {batch}: it must be '
                           f'{_forms(batch, shape, C)}.')
    if target.numel() and reads_values(target, validate):
        if target.ndim == 1:
            _check_indices(target.long(), num_classes)
        else:
            _check_rows(target, binary)


def _forms(batch: Optional[int], shape: tuple[int, ...], num_classes: int) -> str:
    n = batch if batch is not None else shape[0] if shape else 'B'
    return f'({n},) class indices or ({n}, {num_classes}) soft targets'


def _check_indices(target: Tensor, num_classes: int) -> None:
    low, high = (int(end) for end in target.aminmax())
    if low == -100:
        raise SettingError('target holds -100, the ignore_index of torch, which is not supported: leave those images '
                           'out of the batch.')
    if low < 0 or high >= num_classes:
        raise SettingError(f'target holds class {low if low < 0 else high}, but the model has the {num_classes} '
                           f'classes 0 to {num_classes - 1}.')


def _check_rows(target: Tensor, binary: bool) -> None:
    slack = max(SLACK, 4 * torch.finfo(target.dtype).eps) if target.is_floating_point() else 0
    y = target if target.dtype == torch.float64 else target.float()  # of float8, torch knows neither min nor sum
    low, high = (float(end) for end in y.aminmax())
    good = 0 <= low and high <= 1 + slack if binary else 0 <= low and high < float('inf')  # false for NaN, too
    if not good:
        raise SettingError(f'target holds {high if low >= 0 else low:g}, but soft targets must be '
                           f'{"from 0 to 1" if binary else "finite and at least 0"}.')
    most = 0 if binary else float(y.sum(1).max())
    if most > 1 + slack:
        raise SettingError(f'target has a row that sums to {most:g}, but the classes of an image share 1 among them: '
                           f'for several labels an image, use bce_loss (--bce-loss; in mixed_cross_entropy '
                           f'binary=True).')


def check_smoothing(label_smoothing: float) -> None:
    """Raise `SettingError` for what is no label smoothing."""
    if not 0 <= label_smoothing < 1:
        raise SettingError(f'label_smoothing is {label_smoothing!r}, but it must be at least 0 and below 1.')


def check_class_weight(
        class_weight: Tensor, logits: Tensor, dtype: torch.dtype, validate: Optional[bool] = None) -> Tensor:
    """The weights of the classes, (C,), for logits (…, C), in the dtype of the loss.

    Raises:
        SettingError: not a floating tensor of that shape, on another device, requires grad; or, where `reads_values`
            says so, negative, not finite, or all zero.
    """
    C = logits.shape[-1]
    if not isinstance(class_weight, Tensor) or not class_weight.is_floating_point() or class_weight.shape != (C,):
        given = (f'{class_weight.dtype} {tuple(class_weight.shape)}' if isinstance(class_weight, Tensor)
                 else repr(class_weight))
        raise SettingError(f'class_weight must be a floating tensor ({C},), one weight for each class, not {given}.')
    if class_weight.device != logits.device:
        raise SettingError(f'class_weight is on {class_weight.device}, but the logits are on {logits.device}: move it '
                           f'there.')
    if class_weight.requires_grad:
        raise SettingError('class_weight requires grad, but weights of the classes are given, not learned: detach '
                           'them.')
    w = class_weight.to(dtype)
    if reads_values(w, validate):
        low, high = (float(end) for end in w.aminmax())
        if not (0 <= low and high < float('inf')):
            raise SettingError(f'class_weight holds {high if low >= 0 else low:g}, but weights must be finite and at '
                               f'least 0.')
        if high == 0:
            raise SettingError('class_weight is 0 for every class, but some must weigh something.')
    return w
