"""`report.md` for people and `results.json` for programs."""
from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch

from ..files import write_text
from ..version import __version__
from . import summary
from .detection import transfer
from .load import Checkpoint
from .table import Table
from .tables import accuracy, attention, calibration, embedding, hull, ood, robustness

Tables = Mapping[str, Mapping[str, Table]]

# The module of each table, with its ABOUT, draw and perhaps compare.
MODULES: dict[str, Any] = {
    'accuracy': accuracy, 'calibration': calibration, 'robustness': robustness, 'ood': ood, 'embedding': embedding,
    'hull': hull, 'attention': attention, 'transfer': transfer,
}


def finish(name: str, tables: Mapping[str, Table], folder: Path) -> list[Path]:
    """Compare the checkpoints with each other, where the table can, and draw its pictures."""
    module = MODULES[name]
    if len(tables) > 1 and hasattr(module, 'compare'):
        module.compare(tables)
    return module.draw(tables, folder)  # type: ignore[no-any-return]


def write(
        folder: Path,
        checkpoints: list[Checkpoint],
        tables: Tables,
        pictures: Mapping[str, list[Path]],
        missing: Mapping[str, Mapping[str, str]],
        about: Mapping[str, str],
) -> None:
    """Write both files anew; each is whole at every moment.

    Args:
        folder: where to; pictures are in it already.
        checkpoints: the columns.
        tables: table name → checkpoint name → `Table`.
        pictures: table name → their files.
        missing: table name → checkpoint name → why there is none.
        about: what was run, on which images: shown at the top.
    """
    about = {**about, 'versions': f'timm-multimix {__version__}, timm {timm.__version__}, torch {torch.__version__}'}
    write_text(folder / 'report.md', markdown(checkpoints, tables, pictures, missing, about))
    results = {
        **about,
        'checkpoints': {c.name: {'source': c.source, 'data_config': c.data_config} for c in checkpoints},
        'tables': {name: {column: {
            'rows': {label: value.value if value.low is None else list(value) for label, value in table.rows.items()},
            'notes': table.notes, 'data': table.data} for column, table in columns.items()}
            for name, columns in tables.items()},
        'missing': missing,
        'summary': {row.name: {column: value.value for column, value in row.values.items()}
                    for row in summary.summary(tables)}}
    write_text(folder / 'results.json', json.dumps(plain(results), indent=1, allow_nan=False) + '\n')


def markdown(checkpoints: list[Checkpoint], tables: Tables, pictures: Mapping[str, list[Path]],
             missing: Mapping[str, Mapping[str, str]], about: Mapping[str, str]) -> str:
    """The report's text."""
    lines = ['# Evaluation', '', *(f'- {key}: {value}' for key, value in about.items()), '',
             '| checkpoint | from | parameters | images |', '|---|---|---|---|']
    for c in checkpoints:
        size = sum(p.numel() for p in c.model.parameters())
        shape = '×'.join(map(str, c.data_config['input_size']))
        lines.append(f'| {c.name} | `{c.source}` | {size / 1e6:.2f} M | {shape} |')
    if rows := summary.summary(tables):
        lines += ['', '## Summary', '', summary.ABOUT, '']
        lines += summary.lines(rows, list(dict.fromkeys(column for row in rows for column in row.values)))
    for name in dict.fromkeys([*tables, *missing]):
        columns = tables.get(name, {})
        lines += ['', f'## {MODULES[name].TITLE}', '', MODULES[name].ABOUT, '']
        if columns:
            lines += table_lines(columns)
        notes = [f'- {column}: {note}' for column, table in columns.items() for note in table.notes]
        notes += [f'- {column}: not measured. {why}' for column, why in missing.get(name, {}).items()]
        lines += ['', *notes] if notes else []
        for path in pictures.get(name, []):
            lines += ['', f'![{path.stem}]({path.name})']
    # The name of a file or folder need not be text, and UTF-8 cannot say what stands for the rest.
    return '\n'.join(lines).encode(errors='replace').decode() + '\n'


def table_lines(columns: Mapping[str, Table]) -> list[str]:
    """One column per checkpoint; rows 'group | row' under a line for their group."""
    labels = list(dict.fromkeys(label for table in columns.values() for label in table.rows))
    lines = [f'| | {" | ".join(columns)} |', '|---|' + '---:|' * len(columns)]
    last = ''
    for label in labels:
        group, _, row = label.rpartition(' | ')
        if group and group != last:
            lines.append(f'| **{group}** |' + ' |' * len(columns))
        last = group
        cells = [table.rows[label].text(label.endswith('%')) if label in table.rows else ''
                 for table in columns.values()]
        lines.append(f'| {row} | {" | ".join(cells)} |')
    return lines


def plain(x: Any) -> Any:
    """What JSON can hold; figures that are no numbers become null."""
    if isinstance(x, Mapping):
        return {str(k): plain(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [plain(v) for v in x]
    if isinstance(x, float):
        return float(x) if math.isfinite(x) else None
    return x
