"""Metrics of every epoch to TensorBoard, Weights & Biases or trackio, beside summary.csv."""
from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple, Optional

from ..errors import SettingError, reason


class Logger(NamedTuple):
    """`log(epoch, row)` of summary.csv's columns, `finish()`, and a sentence on where it goes."""
    log: Callable[[int, dict[str, Any]], None]
    finish: Callable[[], None]
    where: str


def check_loggers(names: Optional[Iterable[str]]) -> None:
    """Raise `SettingError` for a logger whose package is not installed."""
    for name in names or ():
        if importlib.util.find_spec(name) is None:
            raise SettingError(f'--log has {name}, but the package {name} is not installed: pip install {name}, or '
                               f'drop it.')


def open_loggers(
        names: Optional[Iterable[str]], folder: Path, config: dict[str, Any], project: Optional[str] = None,
        tags: Iterable[str] = (), resume_id: str = '', start_epoch: int = 0) -> list[Logger]:
    """Start the loggers of a run.

    Args:
        names: of `LOGGERS`.
        folder: of the run; TensorBoard and wandb write in it, trackio where TRACKIO_DIR says.
        config: the settings to note.
        project, tags, resume_id: as in wandb; trackio has the project alone.
        start_epoch: from where a resumed run writes; TensorBoard then hides what was there from this epoch on.

    Raises:
        SettingError: one that does not start, with its reason.
    """
    opened = []
    for name in names or ():
        try:
            if name == 'wandb':
                opened.append(_wandb(folder, config, project, list(tags), resume_id))
            elif name == 'trackio':
                opened.append(_trackio(folder, config, project))
            else:
                opened.append(_tensorboard(folder, start_epoch))
        except Exception as e:  # each service refuses in its own way
            hint = ' WANDB_MODE=offline writes on this machine alone.' if name == 'wandb' else ''
            raise SettingError(f'--log has {name}, but it does not start: {reason(e)}.{hint}') from e
    return opened


def numbers(row: dict[str, Any]) -> dict[str, float]:
    """The columns of a row of summary.csv that hold a number."""
    return {k: float(v) for k, v in row.items() if isinstance(v, (int, float)) and k != 'epoch'}


def _wandb(folder: Path, config: dict[str, Any], project: Optional[str], tags: list[str], resume_id: str) -> Logger:
    import wandb
    run = wandb.init(project=project, name=folder.name, dir=str(folder), config=config, tags=tags,
                     id=resume_id or None, resume='must' if resume_id else None)
    # timm logs summary.csv's columns under their names, so panels made for its runs fit
    return Logger(lambda epoch, row: run.log({'epoch': epoch, **numbers(row)}, step=epoch), run.finish,
                  f'wandb run {run.id}; to go on with it when resuming: --wandb-resume-id {run.id}')


def _trackio(folder: Path, config: dict[str, Any], project: Optional[str]) -> Logger:
    import trackio
    project = project or 'timm-multimix'
    with redirect_stdout(io.StringIO()):  # it greets in colours, also in a file
        trackio.init(project=project, name=folder.name, config=config, resume='allow', embed=False)

    def finish() -> None:
        with redirect_stdout(io.StringIO()):
            trackio.finish()

    return Logger(lambda epoch, row: trackio.log(numbers(row), step=epoch), finish,
                  f'trackio run {folder.name}; to see it: trackio show --project {project}')


def _tensorboard(folder: Path, start_epoch: int) -> Logger:
    from torch.utils.tensorboard import SummaryWriter
    where = folder / 'tensorboard'
    writer: Any = SummaryWriter(str(where), purge_step=start_epoch or None)  # type: ignore[no-untyped-call]

    def log(epoch: int, row: dict[str, Any]) -> None:
        for name, value in numbers(row).items():
            writer.add_scalar(name.replace('_', '/', 1) if name.startswith(('train_', 'eval_')) else name, value, epoch)
        writer.flush()

    return Logger(log, writer.close, f'TensorBoard; to see it: tensorboard --logdir {folder.parent}')
