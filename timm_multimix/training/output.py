"""`RunFolder`: all that a run leaves behind beside its checkpoints."""
from __future__ import annotations

import argparse
import os
import shlex
import shutil
import time
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any, Optional

import torch.nn as nn
import yaml
from safetensors import SafetensorError
from timm.utils import get_outdir

from ..data import DIGITS
from ..data.split import FILE, divided, write_parts
from ..distributed import from_first, rank
from ..errors import SettingError
from ..files import check_writable, load_yaml, write_text
from ..hub import BackgroundPush, save_plain
from ..policy import TAUGHT, told
from ..runs.find import OUTPUT, absolute_paths, candidates, epochs_done, is_repo, resume_checkpoint
from ..runs.recipes import program
from ..runs.screen import say
from ..runs.summary import read_summary, write_summary
from ..task import MultiMixTask
from .curves import plot_curves
from .images import Images
from .lock import alone_in
from .loggers import Logger, open_loggers
from .report import of_classes, write_report
from .words import headline, in_plain_timm, number_of

# How a run was started, which the next one with this args.yaml is not.
_OF_THE_START = ('config', 'resume', 'resume_auto', 'wandb_resume_id', 'start_epoch', 'stop_epoch')
REDRAWN = 60  # seconds, at least, between drawings of the curves


class RunFolder:
    """args.yaml, summary.csv, curves.png, report.md, model/; the loggers; and what is pushed to the Hub.

    Files are written by the first rank alone. What a full disk does not take is written the next time.

    Args:
        args: the flags.
        settings: those of args.yaml.
        images, model_args, task: what `model/` is made of.
        at_end: keeps the folder from other processes until it is closed.

    Attributes:
        path: of the folder.
        settings: as args.yaml holds them.

    Raises:
        SettingError: the folder cannot be written, holds a run already, or another process trains there.
    """

    def __init__(self, args: argparse.Namespace, settings: Mapping[str, Any], images: Images,
                 model_args: dict[str, Any], task: MultiMixTask, at_end: ExitStack) -> None:
        self.args, self.images, self.model_args, self.task = args, images, model_args, task
        # Without what is about this start, and with paths that mean the same anywhere.
        self.settings = {k: v for k, v in {**settings, **absolute_paths(settings)}.items() if k not in _OF_THE_START}
        # Weights in a file are of unknown origin: not of the one that timm has for the model.
        self.origin = is_repo(args.initial_checkpoint) or (
            args.pretrained and not args.pretrained_path and not args.initial_checkpoint)
        self.path: Path = from_first(_open(args, images, at_end) if rank() == 0 else None)
        if args.resume and Path(args.recipe) == self.path / 'args.yaml':  # the run's own settings are no recipe
            self.settings['recipe'] = _recipe(self.path) or args.recipe
        self.pusher = BackgroundPush(args.push_to_hub, self.path, args.push_private, say) if (
            args.push_to_hub and rank() == 0) else None
        self.summary, self.curves = self.path / 'summary.csv', self.path / 'curves.png'
        self.rows: list[dict[str, Any]] = []
        self.loggers: list[Logger] = []
        self.started = self.drawn = time.time()
        self.start = 0

    def begin(self, start: int, epochs: int) -> None:
        """Before the first step: rows from epoch `start` on will be written again; args.yaml; the loggers."""
        self.start = start
        if rank():
            return
        found = {int(row['epoch']): row for row in read_summary(self.summary)}
        self.rows = [row for epoch, row in found.items() if epoch < start]
        try:
            self._keep_later(start, len(found), len(found) - len(self.rows))
            if self.rows:
                write_summary(self.summary, self.rows)
            else:
                self.summary.unlink(missing_ok=True)
            if start < epochs:  # a finished run keeps the settings that made it
                self._write_settings()
        except OSError as e:
            raise SettingError(f'{e.filename or self.path} cannot be written: {e.strerror or e}.') from e
        args = self.args
        self.loggers = open_loggers(args.log, self.path, self.settings, args.wandb_project, args.wandb_tags,
                                    args.wandb_resume_id, start)
        for logger in self.loggers:
            say(f'Metrics also go to {logger.where}.')
        self.started = self.drawn = time.time()

    def _keep_later(self, start: int, epochs: int, later: int) -> None:
        """Keep summary.csv beside where the run goes back, and its `later` epochs leave it.

        The last epoch alone may be the one that was running: its row is written before its checkpoint.
        """
        if later < 2 and not (later and epochs_done(self.path) > start):
            return
        kept, again = self.path / f'summary-{epochs}-epochs.csv', 1
        while kept.exists():
            again += 1
            kept = self.path / f'summary-{epochs}-epochs-{again}.csv'
        shutil.copy2(self.summary, kept)
        say(f'Warning: the run goes back to epoch {start + 1}: {number_of(later, "later epoch")} '
            f'leave{"s" * (later == 1)} summary.csv. {kept} keeps {"it" if later == 1 else "them"}.')

    def _write_settings(self) -> None:
        write_text(self.path / 'args.yaml', yaml.safe_dump(self.settings, default_flow_style=False))
        if divided(self.images.train_set, self.images.val_set):
            write_parts(self.path / FILE, self.images.train_set, self.images.val_set)

    def write(self, row: dict[str, Any]) -> None:
        """An epoch: a row of summary.csv."""
        if rank():
            return
        self.rows.append(row)
        try:
            self.path.mkdir(parents=True, exist_ok=True)  # somebody may have moved it away
            write_summary(self.summary, self.rows)
            if not (self.path / 'args.yaml').exists():
                self._write_settings()
        except OSError as e:
            say(f'Warning: {self.summary} could not be written ({e.strerror or e}).')

    def log(self, row: dict[str, Any]) -> None:
        """The same epoch to the loggers."""
        for logger in self.loggers:
            logger.log(row['epoch'], row)

    def refresh(self, epoch: int, epochs: int) -> None:
        """After an epoch's line: the curves, once a minute; and a push, where one is due or has ended."""
        if rank():
            return
        if time.time() - self.drawn > REDRAWN:
            self.draw()
            self.drawn = time.time()
        if self.pusher is None:
            return
        every = self.args.push_every
        if every and (epoch + 1) % every == 0 and epoch + 1 < epochs:
            try:
                self.save_model()
                self.draw()
                self.pusher.push(f'epoch {epoch + 1}')
            except (OSError, SafetensorError) as e:
                say(f'Warning: nothing is pushed after epoch {epoch + 1}: {e}. Training goes on.')
        else:
            self.pusher.poll()

    def draw(self, title: str = '') -> None:
        """curves.png, of what summary.csv holds."""
        try:
            plot_curves(self.summary, self.curves, title)
        except OSError as e:
            say(f'Warning: {self.curves} could not be written ({e.strerror or e}).')

    def save_model(self) -> Path:
        """model/: the trained model as plain timm loads it."""
        task, images, names = self.task, self.images, self.images.names
        averaged: nn.Module = task.get_eval_model(ema=task.has_ema())  # type: ignore[assignment]
        return save_plain(
            averaged, self.path / 'model',
            {k: images.config[k] for k in (
                'input_size', 'mean', 'std', 'interpolation', 'crop_pct', 'crop_mode', 'input_img_mode')},
            self.model_args, names if names and len(names) == self.args.num_classes else None, config=task.config,
            counts=task.policy.counts, raw=task.get_eval_model() if task.has_ema() else None, origin=self.origin)

    def finish(self, mixing: str, device: Any, epochs: int) -> None:
        """After the last epoch: the curves, model/, report.md, what to do next, and the last push.

        Args:
            mixing: a sentence on what the settings do.
            device, epochs: of the training.

        Raises:
            SettingError: model/ or report.md cannot be written.
        """
        if rank():
            return
        args, policy, config = self.args, self.task.policy, self.task.config
        self.draw(headline(args.model, args.multimix, config.preset if config else '', policy.counts))
        for logger in self.loggers:
            logger.finish()
        seconds = time.time() - self.started
        train, val = len(self.images.train_set), len(self.images.val_set)
        try:
            self.save_model()
            write_report(
                self.path, self.settings, f'{train} training and {val} validation images of {args.num_classes} classes',
                mixing, self._commands(), device, seconds, epochs - self.start,
                counts=policy.counts if policy.mixes_anything or policy.counts.get(TAUGHT) else None)
        except (OSError, SafetensorError) as e:
            good = next(iter(candidates(self.path)), None)
            raise SettingError(f'{self.path}/model could not be written: {e}. Make room'
                               + (f' and go on: --resume {self.path} ({good} is whole).' if good else
                                  ' and train again. No checkpoint was written.')) from e
        if policy.mixes_anything or policy.counts.get(TAUGHT):
            say('\n' + told(policy.counts))
        self._say_what_is_there(seconds)
        if self.pusher:
            self.pusher.finish()

    def _commands(self) -> tuple[str, str]:
        return in_plain_timm(self.path, self.args.model, self.args.num_classes, self.model_args)

    def _say_what_is_there(self, seconds: float) -> None:
        name, path = self.args.eval_metric, self.path
        valid = [row for row in self.rows if row.get(f'eval_{name}') not in (None, '')]
        measured = [(float(row[f'eval_{name}']), int(row['epoch'])) for row in valid]
        line = f'\nDone in {seconds:.0f} s. Last epoch: '
        line += (f'{name} {measured[-1][0]:.2f}' if measured and int(self.rows[-1]['epoch']) >= self.start else
                 'nothing left to train; --epochs N trains on')
        if name != 'balanced' and measured and (mean := of_classes(self.settings, valid[-1])) is not None:
            line += f', mean over classes {mean:.2f}'
        if measured:
            best = (min if name == 'loss' else max)(measured, key=lambda pair: pair[0])
            line += f'; best: {best[0]:.2f} in epoch {best[1] + 1}'
        there = {
            'report.md': 'results, settings, versions, how to go on',
            'model/': 'the trained model' + ' (averaged weights)' * self.args.model_ema + ", plain timm's",
            ', '.join(p.name for p in candidates(path) if p.name in ('last.pth.tar', 'model_best.pth.tar')):
                'checkpoints, for --resume',
            ', '.join(name for name in ('curves.png', 'summary.csv', 'args.yaml', FILE) if (path / name).exists()): ''}
        width = max(map(len, list(there)[:3]))
        say(f'{line}.\n\nIn {path}:')
        say('\n'.join(f'  {names:{width}}   {text}'.rstrip() for names, text in there.items() if names))
        say(f'\nNext:\n  {self._commands()[0]}')
        for command in self._next():
            say(f'  {shlex.join(command)}')

    def _next(self) -> list[list[str]]:
        """Commands that go on from here."""
        args, run = self.args, str(self.path)
        images = {'--data-dir': args.data_dir, '--dataset': args.dataset, '--split': args.val_split,
                  '--class-map': args.class_map}
        flags = [word for flag, value in images.items() if value and value not in (DIGITS, 'validation')
                 for word in (flag, str(value))]  # evaluate.py has these two by default
        found = [[*program('evaluate'), run, *flags, '--on', 'accuracy,calibration']]
        if not self.task.policy.mixes_anything:
            found.append([*program('advise'), run])
        return found if self.pusher else [*found, [*program('push'), run, 'user/name']]


def _open(args: argparse.Namespace, images: Images, at_end: ExitStack) -> Path:
    """The folder of a new run, or that of the run which is resumed; of this process alone until `at_end`."""
    root = args.output or OUTPUT
    name = args.experiment or '-'.join(
        [datetime.now().strftime('%Y%m%d-%H%M%S'), args.model.replace('/', '_').replace(':', '_'),
         str(images.config['input_size'][-1])])
    if not args.resume and (inside := _root_around(Path(root) / name, images)):
        raise SettingError(f'--output is {root!r}, which lies among the images of {inside}: the curves.png of this run '
                           f'would be a class of the next one. Give a folder outside of it.')
    try:
        if args.resume:
            folder = resume_checkpoint(args.resume).parent
        else:
            folder = Path(get_outdir(root, name, inc=not args.experiment))
        check_writable(folder)
        at_end.enter_context(alone_in(folder))
        there = candidates(folder)
        # Who frees a disk removes checkpoints and keeps results. One row alone may be that of a run which was killed
        # before its first checkpoint, and begins again.
        results = (folder / 'model').exists() or len(read_summary(folder / 'summary.csv')) > 1
        if not args.resume and args.experiment and (there or results):
            go_on = f'Go on with it by --resume {folder}, or choose' if there else 'It has no checkpoint: choose'
            raise SettingError(f'{folder} holds a run already. {go_on} another --experiment.')
    except OSError as e:
        raise SettingError(f'--output is {root!r}, but {name!r} cannot be written there: {e.strerror or e}.') from e
    return folder


def _recipe(folder: Path) -> str:
    """The recipe of a run, by its args.yaml; '' where that does not say."""
    try:
        saved = load_yaml(folder / 'args.yaml')
    except SettingError:  # damaged: its checkpoint had the settings
        return ''
    return str(saved.get('recipe') or '') if isinstance(saved, dict) else ''


def _root_around(folder: Path, images: Images) -> Optional[str]:
    """The folder of class folders, of a split or of all, that a folder lies in; None for none."""
    readers = [getattr(data, 'reader', None) for data in (images.train_set, images.val_set)]
    roots = [str(getattr(reader, 'root', '')) for reader in readers if hasattr(reader, 'samples')]
    above = folder.resolve().parents
    return next((root for root in roots if os.path.isdir(root) and Path(root).resolve() in above), None)
