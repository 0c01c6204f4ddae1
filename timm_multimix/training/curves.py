"""`curves.png`: loss, accuracy and mixing over the epochs."""
from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, Union

from ..files import whole
from ..runs.summary import read_summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_curves(summary: Union[str, Path], path: Union[str, Path], title: str = '') -> Optional[Path]:
    """Draw a summary.csv as a PNG (`draw_curves`); None if it has no rows."""
    rows = read_summary(summary)
    if not rows:
        return None
    with whole(path) as temporary:
        draw_curves(rows, title).savefig(temporary, dpi=130, format='png')
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
        known = [(epoch, v) for epoch, v in zip(epochs, values) if v == v]  # --val-interval leaves epochs out
        if known:
            axis.plot(*zip(*known), label=label, color=color, marker='.' if len(known) < 40 else None, **style)

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
    _legend_above_the_lines(axis, bottom=0)

    axis = panels[1]
    last = [value for value in column('eval_top1') if value == value][-1:]
    axis.set_title('Top-1 accuracy, %' + ''.join(f' (validation, last: {value:.2f})' for value in last))
    if not apart:  # nothing mixes, or an older version that did not tell the images apart
        line(axis, column('train_top1'), 'train, all steps' if mixes else 'train', blue)
    line(axis, column('train_top1_unmixed'), 'train, unmixed images', blue)
    line(axis, column('train_top1_mixed'), 'train, mixed images', orange)
    line(axis, column('eval_top1'), 'validation', green)
    _legend_above_the_lines(axis, ticks_to=100)

    if counted:
        axis, steps = panels[2], column('train_steps')
        axis.set_title('What the steps mixed')
        axis.set_ylabel("% of an epoch's steps")
        for name, label, color, style in (
                ('mixed_embeddings', 'embeddings (MultiMix)', orange, '-'),
                ('mixed_inputs', 'images (mixup or CutMix)', orange, '--'), ('unmixed', 'nothing', blue, '-')):
            line(axis, [100 * n / of if of else float('nan') for n, of in zip(column(f'train_{name}'), steps)], label,
                 color, linestyle=style)
        axis.set_ylim(-3, 130)  # room for the legend, which no line goes through
        axis.set_yticks(range(0, 101, 20))
        axis.legend(frameon=False, fontsize='small', loc='upper right', ncols=2)
    if signal:
        axis, other = panels[-1], panels[-1].twinx()
        axis.set_title('How strong the mixing of embeddings is')
        line(axis, column('train_effective'), 'effective examples', orange)
        axis.set_ylabel('examples in a mixture,\neffective number (1: unmixed)', color=orange, fontsize='small')
        axis.set_ylim(bottom=1)
        line(other, [100 * (1 - e) for e in column('train_target_entropy')], 'class information', purple)
        other.set_ylabel('class information in its target,\n% (0: none is left)', color=purple, fontsize='small')
        other.set_ylim(0, 100)
    if title:
        figure.suptitle(textwrap.fill(title, int(9 * size[0])), fontsize=11)  # letters to the inch, and room to spare
    return figure


def _legend_above_the_lines(axis: Any, bottom: Optional[float] = None, ticks_to: float = math.inf) -> None:
    """A legend that no line goes through: the panel is made higher than its lines are.

    Args:
        bottom: of the panel; default a little below the lowest value.
        ticks_to: the largest value that there is.
    """
    values = [value for line in axis.get_lines() for value in line.get_ydata() if math.isfinite(value)] or [0.0]
    low, high = min(values), max(values)
    low = low - 0.05 * (high - low or 20) if bottom is None else bottom
    # A line of text takes about 7 % of the panel.
    axis.set_ylim(low, low + (high - low or 1.0) / (0.93 - 0.07 * len(axis.get_lines())))
    ends = axis.get_ylim()
    axis.set_yticks([tick for tick in axis.get_yticks() if ends[0] <= tick <= min(ends[1], ticks_to)])
    axis.legend(frameon=False, fontsize='small', loc='upper right')
