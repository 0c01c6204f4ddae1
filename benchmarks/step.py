"""A whole training step with MultiMix against plain cross-entropy, the same timm model: `python -m benchmarks.step`.

Forward, loss, backward and optimizer step; the three take turns in one process. On CUDA under autocast and
channels_last, on the CPU in float32. Class-token transformers are built with average pooling for all three.
"""
from __future__ import annotations

import argparse
import copy
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.utils import ParseKwargs

import timm_multimix
from benchmarks.measure import Run, describe, make_room, medians, peak_mib, save

MODES = ('plain', 'multimix', 'dense')


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    device = args.device
    model = timm.create_model(name, num_classes=args.num_classes, **args.model_kwargs)
    base = timm_multimix.unwrap(timm_multimix.wrap(model, 'dense'))
    size = base.pretrained_cfg['input_size'][1] if args.img_size is None else args.img_size
    images = torch.randn(args.batch_size, 3, size, size, device=device)
    target = torch.randint(0, args.num_classes, (args.batch_size,), device=device)
    if device == 'cuda':
        base, images = base.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)

    def step(mode: str) -> Run:
        model = copy.deepcopy(base).to(device).train()
        if mode != 'plain':
            model = timm_multimix.wrap(model, mode, preset='embeddings', input_size=tuple(images.shape[1:]))
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

        def run() -> None:
            with torch.autocast(device, torch.bfloat16, enabled=device == 'cuda'):
                if mode == 'plain':
                    loss = F.cross_entropy(model(images), target)
                else:
                    loss = model(images, target).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return run

    runs = {mode: step(mode) for mode in MODES}
    seconds = medians(dict(runs), args.repeat, device)
    memory = {mode: peak_mib(run, device) for mode, run in runs.items()}
    return {'model': name, 'input': list(images.shape), 'num_classes': args.num_classes, 'seconds': seconds,
            'MiB': memory, 'time ratio': {m: seconds[m] / seconds['plain'] for m in MODES},
            'memory ratio': {m: memory[m] / memory['plain'] for m in MODES}}


def picture(path: str, rows: list[dict[str, Any]], where: str) -> None:
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(9, 1.2 + 0.8 * len(rows)), layout='constrained', sharey=True)
    for ax, key, label in zip(axes, ('time ratio', 'memory ratio'), ('time of a step', 'peak memory')):
        for i, mode in enumerate(MODES):
            at = [len(rows) - row - 0.25 * i for row in range(len(rows))]
            bars = ax.barh(at, [row[key][mode] for row in rows], 0.22, color=('0.65', '#8fb8de', '#2e6eb3')[i],
                           label=('plain cross-entropy', 'MultiMix', 'Dense MultiMix')[i])
            ax.bar_label(bars, fmt=' %.3f', fontsize=9)
        ax.set_xlim(0, 2.6)  # room for the legend
        ax.set_xlabel(f'{label}, plain = 1')
        ax.spines[['top', 'right']].set_visible(False)
    axes[0].set_yticks([len(rows) - row - 0.25 for row in range(len(rows))],
                       [f'{row["model"]}\n{tuple(row["input"])}' for row in rows], fontsize=8)
    axes[1].legend(frameon=False, fontsize=8, loc='center right')
    fig.suptitle(f'A training step; {where}', fontsize=10)
    fig.savefig(make_room(path), dpi=110)


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.split(':')[0])
    parser.add_argument('--models', nargs='+', default=['resnet50', 'vit_small_patch16_224'] if cuda else ['resnet18'])
    parser.add_argument('--batch-size', type=int, default=128)
    parser.add_argument('--img-size', type=int, help='default: the model\'s own')
    parser.add_argument('--model-kwargs', nargs='*', default={}, action=ParseKwargs, help='as train.py takes them')
    parser.add_argument('--num-classes', type=int, default=1000)
    parser.add_argument('--repeat', type=int, default=20 if cuda else 5)
    parser.add_argument('--device', default='cuda' if cuda else 'cpu')
    parser.add_argument('--json', help='write the figures to this file as well')
    parser.add_argument('--picture', help='draw them into this file')
    args = parser.parse_args()
    torch.manual_seed(0)
    where = describe(args.device)
    print(f'{where}; batch {args.batch_size}, medians of {args.repeat}\n\n| model | plain | MultiMix | '
          f'Dense MultiMix | MultiMix, time and memory | Dense, time and memory |\n|---|---|---|---|---|---|')
    rows = []
    for name in args.models:
        rows.append(row := measure(name, args))
        cells = [f'{row["seconds"][m]:.3g} s, {row["MiB"][m]:.0f} MiB' for m in MODES]
        cells += [f'{row["time ratio"][m]:.3f}×, {row["memory ratio"][m]:.3f}×' for m in MODES[1:]]
        print(f'| {name} {tuple(row["input"])} | {" | ".join(cells)} |', flush=True)
    save(args.json, {**where, 'rows': rows})
    if args.picture:
        picture(args.picture, rows, f'{where["device"]}, {where["threads"]} threads')


if __name__ == '__main__':
    main()
