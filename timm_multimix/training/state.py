"""Writing down where a run is, with `Save`, and going on from there, with `resume` and `place_of`."""
from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Optional

import torch
from timm.task import load_task_ema_checkpoint, resume_task_checkpoint

from ..data.class_weight import class_counts
from ..distributed import from_all, rank
from ..errors import SettingError
from ..runs.find import candidates, load, newest_whole, resume_checkpoint
from ..runs.screen import say
from ..task import MultiMixTask
from ..wrapper import unwrap
from .checkpoint import AtomicCheckpointSaver, own_state
from .checks import mismatch, weights_alone
from .nonfinite import finite_weights
from .progress import Progress


def not_finite(what: str, epoch: int, optimizer: torch.optim.Optimizer, folder: Path) -> SettingError:
    good = next(iter(candidates(folder)), None)
    return SettingError(
        f'{what} became infinite or no number in epoch {epoch + 1}. Lower --lr (now '
        f'{optimizer.param_groups[0]["lr"]:g}), clip with --clip-grad 1, or warm up longer. '
        + (f'The last good checkpoint is {good}: --resume {good}' if good else 'No checkpoint was written yet.'))


class Save:
    """Writes checkpoints, from the first rank, with what every rank has of its own. All ranks call it."""

    def __init__(self, saver: AtomicCheckpointSaver, task: MultiMixTask, scheduler: Any, shape: dict[str, int],
                 data: dict[str, Any]) -> None:
        self.saver, self.task, self.scheduler, self.shape, self.data = saver, task, scheduler, shape, data
        self.folder = Path(saver.checkpoint_dir)

    def __call__(self, progress: Progress, metric: Optional[float] = None, within: bool = False) -> None:
        if not finite_weights(unwrap(self.task.trainable_module)):
            raise not_finite('The weights', progress.epoch, self.saver.optimizer, self.folder)
        own = {'progress': progress.state_dict(), **own_state(self.task)}
        plateau = getattr(self.scheduler, 'lr_scheduler', None)  # timm's other schedules have no state
        self.saver.extra = {'ranks': from_all(own), 'shape': self.shape, 'data': self.data}
        if plateau is not None:
            self.saver.extra['plateau'] = plateau.state_dict(), self.scheduler.restore_lr
        if within:
            self.saver.extra['batch'] = progress.batch
        if rank():
            return
        try:
            if within:
                self.saver.save_recovery(progress.epoch, progress.batch)
            else:
                self.saver.save_checkpoint(progress.epoch, metric=metric)
                self.saver.drop_recoveries()
        except (OSError, RuntimeError) as e:  # a full disk, mostly: the run goes on, and tries again next time
            good = next(iter(candidates(self.folder)), None)
            say(f'Warning: a checkpoint of epoch {progress.epoch + 1} could not be written ({str(e).splitlines()[0]}). '
                + (f'{good} stays the last one.' if good else 'There is none yet.'))


def resume(args: argparse.Namespace, task: MultiMixTask, optimizer: Any, scaler: Any,
           saver: AtomicCheckpointSaver, data: dict[str, Any]) -> dict[str, Any]:
    """Load the newest whole checkpoint into everything but the scheduler; returns it. `data`: `seen`'s."""
    found, problems = newest_whole(args.resume)
    for problem in problems:
        say(f'Warning: {problem}' + (f' Going on from {found}.' if found else ''))
    path = str(found or resume_checkpoint(args.resume))
    try:
        start = resume_task_checkpoint(task, path, None, scaler, log_info=False)
        if task.has_ema():
            load_task_ema_checkpoint(task, path)
    except Exception as e:
        raise SettingError(mismatch('--resume', path, args.model, e)) from e
    if start is None:
        raise SettingError(weights_alone(path))
    if not args.no_resume_opt:
        settings = set(optimizer.param_groups[0])
        try:
            resume_task_checkpoint(task, path, optimizer, log_info=False)
            missing = settings - set(optimizer.param_groups[0])
            if missing:
                raise ValueError(f'it has no {", ".join(sorted(missing))}')
        except Exception as e:
            raise SettingError(f'--opt is {args.opt}, but the checkpoint {path!r} holds the state of another optimizer '
                               f'({e}). Resume with that one, or start this one afresh with --no-resume-opt.') from e
    state = load(path)
    changed = compare_data(state.get('data'), data)
    world_agreed = from_all(path)  # nobody still reads when the first rank begins to tidy up
    assert len(set(world_agreed)) == 1, world_agreed
    if rank() == 0:
        saver.go_on_from(Path(path), state)
        saver.drop_recoveries(keep=[path])
    return {k: v for k, v in state.items() if k in ('epoch', 'batch', 'metric', 'ranks', 'shape', 'plateau')} | {
        'start': start, 'changed': changed}


def seen(train_set: Any, val_set: Any, names: Optional[list[str]]) -> dict[str, Any]:
    """What a checkpoint keeps of the data: names of the classes, and how many images each split has of each."""
    return {'classes': names, **{split: class_counts(dataset) for split, dataset in (
        ('training', train_set), ('validation', val_set))}}


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


def place_of(state: dict[str, Any], progress: Progress, shape: dict[str, int], exact: bool) -> Optional[str]:
    """Set `progress` to where a checkpoint was written; a sentence if it must go back to the start of the epoch."""
    own = state.get('ranks') or [{}]
    if 'batch' not in state:  # an epoch's end
        progress.epoch = state['start']
        progress.in_a_row = own[0].get('progress', {}).get('in_a_row', 0)
        return None
    if state['shape'] == shape and exact:
        progress.load_state_dict(own[rank()]['progress'])
        return None
    progress.epoch = state['epoch']
    why = ('a stream of images cannot be entered in the middle' if not exact
           else 'it was written with another number of ranks, batches or images in a batch')
    return (f'The checkpoint is from within epoch {progress.epoch + 1}, but {why}: that epoch starts again, with the '
            f'weights of the checkpoint.')
