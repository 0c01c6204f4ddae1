"""Out-of-distribution detection: does the model know what it was not trained on?"""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from ...errors import SettingError
from ..outputs import Outputs, Source, collect
from ..table import Table, colour, panels, rows_of, save_figure, title

TITLE = 'Out-of-distribution detection'
ABOUT = """\
A score says how much an image looks like the training data; images of other sets should score lower. Max softmax: the
largest probability (arXiv 1610.02136). Energy: log Σ exp of the logits (arXiv 2010.03759, temperature 1). KNN: minus
the distance to the k-th nearest training embedding, on the unit sphere (arXiv 2204.06507). Which side is positive:
*AuROC* is the same either way. *AuPR-in* takes in-distribution images as positive, *AuPR-out* the others; both are
average precisions, and depend on how many images there are of each (see the counts). *FPR95, in positive*: of the
out-of-distribution images, the share accepted at the threshold that accepts 95 % of the in-distribution ones.
*FPR95, out positive*: of the in-distribution images, the share rejected at the threshold that rejects 95 % of the
out-of-distribution ones (the convention of OpenOOD). *Detection accuracy*: the largest mean of the shares rightly
accepted and rightly rejected, over all thresholds: both sides count the same. All in percent; 50 is chance for AuROC
and detection accuracy."""

SCORES = {'softmax': 'max softmax', 'energy': 'energy', 'knn': 'KNN'}


def ood(
        model: nn.Module,
        loader: Source,
        others: Mapping[str, Source],
        *,
        bank: Optional[Source] = None,
        k: int = 50,
        progress: bool = False,
) -> Table:
    """How well three scores tell the loader's images from those of other sets.

    Args:
        model: any nn.Module that gives logits.
        loader: of in-distribution images (images, target) that it was not trained on, or what `collect` returned.
        others: name → loader of out-of-distribution images; their targets are not looked at.
        bank: of training images, for the KNN score; without one there is no such score.
        k: of the KNN score (the source uses 50 for CIFAR-10 and 1000 for ImageNet), at most the size of the bank.

    Returns:
        A `Table` with rows 'SET | METRIC, SCORE, %'.

    Raises:
        SettingError: no other sets, or k below 1.
    """
    if not others:
        raise SettingError('others is empty, but it names the sets that are to be told apart.')
    if k < 1:
        raise SettingError(f'k is {k}, but it must be at least 1.')
    inside = collect(model, loader, progress=progress, text='ood: in-distribution')
    stored = None if bank is None else collect(model, _without_target(bank), progress=progress,
                                               text='ood: training images')
    k = k if stored is None else min(k, len(stored))
    scores_in = scores(inside, stored, k)
    rows: dict[str, float] = {'in-distribution images': len(inside)}
    histograms: dict[str, dict[str, Any]] = {}
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for name, other in others.items():
        outside = collect(model, _without_target(other), progress=progress, text=f'ood: {name}')
        rows[f'{name} | images'] = len(outside)
        for kind, score in scores(outside, stored, k).items():
            figures.setdefault(name, {})[kind] = detection(scores_in[kind], score)
            histograms.setdefault(kind, {'in-distribution': scores_in[kind]})[name] = score
        for metric in next(iter(figures[name].values())):
            for kind, found in figures[name].items():
                rows[f'{name} | {metric}, {SCORES[kind]}, %'] = 100 * found[metric]
    notes = [] if stored is not None else ['No training images were given, so there is no KNN score.']
    return Table('ood', rows_of(rows), {'k': k if stored is not None else None, 'figures': figures}, notes,
                 {'scores': histograms})


def _without_target(source: Source) -> Source:
    """Classes of other sets mean nothing to the model, and need not be among its own. KNN looks at no class either."""
    if isinstance(source, Outputs):
        return source
    return ((images, torch.zeros(len(images), dtype=torch.long)) for images, *_ in source)


def scores(outputs: Outputs, bank: Optional[Outputs] = None, k: int = 50) -> dict[str, np.ndarray]:
    """(N,) for each kind; higher is more like the training data. See `ABOUT`."""
    z = outputs.logits.double()
    found = {'softmax': z.log_softmax(1).max(1).values.numpy(),  # in logarithms, which do not round to one
             'energy': z.logsumexp(1).numpy()}
    if bank is not None:
        near = NearestNeighbors(n_neighbors=min(k, len(bank)), algorithm='brute').fit(_sphere(bank.embedding))
        found['knn'] = -near.kneighbors(_sphere(outputs.embedding))[0][:, -1]
    return found


def _sphere(embedding: Tensor) -> np.ndarray:
    return F.normalize(embedding.double(), dim=1).numpy()


def detection(inside: np.ndarray, outside: np.ndarray) -> dict[str, float]:
    """Figures from 0 to 1 of telling two sets apart by a score that is higher for `inside`.

    'detection accuracy' and 'AuROC' treat both sides alike; 'AuPR-in' and 'FPR95, in positive' take `inside` as
    positive, 'AuPR-out' and 'FPR95, out positive' take `outside`. Definitions: arXiv 1706.02690 and, for out as
    positive, OpenOOD (arXiv 2306.09301). Precision-recall areas are average precisions (no interpolation).
    """
    label = np.r_[np.ones(len(inside)), np.zeros(len(outside))]
    score = np.r_[inside, outside]
    fpr, tpr, _ = roc_curve(label, score, drop_intermediate=False)
    fpr_out, tpr_out, _ = roc_curve(1 - label, -score, drop_intermediate=False)
    return {
        'detection accuracy': float((tpr + 1 - fpr).max() / 2),
        'AuROC': float(roc_auc_score(label, score)),
        'AuPR-in': float(average_precision_score(label, score)),
        'AuPR-out': float(average_precision_score(1 - label, -score)),
        'FPR95, in positive': float(fpr[np.argmax(tpr >= 0.95 - 1e-12)]),
        'FPR95, out positive': float(fpr_out[np.argmax(tpr_out >= 0.95 - 1e-12)]),
    }


def draw(tables: Mapping[str, Table], folder: Path) -> list[Path]:
    """How each score is distributed over each set."""
    kinds = list(dict.fromkeys(kind for t in tables.values() for kind in t.arrays['scores']))
    figure, axes = panels(len(tables), len(kinds), (4.2 * len(kinds), 2.6 * len(tables) + 0.5))
    for line, (name, table) in zip(axes, tables.items()):
        for axis, kind in zip(line, kinds):
            sets = table.arrays['scores'].get(kind)
            if sets is None:
                axis.axis('off')
                continue
            shown = {n: np.exp(x) if kind == 'softmax' else x for n, x in sets.items()}
            low, high = np.percentile(np.concatenate(list(shown.values())), (0.5, 99.5))
            edges = np.linspace(low, high + 1e-12 + 1e-9 * abs(high), 41)
            for i, (other, x) in enumerate(shown.items()):
                axis.hist(np.clip(x, edges[0], edges[-1]), bins=edges, weights=np.full(len(x), 100 / len(x)),
                          histtype='stepfilled' if not i else 'step', color='0.75' if not i else colour(i - 1),
                          label=other, lw=1.4)
            axis.set_title(title(name, 4.2, SCORES[kind]), fontsize=10)
            axis.set_yticks([])
            axis.locator_params(axis='x', nbins=5)  # scores of little spread have long labels
    axes[0, 0].set_ylabel('share of images')
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=9, ncols=len(labels), loc='outside lower center')
    return [save_figure(figure, folder / 'ood.png')]
