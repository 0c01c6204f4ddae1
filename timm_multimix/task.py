"""`MultiMixTask`: a wrapped model's training step, in timm's training loop."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Optional, Union

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.data import Mixup
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.task import ClassificationTask
from timm.utils.model import unwrap_model
from torch import Tensor

from .config import EMA, MultiMixConfig
from .errors import SettingError
from .mixing.diagnostics import signal_warning
from .mixing.targets import cross_entropy
from .policy import MixingPolicy, MixupFn
from .wrapper import MultiMixModel, unwrap

Criterion = Union[nn.Module, Callable[[Tensor, Tensor], Tensor]]


class MultiMixTask(ClassificationTask):
    """Training with MultiMix as a `timm.task`: EMA, DDP, compile and checkpoint hooks are timm's.

    What a step mixes is the choice of the wrapped model's policy, as in a loop of your own: `set_progress` says how far
    the training is. Checkpoints hold the plain timm model's state_dict, and in `task_state` the step and the counts.

    Args:
        model: a wrapped model; a plain timm model is trained plainly, with `mixup_fn` if given.
        criterion: as in timm, and in the place that it has there. Of a wrapped model it must be one whose meaning
            mixing can keep, which then is that of its settings: torch's CrossEntropyLoss (with `weight` and
            `label_smoothing`), BCEWithLogitsLoss, and timm's LabelSmoothingCrossEntropy, SoftTargetCrossEntropy and
            BinaryCrossEntropy.
        mixup_fn: input mixing, such as `timm.data.Mixup`: (images, class indices) → (images, soft targets). None is the
            wrapped model's.
        label_smoothing: of class-index targets; None is the wrapped model's.
        class_weight: a weight for each class; None is the wrapped model's.
        seed: of what is mixed and by how much; None is the wrapped model's.
        device: as in timm.
        dtype: as in timm.
        verbose: as in timm.

    Raises:
        SettingError: a criterion that mixing cannot keep; settings that contradict those of the wrapped model.
    """

    def __init__(
            self,
            model: nn.Module,
            criterion: Optional[Criterion] = None,
            *,
            mixup_fn: Optional[MixupFn] = None,
            label_smoothing: Optional[float] = None,
            class_weight: Optional[Sequence[float]] = None,
            seed: Optional[int] = None,
            device: Optional[torch.device] = None,
            dtype: Optional[torch.dtype] = None,
            verbose: bool = True,
    ) -> None:
        if isinstance(criterion, Mixup):
            raise SettingError('criterion is a Mixup, but the second argument is the criterion, as in timm: '
                               'mixup_fn=… takes it.')
        found = unwrap_model(model)  # it may have been compiled already
        wrapped = found if isinstance(found, MultiMixModel) else None
        loss = {'label_smoothing': label_smoothing, 'class_weight': class_weight}
        if wrapped is None:
            config = None if label_smoothing is None and class_weight is None else MultiMixConfig(
                **{k: v for k, v in loss.items() if v is not None})  # type: ignore[arg-type]
            if criterion is not None and config is not None:
                raise SettingError('criterion has its own label_smoothing and class_weight: give only one.')
            classes = int(found.num_classes)  # type: ignore[arg-type]
            if class_weight is not None and len(class_weight) != classes:
                raise SettingError(f'class_weight has {len(class_weight)} weights, but the model has {classes} '
                                   f'classes.')
            self_policy = MixingPolicy(None, classes, seed=42 if seed is None else seed, mixup_fn=mixup_fn)
            criterion = criterion or _Plain(config)
        else:
            wrapped.reconfigure(**{k: v for k, v in loss.items() if v is not None})
            self_policy = None
            wrapped.multimix.policy.use(seed, mixup_fn)
        super().__init__(model, criterion or F.cross_entropy, device=device, dtype=dtype, verbose=verbose)
        self._policy = self_policy
        self.is_wrapped = wrapped is not None
        if criterion is not None:
            self.criterion = criterion  # now that there are settings it can become

    def __setattr__(self, name: str, value: Any) -> None:
        if name == 'criterion' and getattr(self, 'is_wrapped', False):
            self.wrapped.reconfigure(**settings_of(value, self.wrapped.multimix.config))
        super().__setattr__(name, value)

    @property
    def wrapped(self) -> MultiMixModel:
        """The wrapped model, from under DDP and torch.compile.

        Raises:
            SettingError: the model is a plain one.
        """
        if not self.is_wrapped:
            raise SettingError(f'{type(self).__name__} needs a wrapped model: --multimix multimix or dense.')
        return unwrap_model(self.trainable_module)  # type: ignore[return-value]

    @property
    def config(self) -> Optional[MultiMixConfig]:
        """The settings; None of a plain model."""
        return self.wrapped.multimix.config if self.is_wrapped else None

    @property
    def policy(self) -> MixingPolicy:
        """What chooses and counts: the wrapped model's."""
        return self._policy if self._policy is not None else self.wrapped.multimix.policy

    @property
    def mixup_fn(self) -> Optional[MixupFn]:
        """What mixes inputs."""
        return self.policy.mixup_fn

    def set_progress(self, done: float, of: Optional[float] = None) -> None:
        """Say how far the training is, at least once an epoch: a fraction, or epochs `of` so many."""
        self.policy.set_progress(done, of)

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Any]:
        """One step. images (B, 3, H, W), not written to; target class indices (B,) or soft targets (B, C).

        Returns:
            'loss', 'output' (B, C) logits of the images as the model saw them, 'mixed' (what was, see
            `MultiMixOutput.mixed`), and the diagnostics of `MultiMixOutput.signal`.
        """
        if self.is_wrapped:
            if self.training:
                self.wrapped.multimix.first_check(len(input))
            out = self.trainable_module(input, target)
            return {'loss': out.loss, 'output': out.logits, 'mixed': out.mixed, **out.signal}
        mixed = 'nothing'
        if self.training:
            input, target, plan = self.policy.begin(input, target)
            mixed = plan.mixed
            if isinstance(self.criterion, _Plain):
                self.criterion.smoothed = plan.smoothed
        return {**super().forward(input, target), 'mixed': mixed}

    def signal_warning(self, batch: int) -> Optional[str]:
        """What to tell the user before training with this batch size, if a loss term will carry no class signal."""
        if not self.is_wrapped:
            return None
        self.wrapped.multimix.needs_first_check = False
        return signal_warning(self.wrapped.multimix.config, batch, self.policy.num_classes)

    def setup_ema(self, *args: Any, **kwargs: Any) -> nn.Module:
        """timm's averaged weights; with the setting teacher='ema' they teach."""
        ema = super().setup_ema(*args, **kwargs)
        if self.is_wrapped and self.wrapped.multimix.config.teacher == EMA:
            self.wrapped.set_teacher(ema)
        return ema

    def get_eval_model(self, module: Optional[nn.Module] = None, ema: bool = False) -> Optional[nn.Module]:
        """The plain timm model (or its compiled form), for validation and for the checkpoint's state_dict."""
        found = super().get_eval_model(module, ema)
        compiled = hasattr(found, '_orig_mod')
        return found if found is None or compiled else unwrap(found)

    def get_task_state(self, module: Optional[nn.Module] = None, ema: bool = False) -> dict[str, Any]:
        return self.wrapped.multimix.state_dict() if self.is_wrapped else self.policy.state_dict()

    def load_task_state(
            self,
            state: Optional[dict[str, Any]],
            strict: bool = True,
            module: Optional[nn.Module] = None,
            ema: bool = False,
    ) -> None:
        if state and not ema:
            (self.wrapped.multimix if self.is_wrapped else self.policy).load_state_dict(state)


class _Plain(nn.Module):
    """Cross-entropy of a plain model. Soft targets come `smoothed` from Mixup; smoothing is applied once."""

    def __init__(self, config: Optional[MultiMixConfig]) -> None:
        super().__init__()
        self.smoothing = config.label_smoothing if config else 0.0
        self.smoothed = 0.0
        weight = config.class_weight if config else None
        self.register_buffer('weight', None if weight is None else torch.tensor(weight), persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(logits, target, label_smoothing=self.smoothing if target.ndim == 1 else 0.0,
                             class_weight=self.weight, smoothed=self.smoothed)  # type: ignore[arg-type]


def settings_of(criterion: Any, config: MultiMixConfig) -> dict[str, Any]:
    """The settings of the method that mean what the criterion does.

    Raises:
        SettingError: there are none, or the criterion and the settings contradict each other.
    """
    name = getattr(criterion, '__name__', type(criterion).__name__)
    weight = getattr(criterion, 'weight', None)
    sums = getattr(criterion, 'sum_classes', False)  # of timm's, which then takes the mean over images itself
    lost = [k for k, usual in (('reduction', 'none' if sums else 'mean'), ('ignore_index', -100), ('pos_weight', None))
            if getattr(criterion, k, usual) != usual]
    if lost or (weight is not None and not isinstance(criterion, nn.CrossEntropyLoss)):
        what = lost[0] if lost else 'weight'
        raise SettingError(f'criterion is {name} with {what}={getattr(criterion, what)!r}, which mixing has not: it '
                           f'would hold on unmixed steps only. class_weight weighs classes on every step.')
    found: dict[str, Any] = {'bce_loss': False}
    if criterion is F.cross_entropy or isinstance(criterion, SoftTargetCrossEntropy):
        pass
    elif isinstance(criterion, nn.CrossEntropyLoss):
        found['label_smoothing'] = criterion.label_smoothing
        found['class_weight'] = None if weight is None else tuple(weight.tolist())
    elif isinstance(criterion, LabelSmoothingCrossEntropy):
        found['label_smoothing'] = criterion.smoothing
    elif isinstance(criterion, BinaryCrossEntropy):
        found = {'label_smoothing': criterion.smoothing, 'bce_loss': True, 'bce_sum': criterion.sum_classes,
                 'bce_target_thresh': criterion.target_threshold}
    elif isinstance(criterion, nn.BCEWithLogitsLoss):
        found = {'bce_loss': True}
    else:
        raise SettingError(f'criterion is {name}, but embeddings are mixed with cross-entropy or binary cross-entropy: '
                           f'it would hold on unmixed steps only. Leave it out, or give CrossEntropyLoss or '
                           f'BinaryCrossEntropy.')
    usual = MultiMixConfig(config.mode)
    for key, value in found.items():
        own = getattr(config, key)
        if own not in (getattr(usual, key), value):
            raise SettingError(f'criterion {name} has {key} {value!r}, but the settings of the model have {own!r}: '
                               f'give only one.')
    return found
