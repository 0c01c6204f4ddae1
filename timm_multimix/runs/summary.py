"""`summary.csv`: a row an epoch, whole at every moment."""
from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Union

from ..files import whole


def write_summary(path: Union[str, Path], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the whole table. A run that is resumed with other settings measures other things: it gets both' columns."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with whole(path) as temporary, open(temporary, 'w', newline='', encoding='utf-8') as f:
        writer = csv.DictWriter(f, columns, restval='')
        writer.writeheader()
        writer.writerows(rows)


def read_summary(path: Union[str, Path]) -> list[dict[str, Any]]:
    """Rows of a summary.csv; empty where there is none. Of a table that a crash has torn, the rows that are whole."""
    if not os.path.exists(path):
        return []
    with open(path, newline='', encoding='utf-8', errors='replace') as f:
        lines = f.read().replace('\0', '').splitlines()
    rows = csv.DictReader(lines, restkey='torn', restval='torn')
    return [row for row in rows if 'torn' not in row and str(row.get('epoch')).isdecimal()
            and all(not value or _is_number(value) for value in row.values())]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
