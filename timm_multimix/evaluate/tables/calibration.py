"""Calibration: whether 80 % sure means right 80 times of 100."""
from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

from ...errors import SettingError
from ..outputs import Source, collect
from ..table import Table, colour, legend_mark, panels, rows_of, save_figure, title

TITLE = 'Calibration'
ABOUT = """\
ECE: expected calibration error, the mean over images of |accuracy − confidence| of the bin an image falls into, with
bins of equal width over confidence (Guo et al., arXiv 1706.04599; ℓ1). Adaptive ECE: the same with bins of equally
many images (Nguyen and O'Connor, arXiv 1508.05154). Confidence is the largest softmax probability. Overconfidence:
mean confidence minus accuracy. Temperature scaling divides the logits by one number T that minimises the NLL on
held-out images: the images are parted in five at random and T is fitted on four parts and applied to the fifth, in
turn, so that no image is measured with a T that saw it. All errors are in percent."""

FOLDS, LIMIT = 5, 20.0


def calibration(
        model: nn.Module,
        loader: Source,
        *,
        bins: int = 15,
        seed: int = 0,
        progress: bool = False,
) -> Table:
    """Calibration errors, before and after temperature scaling on held-out images.

    Args:
        model: any nn.Module that gives logits.
        loader: of (images, target), or what `collect` returned. Images it was not trained on.
        bins: of both calibration errors.
        seed: how the images are parted for temperature scaling.

    Returns:
        A `Table`; data holds the bins of the reliability diagrams, 'before' and 'after'.

    Raises:
        SettingError: fewer than one bin, or fewer than two images.
    """
    outputs = collect(model, loader, progress=progress, text='calibration')
    if bins < 1:
        raise SettingError(f'bins is {bins}, but it must be at least 1.')
    if len(outputs) < 2:
        raise SettingError('Calibration needs two images at least: the temperature is fitted on others than '
                           'are measured.')
    logits, target = outputs.logits.double(), outputs.target
    order = torch.randperm(len(target), generator=torch.Generator().manual_seed(seed))
    parts = order.tensor_split(min(FOLDS, len(order)))
    scaled, temperatures = logits.clone(), []
    for i, measured in enumerate(parts):
        held_out = torch.cat([*parts[:i], *parts[i + 1:]])
        t = temperature(logits[held_out], target[held_out])
        temperatures.append(t)
        scaled[measured] = logits[measured] / t
    rows: dict[str, float] = {}
    data: dict[str, Any] = {'bins': bins, 'seed': seed, 'temperatures': temperatures}
    for when, z in (('before', logits), ('after', scaled)):
        confidence, right = confidence_and_right(z, target)
        suffix = '' if when == 'before' else ', after temperature scaling'
        rows[f'ECE{suffix}, %'] = 100 * ece(confidence, right, bins)
        rows[f'adaptive ECE{suffix}, %'] = 100 * ece(confidence, right, bins, adaptive=True)
        rows[f'overconfidence{suffix}, %'] = 100 * float((confidence - right).mean())
        rows[f'NLL{suffix}'] = float(F.cross_entropy(z, target))
        data[when] = reliability(confidence, right, bins)
    rows['temperature'] = float(np.mean(temperatures))
    at_limit = any(abs(math.log(t)) > math.log(LIMIT) - 1e-3 for t in temperatures)
    notes = ['A temperature ran to its limit: among the images it was fitted on too few (or too many) are wrong for '
             'temperature scaling to mean anything.'] if at_limit else []
    return Table('calibration', rows_of(rows), data, notes)


def confidence_and_right(logits: Tensor, target: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The largest softmax probability of every image, and 1 where its class is right, else 0."""
    confidence, guess = logits.double().softmax(1).max(1)
    return confidence.numpy(), (guess == target).double().numpy()


def _bin_of(confidence: np.ndarray, bins: int, adaptive: bool) -> np.ndarray:
    """Which bin every image falls into: ((k−1)/bins, k/bins], or ranks cut into parts that differ by one at most."""
    if not adaptive:
        return np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    found = np.empty(len(confidence), dtype=int)
    for k, part in enumerate(np.array_split(np.argsort(confidence, kind='stable'), bins)):
        found[part] = k
    return found


def ece(confidence: np.ndarray, right: np.ndarray, bins: int = 15, adaptive: bool = False) -> float:
    """Expected calibration error from 0 to 1: Σ_bins (n_bin / N) · |accuracy_bin − confidence_bin|.

    Args:
        confidence: (N,), the largest probability of each image.
        right: (N,), 1 where that class is the true one, else 0.
        bins: how many, of equal width (arXiv 1706.04599), or, if `adaptive`, of equally many images
            (arXiv 1508.05154).
    """
    gap = np.bincount(_bin_of(confidence, bins, adaptive), weights=confidence - right, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))


def reliability(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> dict[str, list[float]]:
    """Of every bin of equal width that has images: 'count', mean 'confidence', 'accuracy', and its 'bin' from 0."""
    which = _bin_of(confidence, bins, adaptive=False)
    count = np.bincount(which, minlength=bins)
    there = count > 0
    mean = {name: (np.bincount(which, weights=x, minlength=bins)[there] / count[there]).tolist()
            for name, x in (('confidence', confidence), ('accuracy', right))}
    return {'bin': np.flatnonzero(there).tolist(), 'count': count[there].tolist(), **mean}


def temperature(logits: Tensor, target: Tensor) -> float:
    """The T > 0 that minimises the negative log-likelihood of logits / T, from 1/20 to 20 (arXiv 1706.04599)."""
    z = logits.double()
    found = minimize_scalar(lambda t: float(F.cross_entropy(z / math.exp(t), target)),
                            bounds=(-math.log(LIMIT), math.log(LIMIT)), method='bounded', options={'xatol': 1e-6})
    return float(np.exp(found.x))


def draw(tables: Mapping[str, Table], folder: Path) -> list[Path]:
    """Reliability diagrams, before and after temperature scaling; the more images a bin has, the larger its dot."""
    figure, axes = panels(2, len(tables), (3.6 * len(tables) + 0.6, 5.4), sharex=True, height_ratios=(3, 1))
    for column, (name, table) in enumerate(tables.items()):
        bins = table.data['bins']
        top, bottom = axes[:, column]
        top.plot([0, 1], [0, 1], color='0.6', lw=1, ls='--')
        for k, when in enumerate(('before', 'after')):
            found = table.data[when]
            share = 100 * np.array(found['count']) / sum(found['count'])
            top.plot(found['confidence'], found['accuracy'], color=colour(k), lw=0.8, alpha=0.35)
            top.scatter(found['confidence'], found['accuracy'], s=5 + 5 * share, color=colour(k), alpha=0.75,
                        linewidths=0, clip_on=False, zorder=3)
            bottom.bar((np.array(found['bin']) + 0.5) / bins, share, width=0.9 / bins, color=colour(k), alpha=0.55)
        top.set_title(title(name, 3.6, f'ECE {table["ECE, %"]:.1f} %, scaled '
                                       f'{table["ECE, after temperature scaling, %"]:.1f} %'), fontsize=10)
        top.set(xlim=(0, 1), ylim=(0, 1), ylabel='accuracy' if not column else '')
        top.grid(alpha=0.25)
        bottom.set(xlabel='confidence', ylabel='% of images' if not column else '')
    handles = [legend_mark(color=colour(k), marker='o', ms=5, lw=0.8) for k in (0, 1)]
    figure.legend(handles, ['as it is', 'temperature scaled'], frameon=False, fontsize=8, ncols=2,
                  title='A dot is a bin: the more images, the larger.', title_fontsize=8,
                  loc='outside lower center')
    return [save_figure(figure, folder / 'reliability.png')]
