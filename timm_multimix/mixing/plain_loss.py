"""`PlainLoss`: the loss of images that are not mixed, as the settings have it."""
from __future__ import annotations

from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import MultiMixConfig
from .targets import cross_entropy, smooth, soft_target


class PlainLoss:
    """(Binary) cross-entropy with the smoothing, threshold and class weights of the settings.

    In evaluation (`training=False`) none of these three.
    """

    def __init__(self, config: MultiMixConfig) -> None:
        self.config = config
        self._class_weights: dict[Any, Tensor] = {}

    def __call__(self, logits: Tensor, target: Tensor, training: bool = True) -> Tensor:
        """Of logits (B, C) and class indices (B,) or soft targets (B, C): a scalar, float32 (float64 of float64)."""
        config = self.config
        if config.bce_loss:
            return self.binary(logits, self.targets(target, logits.shape[1], logits, training)[0])
        return cross_entropy(
            logits, target, label_smoothing=config.label_smoothing if training and target.ndim == 1 else 0.0,
            class_weight=self.class_weight(logits) if training else None)

    def targets(self, target: Tensor, C: int, logits: Tensor, training: bool = True) -> tuple[Tensor, float]:
        """Y, (B, C), in the dtype that losses of these logits are computed in, and by how much it is still to be
        smoothed: a class weight is that of the class, smoothed or not."""
        config, dtype = self.config, torch.float64 if logits.dtype == torch.float64 else torch.float32
        y = soft_target(target, C, dtype, binary=config.bce_loss, batch=len(logits))
        smoothing = config.label_smoothing if training and target.ndim == 1 else 0.0
        if not config.bce_loss:
            return y, smoothing
        y = smooth(y, smoothing)
        return (y > config.bce_target_thresh).to(dtype) if training and config.bce_target_thresh is not None else y, 0.0

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
