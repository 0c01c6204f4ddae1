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
A run with `after: NAME` is a second phase: it begins with the weights that the run of that name ends with.
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
import hashlib
import json
import math
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import timm
import torch
import torch.nn.functional as F
import yaml
from filelock import FileLock, Timeout
from timm.data import ImageDataset, create_transform, resolve_data_config
from torch.utils.data import DataLoader

from benchmarks.measure import describe, make_room
from benchmarks.variants import VARIANTS
from benchmarks.variants import __name__ as VARIANTS_MODULE
from timm_multimix.data import DigitsReader
from timm_multimix.distributed import start
from timm_multimix.errors import SettingError, nearest
from timm_multimix.evaluate.outputs import collect
from timm_multimix.evaluate.tables.calibration import calibration, confidence_and_right, ece
from timm_multimix.files import whole_folder
from timm_multimix.runs.summary import read_summary

TRAIN = Path(__file__).resolve().parent.parent / 'train.py'
KEYS = ('data', 'base', 'seeds', 'judge', 'runs')
MORE_KEYS = ('rivals', 'times')
PARTS = ('held_out', 'test')
BEGINNING = ('pretrained', 'head_init_scale', 'head_init_bias')  # of the weights, which a second phase has already


def beside(path: Path, folder: str, other: str, suffix: str) -> Path:
    """The file of the same name beside a study or its results; those that come with us lie in folders of their own."""
    place = path.resolve().parent
    return (place.parent / other if place.name == folder else place) / f'{path.stem}{suffix}'


def read_study(path: Path, subset: int = 0) -> dict[str, Any]:
    """The study, checked.

    Args:
        path: the YAML file.
        subset: another choice of images than its own, which is 0.

    Raises:
        SettingError: keys that are missing or unknown, or values that cannot be.
    """
    study = yaml.safe_load(path.read_text())
    if 'like' in study:
        other = read_study(path.with_name(study.pop('like')))
        study.update({key: {**other[key], **(study.get(key) or {})} for key in ('data', 'base')})
        study = {**{key: other[key] for key in KEYS}, **study}
    for key in study:
        if key not in KEYS + MORE_KEYS:
            raise SettingError(f'{path}: {key!r} is not a part of a study.{nearest(key, KEYS + MORE_KEYS)}')
    for key in KEYS:
        if not study.get(key):
            raise SettingError(f'{path}: {key!r} is missing.')
    if study['judge'] not in PARTS:
        raise SettingError(f'{path}: judge is {study["judge"]!r}, but it must be one of {", ".join(PARTS)}.')
    images = study['data'].get('images')
    if images not in (None, 'digits'):
        raise SettingError(f"{path}: data's images is {images!r}, but it must be 'digits', or left out for --data-dir.")
    for name in study.get('rivals') or ():
        if name not in study['runs']:
            raise SettingError(f'{path}: {name!r} of rivals is not one of the runs.{nearest(name, study["runs"])}')
    for name, settings in study['runs'].items():
        if (before := (settings or {}).get('after')) is None:
            continue
        if before not in study['runs']:
            raise SettingError(f'{path}: {name!r} is after {before!r}, which is not one of the runs.'
                               f'{nearest(before, study["runs"])}')
        if 'after' in (study['runs'][before] or {}):
            raise SettingError(f'{path}: {name!r} is after {before!r}, which is a second phase itself.')
    if subset:
        study['data']['subset'] = subset
    return study


def write_digits(folder: Path) -> None:
    """The embedded digits as an image folder with `train` and `validation`."""
    for part in ('train', 'validation'):
        reader = DigitsReader(part)
        for index in range(len(reader)):
            image = make_room(folder / part / reader.filename(index))
            image.write_bytes(reader[index][0].read())


def make_folder(root: Path, sizes: dict[str, int], on: str, folder: Path) -> None:
    """An image folder of links: `train`, balanced, `judge`, held out of the training data or the test data, and
    `validation`, its first images. Which images is fixed by sizes['subset'] alone."""
    wanted = {'train': ('train', 0, sizes['train'])}
    wanted['judge'] = ('train', sizes['train'], sizes['held_out']) if on == 'held_out' else (
        'validation', 0, sizes['test'])
    wanted['validation'] = (*wanted['judge'][:2], sizes.get('watch') or wanted['judge'][2])
    for part, (split, skip, count) in wanted.items():
        classes = sorted(p for p in (root / split).iterdir() if p.is_dir())
        each, first = count // len(classes), skip // len(classes)
        for source in classes:
            images = sorted(source.iterdir())
            random.Random(f'{split}/{source.name}/{sizes.get("subset") or ""}').shuffle(images)
            chosen = images[first:first + each]
            if len(chosen) < each:
                raise SettingError(f'{source} has {len(images)} images, but {first + each} are needed.')
            if part == 'train' and sizes.get('imbalance'):  # from the first class to the last, geometrically
                share = sizes['imbalance'] ** (-classes.index(source) / max(1, len(classes) - 1))
                chosen = chosen[:max(1, round(each * share))]
            (folder / part / source.name).mkdir(parents=True)
            for image in chosen:
                (folder / part / source.name / image.name).symlink_to(image.resolve())


def write_images(study: dict[str, Any], data_dir: Path, folder: Path) -> None:
    """A study's image folder: `train`, and as `validation` all the images that judge.

    Raises:
        SettingError: the folder exists; data_dir lacks images; the study has other images for every seed.
    """
    if study['data'].get('subset') == 'seed':
        raise SettingError('data has subset: seed, other images for every seed. Give subset a number.')
    if folder.exists():
        raise SettingError(f'{folder} exists. Name a folder that does not.')
    sizes = {key: value for key, value in study['data'].items() if key != 'watch'}
    with whole_folder(folder, flushed=False) as new:
        make_folder(data_dir, sizes, study['judge'], new)
        shutil.rmtree(new / 'judge')  # the same


def settings_of(study: dict[str, Any], name: str, seed: int) -> dict[str, Any]:
    """Flags of train.py, and perhaps a variant, of one run; `after` is those of the run before it."""
    settings = {**study['base'], **(study['runs'][name] or {}), 'seed': seed}
    if 'after' in settings:
        settings['after'] = settings_of(study, settings['after'], seed)
    return settings


def key_of(study: dict[str, Any], name: str, seed: int) -> str:
    """What a finished run is known by: its settings, its images and who judges, whatever it is called."""
    what = json.dumps([settings_of(study, name, seed), study['data'], study['judge']], sort_keys=True)
    return hashlib.sha1(what.encode()).hexdigest()


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
        weights: Optional[Path] = None) -> None:
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
            # The system lets go of a lock whose process has died, however it did.
            lock = FileLock(results.with_suffix('.claims') / key)
            try:
                held = lock.acquire(blocking=False)
            except Timeout:
                print(f'{name}, seed {seed}: another process is at it', flush=True)
                continue
            with held:
                if any(row['key'] == key for row in read_results(results)):  # finished since we looked
                    continue
                row = {'name': name, 'seed': seed, 'judge': study['judge'], 'key': key,
                       **one(settings_of(study, name, seed), study, data_dir, weights)}
                with results.open('a') as f:
                    f.write(json.dumps(row) + '\n')
                print(f'{name}, seed {seed}: {row["top1"]:.2f} %, NLL {row["nll"]:.3f}, {row["minutes"]:.1f} min',
                      flush=True)


def train(settings: dict[str, Any], images: Path, out: Path, weights: Optional[Path]) -> Path:
    """Run train.py; its run folder."""
    given = dict(settings)
    if weights is not None:
        given['pretrained_path'] = weights.resolve()
    if 'variant' in given:
        given['multimix_task'] = f'{VARIANTS_MODULE}:{VARIANTS[given.pop("variant")].__name__}'
    command = [str(TRAIN), *flags(given), '--data-dir', str(images), '--output', str(out), '--experiment', 'run']
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=TRAIN.parent)
    if done.returncode:
        raise SettingError(f'{" ".join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}')
    return out / 'run'


def one(settings: dict[str, Any], study: dict[str, Any], data_dir: Optional[Path],
        weights: Optional[Path] = None) -> dict[str, Any]:
    started = time.time()
    with tempfile.TemporaryDirectory() as tmp:
        folder, out = Path(tmp) / 'data', Path(tmp) / 'out'
        if data_dir is None:
            data_dir = Path(tmp) / 'digits'
            write_digits(data_dir)
        by_seed = {'subset': settings['seed']} if study['data'].get('subset') == 'seed' else {}
        make_folder(data_dir, {**study['data'], **by_seed}, study['judge'], folder)
        given = dict(settings)
        if before := given.pop('after', None):
            first = train(before, folder, Path(tmp) / 'first', weights)
            given = {key: value for key, value in given.items() if key not in BEGINNING} | {'initial_checkpoint': first}
        train(given, folder, out, weights if given.get('pretrained') else None)
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


def read_results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def mean_error(values: list[float]) -> tuple[float, float]:
    """Mean and its standard error; NaN for that of a single value."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.mean(values), error


MEASURES = {'top1': ('top-1 %', 2), 'median of last ten': ('median of last ten', 2), 'nll': ('NLL', 3),
            'ece': ('ECE', 3), 'scaled nll': ('NLL, scaled', 3), 'scaled ece': ('ECE, scaled', 3),
            'top1 many': ('many', 2), 'top1 medium': ('medium', 2), 'top1 few': ('few', 2)}
# key of a row: title and digits. 'scaled' is with temperature scaling, 'many' to 'few' are top-1 of `thirds`.
MEAN: dict[str, Any] = {'fmt': 'o', 'color': 'C0', 'ms': 5, 'capsize': 3}
SEED: dict[str, Any] = {'ls': '', 'marker': '.', 'color': '0.6', 'ms': 5}
ALONE: dict[str, Any] = {'ls': '', 'marker': 'o', 'color': 'C0', 'ms': 5, 'mfc': 'white'}


def by_name(path: Path, study: dict[str, Any]) -> dict[str, dict[int, dict[str, Any]]]:
    """Finished runs of the study: name → seed → row, in its order, without names that have none.

    Raises:
        SettingError: there is none.
    """
    rows = read_results(path)
    by_key = {row['key']: row for row in rows}
    seeds = sorted({row['seed'] for row in rows})
    found = {name: {seed: by_key[key] for seed in seeds if (key := key_of(study, name, seed)) in by_key}
             for name in study['runs']}
    if not any(found.values()):
        raise SettingError(f'{path} holds {len(rows)} finished runs, and none of them is of this study and its images.')
    return {name: seeds for name, seeds in found.items() if seeds}


def difference(found: dict[int, Any], base: dict[int, Any], key: str) -> str:
    """Mean of the differences seed by seed, and its 95 % interval by Student's t."""
    from scipy import stats

    shared = sorted(found.keys() & base.keys())
    digits = MEASURES[key][1]
    differences = [found[seed][key] - base[seed][key] for seed in shared]
    if len(shared) < 2:
        return f'{differences[0]:+.{digits}f}' if shared else ''
    mean, error = mean_error(differences)
    half = float(stats.t.ppf(0.975, len(shared) - 1)) * error
    return f'{mean:+.{digits}f} [{mean - half:+.{digits}f}, {mean + half:+.{digits}f}]'


def mean_of_data_sets(found: list[dict[str, dict[int, dict[str, Any]]]]) -> dict[str, dict[int, dict[str, Any]]]:
    """Of what `by_name` gives for several data sets: the runs and seeds that all have, and each measure's mean."""
    first = found[0]
    return {name: rows for name in first if (rows := {
        seed: {**row, **{key: statistics.mean(f[name][seed][key] for f in found) for key in MEASURES if key in row}}
        for seed, row in first[name].items() if all(seed in f.get(name, {}) for f in found)})}


def report(path: Path, study: dict[str, Any], against: Optional[str] = None,
           more: Sequence[tuple[Path, dict[str, Any]]] = ()) -> str:
    """A Markdown table: means ± standard errors, and paired differences to the first run and to the best rival.

    Args:
        path: the results.
        study: what `read_study` gave.
        against: the run to compare with, instead of those.
        more: results of the same runs on other data sets, and their studies: the table is of the means over all.

    Raises:
        SettingError: nothing to report; `against` has no finished run.
    """
    found = by_name(path, study)
    if more:
        found = mean_of_data_sets([found, *(by_name(*other) for other in more)])
        if not found:
            raise SettingError(f'No run with the same seed is finished in {path} and in '
                               f'{", ".join(str(other) for other, _ in more)}.')
    first = against or next(iter(study['runs']))
    if against and against not in found:
        raise SettingError(f'--against {against!r} has no finished run in {path}.{nearest(against, found)}')
    base = found.get(first, {})
    rivals = [name for name in study.get('rivals') or () if name in found and not against]
    best = max(rivals, key=lambda name: statistics.mean(r['top1'] for r in found[name].values()), default=None)
    row = next(iter(next(iter(found.values())).values()))
    watched, times = study['data'].get('watch') or row['images'], study.get('times', True)
    measures = [key for key in MEASURES if all(key in r for seeds in found.values() for r in seeds.values())]
    titles = [f'{MEASURES[key][0]}, {watched} images' if key == 'median of last ten' else MEASURES[key][0]
              for key in measures]
    compared = [key for key in ('nll', 'ece', 'scaled nll') if key in measures]
    head = ['run', 'seeds', *titles,
            f'top-1 against {first}, 95 % interval', *(f'{MEASURES[key][0]} against {first}' for key in compared),
            *([f'top-1 against {best}'] if best else []), *(['time of a step'] if times else [])]
    held_out, subset = study['judge'] == 'held_out', study['data'].get('subset')
    which = 'training images, others for each seed' if subset == 'seed' else (
        f'other training images (--subset {subset})' if subset else 'training images')
    judged = 'held out of the training data' if held_out else 'of the test data'
    lines = [
        f'Means of {1 + len(more)} data sets, of images {judged}, last epoch.' if more else
        f'{study["data"]["train"]} {which}, {row["epochs"]} epochs, {row["images"]} images {judged}, last epoch.', '',
        '| ' + ' | '.join(head) + ' |', '|---' * len(head) + '|']
    for name, seeds in found.items():
        cells = [name, str(len(seeds))]
        for key in measures:
            digits = MEASURES[key][1]
            mean, error = mean_error([r[key] for r in seeds.values()])
            cells.append(f'{mean:.{digits}f} ± {error:.{digits}f}' if len(seeds) > 1 else f'{mean:.{digits}f}')
        cells += ['' if name == first else difference(seeds, base, key) for key in ('top1', *compared)]
        if best:
            cells.append('' if name == best else difference(seeds, found[best], 'top1'))
        if times:
            ratios = [base[s]['images per second'] / r['images per second'] for s, r in seeds.items() if s in base]
            cells.append(f'{statistics.median(ratios):.2f}×' if ratios else '')
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def plot(path: Path, image: Path, study: dict[str, Any]) -> None:
    """A picture of the table: every seed a dot, the mean with its standard error, and the first run as a line. A run of
    one seed has no error, and so a hollow dot."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    found = by_name(path, study)
    names = list(found)[::-1]
    figure, axes = plt.subplots(1, 3, figsize=(11, 1 + 0.3 * len(names)), sharey=True, layout='constrained')
    for ax, (key, title) in zip(axes, (('top1', 'top-1, %  (more is better)'), ('nll', 'NLL, nats  (less is better)'),
                                       ('ece', 'ECE  (less is better)'))):
        ax.axvline(mean_error([row[key] for row in found[names[-1]].values()])[0], color='0.8', zorder=0)
        for y, name in enumerate(names):
            values = [row[key] for row in found[name].values()]
            mean, error = mean_error(values)
            if len(values) == 1:
                ax.plot(mean, y, **ALONE)
                continue
            ax.plot(values, [y] * len(values), **SEED)
            ax.errorbar(mean, y, xerr=error, **MEAN)
        ax.set_xlabel(title)
        ax.spines[['top', 'right']].set_visible(False)
    axes[0].set_yticks(range(len(names)), names)
    counts = {len(seeds) for seeds in found.values()}
    kinds = [('one seed, its error is not known', ALONE)] if 1 in counts else []
    if counts != {1}:
        kinds = [('mean of several seeds, with its standard error', MEAN), ('a seed of these', SEED), *kinds]
    handles = [axes[0].errorbar([], [], xerr=[], label=label, **style) if style is MEAN else
               axes[0].plot([], [], label=label, **style)[0] for label, style in kinds]
    figure.legend(handles=handles, frameon=False, fontsize=9, ncols=len(handles), loc='outside lower center')
    figure.savefig(image, dpi=150)
    plt.close(figure)


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
                args.pretrained_path)
        elif args.command == 'images':
            write_images(read_study(args.study), args.data_dir, args.folder)
        else:
            if args.study and len(args.results) > 1:
                raise SettingError('--study is of one results file. Of several, each has its study beside it.')
            if args.plot and len(args.results) > 1:
                raise SettingError('--plot draws one results file.')
            (path, study), *more = [
                (path, read_study(args.study or beside(path, 'results', 'studies', '.yaml'), args.subset))
                for path in args.results]
            text = report(path, study, args.against, more)
            print(text)
            if args.out:
                make_room(args.out).write_text(text + '\n')
            if args.plot:
                plot(path, make_room(args.plot), study)
    except SettingError as error:
        raise SystemExit(f'error: {error}') from error


if __name__ == '__main__':
    main()
