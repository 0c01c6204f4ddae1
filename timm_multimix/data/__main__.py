"""Put the paper's data sets in order: `python -m timm_multimix data NAME FOLDER` makes FOLDER what `--data-dir` takes.

    python -m timm_multimix data cifar10 cifar10 --download
    python -m timm_multimix data cifar100 cifar100 --source data
    python -m timm_multimix data tinyimagenet tinyimagenet --source tiny-imagenet-200.zip
    python -m timm_multimix data imagenet imagenet
"""
from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Optional

from ..errors import SettingError
from . import prepare

RECIPES = {'cifar10': 'cifar10_preactresnet18 --dataset folder', 'cifar100': 'cifar100_preactresnet18 --dataset folder',
           'tinyimagenet': 'tinyimagenet_preactresnet18', 'imagenet': 'imagenet_resnet50'}


def main(argv: Optional[list[str]] = None, prog: str = 'python -m timm_multimix.data') -> int:
    parser = argparse.ArgumentParser(prog=prog, description="Put one of the paper's data sets in order.",
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    sets = parser.add_subparsers(dest='name', required=True, metavar='NAME')
    for name in RECIPES:
        sub = sets.add_parser(name, help={'imagenet': 'unpack and count', 'tinyimagenet': 'order and count'}.get(
            name, 'write as PNG files and count'), formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        sub.add_argument('folder', metavar='FOLDER', type=Path, help='to make; of ImageNet, where its archives are')
        if name.startswith('cifar'):
            sub.add_argument('--source', default='data', metavar='DIR', help="torchvision's folder of it")
            sub.add_argument('--download', action='store_true', help='download it into --source')
        elif name == 'tinyimagenet':
            sub.add_argument('--source', default='tiny-imagenet-200', metavar='PATH', help='its folder or zip file')
    args = parser.parse_args(argv)
    try:
        if args.name == 'imagenet':
            counts, made = prepare.IMAGENET, prepare.imagenet(args.folder)
        elif args.name == 'tinyimagenet':
            counts, made = prepare.TINY_IMAGENET, prepare.tiny_imagenet(args.folder, args.source)
        else:
            counts = prepare.CIFAR10 if args.name == 'cifar10' else prepare.CIFAR100
            made = prepare.cifar(args.name, args.folder, args.source, args.download)
    except SettingError as e:
        print(f'timm_multimix.data: error: {e}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('\nStopped; nothing was left behind.', file=sys.stderr)
        return 130
    print(f'{args.folder} {"is ready" if made else "was ready"}: {prepare.described(counts)}.\n'
          f'Train on it: timm-multimix train -c {RECIPES[args.name]} --data-dir {shlex.quote(str(args.folder))}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
