"""docs/models.md: the models of checkpoints/, and what evaluate.py measures of each.

    python tools/models.py                                        # the page, of what was measured
    python tools/models.py measure NAME … --data-dir FOLDER       # evaluate these, and write the page
"""
from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml
from safetensors import safe_open

from timm_multimix.files import write_text
from timm_multimix.hub import shipped

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / 'docs' / 'models.md'
FIGURES = 'figures.json'  # beside a model's weights: what was measured, and by which command
ON = 'accuracy,calibration,robustness,ood'
# A column's title → table and label of a row of evaluate.py; with '*', the mean of all rows that end so.
COLUMNS = {
    'top-1, %': ('accuracy', 'top-1, %'),
    'NLL': ('accuracy', 'NLL'),
    'ECE, %': ('calibration', 'ECE, %'),
    'NLL, scaled': ('calibration', 'NLL, after temperature scaling'),
    'ECE, scaled, %': ('calibration', 'ECE, after temperature scaling, %'),
    'FGSM 8/255, %': ('robustness', 'FGSM, ε = 8/255, %'),
    'PGD 4/255, %': ('robustness', 'PGD, ε = 4/255, %'),
    'AuROC, %': ('ood', '* | AuROC, max softmax, %'),
}


def read_yaml(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text()) if path.is_file() else {}


def data_of(folder: Path) -> str:
    """What the images of a model's training are called: the last part of --data-dir, or --dataset."""
    args = read_yaml(folder / 'args.yaml')
    return Path(args['data_dir']).name if args.get('data_dir') else args['dataset']


def first(row: Any) -> float:
    """The figure of a row of results.json, which may have an interval behind it."""
    return float(row[0] if isinstance(row, list) else row)


def measure(names: list[str], data_dir: str) -> None:
    """Run evaluate.py on each model, and write down the figures beside it."""
    models = shipped()
    for name in names or models:
        if name not in models:
            raise SystemExit(f'error: checkpoints/ has no model {name!r}. It has {", ".join(models)}.')
        folder, data = models[name], data_of(models[name])
        if '/' not in data and Path(data_dir).name != data:
            if names:
                raise SystemExit(f'error: {name} is of {data}, and --data-dir is {data_dir!r}. Name a folder {data}.')
            continue
        images = [] if '/' in data else ['--data-dir', data_dir]
        command = ['evaluate.py', f'checkpoints/{name}', *images, '--on', ON, '--no-curve', '-j', '0']
        with tempfile.TemporaryDirectory() as out:
            subprocess.run([sys.executable, *command, '--output', out], cwd=ROOT, check=True)
            tables = json.loads((Path(out) / 'results.json').read_text())['tables']
        figures = {}
        for title, (table, label) in COLUMNS.items():
            rows = next(iter(tables[table].values()))['rows']
            found = [first(row) for key, row in rows.items() if fnmatchcase(key, label)]
            figures[title] = sum(found) / len(found)
        shown = [*command[:2], *(['--data-dir', data] if images else []), *command[2 + len(images):]]
        write_text(folder / FIGURES, json.dumps(
            {'command': f'python {shlex.join(shown)}', 'images': int(first(tables['accuracy'][name]['rows']['images'])),
             'figures': figures}, indent=1) + '\n')


def mixing(folder: Path) -> str:
    """What the training mixed, in a few words."""
    args, settings = read_yaml(folder / 'args.yaml'), read_yaml(folder / 'multimix.yaml')
    if settings:
        preset = settings['preset']
        return f'`--multimix {settings["mode"]}`' + f', {preset}' * (preset != 'default')
    found = [f'`--{name}`' for name in ('mixup', 'cutmix') if args.get(name)]
    return ' '.join(found) if found else 'nothing'


def weights(folder: Path) -> str:
    path = folder / 'model.safetensors'
    with safe_open(path, 'pt') as f:
        count = sum(f.get_tensor(key).numel() for key in f.keys())  # noqa: SIM118
    return f'{count / 1e6:.2f} M, {path.stat().st_size / 1e6:.1f} MB'


def tables() -> str:
    """A table for each data set, of the models that were measured."""
    by_data: dict[str, list[str]] = {}
    for name, folder in shipped().items():
        found = json.loads((folder / FIGURES).read_text()) if (folder / FIGURES).is_file() else None
        cells = [f'[`{name}`](../checkpoints/{name}/README.md)', weights(folder), mixing(folder)]
        cells += [f'{found["figures"][title]:.{2 if title.endswith("%") else 3}f}' if found else ''
                  for title in COLUMNS]
        lines = by_data.setdefault(data_of(folder), [])
        lines.append(f'| {" | ".join(cells)} |')
    head = ['model', 'weights', 'mixes', *COLUMNS]
    return '\n\n'.join('\n'.join([f'### {data}', '', f'| {" | ".join(head)} |', '|---' * len(head) + '|', *lines])
                       for data, lines in sorted(by_data.items()))


def page() -> str:
    """Markdown: what stands on the page, with the tables anew."""
    top, _, rest = PAGE.read_text().partition('<!-- tables -->\n')
    return f'{top}<!-- tables -->\n\n{tables()}\n\n<!-- end -->\n{rest.partition("<!-- end -->" + chr(10))[2]}'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest='command')
    one = commands.add_parser('measure', help='run evaluate.py on models of checkpoints/')
    one.add_argument('names', nargs='*', metavar='NAME', help='default: all that are of these images, or of digits')
    one.add_argument('--data-dir', default='', metavar='FOLDER', help='the images that they were trained with')
    args = parser.parse_args()
    if args.command:
        measure(args.names, args.data_dir)
    write_text(PAGE, page())


if __name__ == '__main__':
    main()
