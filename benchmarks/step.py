"""A whole training step with MultiMix against plain cross-entropy, the same timm model: `python -m benchmarks.step`.

Forward, loss, backward and optimizer step; the three take turns in one process. On CUDA under autocast (float16 with
a gradient scaler) and channels_last, on the CPU in float32, unless flags say otherwise. Class-token transformers are
built with average pooling for all three.
"""
from __future__ import annotations

import argparse
import copy
import itertools
import sys
import traceback
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.utils import ParseKwargs

import timm_multimix
from benchmarks.measure import Run, describe, make_room, medians, peak_mib, save
from timm_multimix.config import ENGINES

MODES = ('plain', 'multimix', 'dense')


def measure(name: str, amp: str, form: str, args: argparse.Namespace) -> dict[str, Any]:
    device, compiled = args.device, form == 'compiled'
    torch._dynamo.reset()
    model = timm.create_model(name, num_classes=args.num_classes, **args.model_kwargs)
    base = timm_multimix.unwrap(timm_multimix.wrap(model, 'dense'))
    size = base.pretrained_cfg['input_size'][1] if args.img_size is None else args.img_size
    images = torch.randn(args.batch_size, 3, size, size, device=device)
    target = torch.randint(0, args.num_classes, (args.batch_size,), device=device)
    if args.channels_last:
        base, images = base.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)

    def step(mode: str) -> Run:
        model = copy.deepcopy(base).to(device).train()
        if mode != 'plain':
            model = timm_multimix.wrap(model, mode, preset='embeddings', n=args.n, engine=args.engine,
                                       input_size=tuple(images.shape[1:]))
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        scaler = torch.amp.GradScaler(device, enabled=amp == 'float16')
        network = torch.compile(model, backend=args.backend) if compiled else model

        def run() -> None:
            with torch.autocast(device, getattr(torch, amp), enabled=amp != 'float32'):
                if mode == 'plain':
                    loss = F.cross_entropy(network(images), target)
                else:
                    loss = network(images, target).loss
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        return run

    runs = {mode: step(mode) for mode in MODES}
    for run in [*runs.values()] * 2 if compiled else ():  # what is seen to change is compiled again
        run()
    seconds = medians(dict(runs), args.repeat, device, times=5 if device == 'cuda' else 1)
    memory = {mode: peak_mib(run, device) for mode, run in runs.items()}
    return {'model': name, 'input': list(images.shape), 'amp': amp, 'form': form, 'channels_last': args.channels_last,
            'engine': args.engine, 'num_classes': args.num_classes, 'n': args.n, 'seconds': seconds,
            'MiB': memory, 'time ratio': {m: seconds[m] / seconds['plain'] for m in MODES},
            'memory ratio': {m: memory[m] / memory['plain'] for m in MODES}}


def label(row: dict[str, Any]) -> str:
    special = [word for word in (row['amp'], row['form']) if word not in ('float32', 'eager')]
    return ', '.join([f'{row["model"]} {tuple(row["input"])}', *special])


def picture(path: str, rows: list[dict[str, Any]], where: str) -> None:
    from matplotlib.figure import Figure

    fig = Figure(figsize=(9, 1.4 + 0.8 * len(rows)), layout='constrained')
    axes = fig.subplots(1, 2, sharey=True)
    for ax, key, about in zip(axes, ('time ratio', 'memory ratio'), ('time of a step', 'peak memory')):
        for i, mode in enumerate(MODES):
            at = [len(rows) - row - 0.25 * i for row in range(len(rows))]
            bars = ax.barh(at, [row[key][mode] for row in rows], 0.22, color=('0.65', '#8fb8de', '#2e6eb3')[i],
                           label=('plain cross-entropy', 'MultiMix', 'Dense MultiMix')[i])
            ax.bar_label(bars, fmt=' %.3f', fontsize=9)
        ax.set_xlim(0, 1.2 * max(row[key][mode] for row in rows for mode in MODES))  # room for the figures
        ax.set_xlabel(f'{about}, plain = 1')
        ax.spines[['top', 'right']].set_visible(False)
    axes[0].set_yticks([len(rows) - row - 0.25 for row in range(len(rows))],
                       [label(row).replace(' (', '\n(', 1) for row in rows], fontsize=8)
    fig.legend(*axes[0].get_legend_handles_labels(), frameon=False, fontsize=8, ncols=3, loc='outside lower center')
    fig.suptitle(f'A training step; {where}', fontsize=10)
    fig.savefig(make_room(path), dpi=110)


def main() -> int:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.split(':')[0])
    parser.add_argument('--models', nargs='+', default=['resnet50', 'vit_small_patch16_224'] if cuda else ['resnet18'])
    parser.add_argument('--batch-size', type=int, default=128)
    parser.add_argument('--img-size', type=int, help='default: the model\'s own')
    parser.add_argument('--model-kwargs', nargs='*', default={}, action=ParseKwargs, help='as train.py takes them')
    parser.add_argument('--num-classes', type=int, default=1000)
    parser.add_argument('--n', type=int, default=1000, help='mixtures of a step, and at each position')
    parser.add_argument('--repeat', type=int, default=10 if cuda else 5)
    parser.add_argument('--amp', nargs='+', choices=['float32', 'bfloat16', 'float16'],
                        help='autocast to each of these; float32 is none (default: bfloat16 on CUDA, none on the CPU)')
    parser.add_argument('--forms', nargs='+', choices=['eager', 'compiled'], default=['eager'])
    parser.add_argument('--backend', default='inductor', help='of torch.compile')
    parser.add_argument('--channels-last', action=argparse.BooleanOptionalAction, help='default: on CUDA')
    parser.add_argument('--engine', default='auto', choices=ENGINES)
    parser.add_argument('--device', default='cuda' if cuda else 'cpu')
    parser.add_argument('--json', help='write the figures to this file as well')
    parser.add_argument('--picture', help='draw them into this file')
    args = parser.parse_args()
    if args.channels_last is None:
        args.channels_last = args.device == 'cuda'
    amps = args.amp or ['bfloat16' if args.device == 'cuda' else 'float32']
    torch.backends.cudnn.benchmark = True  # as timm's train.py has it
    torch.manual_seed(0)
    where = describe(args.device)
    print(f'{where}; batch {args.batch_size}, medians of {args.repeat}\n\n| model | plain | MultiMix | '
          f'Dense MultiMix | MultiMix, time and memory | Dense, time and memory |\n|---|---|---|---|---|---|')
    rows: list[dict[str, Any]] = []
    errors: dict[str, str] = {}
    for form, amp, name in itertools.product(args.forms, amps, args.models):
        try:
            rows.append(row := measure(name, amp, form, args))
        except Exception as e:  # the others are still worth their time
            traceback.print_exc()
            errors[f'{name}, {amp}, {form}'] = f'{type(e).__name__}: {e}'
            continue
        finally:
            save(args.json, {**where, 'rows': rows, 'errors': errors})
        cells = [f'{row["seconds"][m]:.3g} s, {row["MiB"][m]:.0f} MiB' for m in MODES]
        cells += [f'{row["time ratio"][m]:.3f}×, {row["memory ratio"][m]:.3f}×' for m in MODES[1:]]
        print(f'| {label(row)} | {" | ".join(cells)} |', flush=True)
    if args.picture and rows:
        picture(args.picture, rows, f'{where["device"]}, threads: {where["threads"]}')
    return int(bool(errors))


if __name__ == '__main__':
    sys.exit(main())
