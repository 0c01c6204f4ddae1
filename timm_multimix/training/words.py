"""What will happen and what happened, in sentences."""
from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Optional

from ..config import METHODS, PRESET_WORDS, MultiMixConfig, setting_text
from ..data.class_weight import uneven
from ..distributed import world
from ..mixing import expected_signal
from ..policy import EMBEDDINGS, FEW, INPUTS, NOTHING, MixingPolicy, thousands
from ..runs.screen import say
from ..runs.settings import smoothing, starts_pretrained
from ..stepping import one_position_note
from ..wrapper import unwrap
from .images import Images
from .state import TrainState


def announce(args: argparse.Namespace, state: TrainState, images: Images, mixing: str,
             notes: Iterable[Optional[str]], weights: Optional[Sequence[float]] = None) -> None:
    """Say what is about to be trained on what.

    Args:
        args: the flags.
        state: where the run begins.
        images: of the run.
        mixing: what `mixing_line` says.
        notes: warnings; None for none.
        weights: of the classes; None for none.
    """
    task, batches, size = state.task, state.shape['batches'], images.config['input_size']
    head = task.wrapped.multimix.head_info if task.is_wrapped else None
    millions = sum(p.numel() for p in unwrap(task.trainable_module).parameters()) / 1e6
    say(f'Model: {args.model}, {millions:.1f} M parameters, images {size[1]}×{size[2]}'
        + (f', {head.positions} positions of {head.width} features' if head else '')
        + f', on {state.device.type if world() > 1 else state.device}'
        + (f', {world()} ranks of {args.batch_size} images each.' if world() > 1 else '.'))
    say(mixing)
    if line := weights_line(weights, images.names):
        say(line)
    plan = task.policy, state.epochs * batches, state.epochs, args.mixup_off_epoch or None
    if expected := expected_line(*plan):
        say(expected)
    config, count = task.config, len(images.train_set)
    one_position = config and one_position_note(config, head.positions if head else 1)
    for note in filter(None, (*notes, few_warning(*plan), one_position, left_over(count, batches, args.batch_size))):
        say(f'Warning: {note}')
    progress = state.progress
    stop = f' (stopping after {args.stop_epoch})' if args.stop_epoch else ''
    say(f'{count} training and {len(images.val_set)} validation images, {args.num_classes} classes; '
        f'{number_of(state.epochs, "epoch")} of {number_of(batches, "batch", "es")}{stop}; output in {state.folder}'
        + (f'; resuming at epoch {state.start + 1}' if state.start or progress.batch else '')
        + (f', after batch {progress.batch}' if progress.batch else '') + '.')


def number_of(count: int, what: str, plural: str = 's') -> str:
    """'1 epoch', '2 epochs'."""
    return f'{count} {what}' + plural * (count != 1)


def left_over(images: int, batches: int, batch_size: int) -> Optional[str]:
    """What to do where much of the training images never fills a batch; None where little is left over."""
    left = images - batches * batch_size * world()
    if left <= images / 4:
        return None
    return (f'each epoch leaves out {left} of {images} training images, different ones each time: they do not fill a '
            f'batch of {batch_size * world()}. A smaller --batch-size uses more of them.')


def uneven_note(args: argparse.Namespace, counts: Optional[Sequence[int]]) -> Optional[str]:
    """What to try in fine-tuning where some classes have many images and others few; None where they do not.

    Args:
        args: the flags.
        counts: training images of each class; None where the data set does not say.
    """
    present = [count for count in counts or () if count]
    if not uneven(present) or args.class_weight or args.bce_loss:
        return None
    if not starts_pretrained(vars(args)):  # not measured
        return None
    together = '' if smoothing(args) else ' --smoothing 0.1'
    return (f'Classes have {min(present)} to {max(present)} training images. If a rare class matters as much as a '
            f'frequent one, try --class-weight auto{together}, and compare the means over classes (docs/finetuning.md, '
            f'Uneven classes).')


def weights_line(weights: Optional[Sequence[float]], names: Optional[Sequence[str]]) -> Optional[str]:
    """The smallest and the largest weight of a class that is there; None without weights."""
    known = sorted((weight, index) for index, weight in enumerate(weights or ()) if weight)
    if not known:
        return None
    low, high = (f'{weight:.3g} of {names[index] if names and index < len(names) else f"class {index}"}'
                 for weight, index in (known[0], known[-1]))
    return f'Class weights: from {low} to {high}.'


def mixing_line(config: Optional[MultiMixConfig], batch: int, num_classes: int, smoothing: float = 0.0) -> str:
    """What the settings do with batches of this size, and which of them the preset does not say: one line.

    `smoothing` is that of a run without a config.

    Raises:
        SettingError: the settings do not fit the batch.
    """
    if config is None:
        return 'MultiMix: none.' + f' Labels are smoothed, --smoothing {smoothing:g}.' * bool(smoothing)
    at = ' and position' if config.dense else ''
    effective = expected_signal(config, batch, num_classes)['effective']
    mixtures = (f'{config.mixtures(batch)} mixtures a step{at}, each of about {effective:.1f} effective examples of '
                f'{batch}' if config.prob else 'embeddings are never mixed')
    changed = ', '.join(f'{name}={setting_text(name, value)}' for name, value in config.differences().items()
                        if name != 'engine')  # which changes no result
    return (f'{METHODS[config.mode]}, preset {config.preset} ({PRESET_WORDS[config.preset]}): {mixtures}'
            + f'; changed: {changed}' * bool(changed) + '.')


def expected_line(policy: MixingPolicy, steps: int, epochs: float, input_epochs: Optional[float] = None,
                  ) -> Optional[str]:
    """Before training: how many of its steps will mix what; None where none can.

    Args:
        policy: of the run.
        steps: of the whole training.
        epochs: of the whole training.
        input_epochs: from here on inputs are left alone.
    """
    if not steps or not policy.mixes_anything:
        return None
    expected = policy.expected(epochs, input_epochs)
    names = [EMBEDDINGS] * (policy.config is not None and policy.config.prob > 0) + (
        [INPUTS] * (policy.mixup_fn is not None)) + [NOTHING]
    parts = [f'{thousands(expected[name] * steps)}{"" if i else " will mix"} {name}' for i, name in enumerate(names)]
    line = (f'Of {thousands(steps)} steps about {", ".join(parts[:-1])}' + ',' * (len(parts) > 2)
            + f' and {parts[-1]}.')
    ramp = _ramp(policy, epochs)
    return line + (f' {ramp}' if ramp else '')


def _ramp(policy: MixingPolicy, epochs: float) -> str:
    """How the share of the steps that mix grows, where it does."""
    config = policy.config
    own = type(policy).share is not MixingPolicy.share or policy.schedule is not None
    if config is None or own or not (config.ramp or config.ramp_epochs):
        return ''
    if config.ramp_epochs:
        long = f'{config.ramp_epochs:g}'
        return (f'The share that mixes grows over the first {long} epochs (--multimix-ramp-epochs {long})'
                + (f', and this training has {epochs:g}.' if config.ramp_epochs > epochs else '.'))
    assert config.ramp is not None
    part = {0.5: 'the first half of ', 1.0: ''}.get(config.ramp, f'the first {100 * config.ramp:g} % of ')
    return f'The share that mixes grows over {part}the training (--multimix-ramp {config.ramp:g}).'


def few_warning(policy: MixingPolicy, steps: int, epochs: float, input_epochs: Optional[float] = None,
                ) -> Optional[str]:
    """Before training: a warning where embeddings are asked for and next to none will be mixed, else None.

    Arguments are those of `expected_line`.
    """
    config = policy.config
    if config is None or not config.prob or not steps:
        return None
    share = policy.expected(epochs, input_epochs)[EMBEDDINGS]
    if share >= FEW:
        return None
    why, instead = [], []
    if share < 0.49 * config.prob:  # a ramp that fits into the training takes half at most
        if policy.schedule is None and (config.ramp_epochs or 0) > epochs:
            why.append(f'ramp_epochs (--multimix-ramp-epochs) is {config.ramp_epochs:g}, and the training has '
                       f'{epochs:g} epoch{"s" * (epochs != 1)}')
            instead.append('--multimix-ramp 0.5 (ramp=0.5), which grows over half of the training however long it is')
        else:
            why.append(f'its schedule lets {share / config.prob:.1%} of the steps mix')
            instead.append('a schedule that lets more of them mix')
    if config.prob <= 2 * FEW or not why:
        why.append(f'prob (--multimix-prob) is {config.prob:g}')
        instead.append('--multimix-prob 0.25 (prob=0.25)')
    number = f'about {thousands(share * steps)}' if share * steps >= 1 else 'fewer than 1'
    return (f'{number} of {thousands(steps)} steps will mix embeddings, so this run will hardly differ from one that '
            f'mixes none: {"; and ".join(why)}. Give {"; and ".join(instead)}.')


def epoch_line(epoch: int, epochs: int, start: int, found: Mapping[str, Any], evaluated: Mapping[str, Any],
               seconds: float, balanced: bool = False) -> str:
    """An epoch in a line of a terminal; everything else is in summary.csv.

    Args:
        epoch: this one, from 0.
        epochs: how many are planned.
        start: where this session began.
        found: what training measured, by the names of summary.csv's columns without their prefix; None for no value.
        evaluated: what validation measured; empty where it was not due.
        seconds: since `start`.
        balanced: say the mean over the classes too, which is top-1 where classes are of one size.
    """
    left = seconds / (epoch + 1 - start) * (epochs - epoch - 1)
    loss = float('nan') if found['loss'] is None else found['loss']  # None: no step had a finite one
    parts = [f'train loss {loss:.3f}' + _train_top1(found)]
    if evaluated:
        raw = f' (raw {evaluated["raw_top1"]:.2f})' if 'raw_top1' in evaluated else ''  # beside the averaged weights'
        over_classes = f', mean over classes {evaluated["balanced"]:.2f} %' if balanced else ''
        parts.append(f'val loss {evaluated["loss"]:.3f}, top-1 {evaluated["top1"]:.2f} %{raw}{over_classes}')
    if found.get('skipped'):
        parts.append(f'{found["skipped"]} updates without a finite gradient left out')
    speed = f'{found["images_per_second"]:.0f} img/s, ' if found['images_per_second'] else ''
    parts.append(speed + (f'{clock(left)} left' if left else clock(seconds)))
    return f'Epoch {epoch + 1:{len(str(epochs))}d}/{epochs}: {"; ".join(parts)}'


def _train_top1(found: Mapping[str, Any]) -> str:
    unmixed, mixed = found.get('top1_unmixed'), found.get('top1_mixed')
    if unmixed is not None:
        return f', top-1 {unmixed:.1f} %' + ('' if mixed is None else f' ({mixed:.1f} % if mixed)')
    if mixed is not None:
        return f', top-1 {mixed:.1f} % (mixed images)'
    return '' if found.get('top1') is None else f', top-1 {found["top1"]:.1f} %'


def headline(model: str, multimix: str, preset: str, counts: Optional[Mapping[str, int]] = None) -> str:
    """What a run was, by what it did: 'resnet50, dense (default): embeddings mixed on 219 of 1 170 steps'.

    Args:
        model: its name.
        multimix: --multimix.
        preset: '' for none.
        counts: `MixingPolicy.counts`; None or empty where nobody counted, as in runs of older versions.
    """
    counts = counts or {}
    steps = counts.get('steps', 0)

    def on(what: str) -> str:
        return f': {what} mixed on {thousands(counts[what])} of {thousands(steps)} steps'

    if multimix == 'none':
        return f'{model}, without MultiMix' + (on(INPUTS) if counts.get(INPUTS) else '')
    if steps and not counts.get(EMBEDDINGS):
        return f'{model}, --multimix {multimix}, but no step mixed embeddings'
    return f'{model}, {multimix}' + f' ({preset})' * bool(preset) + (on(EMBEDDINGS) if steps else '')


def clock(seconds: float) -> str:
    """h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))


def in_plain_timm(folder: Path, model: str, num_classes: int, model_args: Mapping[str, Any]) -> tuple[str, str]:
    """Two commands that make the trained model again in plain timm: from its folder, and from its weights."""
    named = ''.join(f', {k}={v!r}' for k, v in model_args.items())
    return (f"timm.create_model({f'local-dir:{folder}/model'!r}, pretrained=True)",
            f'timm.create_model({model!r}, num_classes={num_classes}{named},\n'
            f"                        checkpoint_path={f'{folder}/model/model.safetensors'!r})")
