"""Should I mix? What mixing did to the trainings of our studies that are most like a plain run."""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional, Union

import yaml
from safetensors import safe_open

from ..data.class_weight import uneven
from ..errors import SettingError
from ..files import load_json, load_yaml
from .find import model_folder
from .settings import starts_pretrained
from .summary import read_summary

EVIDENCE = Path(__file__).with_name('evidence.yaml')
SHOWN = 3  # trainings, beside the advice
HALF = 4.0  # so far away, a training counts half
# What a training begins with, and on what → name of what was measured → the flags that do it.
SCRATCH, PRETRAINED, TAIL, WEIGHTED_TAIL = KINDS = (
    'from scratch', 'from pretrained weights', 'from pretrained weights, on uneven classes',
    'from pretrained weights, on uneven classes that are weighted')
INPUTS = '--mixup 1 --cutmix 1 --mixup-prob 0.5 --smoothing 0'
MANIFOLD, DENSE = '--multimix multimix --multimix-preset manifold', '--multimix dense --multimix-preset embeddings'
OPTIONS = {
    SCRATCH: {'no mixing': '', 'mixup and CutMix': INPUTS, 'Dense MultiMix': '--multimix dense'},
    PRETRAINED: {'no mixing': '', 'mixup and CutMix': INPUTS, 'manifold mixup': MANIFOLD, 'Dense MultiMix': DENSE},
    TAIL: {'no mixing': '', 'class weights': '--class-weight auto'},
    WEIGHTED_TAIL: {'no mixing': '', 'manifold mixup': f'--smoothing 0.1 {MANIFOLD}',
                    'Dense MultiMix': f'--smoothing 0.1 {DENSE}'},
}


@dataclass(frozen=True, eq=False)
class Training:
    """A training without mixing, and what mixing did to the same training.

    Attributes:
        title: of the training; '' for a run of the user's.
        kind: one of KINDS.
        epochs: of the training.
        images: for training, per class; None where unknown.
        train_top1, eval_top1: in percent, in the last epoch. The training images are as augmented as the network
            saw them.
        gains: option → points of top-1 that it has more than this training, all classes counting alike; empty for a
            run of the user's.
        noise: option → whether a 95 % interval of its difference to the best option holds zero.
        of: epochs that a run of the user's was to have.
        unlike: what a run of the user's does otherwise than the measured ones, in sentences.
    """
    title: str
    kind: str
    epochs: int
    images: Optional[float]
    train_top1: float
    eval_top1: float
    gains: Mapping[str, float] = field(default_factory=dict)
    noise: Mapping[str, bool] = field(default_factory=dict)
    of: int = 0
    unlike: Sequence[str] = field(default_factory=list)

    def distance(self, other: Training) -> float:
        """How unlike two trainings are: points of training accuracy, and ten for each factor of ten in the images."""
        images = 10 * abs(math.log10(self.images / other.images)) if self.images and other.images else 0.0
        return abs(self.train_top1 - other.train_top1) + images


def evidence() -> list[Training]:
    """The trainings that were measured; `python -m benchmarks.advice` writes them down."""
    return [Training(**row) for row in yaml.safe_load(EVIDENCE.read_text(encoding='utf-8'))]


def advise(run: Training, known: Sequence[Training]) -> tuple[str, float, list[Training]]:
    """The option with the highest mean gain, in which a training counts the more the nearer it is to the run.

    An option counts if the nearest trainings measured it, and its mean is above twice its standard error over the
    trainings. Where there is none, it is no mixing.

    Args:
        run: without mixing.
        known: `evidence`, or a part of it.

    Returns:
        A name of OPTIONS[run.kind], its mean gain in points, and the trainings that it rests on, the nearest
        first.

    Raises:
        SettingError: nothing is known of its kind.
    """
    like = sorted((other for other in known if other.kind == run.kind), key=run.distance)
    if not like:
        raise SettingError(f'The run starts {run.kind}. No such training has been measured, so there is no advice.')
    means = {'no mixing': 0.0}
    for option in OPTIONS[run.kind]:
        if not any(option in other.gains for other in like if run.distance(other) == run.distance(like[0])):
            continue
        measured = {other: 2 ** (-run.distance(other) / HALF) for other in like if option in other.gains}
        whole = sum(measured.values())
        mean = sum(weight * other.gains[option] for other, weight in measured.items()) / whole
        spread = sum((weight * (other.gains[option] - mean)) ** 2 for other, weight in measured.items())
        if mean > 2 * math.sqrt(spread) / whole:
            means[option] = mean
    best = max(means, key=lambda option: means[option])  # of equals the first: no mixing
    return best, means[best], like


def read_run(folder: Union[str, Path], images: Optional[float] = None, train_top1: Optional[float] = None) -> Training:
    """A run without mixing, of `train.py` or of timm's.

    Args:
        folder: of the run, with args.yaml and summary.csv.
        images: for training, per class, where summary.csv does not say.
        train_top1: on the training images in the last epoch, in percent, where summary.csv does not say.

    Raises:
        SettingError: it is not such a folder, or the run mixes, or it has no epoch with a validation.
    """
    folder = Path(folder)
    if not (folder / 'args.yaml').is_file():
        near = next((place for place in (Path('output/train') / folder, folder.parent)
                     if (place / 'args.yaml').is_file()), None)
        raise SettingError(f'{folder} is no run: it has no args.yaml. '
                           + (f'Did you mean {near}?' if near else 'Name the output folder of train.py.'))
    settings: Any = load_yaml(folder / 'args.yaml')
    if not isinstance(settings, dict):
        raise SettingError(f'{folder}/args.yaml is damaged: it holds no settings.')
    mixes = [f'--{name.replace("_", "-")}' for name, plain in (
        ('multimix', 'none'), ('mixup', 0), ('cutmix', 0), ('cutmix_minmax', None)) if settings.get(name) not in (
            None, plain)]
    if mixes:
        raise SettingError(f'{folder} mixes already ({", ".join(mixes)}). Advice needs a run without mixing, '
                           f'with the same settings otherwise.')
    rows = read_summary(folder / 'summary.csv')
    if train_top1 is not None:
        rows = [{**row, 'train_top1': str(train_top1)} for row in rows]
    elif rows and 'train_top1' not in rows[0]:
        raise SettingError(f"{folder}/summary.csv has no training accuracy, which timm's own train.py does not write. "
                           f'Measure it, and give --train-top1 N; or train with this train.py, which takes the same '
                           f'flags.')
    rows = [row for row in rows if _finite(row.get('train_top1')) and _finite(row.get('eval_top1'))]
    if not rows:
        raise SettingError(f'{folder}/summary.csv has no epoch with a training and a validation accuracy yet.')
    last, model = rows[-1], model_folder(folder, 'model.safetensors')
    classes = settings.get('num_classes') or (load_json(model / 'config.json').get('num_classes') if model else None)
    if images is None and last.get('train_images') and classes:
        images = float(last['train_images']) / int(classes)
    return Training(title='', kind=_kind(settings, last), epochs=int(last['epoch']) + 1, images=images,
                    train_top1=float(last['train_top1']), eval_top1=float(last['eval_top1']),
                    of=int(settings.get('epochs') or 0), unlike=_unlike(settings, model))


def _finite(value: Any) -> bool:
    return bool(value) and math.isfinite(float(value))


def _unlike(settings: Mapping[str, Any], model: Optional[Path]) -> list[str]:
    """What the recipe for fine-tuning, which was measured, has otherwise and gains more by than by mixing."""
    if not starts_pretrained(settings):
        return []
    found = []
    if settings.get('bce_loss'):
        found.append('Its loss is binary, and that of the measured trainings is not.')
    elif settings.get('smoothing') == 0:
        found.append('Labels were smoothed in the measured trainings, and not in this one: first try --smoothing 0.1.')
    if model and not settings.get('bn_eval'):
        with safe_open(model / 'model.safetensors', 'pt') as weights:
            if any(name.endswith('running_mean') for name in weights.keys()):
                found.append('Batch norms kept their statistics in the measured trainings, and not in this one: first '
                             'try --bn-eval.')
    return found


def _kind(settings: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """Of a run, by its flags and a row of its summary.csv."""
    if not starts_pretrained(settings):
        return SCRATCH  # with uneven classes nothing was measured
    few, many = (float(row.get(f'train_{which}_class') or 1) for which in ('smallest', 'largest'))
    if not uneven((few, many)):
        return PRETRAINED
    return WEIGHTED_TAIL if settings.get('class_weight') else TAIL


def sentences(run: Training, option: str, gain: float, like: Sequence[Training]) -> str:
    """The advice, its reason, and how far it goes.

    Args:
        run: what the advice is for.
        option, gain, like: from `advise`.
    """
    nearest = closest(run, like)
    limits = [*run.unlike]
    if run.images is None:
        limits.append('How many images a class has is not known: say --images-per-class N.')
    if len(nearest) > SHOWN:
        limits.append(f'The {len(nearest)} trainings below are equally like it.')
    if run.of > run.epochs:
        limits.append(f'It has trained {run.epochs} of its {run.of} epochs: resume it, and ask again.')
    if run.distance(nearest[0]) > 2 * HALF:
        limits.append('No measured training is close to it.')
    if all(all(training.noise.values()) for training in nearest):
        limits.append('In the trainings below the options do not differ beyond chance.')
    measure = 'the mean over classes' if run.kind in (TAIL, WEIGHTED_TAIL) else 'top-1'
    base = 'with neither mixing nor smoothed labels' if run.kind == SCRATCH else 'with smoothed labels and no mixing'
    limits.append(f'Gains are points of {measure} over the same training {base}.')
    average = ' on average' if run.kind in (TAIL, WEIGHTED_TAIL) else ''
    images = f', with {run.images:.0f} images a class{average}' if run.images else ''
    changes = option != 'no mixing'
    return (f'{f"try {option}" if changes else "do not mix"}.\n\n'
            f'It trained for {run.epochs} epoch{"s" * (run.epochs != 1)} {run.kind}{images}.\n'
            f'Its top-1 is {run.train_top1:.1f} % on training images and {run.eval_top1:.1f} % on validation images.\n'
            + (f'Measured trainings like it gained {gain:.1f} points on average.' if changes else
               'In measured trainings like it, no option gained beyond chance.')
            + '\n' + '\n'.join(limits))


def closest(run: Training, like: Sequence[Training]) -> list[Training]:
    """The nearest `SHOWN`, and those that are as near as the last of them."""
    far = run.distance(like[:SHOWN][-1])
    return [training for training in like if run.distance(training) <= far]


def table(trainings: Sequence[Training]) -> str:
    """What the advice rests on, for a terminal."""
    names = [name for name in OPTIONS[trainings[0].kind] if any(name in t.gains for t in trainings)]
    rows = [('measured training', 'train', 'validation', *names)]
    rows += [(t.title, f'{t.train_top1:.1f}', f'{t.eval_top1:.1f}',
              *(f'{t.gains[name]:+.1f}' if name in t.gains else '' for name in names)) for t in trainings]
    width = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return '\n'.join('  '.join([row[0].ljust(width[0]), *(cell.rjust(w) for cell, w in zip(row[1:], width[1:]))])
                     for row in rows)
