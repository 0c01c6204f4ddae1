"""What an evaluation returns: rows for people, data for programs."""
from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Optional, Union

from ..files import whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Value(NamedTuple):
    """A figure, and the ends of its 95 % interval where there is one."""
    value: float
    low: Optional[float] = None
    high: Optional[float] = None

    def text(self, percent: bool) -> str:
        """As the report prints it: two decimals for percentages, four significant digits otherwise."""
        def one(x: float) -> str:
            if x != x:
                return '–'
            return f'{x:.2f}' if percent else f'{x:.0f}' if x == round(x) else f'{x:#.4g}'
        ends = '' if self.low is None or self.high is None else f' [{one(self.low)}, {one(self.high)}]'
        return one(self.value) + ends


@dataclass
class Table:
    """One evaluation of one model. `print(table)` shows the rows.

    Attributes:
        name: of the evaluation.
        rows: label → figure, in the order shown. A label 'group | row' is shown under the group; one that ends in
            ', %' is a percentage.
        data: curves, matrices and settings, as plain values that JSON can hold.
        notes: sentences about this model, such as a check that failed.
        arrays: what the pictures are drawn from and no file holds.
    """
    name: str
    rows: dict[str, Value]
    data: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    arrays: dict[str, Any] = field(default_factory=dict, repr=False)

    def __getitem__(self, label: str) -> float:
        return self.rows[label].value

    def __str__(self) -> str:
        width = max(map(len, self.rows), default=0)
        lines = [f'{label:<{width}}  {value.text(label.endswith("%"))}' for label, value in self.rows.items()]
        return '\n'.join([self.name, *lines, *self.notes])


def rows_of(figures: Mapping[str, Union[float, Value]]) -> dict[str, Value]:
    """Plain numbers become `Value`s."""
    return {label: x if isinstance(x, Value) else Value(float(x)) for label, x in figures.items()}


def panels(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Any, Any]:
    """An empty picture of so many inches, and its axes, (rows, columns). A caller's pyplot stays as it is."""
    from matplotlib.figure import Figure
    figure = Figure(size, layout='constrained')
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def legend_mark(**style: Any) -> Any:
    """A line or a dot, for a legend alone."""
    from matplotlib.lines import Line2D
    return Line2D([], [], **style)


COLOURS = ('#2f6db3', '#e07b22', '#3a9a5b', '#7b4fa6', '#b33a4a', '#6b6b6b', '#b59410', '#1f9aa8')


def colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def short(name: str) -> str:
    """A name for an axis or a legend: its end is left out where it is long."""
    name = name.encode(errors='replace').decode()  # of a folder, whose name need not be text
    return name if len(name) <= 28 else name[:27].rstrip() + '…'


def title(name: str, inches: float, *more: str) -> str:
    """A panel's title: a checkpoint's name, in lines as wide as the panel, and further lines."""
    return '\n'.join([*textwrap.wrap(name, max(12, int(9 * inches))), *more])


def save_figure(figure: Figure, path: Union[str, Path]) -> Path:
    """Write a PNG, whole and with nothing of it cut off."""
    with whole(path) as temporary:
        figure.savefig(temporary, dpi=120, format='png', bbox_inches='tight', pad_inches=0.08)
    return Path(path)
