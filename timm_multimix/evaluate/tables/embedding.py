"""The embedding space: how tight the classes are, how much of the sphere they use."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.manifold import TSNE
from torch import Tensor

from ...errors import SettingError
from ..outputs import Source, collect
from ..table import Table, legend_mark, panels, rows_of, save_figure, short, title

TITLE = 'Embedding space'
ABOUT = """\
Embeddings are what the last linear layer takes, scaled to length 1. Alignment: mean squared distance of two images
of one class; lower is tighter. Uniformity: log of the mean of exp(−2 · squared distance) over all pairs of images;
lower is more evenly spread over the sphere, −4 is the limit for many dimensions (both Wang and Isola, arXiv
2005.10242, with images of one class as the positive pairs). Within and between: mean distance of two images of one
class, and of two classes. Fisher ratio: trace of the between-class over trace of the within-class covariance; higher
is better separated. All pairs are counted, none is sampled."""

CHUNK = 1024


def embedding(
        model: nn.Module,
        loader: Source,
        *,
        class_names: Optional[list[str]] = None,
        map_images: int = 1000,
        seed: int = 0,
        progress: bool = False,
) -> Table:
    """Alignment, uniformity, distances within and between classes, Fisher ratio, and a map in the plane.

    Args:
        model: any nn.Module that gives logits by a last linear layer.
        loader: of (images, target), or what `collect` returned.
        class_names: for the picture; default numbers.
        map_images: at most so many, drawn at random, on the map (scikit-learn's t-SNE); 0 is no map.
        seed: of the map.

    Returns:
        A `Table`; arrays hold the map.

    Raises:
        SettingError: fewer than two classes, or no class with two images.
    """
    outputs = collect(model, loader, progress=progress, text='embedding')
    z, target = F.normalize(outputs.embedding.double(), dim=1), outputs.target
    rows = {'images': float(len(z)), 'dimensions': float(z.shape[1]), **pair_figures(z, target),
            'Fisher ratio': fisher_ratio(z, target)}
    rows['between / within'] = rows['between-class distance'] / max(rows['within-class distance'], 1e-12)
    names = class_names or [str(c) for c in range(outputs.logits.shape[1])]
    arrays: dict[str, Any] = {}
    chosen = torch.randperm(len(z), generator=torch.Generator().manual_seed(seed))[:map_images]
    if len(chosen) > 3:
        plane = TSNE(perplexity=min(30, (len(chosen) - 1) / 3), init='pca', random_state=seed)
        arrays = {'map': plane.fit_transform(z[chosen].float().numpy()), 'map_target': target[chosen].numpy(),
                  'names': names}
    return Table('embedding', rows_of(rows), {'seed': seed}, [], arrays)


def pair_figures(z: Tensor, target: Tensor) -> dict[str, float]:
    """Means over all pairs of different images, of unit vectors z (N, D) with classes (N,).

    'alignment' E‖x − y‖² and 'within-class distance' E‖x − y‖ over pairs of one class, 'between-class distance' over
    pairs of two, 'uniformity' log E exp(−2‖x − y‖²) over all (arXiv 2005.10242, α = 2, t = 2).
    """
    same_sq = same = other = potential = 0.0
    n_same = n_other = 0
    for start in range(0, len(z), CHUNK):
        rows = slice(start, start + CHUNK)
        square = (2 - 2 * z[rows] @ z.T).clamp(min=0)
        # z times itself is 1 only up to rounding, and its root would not be small: the diagonal is set
        index = torch.arange(start, start + len(square))
        square[torch.arange(len(square)), index] = 0
        alike = target[rows, None] == target[None]
        distance = square.sqrt()
        same_sq += float(square[alike].sum())
        same += float(distance[alike].sum())
        other += float(distance[~alike].sum())
        potential += float((-2 * square).exp().sum()) - len(square)
        n_same += int(alike.sum()) - len(square)
        n_other += int((~alike).sum())
    if not n_same or not n_other:
        raise SettingError(f'The {len(z)} images have {"no two of one class" if not n_same else "one class only"}, but '
                           f'the embedding space is described by pairs within a class and between two.')
    return {'alignment': same_sq / n_same, 'uniformity': float(np.log(potential / (n_same + n_other))),
            'within-class distance': same / n_same, 'between-class distance': other / n_other}


def fisher_ratio(z: Tensor, target: Tensor) -> float:
    """tr S_B / tr S_W: squared distances of class means to the mean, over those of images to their class's mean."""
    classes = target.unique(return_inverse=True)[1]
    onehot = F.one_hot(classes).to(z.dtype)
    means = onehot.T @ z / onehot.sum(0)[:, None]
    between = (means[classes] - z.mean(0)).square().sum(1).mean()
    within = (z - means[classes]).square().sum(1).mean()
    return float(between / within.clamp(min=1e-12))


def draw(tables: Mapping[str, Table], folder: Path) -> list[Path]:
    """The maps, coloured by class."""
    from matplotlib import colormaps

    tables = {name: t for name, t in tables.items() if 'map' in t.arrays}
    if not tables:
        return []
    figure, axes = panels(1, len(tables), (5 * len(tables) + 1.2, 4.6))
    names = next(iter(tables.values())).arrays['names']
    C = len(names)
    palette = colormaps['tab10' if C <= 10 else 'tab20' if C <= 20 else 'turbo'].resampled(C)
    for axis, (name, table) in zip(axes[0], tables.items()):
        where, target = table.arrays['map'], table.arrays['map_target']
        axis.scatter(*where.T, c=palette(target), s=8, linewidths=0)
        axis.set_title(title(name, 5, f'alignment {table["alignment"]:.2f}, uniformity {table["uniformity"]:.2f}'),
                       fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
    if C <= 20:
        handles = [legend_mark(ls='', marker='o', ms=5, color=palette(i)) for i in range(C)]
        figure.legend(handles, [short(name) for name in names], frameon=False, fontsize=9, loc='outside right center')
    return [save_figure(figure, folder / 'embedding.png')]
