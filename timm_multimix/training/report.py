"""`report.md`: what came out of a run, of what, and what to do next."""
from __future__ import annotations

import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

import timm
import torch
import torchvision
import yaml

from ..data.class_weight import uneven
from ..files import write_text
from ..policy import told
from ..runs.recipes import program
from ..runs.settings import changed_settings
from ..runs.summary import read_summary
from ..version import __version__
from .words import clock, headline


def write_report(
        folder: Path, settings: Mapping[str, Any], data: str, mixing: str, commands: tuple[str, str],
        device: torch.device, seconds: float, epochs: int, counts: Optional[Mapping[str, int]] = None) -> Path:
    """Write `report.md` beside the summary and the curves of a run: what came out, of what, and what to do next.

    Args:
        folder: of the run; its summary.csv and curves.png are what the report shows.
        settings: as args.yaml holds them.
        data: a sentence on the data set.
        mixing: `mixing_line`'s.
        commands: `in_plain_timm`'s.
        device, seconds, epochs: of this session, which may have resumed a run.
        counts: `MixingPolicy.counts` of the whole run.
    """
    rows = read_summary(folder / 'summary.csv')
    valid = [row for row in rows if row.get('eval_top1')]
    preset = '' if settings['multimix'] == 'none' else settings.get('multimix_preset') or 'default'
    head = headline(f'`{settings["model"]}`', settings['multimix'], preset, counts)
    lines = [f'# {folder.name}', '', f'{head}; {data}.', '']
    if counts and counts.get('steps'):
        lines += [told(counts), '']
    if valid:
        key = f'eval_{settings["eval_metric"]}'
        best = (min if key == 'eval_loss' else max)(valid, key=lambda row: float(row[key]))
        columns = {'top1': 'top-1 %', 'top5': 'top-5 %', 'loss': 'validation loss'}
        if of_classes(settings, valid[-1]) is not None and best.get('eval_balanced'):  # older versions have none
            columns = {'top1': 'top-1 %', 'balanced': 'mean over classes %', **columns}
        lines += [f'| | epoch | {" | ".join(columns.values())} |', '|---|---' + '|---' * len(columns) + '|']
        for name, row in (('best', best), ('last', valid[-1])):
            cells = [f'{float(row[f"eval_{column}"]):.{4 if column == "loss" else 2}f}' for column in columns]
            lines.append(f'| {name} | {int(row["epoch"]) + 1} | {" | ".join(cells)} |')
        holds = ('`model_best.pth.tar` holds it, `model/` the last one.' if (folder / 'model_best.pth.tar').exists()
                 else '`model/` holds the last one.')
        if settings.get('model_ema') and settings.get('model_ema_force_cpu'):
            holds += (' The numbers are of the weights as they were trained. `model/` holds their average, which was '
                      'not validated (--model-ema-force-cpu); its `raw/` holds them.')
        lines += ['', f'The best epoch was chosen by {key[5:]} on these validation images, so its numbers are a little '
                      f'too good. {holds}', '']
    if (folder / 'curves.png').exists():
        lines += ['![Loss, accuracy and mixing over the epochs](curves.png)', '']
    resumed = len(rows) > epochs
    if epochs > 0:
        speed = [float(row['train_images_per_second']) for row in rows[-epochs:] if row.get('train_images_per_second')]
        lines += ['The last session: ' * resumed + f'{epochs} epoch{"s" * (epochs > 1)} in {clock(seconds)}'
                  + (f', {statistics.median(speed):.0f} images/s in training (the median epoch)' if speed else '')
                  + '.', '']
    changed = yaml.safe_dump(changed_settings(settings), default_flow_style=None, sort_keys=False).rstrip()
    lines += ['## Settings', '', mixing, '',
              'What differs from the defaults (`args.yaml` has all):', '', '```yaml', changed, '```', '',
              '## Made with', '', f'- `{shlex.join([*program("train"), *sys.argv[1:]])}`'
              + ' (the last session)' * resumed]
    lines += [f'- {line}' for line in environment(device)]
    train = shlex.join(program('train'))
    advise = [] if counts else [shlex.join([*program('advise'), str(folder)]) + '   # would mixing help?']
    lines += ['', '## Next', '', '```sh',
              f'{train} --resume {shlex.quote(str(folder))} --epochs N   # go on with it',
              f'{train} -c {shlex.quote(str(folder / "args.yaml"))} --experiment NEW   # run it again', *advise,
              '```', '', 'In plain timm, from the folder or from the weights alone:', '', '```python',
              'import timm', '', f'model = {commands[0]}', f'model = {commands[1]}', '```', '']
    write_text(folder / 'report.md', '\n'.join(lines))
    return folder / 'report.md'


def of_classes(settings: Mapping[str, Any], row: Mapping[str, Any]) -> Optional[float]:
    """Accuracy of a validation as the mean over the classes, in percent, where they are uneven or weighted; else None.

    Args:
        settings: as args.yaml holds them.
        row: of summary.csv.
    """
    sizes = [float(row[f'train_{which}_class']) for which in ('smallest', 'largest') if row.get(f'train_{which}_class')]
    known = row.get('eval_balanced')
    return float(known) if known and (settings.get('class_weight') or uneven(sizes)) else None


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
