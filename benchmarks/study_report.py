"""The table and the picture of a study's results (`accuracy.py`)."""
from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from benchmarks.study import key_of
from timm_multimix.errors import SettingError, nearest


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


def by_name(path: Path, study: dict[str, Any], only: Optional[Sequence[int]] = None,
            ) -> dict[str, dict[int, dict[str, Any]]]:
    """Finished runs of the study: name → seed → row, in its order, without names that have none.

    Args:
        path: the results.
        study: what `read_study` gave.
        only: these seeds; None for all.

    Raises:
        SettingError: there is none.
    """
    rows = read_results(path)
    by_key = {row['key']: row for row in rows}
    seeds = sorted({row['seed'] for row in rows if only is None or row['seed'] in only})
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
    """Of what `by_name` gives for several data sets: the runs and seeds that all have, each measure's mean, and the
    speed over all: the harmonic mean."""
    first = found[0]
    speed = 'images per second'
    return {name: rows for name in first if (rows := {
        seed: {**row, **{key: statistics.mean(f[name][seed][key] for f in found) for key in MEASURES if key in row},
               speed: statistics.harmonic_mean(f[name][seed][speed] for f in found)}
        for seed, row in first[name].items() if all(seed in f.get(name, {}) for f in found)})}


def finished(path: Path, study: dict[str, Any], more: Sequence[tuple[Path, dict[str, Any]]] = (),
             only: Optional[Sequence[int]] = None) -> dict[str, dict[int, dict[str, Any]]]:
    """`by_name` of one study, or of several the `mean_of_data_sets`.

    Raises:
        SettingError: there is none.
    """
    found = by_name(path, study, only)
    if more:
        found = mean_of_data_sets([found, *(by_name(*other, only) for other in more)])
        if not found:
            raise SettingError(f'No run with the same seed is finished in {path} and in '
                               f'{", ".join(str(other) for other, _ in more)}.')
    return found


def report(path: Path, study: dict[str, Any], against: Optional[str] = None,
           more: Sequence[tuple[Path, dict[str, Any]]] = (), only: Optional[Sequence[int]] = None) -> str:
    """A Markdown table: means ± standard errors, and paired differences to the first run and to the best rival.

    Args:
        path: the results.
        study: what `read_study` gave.
        against: the run to compare with, instead of those.
        more: results of the same runs on other data sets, and their studies: the table is of the means over all.
        only: these seeds; None for all.

    Raises:
        SettingError: nothing to report; `against` has no finished run.
    """
    found = finished(path, study, more, only)
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
    if imbalance := study['data'].get('imbalance'):
        which += f', thinned to a tail of {imbalance} : 1'
    judged = 'held out of the training data' if held_out else 'of the test data'
    lines = [
        f'Means of {1 + len(more)} studies, of images {judged}, last epoch.' if more else
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


def plot(path: Path, image: Path, study: dict[str, Any], more: Sequence[tuple[Path, dict[str, Any]]] = (),
         only: Optional[Sequence[int]] = None) -> None:
    """A picture of `report`'s table: every seed a dot, the mean with its standard error, and the first run as a line. A
    run of one seed has no error, and so a hollow dot."""
    from matplotlib.figure import Figure

    found = finished(path, study, more, only)
    names = list(found)[::-1]
    figure = Figure(figsize=(11, 1 + 0.3 * len(names)), layout='constrained')
    axes = figure.subplots(1, 3, sharey=True)
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
    axes[0].set_ylim(-0.5, len(names) - 0.5)
    counts = {len(seeds) for seeds in found.values()}
    kinds = [('one seed, its error is not known', ALONE)] if 1 in counts else []
    if counts != {1}:
        kinds = [('mean of several seeds, with its standard error', MEAN), ('a seed of these', SEED), *kinds]
    handles = [axes[0].errorbar([], [], xerr=[], label=label, **style) if style is MEAN else
               axes[0].plot([], [], label=label, **style)[0] for label, style in kinds]
    figure.legend(handles=handles, frameon=False, fontsize=9, ncols=len(handles), loc='outside lower center')
    figure.savefig(image, dpi=150)
