"""Draw the pictures that no benchmark draws: `python tools/pictures.py`."""
from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from timm_multimix import MultiMixConfig, sample_lam
from timm_multimix.mixing import effective_examples
from timm_multimix.mixing.engines.stream import CHUNK
from timm_multimix.mixing.engines.torch_engine import TILE

COLOURS = np.array([[0.18, 0.43, 0.70], [0.88, 0.48, 0.13], [0.23, 0.60, 0.35]])
BATCH, N = 30, 600


IMAGES = Path(__file__).parent.parent / 'docs' / 'images'


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    for picture in (mixing, tensors):
        path = IMAGES / f'{picture.__name__ if picture is mixing else "speed_tensors"}.png'
        picture().savefig(path, dpi=110)
        print(path)


def tensors() -> plt.Figure:
    """What the loss holds, as squares of that area: literally, and as it runs. ResNet-50, 1000 classes, n = 1000."""
    B, P, D, C, N = 128, 49, 2048, 1000, 1000
    literally = [('Λ, N·P·B', N * P * B), ('factors', N * P * B), ('mixed features, N·P·D', N * P * D),
                 ('mixed logits, N·P·C', N * P * C), ('log-probabilities', N * P * C), ('mixed targets', N * P * C),
                 ('their gradients', N * P * (D + C))]
    ours = [('logits, B·P·C', B * P * C), ('their gradient', B * P * C), ('Λ, a chunk', CHUNK['cpu']),
            ('X, a tile', TILE['cpu'])]
    figure, axis = plt.subplots(figsize=(11, 4.1), layout='constrained')
    right = 0.0
    for bottom, title, parts, colour in ((0, 'Literally', literally, '0.78'), (-15, 'Here', ours, '#8fb8de')):
        x = 0.0
        for name, size in parts:
            mib = 4 * size / 2**20
            axis.add_patch(plt.Rectangle((x, bottom), mib**0.5, mib**0.5, facecolor=colour, edgecolor='black', lw=0.6))
            axis.text(x, bottom - 0.5, f'{name}\n{mib:.0f} MiB', va='top', fontsize=8)
            x += max(mib**0.5, 12) + 2
        total = sum(4 * size for _, size in parts) / 2**20
        axis.text(-4, bottom, f'{title}\n{total:,.0f} MiB', ha='right', fontsize=11)
        right = max(right, x)
    axis.set_xlim(-16, right)
    axis.set_ylim(-19, 25)
    axis.set_aspect('equal')
    axis.axis('off')
    return figure


def mixing() -> plt.Figure:
    """The README's: real images, the package's own sampling."""
    data = load_digits(n_class=3)
    plane = LinearDiscriminantAnalysis(n_components=2).fit_transform(data.data, data.target)
    chosen = np.random.default_rng(4).choice(len(plane), BATCH, replace=False)
    Z = torch.tensor(plane[chosen], dtype=torch.float32)
    Y = torch.eye(3)[torch.tensor(data.target[chosen])]
    g = torch.Generator().manual_seed(0)
    default = MultiMixConfig('multimix')
    panels = [
        ('The mini-batch', None),
        ('Pairs (manifold mixup)', sample_lam(N, 1, BATCH, 1.0, g, m=2)),
        ('MultiMix, paper preset\nα from 0.5 to 2: the whole batch at once',
         torch.cat([sample_lam(N // 20, 1, BATCH, (0.5, 2.0), g) for _ in range(20)])),
        ('MultiMix, default preset\n1.5 to 3 effective examples',
         torch.cat([sample_lam(N // 20, 1, BATCH, default.alpha_range(BATCH), g) for _ in range(20)])),
    ]
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.9), layout='constrained', sharex=True, sharey=True)
    for axis, (title, lam) in zip(axes, panels):
        if lam is not None:
            lam = lam[:, 0]
            axis.scatter(*(lam @ Z).T, c=(lam @ Y).numpy() @ COLOURS, s=7, linewidths=0, alpha=0.8)
            effective = effective_examples(lam).mean()
            axis.set_xlabel(f'{len(lam)} mixtures of {effective:.1f} effective examples', fontsize=9)
        else:
            axis.set_xlabel(f'{BATCH} digits in a plane', fontsize=9)
            handles = [plt.Line2D([], [], ls='', marker='o', ms=5, mec='black', mew=0.6, color=colour)
                       for colour in COLOURS]
            axis.legend(handles, ['digit 0', 'digit 1', 'digit 2'], frameon=False, fontsize=9, loc='upper left')
        axis.scatter(*Z.T, c=Y.numpy() @ COLOURS, s=26 if lam is None else 18, edgecolors='black',
                     linewidths=0.6, zorder=3)
        axis.set_title(title, fontsize=10.5)
        axis.set_xticks([])
        axis.set_yticks([])
    return figure


if __name__ == '__main__':
    main()
