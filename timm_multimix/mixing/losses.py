"""`Losses`: of mixtures and of images that are not mixed, as the settings have them."""
from __future__ import annotations

from typing import Any, Optional, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import MultiMixConfig
from .dirichlet import LamSampler, balanced_shares
from .loss import mixed_cross_entropy
from .targets import MASKED, cross_entropy, smooth, soft_target, unsmooth
from .teacher import TeacherTargets


class Losses:
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
        if teacher is not None or config.bce_loss:
            y, smoothing = self.targets(target, logits.shape[1], logits, training, smoothed)
            return self.soft(logits, y, smooth(y, smoothing), teacher)
        return cross_entropy(
            logits, target, label_smoothing=config.label_smoothing if training and target.ndim == 1 else 0.0,
            class_weight=self.class_weight(logits) if training else None, smoothed=smoothed)

    def targets(self, target: Tensor, C: int, logits: Tensor, training: bool = True, smoothed: float = 0.0,
                ) -> tuple[Tensor, float]:
        """Y, (B, C), in the dtype of the loss, and by how much it is still to be smoothed.

        Class weights and balance go by the class, smoothed or not. So soft targets that were `smoothed` come back
        without it. A threshold is of smoothed targets, and leaves nothing to smooth.
        """
        config, dtype = self.config, torch.float64 if logits.dtype == torch.float64 else torch.float32
        y = soft_target(target, C, dtype, binary=config.bce_loss, batch=len(logits))
        smoothing = config.label_smoothing if training and target.ndim == 1 else 0.0
        if smoothed and target.ndim == 2:
            y, smoothing = unsmooth(y, smoothed).clamp(min=0), smoothed
        if training and config.bce_loss and config.bce_target_thresh is not None:
            return (smooth(y, smoothing) > config.bce_target_thresh).to(dtype), 0.0
        return y, smoothing

    def soft(self, logits: Tensor, plain: Tensor, whole: Tensor, teacher: Optional[TeacherTargets]) -> Tensor:
        """Of labels (B, C), plain ones and the same smoothed, and of what a teacher says, as targets."""
        with torch.autocast(logits.device.type, enabled=False):
            if teacher is not None:
                teacher.check(len(plain), 1, plain.shape[1])
                whole, plain = (teacher.blend(labels, self.config.bce_loss) for labels in (whole, plain))
            if self.config.bce_loss:
                loss = F.binary_cross_entropy_with_logits(logits.to(plain.dtype), whole)
                return loss * logits.shape[1] if self.config.bce_sum else loss
            x, w = logits.to(plain.dtype).clamp(min=MASKED), self.class_weight(logits)
            if w is None:
                return F.cross_entropy(x, whole)
            total, loss = (plain * w).sum(), F.cross_entropy(x, whole * w, reduction='sum')
            return torch.where(total > 0, loss / torch.where(total > 0, total, 1), 0)

    def lam(self, n: int, positions: int, y: Tensor, generator: Optional[torch.Generator],
            device: torch.device) -> Union[Tensor, LamSampler]:
        """Λ of n mixtures a position, for targets Y (B, C): what draws it on `device`; drawn already if the generator
        is on another one."""
        config, batch = self.config, len(y)
        where = device if generator is None else generator.device
        m = None if config.m is None else min(config.m, batch)  # a last batch may be smaller
        shares = balanced_shares(y, config.balance).to(where) if config.balance else None
        classes = None if config.tuples == 'any' else y.argmax(1).to(where)
        lam = LamSampler(n, positions, batch, config.alpha_range(batch, m), generator, m=m, shares=shares,
                         classes=classes, tuples=config.tuples, device=where, dtype=y.dtype)
        return lam if lam.device == device else lam.draw(positions, n).transpose(0, 1).to(device)

    def mixed(self, logits: Tensor, y: Tensor, lam: Union[Tensor, LamSampler], attention: Optional[Tensor] = None,
              **options: Any) -> Tensor:
        """Of mixtures: `mixed_cross_entropy` of logits (B, P, C) or (B, C) and targets Y (B, C), and its options."""
        config = self.config
        loss = mixed_cross_entropy(
            logits, y, lam, attention, normalize=config.normalize or 'position', engine=config.engine,
            binary=config.bce_loss, keep_norm=config.keep_norm, class_weight=self.class_weight(logits), **options)
        return loss * logits.shape[-1] if config.bce_sum else loss

    def mean(self, mixed: Tensor, clean: Optional[Tensor]) -> Tensor:
        """Of both losses. Not their sum: a learning rate that was tuned without mixing stays right with it."""
        w = self.config.clean_weight
        return (mixed + w * clean) / (1 + w) if w and clean is not None else mixed

    def class_weight(self, logits: Tensor) -> Optional[Tensor]:
        """(C,), where the logits are."""
        if self.config.class_weight is None:
            return None
        kind = torch.float64 if logits.dtype == torch.float64 else torch.float32, logits.device
        if kind not in self._class_weights:  # once: bringing them to an accelerator waits for it
            self._class_weights[kind] = torch.tensor(self.config.class_weight, dtype=kind[0], device=kind[1])
        return self._class_weights[kind]
