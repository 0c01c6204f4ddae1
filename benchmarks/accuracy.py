"""Does it help? Trains a grid of settings and seeds with `train.py`, and reports them side by side.

    python -m benchmarks.accuracy run benchmarks/studies/methods_resnet.yaml --data-dir cifar10 --budget 60
    python -m benchmarks.accuracy report benchmarks/results/methods_resnet.jsonl --plot methods.png

A study is a YAML file: `data` (how many images train, are held out of the training data, and test; with `images:
digits`, of the embedded digits and without --data-dir), `base` (flags of train.py for all), `seeds`, `judge`
('held_out' to choose settings, 'test' for the final figures), `runs`, a name and its flags each, the first being what
the others are compared with, and, if wanted, `rivals`, names of runs the best of which is compared with too. `times:
false` leaves out the column of times, where the machine had other work beside. `data: {watch: N}` lets train.py
validate on the first N judging images only, which is what the median of the last ten epochs is of; the last weights
are always judged on all. `data: {imbalance: N}` leaves the last class an Nth of the first one's training images, and
those between a share that falls geometrically. A run with `variant: NAME` trains with that task of
`benchmarks/variants.py`.
A run with `after: NAME` is a second phase: it begins with the weights that the run of that name ends with. One with
`multimix_teacher: {run: NAME}` is taught by the run of that name, and with `study: OTHER.yaml` beside it by one of that
study, on the same images. `run --keep FOLDER` keeps the runs that others need, which are trained once then.
`like: OTHER.yaml` takes `data` and `base` from another study, and this one's come on top; seeds, judge and runs too,
where this one has none. `data: {subset: seed}` draws other images for every seed, as a study of few images must.

`--pretrained-path FILE` gives train.py these weights, for a study of `pretrained: true` without a way to the hub
(`benchmarks/pretrained.py` writes such files).

Each finished run is one line of JSON beside the study. What is there is not run again, several processes may share one
study (with OMP_NUM_THREADS=1 where they share the cores, too), and --budget stops before a run that would not fit if it
took as long as the longest so far. `run --seeds` and `--subset` ask whether a result holds with other seeds and other
images. `report` shows what the study asks for now (with `--subset`, of those images) and leaves out rows of other
settings. Of several results files it shows the means. With `--against`, it compares with another run than the first.
Only last-epoch weights are judged, never the best on the images that judge.
"""
from __future__ import annotations

import argparse
import json
import shutil
import signal
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
from filelock import FileLock
from timm.data import ImageDataset, create_transform, resolve_data_config
from torch.utils.data import DataLoader

from benchmarks.measure import claimed, describe, make_room
from benchmarks.study import (
    TEACHER,
    beside,
    key_of,
    key_of_settings,
    make_folder,
    read_study,
    settings_of,
    write_digits,
    write_images,
)
from benchmarks.study_report import plot, read_results, report
from benchmarks.variants import VARIANTS
from benchmarks.variants import __name__ as VARIANTS_MODULE
from timm_multimix.distributed import start
from timm_multimix.errors import SettingError, nearest
from timm_multimix.evaluate.outputs import collect
from timm_multimix.evaluate.tables.calibration import calibration, confidence_and_right, ece
from timm_multimix.runs.summary import read_summary

TRAIN = Path(__file__).resolve().parent.parent / 'train.py'
BEGINNING = ('pretrained', 'head_init_scale', 'head_init_bias')  # of the weights, which a second phase has already


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


def thirds(train: Path) -> list[tuple[str, torch.Tensor]]:
    """The third of the classes with the most images in this folder, the middle, and the third with the fewest."""
    counts = [len(list(p.iterdir())) for p in sorted(train.iterdir())]
    order = sorted(range(len(counts)), key=lambda c: -counts[c])
    n = max(1, round(len(order) / 3))
    return [(name, torch.tensor(group)) for name, group in (
        ('many', order[:n]), ('medium', order[n:-n]), ('few', order[-n:])) if group]


def evaluate(model_folder: Path, images: Path, train: Optional[Path] = None) -> dict[str, float]:
    """Top-1 in percent, negative log-likelihood in nats, expected calibration error (15 bins), of the last weights; the
    latter two also after temperature scaling, fitted on four fifths of the images and applied to the fifth, in turn.
    With `train`, a folder of classes of unequal size, top-1 of the three groups of `thirds` as well."""
    model = timm.create_model(f'local-dir:{model_folder}', pretrained=True)
    transform = create_transform(**resolve_data_config(model=model), is_training=False)
    found = collect(model, DataLoader(ImageDataset(str(images), transform=transform), batch_size=250))
    confidence, right = confidence_and_right(found.logits, found.target)
    groups = {} if train is None else {
        f'top1 {name}': 100 * float(right[torch.isin(found.target, group)].mean()) for name, group in thirds(train)}
    scaled = calibration(model, found, bins=15)
    return {'top1': 100 * float(right.mean()), 'nll': float(F.cross_entropy(found.logits, found.target)),
            'ece': ece(confidence, right, bins=15), 'scaled nll': scaled['NLL, after temperature scaling'],
            'scaled ece': scaled['ECE, after temperature scaling, %'] / 100, 'temperature': scaled['temperature'],
            'images': len(found), **groups}


def run(study_path: Path, data_dir: Optional[Path], budget: Optional[float], results: Path,
        seeds: Optional[list[int]] = None, subset: int = 0, only: Optional[list[str]] = None,
        weights: Optional[Path] = None, keep: Optional[Path] = None) -> None:
    study = read_study(study_path, subset)
    if (study['data'].get('images') is None) == (data_dir is None):
        raise SettingError(f'{study_path} is of the embedded digits, so --data-dir {data_dir} must go.' if data_dir else
                           f'{study_path} needs --data-dir, an image folder with train/ and validation/.')
    if data_dir and not (data_dir / 'train').is_dir():
        raise SettingError(f'--data-dir is {data_dir}, but there is no {data_dir}/train: it must be an image folder '
                           f'with train/ and validation/.')
    for name in only or ():
        if name not in study['runs']:
            raise SettingError(f'--only {name!r} is not a run of {study_path}.{nearest(name, study["runs"])}')
    started = time.time()
    for seed in seeds or study['seeds']:  # seed by seed, so that a study cut short compares like with like
        for name in only or study['runs']:
            key = key_of(study, name, seed)
            rows = read_results(results)
            if any(row['key'] == key for row in rows):
                continue
            longest = max((row['minutes'] for row in rows), default=0.0)
            if budget and (time.time() - started) / 60 + longest > budget:
                print(f'Stopped: {name}, seed {seed} would not fit into {budget:g} minutes. The same command goes on.')
                return
            with claimed(results, key, lambda key=key: any(row['key'] == key for row in read_results(results))) as free:
                if not free:
                    print(f'{name}, seed {seed}: another process has it', flush=True)
                    continue
                row = {'name': name, 'seed': seed, 'judge': study['judge'], 'key': key,
                       **one(settings_of(study, name, seed), study, data_dir, weights, keep)}
                with results.open('a') as f:
                    f.write(json.dumps(row) + '\n')
                print(f'{name}, seed {seed}: {row["top1"]:.2f} %, NLL {row["nll"]:.3f}, {row["minutes"]:.1f} min',
                      flush=True)


def train(settings: dict[str, Any], images: Path, out: Path, weights: Optional[Path]) -> Path:
    """Run train.py; its run folder."""
    given = dict(settings)
    if weights is not None and given.get('pretrained'):
        given['pretrained_path'] = weights.resolve()
    if 'variant' in given:
        given['multimix_task'] = f'{VARIANTS_MODULE}:{VARIANTS[given.pop("variant")].__name__}'
    command = [str(TRAIN), *flags(given), '--data-dir', str(images), '--output', str(out), '--experiment', 'run']
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=TRAIN.parent)
    if done.returncode:
        raise SettingError(f'{" ".join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}')
    return out / 'run'


def before(settings: dict[str, Any], study: dict[str, Any], images: Path, out: Path, weights: Optional[Path],
           keep: Optional[Path]) -> Path:
    """The folder of a run that another needs first; of `keep`, where it is there."""
    if keep is None:
        return train(settings, images, out, weights)
    kept = keep.resolve() / key_of_settings(settings, study)
    with FileLock(make_room(f'{kept}.lock')):
        if not kept.is_dir():
            part = Path(f'{kept}.part')
            shutil.rmtree(part, ignore_errors=True)
            train(settings, images, part, weights).rename(kept)
            part.rmdir()
    return kept


def one(settings: dict[str, Any], study: dict[str, Any], data_dir: Optional[Path],
        weights: Optional[Path] = None, keep: Optional[Path] = None) -> dict[str, Any]:
    started = time.time()
    with tempfile.TemporaryDirectory() as tmp:
        folder, out = Path(tmp) / 'data', Path(tmp) / 'out'
        if data_dir is None:
            data_dir = Path(tmp) / 'digits'
            write_digits(data_dir)
        by_seed = {'subset': settings['seed']} if study['data'].get('subset') == 'seed' else {}
        make_folder(data_dir, {**study['data'], **by_seed}, study['judge'], folder)
        first = {what: before(settings[what], study, folder, Path(tmp) / what, weights, keep)
                 for what in ('after', TEACHER) if isinstance(settings.get(what), dict)}
        given = {**settings, **first}
        if 'after' in given:
            given['initial_checkpoint'] = given.pop('after')
            given = {key: value for key, value in given.items() if key not in BEGINNING}
        train(given, folder, out, weights)
        epochs = read_summary(out / 'run' / 'summary.csv')
        tail = folder / 'train' if study['data'].get('imbalance') else None
        found = evaluate(out / 'run' / 'model', folder / 'judge', tail)
    accuracies = [float(row['eval_top1']) for row in epochs[-10:] if row['eval_top1']]  # --val-interval leaves some out
    speeds = [float(row['train_images_per_second']) for row in epochs[1:] or epochs]
    median = {'median of last ten': statistics.median(accuracies)} if len(accuracies) > 1 else {}
    trained = {f'train {what}': float(epochs[-1][f'train_{what}']) for what in ('loss', 'top1')}
    return {**found, **median, 'epochs': len(epochs), **shares(epochs), **trained,
            'images per second': statistics.median(speeds), 'minutes': (time.time() - started) / 60,
            'settings': settings, 'data': study['data'], **describe(start(settings.get('device', 'auto')).type)}


def shares(epochs: list[dict[str, Any]]) -> dict[str, float]:
    """Of all training steps, the shares that mixed embeddings and inputs; nothing of a run that mixes nothing."""
    steps = sum(int(row.get('train_steps') or 0) for row in epochs)
    return {} if not steps else {
        f'steps that mix {what}': sum(int(row[f'train_mixed_{what}']) for row in epochs) / steps
        for what in ('embeddings', 'inputs')}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest='command', required=True)
    train = commands.add_parser('run', help='train what is not in the results yet')
    train.add_argument('study', type=Path, metavar='STUDY.yaml')
    train.add_argument('--data-dir', type=Path, help='image folder with train/ and validation/, for all but digits')
    train.add_argument('--budget', type=float, metavar='MINUTES', help='start no run that would end later')
    train.add_argument('--seeds', type=int, nargs='+', help="instead of the study's")
    train.add_argument('--subset', type=int, default=0, help='another choice of images from the same folders')
    train.add_argument('--only', nargs='+', metavar='RUN', help="instead of all of the study's")
    train.add_argument('--pretrained-path', type=Path, metavar='FILE', help='weights to start from')
    train.add_argument('--keep', type=Path, metavar='FOLDER', help='keep the runs that others need, to train them once')
    train.add_argument('--results', type=Path, metavar='STUDY.jsonl',
                       help='default: beside it; of studies/, in results/')
    images = commands.add_parser('images', help="write a study's image folder, to train on it otherwise")
    images.add_argument('study', type=Path, metavar='STUDY.yaml')
    images.add_argument('folder', type=Path, metavar='FOLDER', help='where to; it must not exist')
    images.add_argument('--data-dir', type=Path, required=True, help='image folder with train/ and validation/')
    show = commands.add_parser('report', help='the table of what is there')
    show.add_argument('results', type=Path, metavar='STUDY.jsonl', nargs='+',
                      help='of several, which have the same runs on other data sets, the means')
    show.add_argument('--study', type=Path, metavar='STUDY.yaml', help='default: beside it; of results/, in studies/')
    show.add_argument('--subset', type=int, default=0, help='of the runs with that --subset')
    show.add_argument('--seeds', type=int, nargs='+', help='of these alone')
    show.add_argument('--against', metavar='RUN', help='compare with it, instead of the first')
    show.add_argument('--out', help='write it to this file as well')
    show.add_argument('--plot', metavar='FILE.png', help='draw it')
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception, on which subprocess.run ends train.py
    try:
        if args.command == 'run':
            results = args.results or beside(args.study, 'studies', 'results', '.jsonl')
            results.parent.mkdir(exist_ok=True)
            run(args.study, args.data_dir, args.budget, results, args.seeds, args.subset, args.only,
                args.pretrained_path, args.keep)
        elif args.command == 'images':
            write_images(read_study(args.study), args.data_dir, args.folder)
        else:
            if args.study and len(args.results) > 1:
                raise SettingError('--study is of one results file. Of several, each has its study beside it.')
            (path, study), *more = [
                (path, read_study(args.study or beside(path, 'results', 'studies', '.yaml'), args.subset))
                for path in args.results]
            text = report(path, study, args.against, more, args.seeds)
            print(text)
            if args.out:
                make_room(args.out).write_text(text + '\n')
            if args.plot:
                plot(path, make_room(args.plot), study, more, args.seeds)
    except SettingError as error:
        raise SystemExit(f'error: {error}') from error


if __name__ == '__main__':
    main()
