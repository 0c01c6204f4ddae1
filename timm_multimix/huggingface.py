"""`hf_loss`: embedding mixing in the Trainer of Hugging Face's transformers, in one argument.

transformers is neither imported nor needed: the Trainer calls what is here by its names.
"""
from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any, Optional, Union

import torch
from torch import Tensor

from .config import MultiMixConfig
from .errors import SettingError
from .mixing import signal
from .mixing.diagnostics import signal_warning
from .mixing.losses import Losses
from .mixing.targets import smooth
from .policy import EMBEDDINGS, NOTHING, MixingPolicy, Schedule

IGNORED = -100  # the label of an example that is left out, as in torch and transformers
SINGLE, MULTI = 'single_label_classification', 'multi_label_classification'
# Settings that need more than logits.
_NEEDS_MORE = {
    'mode': ('multimix', 'the Trainer hands over the logits of whole examples, which have no positions'),
    'layer': ('embedding', 'the Trainer hands over logits'),
    'gather': (False, 'the Trainer hands over the logits of one process'),
    'teacher': (None, 'the Trainer hands over logits, and no images to ask a teacher about'),
    'mixup': (0.0, "the Trainer hands over logits, and no inputs to mix on the steps that do not mix embeddings"),
    'cutmix': (0.0, "the Trainer hands over logits, and no inputs to mix on the steps that do not mix embeddings"),
}


class TrainerLoss:
    """A loss for `transformers.Trainer(compute_loss_func=…)`. Made by `hf_loss`.

    It is a callback of the Trainer as well, for `callbacks=[loss]`.

    Attributes:
        config: the settings.
        policy: chooses what each micro-batch mixes.
        counts: training micro-batches so far, in 'steps', and what they mixed: 'embeddings' or 'nothing'.
    """

    def __init__(self, config: MultiMixConfig, problem_type: Optional[str], schedule: Optional[Schedule]) -> None:
        if problem_type not in (None, SINGLE, MULTI):
            raise SettingError(f'problem_type is {problem_type!r}, but a mixed loss is for {SINGLE!r} or {MULTI!r}.')
        for name, (value, why) in _NEEDS_MORE.items():
            if (found := getattr(config, name)) != value:
                raise SettingError(f'{name} is {found!r}, but {why}: hf_loss takes {name}={value!r} alone.')
        self.config, self.problem_type = config, problem_type
        self.policy = MixingPolicy(config, 0, schedule=schedule)
        self.counts: Counter[str] = Counter()
        self._of_kind: dict[bool, Losses] = {}
        self._since_log: dict[str, tuple[Tensor, int]] = {}  # sums since the last log, and of how many
        self._needs_first_check = True

    def __call__(
            self, outputs: Any, labels: Optional[Tensor], num_items_in_batch: Union[Tensor, int, None] = None,
    ) -> Tensor:
        """The loss of a micro-batch, as a share of the whole batch.

        Args:
            outputs: of the model: an object, mapping or tuple with logits (B, C), floating.
            labels: class indices (B,) of any integer dtype, −100 for an example that is left out; or (B, C), see
                `hf_loss`.
            num_items_in_batch: labels of all micro-batches of this step, of all processes; what the mean is over.

        Returns:
            A scalar, float32. In evaluation the plain loss.

        Raises:
            SettingError: no labels; logits of another shape; labels that fit neither; a ramp without progress.
        """
        logits = outputs['logits'] if isinstance(outputs, dict) else getattr(outputs, 'logits', None)
        logits = outputs[0] if logits is None else logits
        if labels is None:
            raise SettingError("hf_loss needs labels, but the batch has no 'labels': name the column so.")
        labels, of_all = labels.to(logits.device), num_items_in_batch
        items = labels.ne(IGNORED).sum()  # as the Trainer counts them: for several labels an example, each of them
        logits, labels = self._examples(logits, labels)
        if not len(labels):
            return (logits * 0).sum()
        loss = self._mixed(logits, labels) if torch.is_grad_enabled() and logits.requires_grad else \
            self._losses(labels)(logits, labels, training=False)
        if of_all is None:
            return loss
        if not isinstance(of_all, Tensor):
            return loss * (items / of_all)
        # nn.DataParallel: the same number for each of its devices, by how many the Trainer multiplies in the end. It
        # expects the loss of one device, and this one is of them all.
        return loss * (items / (of_all.flatten()[0] * of_all.numel())).to(loss.device)

    def _examples(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Those that have a label."""
        if logits.ndim != 2 or logits.shape[1] < 2:
            what = ('one number an example, which is regression' if logits.ndim == 2 else
                    f'{tuple(logits.shape)}, a label for each position')
            raise SettingError(f'The logits are {what}, but hf_loss mixes examples that have classes: logits (B, C) of '
                               f'a …ForSequenceClassification, …ForAudioClassification or …ForImageClassification.')
        if labels.ndim == 2 and labels.shape[1] == 1 and not labels.is_floating_point():
            labels = labels.flatten()
        if labels.ndim != 1 or labels.is_floating_point():
            return logits, labels
        kept = labels != IGNORED
        return logits[kept], labels[kept]

    def _losses(self, labels: Tensor) -> Losses:
        several = self.problem_type == MULTI or (self.problem_type is None and labels.ndim == 2)
        if several and labels.ndim != 2:
            raise SettingError(f'problem_type is {MULTI!r}, but the labels are {tuple(labels.shape)}: they must be '
                               f'(B, C), a number for each class.')
        if several not in self._of_kind:
            if several and self.problem_type is None and labels.is_floating_point() and bool(
                    ((labels.sum(1) - 1).abs() < 1e-4).all() and (labels % 1 != 0).any()):
                raise SettingError(f'The labels look like soft targets: each row sums to 1, and not all is 0 or 1. '
                                   f'Say so by problem_type={SINGLE!r}; {MULTI!r} takes each class for itself.')
            self._of_kind[several] = Losses(self.config.replace(bce_loss=True) if several else self.config)
        return self._of_kind[several]

    def _mixed(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of a training step."""
        policy, losses = self.policy, self._losses(labels)
        config, (B, C) = losses.config, logits.shape
        if policy.progress is None and (config.ramp or config.ramp_epochs or policy.schedule):
            raise SettingError('The loss mixes by how far the training is (ramp, ramp_epochs or schedule), and nobody '
                               'tells it: Trainer(…, compute_loss_func=loss, callbacks=[loss]).')
        # The Trainer seeds torch's generator, and keeps it in its checkpoints: with a step's number from there, a run
        # that is resumed goes on as it would have, and nothing else need be kept.
        plan = policy.choose(int(torch.randint(2**62, ())))
        self.counts.update(('steps', EMBEDDINGS if plan.embeddings else NOTHING))
        self._first_check(config, B, C)
        loss_clean = losses(logits, labels)
        report = {'mixed': loss_clean.new_tensor(float(plan.embeddings)), 'loss_clean': loss_clean.detach()}
        if not plan.embeddings:
            self._note(report)
            return loss_clean
        y, smoothing = losses.targets(labels, C, logits)
        mixtures = losses.lam(config.mixtures(B), 1, y, plan.generator(logits.device), logits.device)
        loss_mixed = losses.mixed(logits, y, mixtures, label_smoothing=smoothing)
        self._note({**report, 'loss_mixed': loss_mixed.detach(), **signal(mixtures, smooth(y, smoothing))})
        return losses.mean(loss_mixed, loss_clean)

    def _first_check(self, config: MultiMixConfig, B: int, C: int) -> None:
        """Tell the user, once, when the settings cannot do what they are for."""
        if not self._needs_first_check or not config.prob or (1 < B < (config.m or 0)):  # of a batch with more labels
            return
        self._needs_first_check = False
        if B == 1:
            message: Optional[str] = ('The micro-batch has one example, which cannot be mixed with others: raise '
                                      'per_device_train_batch_size, and lower gradient_accumulation_steps.')
        else:
            message = signal_warning(config, B, C)
        if message:
            warnings.warn(message, stacklevel=5)

    def _note(self, report: dict[str, Tensor]) -> None:
        for name, value in report.items():
            total, n = self._since_log.get(name, (0, 0))
            self._since_log[name] = total + value, n + 1

    # ------------------------------------------------------------------------------------------------- as a callback

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith('on_'):  # an event that does not concern it
            return lambda *args, **kwargs: None
        raise AttributeError(f'{type(self).__name__!r} object has no attribute {name!r}')

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if getattr(args, 'label_smoothing_factor', 0):
            raise SettingError(f'label_smoothing_factor is {args.label_smoothing_factor:g}, but the Trainer drops it '
                               f'where there is a compute_loss_func: hf_loss(label_smoothing='
                               f'{args.label_smoothing_factor:g}).')

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.config.ramp_epochs:
            self.policy.set_progress(state.epoch or 0.0, max(state.num_train_epochs, self.config.ramp_epochs))
        else:
            self.policy.set_progress(state.global_step / state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: Optional[dict[str, Any]] = None,
               **kwargs: Any) -> None:
        """Of the micro-batches since the last log: the share that mixed embeddings, and means of the diagnostics."""
        if not logs or 'loss' not in logs or not self._since_log:
            return
        found = {name: float(total) / n for name, (total, n) in self._since_log.items()}
        self._since_log = {}
        logs.update(found)  # for the callbacks that follow: the printed line
        if state.log_history:
            state.log_history[-1].update(found)


def hf_loss(
        config: Optional[MultiMixConfig] = None,
        *,
        problem_type: Optional[str] = None,
        schedule: Optional[Schedule] = None,
        **settings: Any,
) -> TrainerLoss:
    """The loss of MultiMix (arXiv 2311.05538), for the Trainer of Hugging Face's transformers.

        trainer = Trainer(model=model, …, compute_loss_func=timm_multimix.hf_loss())

    For any model that gives one row of logits for each example, (B, C), of which a linear layer is the last. Mixing
    its logits is mixing what that layer takes. In evaluation the loss is the plain one.

    Each micro-batch is mixed for itself, and counts by how many labels it has, so gradient accumulation and several
    devices change nothing else. What is drawn follows torch's generator, which the Trainer seeds and restores.

    Given as a callback too, `callbacks=[loss]`, it also knows how far the training is, which `ramp`, `ramp_epochs` and
    `schedule` need, and puts into `state.log_history` what was mixed.

    Args:
        config: settings with mode 'multimix'. By default those of the preset 'embeddings': every step mixes, beside
            a clean term.
        problem_type: as in the model's config: 'single_label_classification', where labels are class indices (B,) or
            soft targets (B, C); or 'multi_label_classification', where each of (B, C) labels is for itself. None goes
            by the labels, as transformers does: (B, C) is the second.
        schedule: the share of the steps that mix, from the progress of the training: see `MixingPolicy`.
        **settings: any field of `MultiMixConfig` that needs no more than logits: prob=0.5, effective=2, ramp=0.5, …

    Raises:
        SettingError: a setting is off, or needs more than logits.
    """
    if not isinstance(config, (MultiMixConfig, type(None))):
        raise SettingError(f'config is {config!r}, but it must be a MultiMixConfig: settings are named, as '
                           f'hf_loss(effective=2).')
    if config is None:
        config = MultiMixConfig.from_dict({'mode': 'multimix', 'preset': 'embeddings', **settings})
    elif settings:
        config = config.replace(**settings)
    return TrainerLoss(config, problem_type, schedule)
