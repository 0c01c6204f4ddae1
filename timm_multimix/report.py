"""What will happen, in words; what happened, as `summary.csv`, `curves.png` and `report.md`."""
from __future__ import annotations

import csv
import os
import platform
import shlex
import statistics
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, Union

import timm
import torch
import torchvision
import yaml

from .config import ALIASES, PRESET_WORDS, MultiMixConfig
from .mixing import expected_signal
from .policy import EMBEDDINGS, FEW, INPUTS, NOTHING, MixingPolicy, thousands, told
from .version import __version__

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# The methods' names, by `mode`.
METHODS = {'multimix': 'MultiMix', 'dense': 'Dense MultiMix'}


def describe(config: Optional[MultiMixConfig], batch: int, num_classes: int) -> str:
    """What the settings do with batches of this size, and which of them the preset does not say: one line.

    Raises:
        SettingError: the settings do not fit the batch.
    """
    if config is None:
        return 'MultiMix: none.'
    at = ' and position' if config.dense else ''
    effective = expected_signal(config, batch, num_classes)['effective']
    mixtures = (f'{config.mixtures(batch)} mixtures a step{at}, each of about {effective:.1f} effective examples of '
                f'{batch}' if config.prob else 'embeddings are never mixed')
    changed = ', '.join(f'{name}={setting_text(name, value)}' for name, value in config.differences().items()
                        if name != 'engine')  # which changes no result
    return (f'{METHODS[config.mode]}, preset {config.preset} ({PRESET_WORDS[config.preset]}): {mixtures}'
            + f'; changed: {changed}' * bool(changed) + '.')


def setting_text(name: str, value: Any) -> str:
    """The value of a setting for people, as short as it can be."""
    if name == 'class_weight':
        return f'{len(value)} weights'
    if isinstance(value, (list, tuple)):  # layers, of which one is drawn; or the ends of a range, often the same
        return (' or ' if name == 'layer' else ' to ').join(dict.fromkeys(setting_text('', v) for v in value))
    return f'{value:g}' if isinstance(value, float) else str(value)


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
               seconds: float) -> str:
    """An epoch in a line of a terminal; everything else is in summary.csv.

    Args:
        epoch: this one, from 0.
        epochs: how many are planned.
        start: where this session began.
        found: what training measured, by the names of summary.csv's columns without their prefix; None for no value.
        evaluated: what validation measured; empty where it was not due.
        seconds: since `start`.
    """
    left = seconds / (epoch + 1 - start) * (epochs - epoch - 1)
    loss = float('nan') if found['loss'] is None else found['loss']  # None: no step had a finite one
    parts = [f'train loss {loss:.3f}' + _train_top1(found)]
    if evaluated:
        raw = f' (raw {evaluated["raw_top1"]:.2f})' if 'raw_top1' in evaluated else ''  # beside the averaged weights'
        parts.append(f'val loss {evaluated["loss"]:.3f}, top-1 {evaluated["top1"]:.2f} %{raw}')
    if found.get('skipped'):
        parts.append(f'{found["skipped"]} updates without a finite gradient left out')
    parts.append(f'{found["images_per_second"]:.0f} img/s, ' + (f'{clock(left)} left' if left else clock(seconds)))
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


def write_report(
        folder: Path, settings: Mapping[str, Any], data: str, mixing: str, commands: tuple[str, str],
        device: torch.device, seconds: float, epochs: int, counts: Optional[Mapping[str, int]] = None) -> Path:
    """Write `report.md` beside the summary and the curves of a run: what came out, of what, and what to do next.

    Args:
        folder: of the run; its summary.csv and curves.png are what the report shows.
        settings: as args.yaml holds them.
        data: a sentence on the data set.
        mixing: `describe`'s.
        commands: `in_plain_timm`'s.
        device, seconds, epochs: of this session, which may have resumed a run.
        counts: `MixingPolicy.counts` of the whole run.
    """
    from .cli import changed_settings
    rows = read_summary(folder / 'summary.csv')
    valid = [row for row in rows if row.get('eval_top1')]
    preset = '' if settings['multimix'] == 'none' else settings.get('multimix_preset') or 'default'
    head = headline(f'`{settings["model"]}`', settings['multimix'], ALIASES.get(preset, preset), counts)
    lines = [f'# {folder.name}', '', f'{head}; {data}.', '']
    if counts and counts.get('steps'):
        lines += [told(counts), '']
    if valid:
        key = f'eval_{settings["eval_metric"]}'
        best = (min if key == 'eval_loss' else max)(valid, key=lambda row: float(row[key]))
        lines += ['| | epoch | top-1 | top-5 | validation loss |', '|---|---|---|---|---|']
        for name, row in (('best', best), ('last', valid[-1])):
            top1, top5, loss = (float(row[f'eval_{name}']) for name in ('top1', 'top5', 'loss'))
            lines.append(f'| {name} | {int(row["epoch"]) + 1} | {top1:.2f} % | {top5:.2f} % | {loss:.4f} |')
        lines += ['', f'The best epoch was chosen by {key[5:]} on these validation images, so its numbers are a little '
                      f'too good. `model_best.pth.tar` holds it, `model/` the last one.', '']
    if (folder / 'curves.png').exists():
        lines += ['![Loss, accuracy and mixing over the epochs](curves.png)', '']
    if epochs > 0:
        speed = [float(row['train_images_per_second']) for row in rows[-epochs:] if row.get('train_images_per_second')]
        lines += [f'{epochs} epochs in {clock(seconds)}' + (f', {statistics.median(speed):.0f} images/s in training '
                  f'(the median epoch).' if speed else '.'), '']
    changed = yaml.safe_dump(changed_settings(settings), default_flow_style=None, sort_keys=False).rstrip()
    lines += ['## Settings', '', mixing, '',
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
    """Rows of a summary.csv; empty where there is none. Of a table that a crash has torn, the rows that are whole."""
    if not os.path.exists(path):
        return []
    with open(path, newline='', encoding='utf-8', errors='replace') as f:
        lines = f.read().replace('\0', '').splitlines()
    rows = csv.DictReader(lines, restkey='torn', restval='\N{REPLACEMENT CHARACTER}')
    return [row for row in rows if 'torn' not in row and str(row.get('epoch')).isdigit()
            and not any('\N{REPLACEMENT CHARACTER}' in str(value) for value in row.values())]


def plot_curves(summary: Union[str, Path], path: Union[str, Path], title: str = '') -> Optional[Path]:
    """Draw a summary.csv as a PNG (`draw_curves`); None if it has no rows."""
    rows = read_summary(summary)
    if not rows:
        return None
    temporary = f'{path}.tmp'
    draw_curves(rows, title).savefig(temporary, dpi=130, format='png')
    os.replace(temporary, path)
    return Path(path)


def draw_curves(rows: list[dict[str, Any]], title: str = '') -> Figure:
    """Loss and accuracy over the epochs; which steps mixed and how much, where that was measured.

    Args:
        rows: of a summary.csv, at least one.
        title: wrapped where it is long.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    def column(name: str) -> list[float]:
        return [float(row[name]) if row.get(name) not in (None, '') else float('nan') for row in rows]

    def measured(*names: str) -> bool:
        return any(value == value for name in names for value in column(name))

    epochs = [int(row['epoch']) + 1 for row in rows]

    def line(axis: Any, values: list[float], label: str, color: str, **style: Any) -> None:
        if any(v == v for v in values):
            axis.plot(epochs, values, label=label, color=color, marker='.' if len(epochs) < 40 else None, **style)

    blue, orange, green, purple, grey = '#2f6db3', '#e07b22', '#3a9a5b', '#7b4fa6', '#9a9a9a'
    counted, signal = measured('train_steps'), measured('train_effective')
    mixes, apart = counted or signal, measured('train_top1_unmixed', 'train_top1_mixed')
    height, width, size = {2: (1, 2, (9, 3.8)), 3: (1, 3, (13, 3.8)), 4: (2, 2, (9.5, 7.2))}[2 + counted + signal]
    figure = Figure(figsize=size, layout='constrained')
    panels = list(figure.subplots(height, width).flat)
    margin = max(0.5, 0.04 * (epochs[-1] - epochs[0]))
    for axis in panels:
        axis.set_xlabel('epoch')
        axis.set_xlim(epochs[0] - margin, epochs[-1] + margin)  # the same for all, whatever is missing in them
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.25)

    axis = panels[0]
    axis.set_title('Loss')
    line(axis, column('train_loss'), 'train loss, all steps' if mixes else 'train loss', grey if mixes else blue)
    line(axis, column('train_loss_mixed'), 'train loss, mixed embeddings', orange)
    line(axis, column('train_loss_clean'), 'train loss, unmixed', blue)
    line(axis, column('eval_loss'), 'validation loss', green)
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False, fontsize='small')

    axis = panels[1]
    last = [value for value in column('eval_top1') if value == value][-1:]
    axis.set_title('Top-1 accuracy, %' + ''.join(f' (validation, last: {value:.2f})' for value in last))
    if not apart:  # nothing mixes, or an older version that did not tell the images apart
        line(axis, column('train_top1'), 'train, all steps' if mixes else 'train', blue)
    line(axis, column('train_top1_unmixed'), 'train, unmixed images', blue)
    line(axis, column('train_top1_mixed'), 'train, mixed images', orange)
    line(axis, column('eval_top1'), 'validation', green)
    axis.legend(frameon=False, fontsize='small')

    if counted:
        axis, steps = panels[2], column('train_steps')
        axis.set_title('Steps that mix, %')
        for name, label, color, style in (
                ('mixed_embeddings', 'mixed embeddings', orange, '-'), ('mixed_inputs', 'mixed inputs', orange, '--'),
                ('unmixed', 'unmixed', blue, '-')):
            line(axis, [100 * n / of if of else float('nan') for n, of in zip(column(f'train_{name}'), steps)], label,
                 color, linestyle=style)
        axis.set_ylim(-3, 103)
        axis.legend(frameon=False, fontsize='small')
    if signal:
        axis, other = panels[-1], panels[-1].twinx()
        axis.set_title('How much is mixed')
        line(axis, column('train_effective'), 'effective examples', orange)
        axis.set_ylabel('effective examples in a mixture', color=orange)
        axis.set_ylim(bottom=1)
        line(other, [100 * (1 - e) for e in column('train_target_entropy')], 'class information', purple)
        other.set_ylabel('class information left, % (0: none)', color=purple)
        other.set_ylim(0, 100)
    if title:
        figure.suptitle(textwrap.fill(title, int(9 * size[0])), fontsize=11)  # letters to the inch, and room to spare
    return figure
