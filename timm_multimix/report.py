"""What will happen, in words; what happened, as `summary.csv`, `curves.png` and `report.md`."""
from __future__ import annotations

import csv
import math
import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Optional, Union

import timm
import torch
import torchvision
import yaml

from .config import MultiMixConfig
from .mixing import expected_signal
from .version import __version__


def describe(config: Optional[MultiMixConfig], batch: int, num_classes: int, epochs: int) -> str:
    """The resolved settings, the signal they will give on batches of this size, and the ramp in so many epochs."""
    if config is None:
        return 'MultiMix: none.'
    low, high = config.alpha_range(batch)
    expected = expected_signal(config, batch, num_classes)
    settings = ', '.join(f'{k}={v}' for k, v in config.to_dict().items() if k not in ('mode', 'preset'))
    return (f'MultiMix: {config.mode}, preset {config.preset}: {settings}.\n'
            f'  α is drawn from {low:.4g} to {high:.4g}: about {expected["effective"]:.1f} effective examples of '
            f"{batch}; mixed targets have {expected['target_entropy']:.0%} of the entropy of the batch's."
            + (f'\n  Embeddings or inputs are mixed on a share of the steps that grows with the epochs, from none to '
               f'{min(1, epochs / config.ramp_epochs):.0%} at the end of epoch '
               f'{min(epochs, math.ceil(config.ramp_epochs))} (--multimix-ramp-epochs).' if config.ramp_epochs else ''))


def epoch_line(epoch: int, epochs: int, start: int, found: Mapping[str, Any], evaluated: Mapping[str, Any],
               seconds: float) -> str:
    """An epoch in a line of a terminal; everything else is in summary.csv."""
    left = seconds / (epoch + 1 - start) * (epochs - epoch - 1)
    loss = float('nan') if found['loss'] is None else found['loss']  # None: no step had a finite one
    line = f'Epoch {epoch + 1:{len(str(epochs))}d}/{epochs}: loss {loss:.3f}'
    if evaluated:
        line += f', val {evaluated["loss"]:.3f}, top-1 {evaluated["top1"]:.2f} %'
        if 'raw_top1' in evaluated:  # beside that of the averaged weights
            line += f' (raw {evaluated["raw_top1"]:.2f})'
    if found.get('effective') is not None:
        line += f', effective {found["effective"]:.2f}'
    if found.get('skipped'):
        line += f', {found["skipped"]} updates without a finite gradient left out'
    line += f'; {found["images_per_second"]:.0f} img/s, {clock(seconds)}'
    return line + (f', {clock(left)} left' if left else '')


def clock(seconds: float) -> str:
    """h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))


def in_plain_timm(folder: Path, model: str, num_classes: int, model_args: Mapping[str, Any]) -> tuple[str, str]:
    """Two commands that make the trained model again in plain timm: from its folder, and from its weights."""
    named = ''.join(f', {k}={v!r}' for k, v in model_args.items())
    return (f"timm.create_model({f'local-dir:{folder}/model'!r}, pretrained=True)",
            f'timm.create_model({model!r}, num_classes={num_classes}{named},\n'
            f"                        checkpoint_path={f'{folder}/model/model.safetensors'!r})")


def write_report(
        folder: Path, settings: Mapping[str, Any], data: str, mixing: str, commands: tuple[str, str],
        device: torch.device, seconds: float, epochs: int) -> Path:
    """Write `report.md` beside the summary and the curves of a run: what came out, of what, and what to do next.

    Args:
        folder: of the run; its summary.csv and curves.png are what the report shows.
        settings: as args.yaml holds them.
        data: a sentence on the data set.
        mixing: `describe`'s.
        commands: `in_plain_timm`'s.
        device, seconds, epochs: of this session, which may have resumed a run.
    """
    from .cli import changed_settings
    rows = read_summary(folder / 'summary.csv')
    valid = [row for row in rows if row.get('eval_top1')]
    lines = [f'# {folder.name}', '', f'`{settings["model"]}`, --multimix {settings["multimix"]}, {data}.', '']
    if valid:
        key = f'eval_{settings["eval_metric"]}'
        best = (min if key == 'eval_loss' else max)(valid, key=lambda row: float(row[key]))
        lines += ['| | epoch | top-1 | top-5 | loss |', '|---|---|---|---|---|']
        for name, row in (('best', best), ('last', valid[-1])):
            top1, top5, loss = (float(row[f'eval_{name}']) for name in ('top1', 'top5', 'loss'))
            lines.append(f'| {name} | {int(row["epoch"]) + 1} | {top1:.2f} % | {top5:.2f} % | {loss:.4f} |')
        lines += ['', f'The best epoch was chosen by {key[5:]} on these validation images, so its numbers are a little '
                      f'too good. `model_best.pth.tar` holds it, `model/` the last one.', '']
    if (folder / 'curves.png').exists():
        lines += ['![Loss, accuracy and signal over the epochs](curves.png)', '']
    if epochs > 0:
        speed = [float(row['train_images_per_second']) for row in rows[-epochs:] if row.get('train_images_per_second')]
        lines += [f'{epochs} epochs in {clock(seconds)}' + (f', {statistics.median(speed):.0f} images/s in training '
                  f'(the median epoch).' if speed else '.'), '']
    changed = yaml.safe_dump(changed_settings(settings), default_flow_style=None, sort_keys=False).rstrip()
    lines += ['## Settings', '', mixing.replace('\n  ', ' '), '',
              'What differs from the defaults (`args.yaml` has all):', '', '```yaml', changed, '```', '',
              '## Made with', '', f'- `{shlex.join(["python", *sys.argv])}`']
    lines += [f'- {line}' for line in environment(device)]
    lines += ['', '## Next', '', '```sh',
              f'python train.py --resume {shlex.quote(str(folder))} --epochs N   # go on with it',
              f'python train.py -c {shlex.quote(str(folder / "args.yaml"))} --experiment NEW   # run it again',
              '```', '', 'In plain timm, from the folder or from the weights alone:', '', '```python',
              'import timm', '', f'model = {commands[0]}', f'model = {commands[1]}', '```', '']
    temporary = folder / 'report.md.tmp'
    temporary.write_text('\n'.join(lines), encoding='utf-8')
    os.replace(temporary, folder / 'report.md')
    return folder / 'report.md'


def environment(device: torch.device) -> list[str]:
    """Versions, git revision and device, a sentence each."""
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else platform.processor() or platform.machine()
    return [f'timm-multimix {__version__}{git_revision(Path(__file__).parent)}',
            f'timm {timm.__version__}, torch {torch.__version__}, torchvision {torchvision.__version__}, '
            f'Python {platform.python_version()}, {platform.system()}',
            f'{device} ({name})']


def git_revision(folder: Path) -> str:
    """', revision abc1234' of the checkout a folder is in, with a note when it was changed; '' outside of one."""
    def git(*words: str) -> str:
        return subprocess.run(['git', '-C', str(folder), *words], capture_output=True, text=True, timeout=20,
                              check=True).stdout.strip()
    try:
        if not git('ls-files', 'report.py'):  # installed below somebody else's checkout
            return ''
        return f', revision {git("rev-parse", "HEAD")[:12]}' + (
            ' with changes' if git('status', '--porcelain', '--untracked-files=no') else '')
    except (OSError, subprocess.SubprocessError):
        return ''


def trim_summary(path: Union[str, Path], epoch: int) -> None:
    """Drop rows from this epoch on, which a resumed run will write again."""
    rows = read_summary(path)
    if not rows:  # a run that was stopped in its first epoch
        Path(path).unlink(missing_ok=True)
    kept = [row for row in rows if int(row['epoch']) < epoch]
    if rows and len(kept) < len(rows):
        temporary = f'{path}.tmp'
        with open(temporary, 'w', newline='') as f:
            writer = csv.DictWriter(f, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(kept)
        os.replace(temporary, path)


def append_summary(path: Union[str, Path], row: dict[str, Any]) -> None:
    """Add an epoch. A run that is resumed with other settings measures other things: its table gets both' columns."""
    rows = read_summary(path)
    columns = list(rows[0]) if rows else list(row)
    missing = [name for name in row if name not in columns]
    temporary = f'{path}.tmp'
    with open(temporary, 'w', newline='') as f:  # never half a row, whenever the run is killed or the disk full
        writer = csv.DictWriter(f, columns + missing, restval='')
        writer.writeheader()
        writer.writerows([*rows, row])
    os.replace(temporary, path)


def read_summary(path: Union[str, Path]) -> list[dict[str, Any]]:
    """Rows of a summary.csv; empty where there is none."""
    if not os.path.exists(path):
        return []
    with open(path, newline='') as f:
        return list(csv.DictReader(f))


def plot_curves(summary: Union[str, Path], path: Union[str, Path], title: str = '') -> Optional[Path]:
    """Draw loss, accuracy and signal over the epochs of a summary.csv as a PNG; None if it has no rows."""
    rows = read_summary(summary)
    if not rows:
        return None
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    def column(name: str) -> list[float]:
        return [float(row[name]) if row.get(name) not in (None, '') else float('nan') for row in rows]

    epochs = [int(row['epoch']) + 1 for row in rows]
    has_signal = any(value == value for value in column('train_effective'))
    figure, axes = plt.subplots(1, 3 if has_signal else 2, figsize=(13 if has_signal else 9, 3.8), layout='constrained')
    blue, orange, green = '#2f6db3', '#e07b22', '#3a9a5b'

    def line(axis: Any, name: str, label: str, **style: Any) -> None:
        values = column(name)
        if any(v == v for v in values):
            axis.plot(epochs, values, label=label, marker='.' if len(epochs) < 40 else None, **style)

    line(axes[0], 'train_loss_mixed', 'train, mixed', color=orange)
    line(axes[0], 'train_loss_clean', 'train, clean', color=blue)
    if not has_signal:
        line(axes[0], 'train_loss', 'train', color=blue)
    line(axes[0], 'eval_loss', 'validation', color=green)
    axes[0].set_title('Cross-entropy')
    axes[0].set_ylim(bottom=0)
    line(axes[1], 'train_top1', 'train (augmented)', color=blue)
    line(axes[1], 'eval_top1', 'validation', color=green)
    axes[1].set_title(f'Accuracy, % (last epoch {column("eval_top1")[-1]:.2f})')
    handles = []
    for axis in axes:
        axis.set_xlabel('epoch')
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.25)
    if has_signal:
        axis = axes[2]
        line(axis, 'train_effective', 'effective examples', color=orange)
        axis.set_title('Signal of the mixed targets')
        axis.set_ylabel('effective examples, 1/Σλ²', color=orange)
        axis.set_ylim(bottom=1)
        other = axis.twinx()
        line(other, 'train_target_entropy', 'target entropy', color='#7b4fa6')
        other.set_ylabel("target entropy / batch's", color='#7b4fa6')
        other.set_ylim(0, 1)
        handles = axis.get_lines() + other.get_lines()
        axis.legend(handles=handles, frameon=False, loc='lower right')
    for axis in axes[:2]:
        axis.legend(frameon=False)
    if title:
        figure.suptitle(title, fontsize=11)
    temporary = f'{path}.tmp'
    figure.savefig(temporary, dpi=130, format='png')
    plt.close(figure)
    os.replace(temporary, path)
    return Path(path)
