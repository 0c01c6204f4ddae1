"""Accuracy, with how far it may be trusted."""
from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch.nn as nn
import torch.nn.functional as F
from sklearn.metrics import confusion_matrix

from ...data.class_weight import uneven
from ...files import whole
from ..outputs import Source, collect
from ..table import Table, Value, panels, rows_of, save_figure, short, title

TITLE = 'Accuracy'
MISTAKES = 'mistakes.csv'
ABOUT = """\
Top-1 and top-5: share of images whose class is the first, or among the first five, of the model's classes. NLL: mean
negative log-likelihood of the true class, in nats. Per class: recall, the share of a class's images that are called
by it. Intervals are 95 % percentile bootstrap intervals over the images (the weights are given: what another
training run would give is not in them). The last rows compare models image by image: their intervals resample both
models' images together. For the mean over classes the images of each class are resampled. A class of one image has no
other to draw: what it adds is not in the interval."""


def accuracy(
        model: nn.Module,
        loader: Source,
        *,
        class_names: Optional[list[str]] = None,
        files: Optional[Sequence[str]] = None,
        resamples: int = 2000,
        seed: int = 0,
        progress: bool = False,
) -> Table:
    """Top-1, top-5, negative log-likelihood, accuracy per class and the confusion matrix.

    Args:
        model: any nn.Module that gives logits.
        loader: of (images, target), or what `collect` returned.
        class_names: for the table and the picture; default numbers.
        files: names of the images, of which `draw` then lists those that are wrongly classified.
        resamples: of the bootstrap (Efron, 1979): images drawn with replacement; ends of the interval are the 2.5th
            and 97.5th percentiles of the resampled means.
        seed: of the bootstrap.

    Returns:
        A `Table`; data holds 'per_class' in percent and 'confusion', counts with true classes as rows.
    """
    outputs = collect(model, loader, progress=progress, text='accuracy')
    logits, target = outputs.logits, outputs.target
    C = logits.shape[1]
    names = class_names or [str(c) for c in range(C)]
    called = logits.topk(min(5, C), 1).indices
    hit = called == target[:, None]
    top1 = 100 * hit[:, 0].double().numpy()
    nll = F.cross_entropy(logits.double(), target, reduction='none').numpy()
    confusion = confusion_matrix(target, logits.argmax(1), labels=range(C))
    present = confusion.sum(1) > 0
    recall = 100 * confusion.diagonal()[present] / confusion.sum(1)[present]
    rows: dict[str, Any] = {'images': len(outputs), 'top-1, %': interval(top1, resamples, seed)}
    if C > 5:
        rows['top-5, %'] = interval(100 * hit.any(1).double().numpy(), resamples, seed)
    rows['NLL'] = interval(nll, resamples, seed)
    rows['mean over classes, %'] = over_classes(top1, target.numpy(), resamples, seed)
    worst = int(recall.argmin())
    rows['worst class, %'] = recall[worst]
    known = [name for name, there in zip(names, present) if there]
    notes = [f'The worst class is {known[worst]}.']
    wrong = None
    if files is not None:
        sure = logits.double().softmax(1).amax(1)
        wrong = sorted(((files[i], names[int(target[i])], names[int(called[i, 0])], round(float(sure[i]), 4))
                        for i in np.flatnonzero(top1 == 0).tolist()), key=lambda row: -row[3])
        notes.append(f'{MISTAKES} lists its {len(wrong)} wrongly classified images, the most confident first.')
    return Table(
        'accuracy', rows_of(rows),
        {'per_class': dict(zip(known, recall.tolist())), 'uneven': _uneven(target.numpy()),
         'confusion': confusion.tolist(), 'classes': names[:C], 'resamples': resamples, 'seed': seed},
        notes, {'top1': top1, 'target': target.numpy(), 'wrong': wrong, 'resamples': resamples, 'seed': seed})


def interval(values: np.ndarray, resamples: int = 2000, seed: int = 0) -> Value:
    """The mean of a value per image, and its 95 % percentile bootstrap interval."""
    mean = float(values.mean())
    if len(values) < 2 or np.ptp(values) == 0:  # nothing to resample
        return Value(mean, mean, mean)
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(resamples)]
    return Value(mean, *(float(x) for x in np.percentile(means, (2.5, 97.5))))


def over_classes(values: np.ndarray, target: np.ndarray, resamples: int = 2000, seed: int = 0) -> Value:
    """The mean over the classes of a value per image, and its interval: images of each class are resampled."""
    of_each = [values[target == c] for c in np.unique(target)]
    mean = float(np.mean([own.mean() for own in of_each]))
    rng = np.random.default_rng(seed)
    means = np.zeros(resamples)
    for own in of_each:
        means += own[rng.integers(len(own), size=(resamples, len(own)))].mean(1)
    return Value(mean, *(float(x) for x in np.percentile(means / len(of_each), (2.5, 97.5))))


def compare(tables: Mapping[str, Table]) -> None:
    """Add to every table but the first how much its top-1, and its mean over classes, differ from the first's, on the
    same images."""
    (first, base), *others = tables.items()
    for _, table in others:
        a, b = base.arrays['top1'], table.arrays['top1']
        if len(a) == len(b):
            drawn = table.arrays['resamples'], table.arrays['seed']
            table.rows[f'top-1 minus that of {first}, points'] = interval(b - a, *drawn)
            if _uneven(target := table.arrays['target']):
                table.rows[f'mean over classes minus that of {first}, points'] = over_classes(b - a, target, *drawn)


def _uneven(target: np.ndarray) -> bool:
    """Whether classes differ much in size. Else the mean over classes is nearly top-1."""
    return uneven(np.unique(target, return_counts=True)[1].tolist())


def draw(tables: Mapping[str, Table], folder: Path) -> list[Path]:
    """Confusion matrices as shares of each true class; and the list of wrongly classified images."""
    mistakes = {name: wrong for name, table in tables.items() if (wrong := table.arrays['wrong']) is not None}
    if mistakes:
        with whole(folder / MISTAKES) as path, path.open('w', newline='', encoding='utf-8', errors='replace') as file:
            rows = csv.writer(file)
            rows.writerow(('checkpoint', 'image', 'class', 'called', 'probability'))
            rows.writerows((name, *row) for name, wrong in mistakes.items() for row in wrong)
    classes = [short(name) for name in next(iter(tables.values())).data['classes']]
    side = min(9.0, max(2.6, 0.32 * len(classes)))
    named = len(classes) <= 30
    names = 0.065 * max(map(len, classes)) if named else 0.3  # inches that they take beside and below
    figure, axes = panels(1, len(tables), ((side + 0.3) * len(tables) + names + 1.2, side + names + 0.8), sharey=True)
    image = None
    for axis, (name, table) in zip(axes[0], tables.items()):
        counts = np.array(table.data['confusion'], dtype=float)
        share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
        image = axis.imshow(share, cmap='Blues', vmin=0, vmax=100)
        axis.set_title(title(name, side, f'top-1 {table["top-1, %"]:.1f} %'), fontsize=10)
        axis.set_xlabel('called')
        if named:
            axis.set_xticks(range(len(classes)), classes, rotation=90, fontsize=8)
            axis.set_yticks(range(len(classes)), classes, fontsize=8)
        if len(classes) <= 12:
            for i, j in np.argwhere(share >= 0.5):
                axis.text(j, i, f'{share[i, j]:.0f}', ha='center', va='center', fontsize=7,
                          color='white' if share[i, j] > 55 else 'black')
    axes[0, 0].set_ylabel('true class')
    figure.colorbar(image, ax=axes[0].tolist(), label='% of the true class', shrink=0.8)
    return [save_figure(figure, folder / 'confusion.png')]
