"""`TrainState`: everything that training changes, written into checkpoints and taken up from them."""
from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import torch
from timm.task import load_task_ema_checkpoint, resume_task_checkpoint
from timm.utils import NativeScaler, distribute_bn

from ..data.class_weight import class_counts
from ..distributed import from_all, local_rank, rank, world
from ..errors import SettingError, in_words, reason
from ..runs.find import candidates, load, newest_whole, plain, resume_checkpoint
from ..runs.flags import FREE_ON_RESUME
from ..runs.screen import say
from ..task import MultiMixTask
from ..wrapper import unwrap
from .checkpoint import AtomicCheckpointSaver, load_own_state, own_state
from .checks import mismatch, weights_alone
from .images import Images
from .nonfinite import Statistics, finite_weights
from .progress import Averages, Progress

SIGNAL = ('loss_mixed', 'loss_clean', 'effective', 'target_entropy')  # diagnostics of mixed steps
LEARNED = 'loss_attention'  # where attention is learned
# What groups of an optimizer have from flags, and no optimizer changes.
SET_ANEW = ('weight_decay', 'betas', 'eps', 'momentum', 'nesterov', 'lr_scale')
OF_THE_BEGINNING = ('initial_checkpoint', 'pretrained', 'pretrained_path', 'head_init_scale', 'head_init_bias')
OF_WHICH_IMAGES = ('top1_unmixed', 'top1_mixed')


@dataclass
class TrainState:
    """A run while it trains.

    Attributes:
        task: the model and its loss.
        optimizer, scheduler, scaler: timm's; the last two may be None.
        saver: writes the checkpoints.
        autocast: `with state.autocast():` around a forward pass.
        device: of the model.
        epochs: how many are planned.
        updates: how many an epoch has.
        shape: ranks, images in a batch, and batches: a checkpoint from within an epoch fits another run of this shape.
        data: classes and numbers of images, to be compared on resume.
        progress: the place in the training, and what was measured in this epoch.
        statistics: BatchNorm's as they were after the last update.
        start: the epoch in which this session began.
    """
    task: MultiMixTask
    optimizer: torch.optim.Optimizer
    scheduler: Any
    scaler: Optional[NativeScaler]
    saver: AtomicCheckpointSaver
    autocast: Any
    device: torch.device
    epochs: int
    updates: int
    shape: dict[str, int]
    data: dict[str, Any]
    progress: Progress = field(init=False)
    statistics: Statistics = field(init=False)
    start: int = 0

    def __post_init__(self) -> None:
        self.begin_epoch(0)

    @property
    def folder(self) -> Path:
        """Where checkpoints go."""
        return Path(self.saver.checkpoint_dir)

    def begin_epoch(self, epoch: int) -> None:
        """Set `progress` to the beginning of an epoch."""
        task = self.task
        names = ('loss', 'top1', *OF_WHICH_IMAGES, *(SIGNAL if task.is_wrapped else ()),
                 *((LEARNED,) if task.config is not None and task.config.attention == 'learned' else ()))
        in_a_row = self.progress.in_a_row if hasattr(self, 'progress') else 0
        self.progress = Progress(epoch, Averages(names, self.device), in_a_row=in_a_row,
                                 counted=task.policy.counts.copy())

    def after(self, epoch: int, batch: int, accum: int) -> int:
        """How many updates there were after this batch of an epoch."""
        return epoch * self.updates + batch // accum + 1

    # ----------------------------------------------------------------------------------------------------- checkpoints

    def save(self, metric: Optional[float] = None, within: bool = False, milestone: bool = False) -> None:
        """Write a checkpoint, from the first rank, with what every rank has of its own. All ranks call it.

        Args:
            metric: of the epoch that has ended; None where it was not validated.
            within: the epoch has not ended: a recovery checkpoint.
            milestone: keep the same beside it as milestone-N.pth.tar, after N epochs.

        Raises:
            SettingError: the weights are not finite.
        """
        progress, saver = self.progress, self.saver
        if not finite_weights(unwrap(self.task.trainable_module)):
            raise self.not_finite('The weights')
        own = {'progress': progress.state_dict(), **own_state(self.task)}
        plateau = getattr(self.scheduler, 'lr_scheduler', None)  # timm's other schedules have no state
        saver.extra = {'ranks': from_all(own), 'shape': self.shape, 'data': self.data}
        if plateau is not None:
            saver.extra['plateau'] = plateau.state_dict(), self.scheduler.restore_lr
        if within:
            saver.extra['batch'] = progress.batch
        if rank():
            return
        try:
            if within:
                saver.save_recovery(progress.epoch, progress.batch)
            else:
                saver.save_checkpoint(progress.epoch, metric=metric)
                if milestone:
                    saver.keep(progress.epoch + 1)
                saver.drop_recoveries()
        except (OSError, RuntimeError) as e:  # a full disk, mostly: the run goes on, and tries again next time
            good = next(iter(candidates(self.folder)), None)
            full = 'the disk seems to be full: ' * ('inline_container' in str(e))  # torch says nothing of it
            say(f'Warning: a checkpoint of epoch {progress.epoch + 1} could not be written ({full}{reason(e, 1)}). '
                + (f'{good} stays the last one.' if good else 'There is none yet.'))

    def not_finite(self, what: str) -> SettingError:
        """The error that ends a run whose numbers are lost."""
        good = next(iter(candidates(self.folder)), None)
        return SettingError(
            f'{what} became infinite or NaN in epoch {self.progress.epoch + 1}. Lower --lr (now '
            f'{self.optimizer.param_groups[0]["lr"]:g}), clip with --clip-grad 1, or warm up longer. '
            + (f'The last good checkpoint is {good}: --resume {good}' if good else 'No checkpoint was written yet.'))

    def resume(self, args: argparse.Namespace, exact: bool) -> list[str]:
        """Go on from the newest whole checkpoint of `--resume`, and make the task ready to train on every rank.

        Args:
            args: the flags.
            exact: whether the data can be entered within an epoch.

        Returns:
            Warnings for the user.

        Raises:
            SettingError: no checkpoint is whole, or it does not fit the model, the optimizer or the data.
        """
        found = self._load(args) if args.resume else {}
        notes = [self._go_to(found, exact), found['changed'], found['settings']] if found else []
        rate = found.get('rate')
        if args.resume_auto and not found:
            say('--resume auto: there is no run to resume; a new one starts.')
        if args.start_epoch is not None:
            self.begin_epoch(args.start_epoch)
        if not self.progress.batch:
            self.progress.counted = self.task.policy.counts.copy()
        self.start = self.progress.epoch
        if found.get('settings') and self.start >= (args.stop_epoch or self.epochs):
            raise SettingError(f'The run has trained all of its {self.epochs} epochs, and {found["settings"]} Nothing '
                               f'would be trained with that. --epochs N trains on; a run of its own needs another '
                               f'--experiment.')
        self._spread(args)
        if found.get('shape') == self.shape:
            load_own_state(self.task, found['ranks'][rank()])
        self._catch_up(found, args.grad_accum_steps)
        if rate is not None:
            notes.append(self._risen(args, *rate))
        self.statistics = Statistics(unwrap(self.task.trainable_module))
        self.statistics.keep()
        return [note for note in notes if note]

    def _load(self, args: argparse.Namespace) -> dict[str, Any]:
        """Load a checkpoint into everything but the scheduler; returns what is left of it."""
        found, problems = newest_whole(args.resume)
        for problem in problems:
            say(f'Warning: {problem}' + (f' Going on from {found}.' if found else ''))
        path = str(found or resume_checkpoint(args.resume))
        try:
            start = resume_task_checkpoint(self.task, path, None, self.scaler, log_info=False)
            if self.task.has_ema():
                load_task_ema_checkpoint(self.task, path)
        except Exception as e:  # broken bytes break the reader in any way
            raise in_words(mismatch('--resume', path, args.model, e), e) from e
        if start is None:
            raise SettingError(weights_alone(path))
        state = load(path)
        if not args.no_resume_opt:
            self._load_optimizer(args.opt, path, state)
        changed = compare_data(state.get('data'), self.data)
        world_agreed = from_all(path)  # nobody still reads when the first rank begins to tidy up
        assert len(set(world_agreed)) == 1, world_agreed
        if rank() == 0:
            self.saver.go_on_from(Path(path), state)
            self.saver.drop_recoveries(keep=[path])
        then = state.get('args')
        then = then if isinstance(then, dict) else vars(then) if isinstance(then, argparse.Namespace) else {}
        settings = changed_since(then, vars(self.saver.args))
        groups = (state.get('optimizer') or {}).get('param_groups')
        if groups and 'epochs' in then:
            state['rate'] = groups[0].get('lr'), then['epochs']
        kept = ('epoch', 'batch', 'metric', 'ranks', 'shape', 'plateau', 'rate')
        return {k: v for k, v in state.items() if k in kept} | {
            'start': start, 'changed': changed, 'settings': settings}

    def _load_optimizer(self, name: str, path: str, state: dict[str, Any]) -> None:
        if 'optimizer' not in state:
            raise SettingError(f'The checkpoint {path!r} holds no state of an optimizer. Start the optimizer afresh '
                               f'with --no-resume-opt.')
        settings = set(self.optimizer.param_groups[0])
        names = [*SET_ANEW, *(['lr'] if self.scheduler is None else [])]  # which a schedule sets by itself
        anew = [{key: group[key] for key in names if key in group} for group in self.optimizer.param_groups]
        try:
            self.optimizer.load_state_dict(state['optimizer'])
            missing = settings - set(self.optimizer.param_groups[0])
            if missing:
                raise ValueError(f'it has no {", ".join(sorted(missing))}')
        except (ValueError, KeyError, RuntimeError, TypeError) as e:  # each optimizer refuses in its own way
            raise SettingError(f'--opt is {name}, but the checkpoint {path!r} holds the state of another optimizer '
                               f'({e}). Resume with that one, or start this one afresh with --no-resume-opt.') from e
        for group, settings_of_group in zip(self.optimizer.param_groups, anew):
            group.update(settings_of_group)  # the flags of this command, not of that one

    def _go_to(self, found: dict[str, Any], exact: bool) -> Optional[str]:
        """Set `progress` to where a checkpoint was written; a sentence if it must go back to the start of the epoch."""
        own, progress = found.get('ranks') or [{}], self.progress
        if 'batch' not in found:  # an epoch's end
            progress.epoch = found['start']
            progress.in_a_row = own[0].get('progress', {}).get('in_a_row', 0)
            return None
        if found['shape'] == self.shape and exact:
            progress.load_state_dict(own[rank()]['progress'])
            return None
        progress.epoch = found['epoch']
        why = ('a stream of images cannot be entered in the middle' if not exact
               else 'it was written with another number of ranks, batches or images in a batch')
        return (f'The checkpoint is from within epoch {progress.epoch + 1}, but {why}: that epoch starts again, with '
                f'the weights of the checkpoint.')

    def _spread(self, args: argparse.Namespace) -> None:
        """torch.compile and DistributedDataParallel, where they are asked for: around weights that are loaded."""
        if args.torchcompile:
            self.task.compile(backend=args.torchcompile, mode=args.torchcompile_mode)
        if world() > 1:
            ddp = {'broadcast_buffers': False} if args.no_ddp_bb else {}
            self.task.prepare_distributed(device_ids=[local_rank()] if self.device.type == 'cuda' else None, **ddp)

    def _catch_up(self, found: dict[str, Any], accum: int) -> None:
        """Bring the schedule to where the run is: it is a function of the place, but for the plateau's."""
        progress, scheduler = self.progress, self.scheduler
        if scheduler is None or not (self.start or progress.batch):
            return
        if 'plateau' in found and hasattr(scheduler, 'lr_scheduler'):
            scheduler.lr_scheduler.load_state_dict(found['plateau'][0])
            scheduler.restore_lr = found['plateau'][1]
        scheduler.step_update(self.start * self.updates - (-progress.batch // accum))  # an epoch ends with an update
        if self.start:
            scheduler.step(self.start, found.get('metric'))

    def _risen(self, args: argparse.Namespace, rate: float, epochs: int) -> Optional[str]:
        """A sentence where the learning rate goes up again because the schedule is that of more epochs now."""
        now = self.optimizer.param_groups[0]['lr']
        if self.scheduler is None or args.epochs <= epochs or now <= rate or self.start < args.warmup_epochs:
            return None
        return (f'the learning rate rises again, from {rate:.3g} to {now:.3g}: --epochs was {epochs} and is '
                f'{args.epochs}, and the schedule is that of {args.epochs} epochs now.')

    # ----------------------------------------------------------------------------------------------------------- ranks

    def agree(self, dist_bn: str, ema: bool) -> None:
        """Make BatchNorm's statistics the same on all ranks, once an epoch (`--dist-bn`).

        Args:
            dist_bn: 'reduce', 'broadcast', or '' for each its own.
            ema: of the averaged weights too.
        """
        if world() == 1 or not dist_bn or self.progress.statistics_agreed:
            return
        average = self.task.get_eval_model(ema=True) if ema else None
        for module in filter(None, (self.task.get_eval_model(), average)):
            distribute_bn(module, world(), dist_bn == 'reduce')
        self.progress.statistics_agreed = True


def seen(images: Images) -> dict[str, Any]:
    """What a checkpoint keeps of the data: names of the classes, and how many images each split has of each."""
    return {'classes': images.names, 'training': class_counts(images.train_set),
            'validation': class_counts(images.val_set)}


def changed_since(then: Mapping[str, Any], now: Mapping[str, Any]) -> Optional[str]:
    """A sentence where a run that is resumed has other settings than it had; None for the same.

    Raises:
        SettingError: a setting that says what a run begins with.
    """
    names = [name for name in now if name in then and name not in (*FREE_ON_RESUME, 'recipe', 'data_dir')
             and plain(then[name]) != plain(now[name])]
    if not names:
        return None
    if name := next((name for name in names if name in OF_THE_BEGINNING), ''):
        flag = f'--{name.replace("_", "-")}'
        raise SettingError(f'{flag} is {now[name]!r} and was {then[name]!r}, but it says what a run begins with, and a '
                           f'run that is resumed has begun. Drop it, or start afresh.')
    listed = ', '.join(f'--{name.replace("_", "-")} {now[name]} (was {then[name]})' for name in names[:6])
    return f'settings have changed since the checkpoint was written: {listed}' + (', …' if len(names) > 6 else '') + '.'


def compare_data(then: Optional[dict[str, Any]], now: dict[str, Any]) -> Optional[str]:
    """A sentence where a run that is resumed has other images than it had; None for the same, or if nobody knows.

    Raises:
        SettingError: other classes, whose numbers would mean something else now.
    """
    if not then:  # a checkpoint of an older version
        return None
    if then['classes'] and now['classes'] and then['classes'] != now['classes']:
        gone, new = (sorted(set(a) - set(b)) for a, b in ((then['classes'], now['classes']),
                                                         (now['classes'], then['classes'])))
        what = '; '.join(filter(None, [f'gone: {", ".join(gone[:3])}' * bool(gone), f'new: {", ".join(new[:3])}'
                                       * bool(new)])) or 'their order'
        raise SettingError(f'The classes of the data have changed since the checkpoint was written ({what}), so their '
                           f'numbers would mean something else. Start afresh from its weights with '
                           f'--initial-checkpoint.')
    changed = [split for split in ('training', 'validation') if then.get(split) != now.get(split)]
    if not changed:
        return None
    counts = ', '.join(f'{sum(then[s] or [0])} {s} images then and {sum(now[s] or [0])} now' for s in changed)
    return f'the data has changed since the checkpoint was written: {counts}. The run goes on with what is there now.'
