"""Does it help? Trains a grid of settings and seeds with `train.py`, and reports them side by side.

    python -m benchmarks.accuracy run benchmarks/studies/methods_small.yaml --data-dir cifar10 --budget 60
    python -m benchmarks.accuracy report benchmarks/studies/methods_small.jsonl

A study is a YAML file: `data` (how many images train, are held out of the training data, and test), `base` (flags of
train.py for all), `seeds`, `judge` ('held_out' to choose settings, 'test' for the final figures) and `runs`, a name and
its flags each; the first is what the others are compared with. Each finished run is one line of JSON beside the study.
What is there is not run again, several processes may share one study, and --budget stops before a run that would not
fit. Only last-epoch weights are evaluated, and the median of the last ten epochs shown beside: never the best on the
images that judge.
"""
from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Optional

import timm
import torch
import torch.nn.functional as F
import yaml
from timm.data import ImageDataset, create_transform, resolve_data_config
from torch.utils.data import DataLoader

from timm_multimix.errors import SettingError, nearest
from timm_multimix.report import read_summary

from .measure import describe, make_room

TRAIN = Path(__file__).resolve().parent.parent / 'train.py'
KEYS = ('data', 'base', 'seeds', 'judge', 'runs')
PARTS = ('held_out', 'test')


def read_study(path: Path) -> dict[str, Any]:
    """The study, checked.

    Raises:
        SettingError: keys that are missing or unknown, or values that cannot be.
    """
    study = yaml.safe_load(path.read_text())
    for key in study:
        if key not in KEYS:
            raise SettingError(f'{path}: {key!r} is not a part of a study.{nearest(key, KEYS)}')
    for key in KEYS:
        if not study.get(key):
            raise SettingError(f'{path}: {key!r} is missing.')
    if study['judge'] not in PARTS:
        raise SettingError(f'{path}: judge is {study["judge"]!r}, but it must be one of {", ".join(PARTS)}.')
    return study


def make_folder(root: Path, sizes: dict[str, int], on: str, folder: Path) -> None:
    """An image folder of links: `train`, balanced, and `validation`, which is held out of the training data or the test
    data. Which images is fixed, whatever the seed of the training."""
    wanted = {'train': ('train', 0, sizes['train'])}
    if on == 'held_out':
        wanted['validation'] = ('train', sizes['train'], sizes['held_out'])
    else:
        wanted['validation'] = ('validation', 0, sizes['test'])
    for part, (split, skip, count) in wanted.items():
        classes = sorted(p for p in (root / split).iterdir() if p.is_dir())
        each, first = count // len(classes), skip // len(classes)
        for source in classes:
            images = sorted(source.iterdir())
            random.Random(f'{split}/{source.name}').shuffle(images)
            chosen = images[first:first + each]
            if len(chosen) < each:
                raise SettingError(f'{source} has {len(images)} images, but {first + each} are needed.')
            (folder / part / source.name).mkdir(parents=True)
            for image in chosen:
                (folder / part / source.name / image.name).symlink_to(image.resolve())


def flags(settings: dict[str, Any]) -> list[str]:
    """train.py's command line of YAML settings."""
    line: list[str] = []
    for key, value in settings.items():
        flag = '--' + key.replace('_', '-')
        if value is True:
            line.append(flag)
        elif value is False:
            line.append('--no-' + flag[2:])
        elif isinstance(value, dict):
            line += [flag, *(f'{k}={v}' for k, v in value.items())]
        else:
            line += [flag, *(str(v) for v in (value if isinstance(value, list) else [value]))]
    return line


@torch.no_grad()
def evaluate(model_folder: Path, images: Path) -> dict[str, float]:
    """Top-1 in percent, negative log-likelihood in nats, expected calibration error (15 bins), of the last weights."""
    model = timm.create_model(f'local-dir:{model_folder}', pretrained=True).eval()
    transform = create_transform(**resolve_data_config(model=model), is_training=False)
    logits, targets = [], []
    for x, y in DataLoader(ImageDataset(str(images), transform=transform), batch_size=250):
        logits.append(model(x))
        targets.append(y)
    z, y = torch.cat(logits), torch.cat(targets)
    confidence, guess = z.softmax(1).max(1)
    right = (guess == y).float()
    bins = (confidence * 15).long().clamp(max=14)
    gap = torch.zeros(15).index_add_(0, bins, confidence - right).abs().sum() / len(y)
    return {'top1': 100 * float(right.mean()), 'nll': float(F.cross_entropy(z, y)), 'ece': float(gap), 'images': len(y)}


def run(study_path: Path, data_dir: Path, budget: Optional[float]) -> None:
    study = read_study(study_path)
    results = study_path.with_suffix('.jsonl')
    claims = study_path.with_suffix('.claims')
    started, longest = time.time(), 0.0
    names = list(study['runs'])
    for seed in study['seeds']:  # seed by seed, so that a study cut short compares like with like
        for name in names:
            settings = {**study['base'], **(study['runs'][name] or {}), 'seed': seed}
            what = json.dumps([settings, study['data'], study['judge']], sort_keys=True)
            key = hashlib.sha1(what.encode()).hexdigest()
            if any(row['key'] == key for row in read_results(results)):
                continue
            if budget and time.time() - started + longest > 60 * budget:
                print(f'Stopped: {name}, seed {seed} would not fit into {budget:g} minutes. The same command goes on.')
                return
            claims.mkdir(exist_ok=True)
            try:
                os.close(os.open(claims / key, os.O_CREAT | os.O_EXCL))
            except FileExistsError:  # another process has it; after one was killed, remove the folder
                print(f'{name}, seed {seed}: claimed in {claims}', flush=True)
                continue
            try:
                begun = time.time()
                row = {'name': name, 'seed': seed, 'judge': study['judge'], 'key': key,
                       **one(settings, study, data_dir)}
                longest = max(longest, time.time() - begun)
                with results.open('a') as f:
                    f.write(json.dumps(row) + '\n')
                print(f'{name}, seed {seed}: {row["top1"]:.2f} %, NLL {row["nll"]:.3f}, {row["minutes"]:.1f} min',
                      flush=True)
            finally:
                (claims / key).unlink()
    if claims.exists() and not any(claims.iterdir()):
        claims.rmdir()


def one(settings: dict[str, Any], study: dict[str, Any], data_dir: Path) -> dict[str, Any]:
    started = time.time()
    with tempfile.TemporaryDirectory() as tmp:
        folder, out = Path(tmp) / 'data', Path(tmp) / 'out'
        make_folder(data_dir, study['data'], study['judge'], folder)
        command = [*flags(settings), '--data-dir', str(folder), '--output', str(out), '--experiment', 'run']
        done = subprocess.run([sys.executable, str(TRAIN), *command], capture_output=True, text=True)
        if done.returncode:
            raise SettingError(f'train.py {" ".join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}')
        epochs = read_summary(out / 'run' / 'summary.csv')
        found = evaluate(out / 'run' / 'model', folder / 'validation')
    accuracies = [float(row['eval_top1']) for row in epochs[-10:]]
    speeds = [float(row['train_images_per_second']) for row in epochs[1:] or epochs]
    return {**found, 'median of last ten': statistics.median(accuracies), 'epochs': len(epochs),
            'images per second': statistics.median(speeds), 'minutes': (time.time() - started) / 60,
            'settings': settings, 'data': study['data'], **describe('cpu')}


def read_results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def mean_error(values: list[float]) -> tuple[float, float]:
    """Mean and its standard error; NaN for that of a single value."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.mean(values), error


def report(path: Path) -> str:
    """A Markdown table: means ± standard errors, and the paired difference to the first run with its 95 % interval."""
    from scipy import stats

    rows = read_results(path)
    if not rows:
        raise SettingError(f'{path} holds no finished run.')
    study = read_study(path.with_suffix('.yaml'))
    by_name = {name: {row['seed']: row for row in rows if row['name'] == name} for name in study['runs']}
    first = next(iter(study['runs']))
    base = by_name[first]
    data, on = study['data'], study['judge']
    lines = [
        f'{data["train"]} training images, {rows[0]["epochs"]} epochs, {rows[0]["images"]} images '
        f'{"held out of the training data" if on == "held_out" else "of the test data"}, last epoch.', '',
        '| run | seeds | top-1 % | median of last ten | NLL | ECE | top-1 against '
        f'{first}, 95 % interval | NLL against {first} | time of a step |', '|---|---|---|---|---|---|---|---|---|']
    for name, found in by_name.items():
        if not found:
            continue
        cells = [name, str(len(found))]
        for key, digits in (('top1', 2), ('median of last ten', 2), ('nll', 3), ('ece', 3)):
            mean, error = mean_error([row[key] for row in found.values()])
            cells.append(f'{mean:.{digits}f} ± {error:.{digits}f}' if len(found) > 1 else f'{mean:.{digits}f}')
        shared = sorted(found.keys() & base.keys())
        for key, digits in (('top1', 2), ('nll', 3)):
            differences = [found[seed][key] - base[seed][key] for seed in shared]
            if name == first or not shared:
                cells.append('')
            elif len(shared) == 1:
                cells.append(f'{differences[0]:+.{digits}f}')
            else:
                mean, error = mean_error(differences)
                half = float(stats.t.ppf(0.975, len(shared) - 1)) * error
                cells.append(f'{mean:+.{digits}f} [{mean - half:+.{digits}f}, {mean + half:+.{digits}f}]')
        ratios = [base[seed]['images per second'] / found[seed]['images per second'] for seed in shared]
        cells.append(f'{statistics.median(ratios):.2f}×' if ratios else '')
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest='command', required=True)
    train = commands.add_parser('run', help='train what is not in the results yet')
    train.add_argument('study', type=Path, metavar='STUDY.yaml')
    train.add_argument('--data-dir', type=Path, required=True, help='image folder with train/ and validation/')
    train.add_argument('--budget', type=float, metavar='MINUTES', help='start no run that would end later')
    show = commands.add_parser('report', help='the table of what is there')
    show.add_argument('results', type=Path, metavar='STUDY.jsonl')
    show.add_argument('--out', help='write it to this file as well')
    args = parser.parse_args()
    try:
        if args.command == 'run':
            run(args.study, args.data_dir, args.budget)
        else:
            text = report(args.results)
            print(text)
            if args.out:
                make_room(args.out).write_text(text + '\n')
    except SettingError as error:
        raise SystemExit(f'error: {error}') from error


if __name__ == '__main__':
    main()
