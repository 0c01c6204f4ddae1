"""Checkpoints as timm keeps them, each replaced in one step, and what every rank has of its own."""
from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Optional, Union

import torch
import torch.nn as nn
from timm.utils import CheckpointSaver
from timm.utils.model import unwrap_model
from torch import Tensor

from ..distributed import world
from ..files import whole
from ..runs.find import SUFFIX


class AtomicCheckpointSaver(CheckpointSaver):
    """`last`, `model_best`, numbered and recovery checkpoints as timm keeps them, each replaced in one step.

    It is made with `task` and `args`. timm removes a file before it puts the new one in its place; a run that is killed
    in between has no `last.pth.tar` to resume from. What fails to be written, because the disk is full, leaves what was
    there.

    Attributes:
        extra: entries of the next checkpoints beside timm's, of plain values and tensors.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.extra: dict[str, Any] = {}
        self._writes = True

    def _save(self, save_path: str, epoch: int, metric: Optional[float] = None) -> None:
        if not self._writes:
            return
        state = {
            'epoch': epoch, 'version': 2, 'arch': self.args.model,
            'args': dict(vars(self.args)),  # a plain one: torch.load(weights_only=True) knows no Namespace
            'optimizer': self.optimizer.state_dict(), 'saver': self.state_dict(epoch, metric), **self.extra}
        if self.amp_scaler is not None:
            state[self.amp_scaler.state_dict_key] = self.amp_scaler.state_dict()
        if metric is not None:
            state['metric'] = metric
        for ema in (False, True):
            state.update(self.task.get_checkpoint_state(ema=ema, unwrap_fn=self.unwrap_fn))
        try:
            with open(save_path, 'wb') as f:
                torch.save(state, f)
                f.flush()
                os.fsync(f.fileno())
        except BaseException:
            if os.path.exists(save_path):
                os.unlink(save_path)
            raise

    def _replace(self, src: str, dst: str) -> None:
        if self._writes:
            os.replace(src, dst)

    def _duplicate(self, src: str, dst: str) -> None:
        if os.path.exists(dst) and os.path.samefile(src, dst):  # renaming a link to itself leaves both
            return
        with whole(dst) as temporary:
            temporary.unlink(missing_ok=True)  # a link that a killed run left, which must not be written through
            try:
                os.link(src, temporary)
            except OSError:  # a file system without hard links
                shutil.copy2(src, temporary)

    def keep(self, epochs: int) -> None:
        """Keep what was saved last as milestone-N.pth.tar, N epochs being done. It has no rank and is never removed."""
        self._duplicate(os.path.join(self.checkpoint_dir, 'last' + SUFFIX),
                        os.path.join(self.checkpoint_dir, f'milestone-{epochs}{SUFFIX}'))

    def state_dict(self, epoch: Optional[int] = None, metric: Optional[float] = None) -> dict[str, Any]:
        """The ranking, before this epoch has its place in it. (timm < 1.0.31 saves none.)"""
        return {'checkpoint_files': [(os.path.basename(f), m) for f, m in self.checkpoint_files],
                'best_epoch': self.best_epoch, 'best_metric': self.best_metric, 'pending': (epoch, metric)}

    def go_on_from(self, path: Path, state: dict[str, Any]) -> None:
        """Take over the ranking of a loaded checkpoint, and do what a run killed after writing it had still to do."""
        drop_unfinished(self.checkpoint_dir)
        saver = state.get('saver') or {}
        files = [(os.path.join(self.checkpoint_dir, name), m) for name, m in saver.get('checkpoint_files', [])]
        self.checkpoint_files = [(f, m) for f, m in files if os.path.exists(f)]
        self.best_epoch, self.best_metric = saver.get('best_epoch'), saver.get('best_metric')
        if 'batch' in state:
            self.curr_recovery_file = str(path)
            return
        metric, epoch = state.get('metric'), state['epoch']
        if path.name == 'last' + SUFFIX:
            self._writes = False  # it is there: only its rank among the others is found again
            try:
                self.save_checkpoint(epoch, metric)
            finally:
                self._writes = True
        elif metric is not None:  # another than the last was asked for, or is all that is whole
            own = os.path.join(self.checkpoint_dir, f'{self.save_prefix}-{epoch}{self.extension}')
            if os.path.exists(own):
                self.checkpoint_files.append((own, metric))
                sign = 1 if self.decreasing else -1
                self.checkpoint_files.sort(key=lambda c: (c[1] is None, 0 if c[1] is None else sign * c[1]))
            if self.best_metric is None or self.cmp(metric, self.best_metric):
                self.best_epoch, self.best_metric = epoch, metric

    def drop_recoveries(self, keep: Iterable[str] = ()) -> None:
        """Remove recovery checkpoints: an epoch's end has overtaken them, or the run has gone back behind them."""
        for path in Path(self.recovery_dir).glob(f'{self.recovery_prefix}-*{SUFFIX}'):
            if str(path) not in keep:
                path.unlink(missing_ok=True)
        self.prev_recovery_file = ''
        if self.curr_recovery_file not in keep:
            self.curr_recovery_file = ''


def drop_unfinished(folder: Union[str, Path]) -> None:
    """Remove what was being written when a run was killed, or its disk was full."""
    for leftover in (*Path(folder).glob('*.tmp'), *Path(folder).glob(f'*tmp{SUFFIX}')):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def own_state(task: Any) -> dict[str, Any]:
    """What ranks do not have in common: BatchNorm's statistics, of the model and of its average; and the generator by
    which timm rounds an average in bfloat16."""
    generator = getattr(task.get_trainable_module(ema=True), '_sr_generator', None)
    found: dict[str, Any] = {} if generator is None else {'rounding': generator.get_state()}
    if world() == 1:  # a model's buffers are in its state_dict
        return found
    for key, module in (('buffers', task.get_eval_model()), ('buffers_ema', task.get_eval_model(ema=True))):
        if module is not None:
            found[key] = {name: b.detach().cpu().clone() for name, b in _buffers(module)}
    return found


@torch.no_grad()
def load_own_state(task: Any, state: dict[str, Any]) -> None:
    generator = getattr(task.get_trainable_module(ema=True), '_sr_generator', None)
    if generator is not None and 'rounding' in state:
        generator.set_state(state['rounding'])
    for key, module in (('buffers', task.get_eval_model()), ('buffers_ema', task.get_eval_model(ema=True))):
        if module is not None and key in state:
            for name, buffer in _buffers(module):
                buffer.copy_(state[key][name])


def _buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, b) for name, b in unwrap_model(module).named_buffers() if b.is_floating_point()]
