"""`PlainLoss`: the loss of images that are not mixed, as the settings have it."""
from __future__ import annotations

from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import MultiMixConfig
from .targets import MASKED, cross_entropy, smooth, soft_target, unsmooth
from .teacher import TeacherTargets


class PlainLoss:
    """(Binary) cross-entropy with the smoothing, threshold and class weights of the settings.

    In evaluation (`training=False`) none of these three.
    """

    def __init__(self, config: MultiMixConfig) -> None:
        self.config = config
        self._class_weights: dict[Any, Tensor] = {}

    def __call__(self, logits: Tensor, target: Tensor, training: bool = True,
                 teacher: Optional[TeacherTargets] = None, smoothed: float = 0.0) -> Tensor:
        """Of logits (B, C) and class indices (B,) or soft targets (B, C): a scalar, float32 (float64 of float64).

        A teacher of these images has its share in the targets. `smoothed` is by how much soft targets were smoothed
        already.
        """
        config = self.config
        if teacher is not None:
            y, smoothing = self.targets(target, logits.shape[1], logits, training, smoothed)
            return self.taught(logits, y, smoothing, teacher)
        if config.bce_loss:
            return self.binary(logits, self.targets(target, logits.shape[1], logits, training)[0])
        return cross_entropy(
            logits, target, label_smoothing=config.label_smoothing if training and target.ndim == 1 else 0.0,
            class_weight=self.class_weight(logits) if training else None, smoothed=smoothed)

    def targets(self, target: Tensor, C: int, logits: Tensor, training: bool = True, smoothed: float = 0.0,
                ) -> tuple[Tensor, float]:
        """Y, (B, C), in the dtype that losses of these logits are computed in, and by how much it is still to be
        smoothed: a class weight is that of the class, smoothed or not. So where there are class weights, soft targets
        that were `smoothed` already come back as they were before."""
        config, dtype = self.config, torch.float64 if logits.dtype == torch.float64 else torch.float32
        y = soft_target(target, C, dtype, binary=config.bce_loss, batch=len(logits))
        smoothing = config.label_smoothing if training and target.ndim == 1 else 0.0
        if smoothed and target.ndim == 2 and config.class_weight is not None:
            return unsmooth(y, smoothed).clamp(min=0), smoothed
        if not config.bce_loss:
            return y, smoothing
        y = smooth(y, smoothing)
        return (y > config.bce_target_thresh).to(dtype) if training and config.bce_target_thresh is not None else y, 0.0

    def taught(self, logits: Tensor, y: Tensor, smoothing: float, teacher: TeacherTargets) -> Tensor:
        """Against labels Y (B, C), still to be smoothed, and a teacher's predictions."""
        teacher.check(len(y), 1, y.shape[1])
        with torch.autocast(logits.device.type, enabled=False):
            whole, plain = (teacher.blend(labels, self.config.bce_loss) for labels in (smooth(y, smoothing), y))
            if self.config.bce_loss:
                return self.binary(logits, whole)
            x, w = logits.to(y.dtype).clamp(min=MASKED), self.class_weight(logits)
            if w is None:
                return F.cross_entropy(x, whole)
            total, loss = (plain * w).sum(), F.cross_entropy(x, whole * w, reduction='sum')
            return torch.where(total > 0, loss / torch.where(total > 0, total, 1), 0)

    def binary(self, logits: Tensor, y: Tensor) -> Tensor:
        """Binary cross-entropy against Y, (B, C)."""
        with torch.autocast(logits.device.type, enabled=False):
            loss = F.binary_cross_entropy_with_logits(logits.to(y.dtype), y)
            return loss * logits.shape[1] if self.config.bce_sum else loss

    def class_weight(self, logits: Tensor) -> Optional[Tensor]:
        """(C,), where the logits are."""
        if self.config.class_weight is None:
            return None
        kind = torch.float64 if logits.dtype == torch.float64 else torch.float32, logits.device
        if kind not in self._class_weights:  # once: bringing them to an accelerator waits for it
            self._class_weights[kind] = torch.tensor(self.config.class_weight, dtype=kind[0], device=kind[1])
        return self._class_weights[kind]
