"""When to mix, and what: the one owner of the choice, which a wrapped model, `MultiMixTask` and train.py all ask."""
from __future__ import annotations

import math
import random
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, Optional

import numpy as np
import torch
from timm.data import Mixup
from torch import Tensor

from .config import Layer, MultiMixConfig
from .distributed import rank
from .errors import SettingError
from .mixing.targets import check_target
from .seeding import seeded_place

MixupFn = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Schedule = Callable[[float], float]

EMBEDDINGS, INPUTS, NOTHING = 'embeddings', 'inputs', 'nothing'
TAUGHT = 'taught'  # beside any of these
WAYS = ('mixup', 'cutmix')
COUNTED = ('steps', EMBEDDINGS, INPUTS, *WAYS, NOTHING, TAUGHT)
# Below this share of the steps, whoever asked for embeddings to be mixed gets next to nothing of it.
FEW = 0.05
_POINTS = 1000  # of the training, at which the schedule is looked at for `MixingPolicy.expected`


class InputMixing(Mixup):
    """timm's Mixup, which also says which way it went.

    Attributes:
        way: of the last batch: 'mixup', 'cutmix', '' where it left the images alone (`prob`), or 'inputs' where it
            went another way for each image (modes 'elem' and 'pair').
    """

    def __call__(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        self.way = INPUTS
        return super().__call__(x, target)  # type: ignore[no-any-return]

    def _params_per_batch(self) -> tuple[float, bool]:
        lam, cutmix = super()._params_per_batch()
        self.way = '' if lam == 1 else WAYS[bool(cutmix)]
        return lam, cutmix


@dataclass(frozen=True)
class Plan:
    """What one step does.

    Attributes:
        step: its number, from 0.
        embeddings: whether embeddings (or what `layer` says) are mixed.
        inputs: how inputs are mixed: 'mixup', 'cutmix', 'inputs' where it is not known, '' for not.
        layer: where in the network it mixes.
        teaches: whether a teacher has its share in the targets.
        seed: of the policy.
        smoothed: by how much the targets were smoothed when inputs were mixed.
    """
    step: int
    embeddings: bool
    inputs: str = ''
    layer: Layer = 'embedding'
    seed: int = 42
    teaches: bool = False
    smoothed: float = 0.0

    @property
    def mixed(self) -> str:
        """In words: 'nothing', 'embeddings', 'mixup', 'cutmix', 'mixup and embeddings', …"""
        return ' and '.join(filter(None, (self.inputs, EMBEDDINGS if self.embeddings else ''))) or NOTHING

    def generator(self, device: torch.device) -> torch.Generator:
        """What draws Λ on this step: the same for the same seed, step and rank, whatever was drawn before."""
        try:
            generator = torch.Generator(device)
        except RuntimeError:  # a device without one: Λ is drawn on the CPU and moved
            generator = torch.Generator()
        words = np.random.SeedSequence((self.seed, self.step, rank())).generate_state(2, np.uint64)
        return generator.manual_seed(int(words[0] >> np.uint64(1)))


class MixingPolicy:
    """Chooses for every training step what is mixed: embeddings, inputs, both or nothing; mixes the inputs; and counts.

    The choice depends on the settings, the seed, the number of the step, and how far the training is, and on nothing
    else: ranks agree, and a resumed run goes on where it was.

    A method with another schedule is a subclass with another `share`, or a `schedule`.

    Args:
        config: the settings; None mixes no embeddings, and inputs on every step if there is a `mixup_fn`.
        num_classes: of the model.
        seed: of what is mixed and by how much, ≥ 0.
        mixup_fn: input mixing, such as `timm.data.Mixup`: (images, class indices) → (images, soft targets). It is given
            a copy of the images. None is timm's, with `config.mixup` and `config.cutmix`.
        schedule: the progress of the training, 0 to 1, to the share of the steps that mix anything, 0 to 1; in place
            of `config.ramp`.

    Attributes:
        step: how many training steps were made.
        counts: how many of them mixed 'embeddings', 'inputs' (of these 'mixup', 'cutmix') and 'nothing'; 'steps' in
            all; and on how many a teacher 'taught'.
        progress: how far the training is, 0 to 1; None where nobody said.
        epoch: the same in epochs.

    Raises:
        SettingError: a seed that is none; `mixup_fn` beside other values of `mixup` or `cutmix`; a schedule beside a
            ramp.
    """

    def __init__(
            self,
            config: Optional[MultiMixConfig],
            num_classes: int,
            *,
            seed: int = 42,
            mixup_fn: Optional[MixupFn] = None,
            schedule: Optional[Schedule] = None,
    ) -> None:
        self.config = config
        self.num_classes = num_classes
        self.seed = 42
        self.schedule = schedule
        self.mixup_fn: Optional[MixupFn] = None
        self.given_mixup_fn: Optional[MixupFn] = None
        self.step = 0
        self.counts: Counter[str] = Counter()
        self.progress: Optional[float] = None
        self.epoch: Optional[float] = None
        self._said: set[str] = set()
        self.use(seed, mixup_fn)
        if config is not None:
            self.configure(config)

    def use(self, seed: Optional[int] = None, mixup_fn: Optional[MixupFn] = None) -> None:
        """Go on with another seed, or with a `mixup_fn` in place of the settings' input mixing.

        Raises:
            SettingError: a seed that is none; other values of `mixup` or `cutmix` were given.
        """
        if seed is not None:
            if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
                raise SettingError(f'seed is {seed!r}, but it must be a whole number of at least 0.')
            self.seed = int(seed)
        if mixup_fn is not None:
            self._check(self.config, mixup_fn)
            self.mixup_fn = self.given_mixup_fn = mixup_fn

    def _check(self, config: Optional[MultiMixConfig], mixup_fn: Optional[MixupFn]) -> None:
        if config is not None and self.schedule is not None and config.given('ramp', 'ramp_epochs'):
            raise SettingError('schedule says on which share of the steps to mix, and so does ramp or ramp_epochs: '
                               'give only one.')
        smoothing = getattr(mixup_fn, 'label_smoothing', 0.0)
        if not isinstance(smoothing, Real) or not 0 <= float(smoothing) < 1:
            raise SettingError(f'mixup_fn has label_smoothing {smoothing!r}, but it must be at least 0 and below 1.')
        for name in WAYS if config is not None and mixup_fn is not None else ():
            value = getattr(config, name)
            if config.given(name) and value != getattr(mixup_fn, f'{name}_alpha', None):  # type: ignore[union-attr]
                raise SettingError(f'{name} is {value:g}, but mixup_fn mixes inputs in its own way: give only one.')

    def configure(self, config: MultiMixConfig, num_classes: Optional[int] = None) -> None:
        """Go on with other settings, or for another number of classes."""
        self._check(config, self.given_mixup_fn)
        self.config, self.num_classes = config, num_classes or self.num_classes
        if self.given_mixup_fn is None:
            self.mixup_fn = InputMixing(
                config.mixup, config.cutmix, label_smoothing=config.label_smoothing, num_classes=self.num_classes,
            ) if config.mixup or config.cutmix else None

    @property
    def mixes_anything(self) -> bool:
        """Whether any step may mix."""
        return self.mixup_fn is not None or (self.config is not None and self.config.prob > 0)

    # ------------------------------------------------------------------------------------------------- how far it is

    def set_progress(self, done: float, of: Optional[float] = None) -> None:
        """Say how far the training is, at least once an epoch, for `ramp`, `ramp_epochs` and schedules.

        Args:
            done: a fraction, 0 to 1; or, with `of`, epochs (fractions count), such as `epoch + i / len(loader)`.
            of: how many epochs are planned.

        Raises:
            SettingError: numbers that cannot be; a fraction where `ramp_epochs` needs epochs.
        """
        for name, value in (('done', done), ('of', of)):
            if value is not None and not (isinstance(value, Real) and 0 <= value < math.inf):
                raise SettingError(f'set_progress: {name} is {value!r}, but it must be a finite number of at least 0.')
        if of is None:
            if done > 1:
                raise SettingError(f'set_progress({done:g}) is no fraction of the training from 0 to 1. In epochs, say '
                                   f'how many are planned: set_progress({done:g}, epochs).')
            for name in ('ramp_epochs', 'teacher_start_epoch'):
                if value := getattr(self.config, name, None):
                    raise SettingError(f'{name} is {value:g}, so the policy must know the epoch: set_progress(epoch, '
                                       f'epochs).')
        elif of == 0:
            raise SettingError('set_progress: of is 0, but a training has at least one epoch.')
        self.progress, self.epoch = (done, None) if of is None else (min(1.0, done / of), done)

    @property
    def share(self) -> float:
        """Of the steps, how many mix anything at this time of the training: 0 to 1. Override it for another schedule.

        Where nobody said how far the training is, the ramp is taken to be over.
        """
        if self.schedule is not None:
            share = float(self.schedule(1.0 if self.progress is None else self.progress))
            if not 0 <= share <= 1:
                raise SettingError(f'schedule gave {share}, but it is a share of the steps: from 0 to 1.')
            return share
        if self.config is None:
            return 1.0
        at, over = self.progress, self.config.ramp
        if self.config.ramp_epochs:
            at, over = self.epoch, self.config.ramp_epochs
        return 1.0 if not over or at is None else min(1.0, at / over)

    @property
    def teaches(self) -> bool:
        """Whether a teacher has its share in the targets at this time of the training.

        Where nobody said how far the training is, its start is taken to be over.
        """
        config = self.config
        if config is None or config.teacher is None:
            return False
        at, start = self.progress, config.teacher_start
        if config.teacher_start_epoch is not None:
            at, start = self.epoch, config.teacher_start_epoch
        return at is None or start is None or at >= start

    # ------------------------------------------------------------------------------------------------- what one does

    def choose(self, step: int) -> Plan:
        """What a step does at this time of the training, but for the way of input mixing, which `begin` finds out."""
        draw, share = random.Random(f'{self.seed}/{step}').random(), self.share
        if self.config is None:
            return Plan(step, False, INPUTS if self.mixup_fn is not None and draw < share else '', seed=self.seed)
        embeddings = draw < self.config.prob * share
        inputs = self.mixup_fn is not None and draw < share and (self.config.prob >= 1 or not embeddings)
        layers = self.config.layers
        layer = layers[0] if len(layers) == 1 else random.Random(f'{self.seed}/{step}/layer').choice(layers)
        return Plan(step, embeddings, INPUTS if inputs else '', layer, self.seed, self.teaches)

    @torch.compiler.disable
    def begin(self, images: Tensor, target: Tensor, embeddings: Optional[bool] = None) -> tuple[Tensor, Tensor, Plan]:
        """A training step: choose, mix the inputs where they are to be mixed, and count.

        Args:
            images: (B, …); never written to: what is mixed is a copy.
            target: class indices (B,) or soft targets (B, C).
            embeddings: what to do, in place of a choice.

        Returns:
            images and targets to train on (those given, or mixed ones), and the plan.
        """
        self._say_assumption()
        check_target(target, self.num_classes, batch=len(images), binary=bool(self.config and self.config.bce_loss))
        plan = self.choose(self.step)
        if embeddings is not None:
            plan = replace(plan, embeddings=embeddings, inputs='')
        if plan.inputs:
            hard = target.ndim == 1
            images, target, way = self._mix_inputs(images, target, plan)
            plan = replace(plan, inputs=way, smoothed=float(
                getattr(self.mixup_fn, 'label_smoothing', 0.0)) if hard and target.ndim == 2 else 0.0)
        self.step += 1
        done = {'steps': True, EMBEDDINGS: plan.embeddings, INPUTS: bool(plan.inputs), NOTHING: plan.mixed == NOTHING,
                TAUGHT: plan.teaches, **{way: plan.inputs == way for way in WAYS}}
        self.counts.update(what for what, was in done.items() if was)
        return images, target, plan

    def _mix_inputs(self, images: Tensor, target: Tensor, plan: Plan) -> tuple[Tensor, Tensor, str]:
        assert self.mixup_fn is not None
        if not getattr(self.mixup_fn, 'mixup_enabled', True):  # as timm's loop does from --mixup-off-epoch on
            return images, target, ''
        if target.ndim != 1:
            self._warn('soft', 'these targets are soft, and inputs are mixed with class indices only: such steps leave '
                               'the images as they came. mixup 0 and cutmix 0 say so from the start.')
            return images, target, ''
        if isinstance(self.mixup_fn, Mixup) and len(images) % 2:
            self._warn('odd', f"timm's Mixup pairs the images of a batch, and {len(images)} is odd: such batches train "
                              f'on unmixed images.')
            return images, target, ''
        pixels = images.is_floating_point() or (images.ndim == 4 and not (self.config and self.config.mixup))
        if self.given_mixup_fn is None and not pixels:
            raise SettingError(f'mixup and cutmix mix images, and these inputs are {images.dtype}: give '
                               f"preset='embeddings', which mixes no inputs, or a mixup_fn.")
        with seeded_place(self.seed, plan.step, rank()):
            images, target = self.mixup_fn(images.clone(), target)
        return images, target, getattr(self.mixup_fn, 'way', INPUTS)

    def _say_assumption(self) -> None:
        own = type(self).share is not MixingPolicy.share or type(self).choose is not MixingPolicy.choose
        if self.progress is None and self.config is not None and not own and (
                self.config.ramp or self.config.ramp_epochs or self.schedule):
            self._warn('progress', 'the progress of the training is not known, so mixing is as frequent from the first '
                                   'step as at the end. Call model.set_progress(epoch, epochs) once an epoch'
                                   + ('.' if self.schedule is not None else ', or give ramp=0.'))
        if self.progress is None and self.config is not None and (
                self.config.teacher_start or self.config.teacher_start_epoch):
            self._warn('start', 'the progress of the training is not known, so the teacher has its share from the '
                                'first step on. Call model.set_progress(epoch, epochs) once an epoch, or give '
                                'teacher_start=0.')

    def _warn(self, about: str, message: str) -> None:
        if about not in self._said:
            self._said.add(about)
            warnings.warn(message, stacklevel=5)

    # -------------------------------------------------------------------------------------------------------- counted

    def expected(self, epochs: float = 1.0, input_epochs: Optional[float] = None) -> dict[str, float]:
        """Shares of the steps of a whole training of so many epochs: of 'embeddings', 'inputs' and 'nothing'.

        Args:
            epochs: the planned training.
            input_epochs: from here on inputs are left alone (`--mixup-off-epoch`).
        """
        was = self.progress, self.epoch
        found = {EMBEDDINGS: 0.0, INPUTS: 0.0, NOTHING: 0.0}
        prob = self.config.prob if self.config is not None else 0.0
        often = 0.0 if self.mixup_fn is None else float(getattr(self.mixup_fn, 'mix_prob', 1.0))
        try:
            for i in range(_POINTS):
                self.set_progress((i + 0.5) / _POINTS * epochs, epochs)
                share = self.share
                off = input_epochs is not None and self.epoch is not None and self.epoch >= input_epochs
                inputs = share * (1 if prob >= 1 else 1 - prob) * (0.0 if off else often)
                found[EMBEDDINGS] += prob * share / _POINTS
                found[INPUTS] += inputs / _POINTS
                found[NOTHING] += (1 - max(prob * share, inputs) if prob >= 1 else 1 - prob * share - inputs) / _POINTS
        finally:
            self.progress, self.epoch = was
        return found

    def state_dict(self) -> dict[str, Any]:
        """Plain values to resume from: the step and the counts."""
        return {'step': self.step, 'counts': dict(self.counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`. A state without counts, of an older version, is counted from here on."""
        self.step = int(state.get('step', 0))
        self.counts = Counter({str(name): int(n) for name, n in (state.get('counts') or {}).items()})


def told(counts: Mapping[str, int]) -> str:
    """Counts as a sentence: 'Of 36 steps 9 mixed embeddings, 25 inputs (12 mixup, 13 CutMix), and 2 nothing.'"""
    if not counts.get('steps'):
        return 'No step was made.'
    ways = [f'{thousands(counts[way])} {name}' for way, name in zip(WAYS, ('mixup', 'CutMix')) if counts.get(way)]
    parts = [f'{thousands(counts.get(EMBEDDINGS, 0))} mixed embeddings',
             f'{thousands(counts.get(INPUTS, 0))} inputs' + (f' ({", ".join(ways)})' if ways else ''),
             f'{thousands(counts.get(NOTHING, 0))} nothing']
    taught = f' A teacher had its share on {thousands(counts[TAUGHT])}.' if counts.get(TAUGHT) else ''
    return f'Of {thousands(counts["steps"])} steps {parts[0]}, {parts[1]}, and {parts[2]}.{taught}'


def thousands(number: float) -> str:
    """1170 → '1 170'."""
    return f'{round(number):,}'.replace(',', ' ')
