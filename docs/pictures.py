"""Draw the picture of the README: `python docs/pictures.py`. Real images, the package's own sampling."""
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

COLOURS = np.array([[0.18, 0.43, 0.70], [0.88, 0.48, 0.13], [0.23, 0.60, 0.35]])
BATCH, N = 30, 600


def main() -> None:
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
            axis.set_xlabel(f'{BATCH} digits 0, 1, 2 in the plane', fontsize=9)
        axis.scatter(*Z.T, c=Y.numpy() @ COLOURS, s=26 if lam is None else 18, edgecolors='black',
                     linewidths=0.6, zorder=3)
        axis.set_title(title, fontsize=10.5)
        axis.set_xticks([])
        axis.set_yticks([])
    path = Path(__file__).parent / 'images' / 'mixing.png'
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)
    print(path)


if __name__ == '__main__':
    main()
