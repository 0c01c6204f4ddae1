"""What `timm-multimix advise` knows, from the results of the studies; and how often its advice would have been right.

    python -m benchmarks.advice write     # timm_multimix/runs/evidence.yaml
    python -m benchmarks.advice judge     # each training advised by the others alone

A training's accuracy on its training images is that of one seed without mixing, in float32. Right is an option whose
difference to the best option, seed by seed, has a 95 % interval that holds zero, or that is the best.
"""
from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, Union

import yaml
from scipy import stats

from benchmarks.study import beside, class_sizes, read_study
from benchmarks.study_report import by_name, mean_error
from timm_multimix.files import write_text
from timm_multimix.runs.advice import (
    EVIDENCE,
    OPTIONS,
    PRETRAINED,
    SCRATCH,
    TAIL,
    WEIGHTED_TAIL,
    Training,
    advise,
    evidence,
)
from timm_multimix.runs.summary import read_summary

STUDIES = Path(__file__).parent / 'studies'
MODELS = Path(__file__).parents[1] / 'checkpoints'
PLAIN, INPUTS, DENSE = OPTIONS[SCRATCH]


class Where(NamedTuple):
    """A training: what it is called; where its runs without mixing lie as (study, run), one for each study that an
    option is of; its options; and where its accuracy on its training images lies: of a run without mixing that
    measured it, or in the folder of such a run; how many classes its images have; and of which kind it is."""
    title: str
    plain: list[tuple[str, str]]
    options: dict[str, tuple[str, str]]
    train: Union[tuple[str, str], Path]
    classes: int = 10
    kind: str = SCRATCH


RAMPED = 'default: embeddings on 1 step of 4, inputs on 3, ramped'  # over 100 epochs, which is half of 200
HALF = 'ramp over the first half'
CASES = [
    Where('ResNet, 500 photographs a class, 20 epochs', [('ramp_resnet_20', 'none')], {
        DENSE: ('ramp_resnet_20', HALF)}, ('plain_resnet', '20 epochs')),
    Where('ViT, 500 photographs a class, 20 epochs', [('ramp_vit_20', 'none')], {
        DENSE: ('ramp_vit_20', HALF)}, ('plain_vit', '20 epochs')),
    Where('ResNet, 500 photographs a class, 60 epochs', [('ramp_resnet_60', 'none'), ('methods_resnet', 'none')], {
        DENSE: ('ramp_resnet_60', HALF),
        INPUTS: ('methods_resnet', 'input mixup and CutMix')}, ('plain_resnet', '60 epochs')),
    Where('ViT, 500 photographs a class, 60 epochs', [('ramp_vit_60', 'none'), ('methods_vit', 'none')], {
        DENSE: ('ramp_vit_60', HALF),
        INPUTS: ('methods_vit', 'input mixup and CutMix')}, ('plain_vit', '60 epochs')),
    Where('ResNet, 500 photographs a class, 200 epochs', [('long_resnet', 'none')], {
        DENSE: ('long_resnet', RAMPED),
        INPUTS: ('long_resnet', 'input mixup and CutMix')}, MODELS / 'small_resnet_cifar10_none'),
    Where('ViT, 500 photographs a class, 200 epochs', [('long_vit', 'none')], {
        DENSE: ('long_vit', RAMPED),
        INPUTS: ('long_vit', 'input mixup and CutMix')}, MODELS / 'small_vit_cifar10_none'),
    Where('ResNet, 10 digits a class, 200 epochs', [('digits_resnet', 'none')], {
        DENSE: ('digits_resnet', RAMPED),
        INPUTS: ('digits_resnet', 'input mixup and CutMix')}, ('plain_digits_resnet', '200 epochs')),
    Where('ViT, 10 digits a class, 200 epochs', [('digits_vit', 'none')], {
        DENSE: ('digits_vit', RAMPED),
        INPUTS: ('digits_vit', 'input mixup and CutMix')}, ('plain_digits_vit', '200 epochs')),
]
PHOTOGRAPHS = ('textures', 'textures10', 10), ('flowers', 'flowers5', 5), ('monkeys', 'monkeys10', 10)
CASES += [  # fine-tuning, beside the recipe, which smooths labels
    Where(f'EfficientNet-{net}, {images} {what} a class', [(study, 'label smoothing')], {
        INPUTS: (study, 'input mixup and CutMix'),
        'manifold mixup': (study, 'manifold mixup at the embedding'),
        DENSE: (study, 'Dense MultiMix')}, (study, 'label smoothing'), classes, PRETRAINED)
    for net, infix, counts in (('Lite0', '', (20, 20, 20)), ('Lite1', 'lite1_', (20, 20, 20)),
                               ('Lite0', 'all_', (80, 600, 80)))
    for images, (what, data, classes) in zip(counts, PHOTOGRAPHS)
    for study in [f'finetune_{infix}{data}']]
BOTH = 'label smoothing and class weights'
PAIRS, BESIDE = f'manifold mixup, {BOTH}', f'Dense MultiMix, {BOTH}'
for net, infix in (('Lite0', 'test_'), ('Lite1', 'lite1_')):
    for what, data, classes in PHOTOGRAPHS:
        study = f'longtail_{infix}{data}'
        CASES += [
            Where(f'EfficientNet-{net}, 40 to 2 {what} a class', [(study, 'label smoothing')], {
                'class weights': (study, BOTH)}, (study, 'label smoothing'), classes, TAIL),
            Where(f'EfficientNet-{net}, 40 to 2 {what} a class, weighted', [(study, BOTH)], {
                'manifold mixup': (study, PAIRS),
                DENSE: (study, BESIDE)}, (study, BOTH), classes, WEIGHTED_TAIL)]


def rows_of(study: str, run: str) -> dict[int, dict[str, Any]]:
    """Seed → row."""
    path = STUDIES / f'{study}.yaml'
    return by_name(beside(path, 'studies', 'results', '.jsonl'), read_study(path))[run]


def differences(where: Where) -> dict[str, list[float]]:
    """Option → what it has more than no mixing, seed by seed."""
    plain = {study: rows_of(study, run) for study, run in where.plain}
    found: dict[str, list[float]] = {PLAIN: [0.0] * len(next(iter(plain.values())))}
    for option, (study, run) in where.options.items():
        rows, base = rows_of(study, run), plain[study]
        found[option] = [rows[seed]['top1'] - base[seed]['top1'] for seed in sorted(rows.keys() & base.keys())]
    return found


def within_noise(values: Sequence[float], best: Sequence[float]) -> bool:
    """Whether the differences to the best option leave zero possible; of other seeds, by the sum of both errors."""
    if len(values) == len(best):
        pairs = [a - b for a, b in zip(values, best)]
        mean, error = mean_error(pairs)
        half = float(stats.t.ppf(0.975, len(pairs) - 1)) * error if len(pairs) > 1 else 0.0
    else:
        (a, ea), (b, eb) = mean_error(list(values)), mean_error(list(best))
        mean, half = a - b, 2 * (ea ** 2 + eb ** 2) ** 0.5
    return mean + half >= 0


def training(where: Where) -> Training:
    """A training as `advise` reads it."""
    rows = list(rows_of(*where.plain[0]).values())
    images = sum(class_sizes(rows[0]['data'], where.classes)) / where.classes
    found = differences(where)
    gains = {option: statistics.mean(values) for option, values in found.items()}
    best = max(gains, key=lambda option: gains[option])
    return Training(
        title=where.title, kind=where.kind, epochs=rows[0]['epochs'], images=images,
        train_top1=round(train_top1(where.train), 2),
        eval_top1=round(statistics.mean(row['top1'] for row in rows), 2),
        gains={option: round(gain, 2) for option, gain in gains.items() if option != PLAIN},
        noise={option: option == best or within_noise(values, found[best]) for option, values in found.items()})


def train_top1(where: Union[tuple[str, str], Path]) -> float:
    if isinstance(where, Path):
        return float(read_summary(where / 'summary.csv')[-1]['train_top1'])
    return next(float(row['train top1']) for row in rows_of(*where).values() if 'train top1' in row)


def judge(known: Sequence[Training]) -> list[tuple[Training, str, bool]]:
    """Each training, what the others advise for it, and whether that is within noise of its best option."""
    found = []
    for run in known:
        option, _, _ = advise(run, [other for other in known if other is not run])
        found.append((run, option, run.noise.get(option, False)))
    return found


def report(judged: Sequence[tuple[Training, str, bool]]) -> str:
    """`judge` as a table."""
    lines = ['| training | train top-1 % | images a class | gains | advice | within noise of the best |',
             '|---|---|---|---|---|---|']
    for run, option, right in judged:
        gains = ', '.join(f'{name} {gain:+.1f}' for name, gain in run.gains.items())
        lines.append(f'| {run.title} | {run.train_top1:.1f} | {run.images:.0f} | {gains} | {option} | '
                     f'{"yes" if right else "no"} |')
    return '\n'.join([*lines, '', f'Right: {sum(right for _, _, right in judged)} of {len(judged)}.'])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('command', choices=('write', 'judge'))
    if parser.parse_args().command == 'write':
        text = yaml.safe_dump([asdict(training(where)) for where in CASES], sort_keys=False, allow_unicode=True)
        write_text(EVIDENCE, f'# Written by `python -m benchmarks.advice write`.\n{text}')
    else:
        print(report(judge(evidence())))


if __name__ == '__main__':
    main()
