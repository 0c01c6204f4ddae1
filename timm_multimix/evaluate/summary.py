"""The figures that decide, of all tables: the rows on top of the report."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import NamedTuple, Optional

from .table import Table, Value

ABOUT = """\
The figures that decide; all others, and what each means, are below. ↑: higher is better, ↓: lower is. Of several
checkpoints the best figure is bold, which may be chance: where two 95 % intervals overlap, look at the differences
under Accuracy. Alignment and uniformity count together: a model that maps all images to one point has the best
alignment and the worst uniformity."""


class Headline(NamedTuple):
    """A row of the summary.

    Attributes:
        table: whose figure it is.
        label: of its row; with '*', of all rows that match, whose mean it is.
        best: `max` or `min`, of several checkpoints.
        name: shown, where the label does not say enough by itself; {label} stands for it, {count} for how many rows
            match.
    """
    table: str
    label: str
    best: Callable[..., float]
    name: Optional[str] = None


OVER_CLASSES = 'mean over classes, %'  # where they are uneven
HEADLINES = (
    Headline('accuracy', 'top-1, %', max),
    Headline('accuracy', OVER_CLASSES, max),
    Headline('accuracy', 'worst class, %', max, 'top-1 of the worst class, %'),
    Headline('accuracy', 'NLL', min),
    Headline('calibration', 'ECE, %', min),
    Headline('calibration', 'ECE, after temperature scaling, %', min),
    Headline('robustness', 'FGSM, *', max, 'accuracy under {label}'),
    Headline('robustness', 'PGD, *', max, 'accuracy under {label}'),
    Headline('robustness', 'AutoAttack, *', max, 'accuracy under {label}'),
    Headline('ood', '* | AuROC, max softmax, %', max,
             'out of distribution, AuROC by max softmax, mean of {count} sets, %'),
    Headline('embedding', 'alignment', min),
    Headline('embedding', 'uniformity', min),
    Headline('transfer', 'Faster R-CNN | mAP, %', max, 'mAP of Faster R-CNN, %'),
    Headline('transfer', 'SSD | mAP, %', max, 'mAP of SSD, %'),
)


class Row(NamedTuple):
    """One figure of every checkpoint that has it.

    Attributes:
        name: of the figure, with ↑ or ↓.
        values: checkpoint name → figure.
        best: the names of the checkpoints that have the best one; none where there is one checkpoint only.
    """
    name: str
    values: dict[str, Value]
    best: list[str]


def summary(tables: Mapping[str, Mapping[str, Table]]) -> list[Row]:
    """The headlines of the tables that are there: table name → checkpoint name → `Table`."""
    return [row for headline in HEADLINES if (row := _row(headline, tables.get(headline.table, {})))
            and (headline.label != OVER_CLASSES or any(t.data['uneven'] for t in tables['accuracy'].values()))]


def _row(headline: Headline, columns: Mapping[str, Table]) -> Optional[Row]:
    values, name = {}, headline.name or ''
    for column, table in columns.items():
        found = {label: value for label, value in table.rows.items() if fnmatchcase(label, headline.label)}
        if not found:
            continue
        name = (headline.name or '{label}').format(label=next(iter(found)), count=len(found))
        values[column] = next(iter(found.values())) if len(found) == 1 else Value(
            sum(value.value for value in found.values()) / len(found))
    if not values:
        return None
    known = [value.value for value in values.values() if value.value == value.value]
    best = [column for column, value in values.items() if value.value == headline.best(known)] if known else []
    return Row(name + (' ↑' if headline.best is max else ' ↓'), values, best if len(values) > 1 else [])


def lines(rows: list[Row], columns: list[str]) -> list[str]:
    """As a table of Markdown, a column per checkpoint."""
    found = [f'| | {" | ".join(columns)} |', '|---|' + '---:|' * len(columns)]
    for row in rows:
        percent = '%' in row.name
        cells = {column: value.text(percent) for column, value in row.values.items()}
        cells.update({column: f'**{cells[column]}**' for column in row.best})
        found.append(f'| {row.name} | {" | ".join(cells.get(column, "") for column in columns)} |')
    return found
