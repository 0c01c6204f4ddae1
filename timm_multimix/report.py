"""What will happen, in words; what happened, as `summary.csv` and `curves.png`."""
from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any, Optional, Union

from .config import MultiMixConfig
from .mixing import expected_signal


def describe(config: Optional[MultiMixConfig], batch: int, num_classes: int) -> str:
    """The resolved settings, and the signal they will give on batches of this size."""
    if config is None:
        return 'MultiMix: none.'
    low, high = config.alpha_range(batch)
    expected = expected_signal(config, batch, num_classes)
    settings = ', '.join(f'{k}={v}' for k, v in config.to_dict().items() if k not in ('mode', 'preset'))
    return (f'MultiMix: {config.mode}, preset {config.preset}: {settings}.\n'
            f'  α is drawn from {low:.4g} to {high:.4g}: about {expected["effective"]:.1f} effective examples of '
            f"{batch}; mixed targets have {expected['target_entropy']:.0%} of the entropy of the batch's.")


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
