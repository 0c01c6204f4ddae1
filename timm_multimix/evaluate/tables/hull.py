"""Where mixed embeddings fall in the convex hull of the mini-batch: near its vertices, or all at its middle."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ...config import MultiMixConfig
from ...errors import SettingError
from ...mixing import effective_examples, sample_lam
from ..outputs import Source, collect
from ..table import Table, colour, legend_mark, panels, rows_of, save_figure, short, title

TITLE = 'Where mixed embeddings fall'
ABOUT = """\
Mini-batches of real embeddings are mixed as MultiMix mixes them, λ ~ Dir(α) over m of the batch's examples.
Effective examples: mean of 1/Σλ². To nearest example, to mean: mean distance of a mixture to the nearest embedding
of the batch, and to the batch's mean, as fractions of the mean distance of the embeddings to it: an example itself
is at 0 and 1. Target entropy: mean entropy of the mixed targets over that of the batch's classes; at 1 no class is
left in them. Reach: mean distance of embeddings that are not in the batch to the nearest of the n mixtures, over
that to the nearest of the batch's examples: below 1, mixtures come nearer to unseen images than the batch itself
does."""

ALPHAS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
NS = (10, 30, 100, 300, 1000, 3000)
PAIRS, DEFAULT, PAPER = 'pairs, α = 1', 'default preset', 'paper preset'


def hull(
        model: nn.Module,
        loader: Source,
        *,
        class_names: Optional[list[str]] = None,
        batch: int = 128,
        n: int = 1000,
        alphas: Sequence[float] = ALPHAS,
        ms: Optional[Sequence[int]] = None,
        ns: Sequence[int] = NS,
        batches: int = 4,
        seed: int = 0,
        progress: bool = False,
) -> Table:
    """Effective examples, distances, target entropy and reach of mixtures, over α, m and n.

    Args:
        model: any nn.Module that gives logits by a last linear layer.
        loader: of (images, target), or what `collect` returned; at least two batches of images.
        class_names: for the picture; default numbers.
        batch: examples in a mini-batch.
        n: mixtures of each mini-batch, but where they are varied.
        alphas: Dirichlet concentrations of the curves.
        ms: examples mixed in each; default 2, 8 and the batch.
        ns: numbers of mixtures for the reach.
        batches: how many mini-batches are averaged over, at most.
        seed: which examples form them, and of the mixtures.

    Returns:
        A `Table` with a group of rows each for pairs, the default and the paper preset; data holds 'over_alpha' and
        'over_n'.

    Raises:
        SettingError: too few images, or m, n or α that cannot be.
    """
    outputs = collect(model, loader, progress=progress, text='hull')
    if batch < 2 or len(outputs) < batch + 2:
        raise SettingError(f'batch is {batch}, but it must be from 2 to two less than the {len(outputs)} images, so '
                           f'that some are left that are not in it.')
    if batches < 1 or min([n, *ns]) < 1:
        raise SettingError(f'batches is {batches}, n is {n} and ns are {tuple(ns)}, but all must be at least 1.')
    ms = sorted({2, min(8, batch), batch}) if ms is None else ms
    generator = torch.Generator().manual_seed(seed)
    z, C = outputs.embedding.double(), outputs.logits.shape[1]
    presets: dict[str, tuple[int, tuple[float, float]]] = {PAIRS: (2, (1.0, 1.0))}
    for name, preset in ((DEFAULT, 'default'), (PAPER, 'paper')):
        presets[name] = batch, MultiMixConfig('multimix', preset=preset).alpha_range(batch)
    found: dict[Any, list[dict[str, float]]] = {}
    first: dict[str, Any] = {}
    for part in range(batches):
        order = torch.randperm(len(z), generator=generator)
        inside, outside = order[:batch], order[batch:batch + 1000]
        Z, Y = z[inside], F.one_hot(outputs.target[inside], C).double()
        for name, (m, ends) in presets.items():
            lam = draw_lam(max([n, *ns]), batch, ends, m, generator)
            mixed = lam @ Z
            found.setdefault(name, []).append(place(Z, Y, lam[:n], mixed[:n]))
            for count in sorted({n, *ns}):
                found.setdefault((name, count), []).append({'reach': reach(Z, mixed[:count], z[outside])})
            if not part:
                first[name] = mixed[:n], lam[:n] @ Y
        if not part:
            first['batch'] = Z, outputs.target[inside]
        for m in ms:
            for alpha in alphas:
                lam = draw_lam(n, batch, (alpha, alpha), m, generator)
                found.setdefault((m, alpha), []).append(place(Z, Y, lam, lam @ Z))
    mean = {key: {k: float(np.mean([one[k] for one in many])) for k in many[0]} for key, many in found.items()}
    rows = {f'{name} | {label}': x for name in presets
            for label, x in {**mean[name], f'reach of {n} mixtures': mean[name, n]['reach']}.items()}
    data = {
        'batch': batch, 'n': n, 'batches': batches, 'seed': seed,
        'over_alpha': {str(m): {'alpha': list(alphas), **{k: [mean[m, a][k] for a in alphas] for k in mean[PAIRS]}}
                       for m in ms},
        'over_n': {name: {'n': list(ns), 'reach': [mean[name, count]['reach'] for count in ns]} for name in presets}}
    names = class_names or [str(c) for c in range(C)]
    return Table('hull', rows_of(rows), data, [], {'first': first, 'presets': list(presets), 'names': names})


def draw_lam(n: int, batch: int, alpha: tuple[float, float], m: int, generator: torch.Generator) -> Tensor:
    """(n, batch) interpolation vectors in float64; from a range, α is drawn twenty times, as in twenty steps."""
    parts = 1 if alpha[0] == alpha[1] else min(20, n)
    drawn = [sample_lam(len(part), 1, batch, alpha, generator, m=m, dtype=torch.float64)[:, 0]
             for part in torch.arange(n).chunk(parts)]
    lam = torch.cat(drawn)
    return lam[torch.randperm(n, generator=generator)]  # so that the first few are of all parts


def place(Z: Tensor, Y: Tensor, lam: Tensor, mixed: Tensor) -> dict[str, float]:
    """Where mixtures lie. Z (B, D) examples, Y (B, C) targets, lam (N, B), mixed (N, D) = lam @ Z. See `ABOUT`."""
    centre = Z.mean(0)
    radius = (Z - centre).norm(dim=1).mean().clamp(min=1e-12)

    def entropy(y: Tensor) -> Tensor:
        return -torch.xlogy(y, y).sum(-1)

    whole = entropy(Y.mean(0))
    return {
        'effective examples': float(effective_examples(lam).mean()),
        'to nearest example': float(nearest(mixed, Z).mean() / radius),
        'to mean': float((mixed - centre).norm(dim=1).mean() / radius),
        'target entropy': float(entropy(lam @ Y).mean() / whole) if whole > 1e-6 else 1.0,
    }


def nearest(x: Tensor, points: Tensor) -> Tensor:
    """Distance of each of x (N, D) to the nearest of points (M, D). (N,)"""
    # not by inner products: x is often one of the points, and the root of a rounding error is not small
    return torch.cat([torch.cdist(part, points, compute_mode='donot_use_mm_for_euclid_dist').amin(1)
                      for part in x.split(256)])


def reach(Z: Tensor, mixed: Tensor, unseen: Tensor) -> float:
    """Mean distance of unseen (M, D) to the nearest mixture, over that to the nearest example Z (B, D)."""
    return float(torch.cdist(unseen, mixed).amin(1).mean() / torch.cdist(unseen, Z).amin(1).mean().clamp(min=1e-12))


def draw(tables: Mapping[str, Table], folder: Path) -> list[Path]:
    """The curves, and the mixtures of one mini-batch in the plane of its two principal directions."""
    return [_draw_curves(tables, folder / 'hull.png'), _draw_plane(tables, folder / 'hull_plane.png')]


def _draw_curves(tables: Mapping[str, Table], path: Path) -> Path:
    """A column for what is the same for every model, and one for each checkpoint."""
    figure, axes = panels(3, 1 + len(tables), (3.5 * (1 + len(tables)), 8.2))
    markers = ('o', 's', '^', 'D', 'v', 'P')

    def over_alpha(axis: Any, table: Table, what: str) -> None:
        for k, (m, curve) in enumerate(table.data['over_alpha'].items()):
            axis.plot(curve['alpha'], curve[what], color=colour(k), marker=markers[k % 6], ms=3.5, lw=1.2,
                      label=f'{m} examples mixed (m)')
        axis.set(xscale='log', xlabel='α of Dir(α)')
        axis.grid(alpha=0.25)

    for column, (name, table) in enumerate(tables.items(), 1):
        for axis, left in zip(axes[:, column], axes[:, 1]):
            axis.sharey(left)
        for axis, what in zip(axes[:, column], ('to nearest example', 'to mean')):
            over_alpha(axis, table, what)
        axes[0, column].set_title(title(name, 3.5, 'distance to the nearest example'), fontsize=10)
        axes[1, column].set_title('distance to the mean', fontsize=10)
        axis = axes[2, column]
        axis.axhline(1, color='0.6', lw=1, ls='--')
        for k, (preset, curve) in enumerate(table.data['over_n'].items(), 3):
            axis.plot(curve['n'], curve['reach'], color=colour(k), marker=markers[k % 6], ms=3.5, lw=1.2, label=preset)
        axis.set_title('reach (below 1: nearer to unseen images)', fontsize=10)
        axis.set(xscale='log', xlabel='mixtures (n)')
        axis.grid(alpha=0.25)
    for axis, what in zip(axes[:, 0], ('effective examples', 'target entropy')):
        over_alpha(axis, next(iter(tables.values())), what)
        axis.set_title(f'any model\n{what}' if axis is axes[0, 0] else what, fontsize=10)
    axes[0, 0].set_yscale('log')
    corner, style = axes[2, 0], {'frameon': False, 'fontsize': 9}
    corner.axis('off')
    corner.add_artist(corner.legend(*axes[0, 0].get_legend_handles_labels(), loc='upper left', **style))
    corner.legend(*axes[2, 1].get_legend_handles_labels(), loc='lower left', **style)
    return save_figure(figure, path)


def _draw_plane(tables: Mapping[str, Table], path: Path) -> Path:
    from matplotlib import colormaps

    first = next(iter(tables.values()))
    presets, names = first.arrays['presets'], first.arrays['names']
    figure, axes = panels(len(tables), len(presets), (3.7 * len(presets) + 1.6, 3.5 * len(tables) + 0.3))
    C = first.arrays['first'][presets[0]][1].shape[1]
    palette = colormaps['tab10' if C <= 10 else 'turbo'].resampled(C)(range(C))[:, :3]
    for line, (name, table) in zip(axes, tables.items()):
        Z, target = table.arrays['first']['batch']
        centre = Z.mean(0)
        axes_2d = torch.linalg.svd(Z - centre, full_matrices=False).Vh[:2].T
        for axis, preset in zip(line, presets):
            mixed, y = table.arrays['first'][preset]
            axis.scatter(*((mixed - centre) @ axes_2d).T.numpy(), c=(y.numpy() @ palette).clip(0, 1), s=6, linewidths=0)
            axis.scatter(*((Z - centre) @ axes_2d).T.numpy(), c=palette[target], s=22, edgecolors='black',
                         linewidths=0.5)
            axis.set_title(f'{preset}: {table[f"{preset} | effective examples"]:.1f} effective examples', fontsize=9)
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(title(name, 3.5), fontsize=9)
    grey = {'ls': '', 'marker': 'o', 'color': '0.6'}
    handles = [legend_mark(ms=5.5, markeredgecolor='black', markeredgewidth=0.5, **grey),
               legend_mark(ms=2.5, **grey)]
    labels = ['example of the batch', 'mixture of examples, in the\ncolours of its target, mixed']
    if C <= 20:
        handles += [legend_mark(ls='', marker='o', ms=5, color=one) for one in palette]
        labels += [short(name) for name in names]
    figure.legend(handles, labels, frameon=False, fontsize=8, loc='outside right center')
    return save_figure(figure, path)
