"""`MultiMixTask`: when to mix and what else to add to the loss, for timm's training loop."""
from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any, Optional

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.data import Mixup
from timm.loss import BinaryCrossEntropy
from timm.task import ClassificationTask
from timm.utils.model import unwrap_model
from torch import Tensor

from .mixing.signal import signal_warning
from .wrapper import MultiMixModel, unwrap

MixupFn = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class MultiMixTask(ClassificationTask):
    """Training with MultiMix as a `timm.task`: EMA, DDP, compile and checkpoint hooks are timm's.

    Every step, with probability `config.prob`, the embeddings of the batch are mixed; otherwise it trains with
    `mixup_fn` or plainly. With prob = 1 `mixup_fn` comes first on every step and its soft targets flow through. During
    the first `config.ramp_epochs`, a share of the steps trains plainly that shrinks from all to none: a loop of your
    own calls `set_epoch` for that, at least once an epoch; one that never does mixes from the start. The choice depends
    on the seed, the step and the epoch alone, so ranks agree and a resumed run goes on where it was.

    Checkpoints hold the plain timm model's state_dict, and the step in `task_state`.

    Args:
        model: a wrapped model; a plain timm model is trained plainly, with `mixup_fn` if given.
        mixup_fn: input mixup, such as `timm.data.Mixup`: (images, class indices) → (images, soft targets). None uses
            `config.mixup` and `config.cutmix`.
        label_smoothing: of class-index targets on steps without mixing; None is the wrapped model's.
        seed: of the choice between mixing and not.
        device, dtype, verbose: as in timm.
    """

    def __init__(
            self,
            model: nn.Module,
            mixup_fn: Optional[MixupFn] = None,
            label_smoothing: Optional[float] = None,
            seed: int = 42,
            device: Optional[torch.device] = None,
            dtype: Optional[torch.dtype] = None,
            verbose: bool = True,
    ) -> None:
        wrapped = unwrap_model(model)  # it may have been compiled already
        config = wrapped.config if isinstance(wrapped, MultiMixModel) else None
        self_smoothing = label_smoothing if label_smoothing is not None else (config.label_smoothing if config else 0.0)

        def criterion(logits: Tensor, target: Tensor) -> Tensor:
            # Soft targets come smoothed from Mixup; smoothing is applied once.
            smoothing = self_smoothing if target.ndim == 1 else 0.0
            return F.cross_entropy(logits.float(), target, label_smoothing=smoothing)

        if config is not None and config.bce_loss:  # smooths class indices only
            criterion = BinaryCrossEntropy(  # type: ignore[assignment]
                self_smoothing, target_threshold=config.bce_target_thresh, sum_classes=config.bce_sum)
        super().__init__(model, criterion, device=device, dtype=dtype, verbose=verbose)
        self.config = config
        if mixup_fn is None and config is not None and (config.mixup or config.cutmix):
            mixup_fn = Mixup(config.mixup, config.cutmix, label_smoothing=self_smoothing,
                             num_classes=wrapped.num_classes)
        self.mixup_fn = mixup_fn
        self.seed = seed
        self.step = 0
        self.epoch: Optional[float] = None
        if config is not None:
            wrapped.needs_first_check = False  # this task checks instead: it knows of the steps that do not mix
        self._checked = config is None

    def mixes(self, step: int) -> bool:
        """Whether embeddings are mixed on this step (counted in calls of the task in train mode)."""
        return self.config is not None and self._draw(step) < self.config.prob * self.share

    @property
    def share(self) -> float:
        """Of the steps, how many mix anything at this time of the training: 0 to 1."""
        if self.config is None or not self.config.ramp_epochs or self.epoch is None:
            return 1.0
        return min(1.0, self.epoch / self.config.ramp_epochs)

    def set_epoch(self, epoch: float) -> None:
        """Say where the training is, in epochs since its start (fractions count), for `config.ramp_epochs`."""
        self.epoch = epoch

    def _draw(self, step: int) -> float:
        return random.Random(f'{self.seed}/{step}').random()

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Any]:
        """One step. images (B, 3, H, W), target class indices (B,) or soft targets (B, C).

        Returns:
            'loss', 'output' (B, C) logits of the images as the model saw them, 'mixed' (bool), and on mixed steps the
            diagnostics of `MultiMixOutput.signal`.
        """
        if not self._checked:
            self._check(len(input))
        mixed = self.mixes(self.step)
        ramped = self._draw(self.step) < self.share
        if self.training:
            self.step += 1
        always = self.config is not None and self.config.prob >= 1
        pairs = not isinstance(self.mixup_fn, Mixup) or len(input) % 2 == 0  # timm's cannot mix an odd last batch
        if (self.mixup_fn is not None and self.training and ramped and (always or not mixed) and target.ndim == 1
                and pairs):
            input, target = self.mixup_fn(input, target)
        if not mixed:
            return {**super().forward(input, target), 'mixed': False}
        out = self.trainable_module(input, target)
        return {'loss': out.loss, 'output': out.logits, 'mixed': True, **out.signal}

    def _check(self, batch: int) -> None:
        self._checked = True
        message = self.signal_warning(batch)
        if message:
            warnings.warn(message, stacklevel=3)

    def signal_warning(self, batch: int) -> Optional[str]:
        """What to tell the user before training with this batch size, if the loss will carry no class signal."""
        self._checked = True
        if self.config is None:
            return None
        return signal_warning(self.config, batch, int(unwrap_model(self.trainable_module).num_classes))  # type: ignore[arg-type]

    def get_eval_model(self, module: Optional[nn.Module] = None, ema: bool = False) -> Optional[nn.Module]:
        """The plain timm model (or its compiled form), for validation and for the checkpoint's state_dict."""
        found = super().get_eval_model(module, ema)
        compiled = hasattr(found, '_orig_mod')
        return found if found is None or compiled else unwrap(found)

    def get_task_state(self, module: Optional[nn.Module] = None, ema: bool = False) -> dict[str, Any]:
        return {'step': self.step}

    def load_task_state(
            self,
            state: Optional[dict[str, Any]],
            strict: bool = True,
            module: Optional[nn.Module] = None,
            ema: bool = False,
    ) -> None:
        if state and not ema:
            self.step = int(state.get('step', 0))
