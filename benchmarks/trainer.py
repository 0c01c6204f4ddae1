"""What `train.py` itself costs, beside timm's: `python -m benchmarks.trainer --timm TRAIN.py --data-dir FOLDER`.

    python -m benchmarks.trainer --timm pytorch-image-models/train.py --data-dir cifar10 --json trainer.json

TRAIN.py is the script of timm's repository, which its package does not hold. Both train the same model with the same
flags, in processes of their own that take turns: once for one epoch, and once for --epochs more. The difference is the
time of an epoch, validation included. What is left of the first is the start and the end.

Then, in this process, an epoch of timm's loader takes turns with the same loader behind PlacedLoader, and with the look
at each file that `--bad-images` takes before training.
"""
from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

from timm.data import create_dataset, create_loader

from benchmarks.measure import Run, describe, medians, save
from timm_multimix.data import PlacedLoader
from timm_multimix.data.factory import unreadable_images

OURS = Path(__file__).resolve().parent.parent / 'train.py'


def seconds(script: Path, flags: list[str], epochs: int) -> float:
    """Of a whole process: of the processor where it has one core (OMP_NUM_THREADS=1), else of the clock."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, str(script), *flags, '--epochs', str(epochs), '--output', out]
        before, started = os.times(), time.perf_counter()
        done = subprocess.run(command, cwd=script.parent, capture_output=True, text=True)
        after, passed = os.times(), time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f'error: {" ".join(command)}\n{done.stdout[-1000:]}{done.stderr[-2000:]}')
    if os.environ.get('OMP_NUM_THREADS') == '1':
        return after.children_user + after.children_system - before.children_user - before.children_system
    return passed


def trainers(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Of each script the seconds of the start and of an epoch: medians of the rounds."""
    flags = ['--data-dir', str(args.data_dir.resolve()), '--model', args.model, '--img-size', str(args.img_size),
             '--num-classes', str(args.num_classes), '--batch-size', str(args.batch_size), '--workers', '0',
             '--warmup-epochs', '0', '--lr', '0.01', '--device', 'cpu']
    sides = {"timm's": (args.timm.resolve(), flags), 'ours': (OURS, flags),
             'ours, --bad-images ignore': (OURS, [*flags, '--bad-images', 'ignore'])}
    found: dict[str, dict[str, list[float]]] = {name: {'start': [], 'epoch': []} for name in sides}
    for _ in range(args.repeat):
        for name, side in sides.items():
            one, more = seconds(*side, 1), seconds(*side, 1 + args.epochs)
            epoch = (more - one) / args.epochs
            found[name]['epoch'].append(epoch)
            found[name]['start'].append(one - epoch)
    return {name: {key: statistics.median(values) for key, values in side.items()} for name, side in found.items()}


def loaders(args: argparse.Namespace) -> dict[str, float]:
    """Seconds of an epoch of either loader, and of the look at its files."""
    dataset = create_dataset('', root=args.data_dir, split='train')
    options: dict[str, Any] = {'batch_size': args.batch_size, 'input_size': (3, args.img_size, args.img_size),
                               'is_training': True, 'num_workers': 0, 'use_prefetcher': False, 'device': 'cpu'}
    plain = create_loader(dataset, **options)
    placed = PlacedLoader(create_loader(create_dataset('', root=args.data_dir, split='train'), **options), seed=0)

    def consume(batches: Any) -> None:
        deque(batches, maxlen=0)

    runs: dict[str, Run] = {
        "timm's loader": lambda: consume(plain), 'placed loader': lambda: consume(placed.batches(0)),
        'look at the files': lambda: unreadable_images(dataset, workers=1)}
    return medians(runs, args.repeat, 'cpu')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--timm', type=Path, required=True, metavar='TRAIN.py', help="timm's own script")
    parser.add_argument('--data-dir', type=Path, required=True, help='image folder with train/ and validation/')
    parser.add_argument('--model', default='test_resnet', help='small, so that the loop itself is seen')
    parser.add_argument('--num-classes', type=int, default=10)
    parser.add_argument('--img-size', type=int, default=32)
    parser.add_argument('--batch-size', type=int, default=64)
    parser.add_argument('--epochs', type=int, default=2, help='by which the long run is longer')
    parser.add_argument('--repeat', type=int, default=3)
    parser.add_argument('--json', help='write the figures to this file')
    args = parser.parse_args()
    both, alone = trainers(args), loaders(args)
    print('| `train.py` | start and end | an epoch |\n|---|---|---|')
    for name, side in both.items():
        print(f'| {name} | {side["start"]:.2f} s | {side["epoch"]:.2f} s |')
    print('\n| an epoch of | time |\n|---|---|')
    for name, value in alone.items():
        print(f'| {name} | {value:.2f} s |')
    save(args.json, {**describe('cpu'), 'settings': {k: str(v) for k, v in vars(args).items()
                                                   if k not in ('json', 'timm', 'data_dir')},
                     'trainers': both, 'loaders': alone})


if __name__ == '__main__':
    main()
