"""`summary.csv`: a row an epoch, whole at every moment."""
from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any, Union


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
