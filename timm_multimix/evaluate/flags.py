"""Flags of evaluate.py."""
from __future__ import annotations

import argparse
import os
from typing import Optional

from ..data import DIGITS
from ..errors import SettingError, nearest
from ..runs.flags import INTERPOLATIONS, KeyValues, Parser

TABLES = ('accuracy', 'calibration', 'robustness', 'ood', 'embedding', 'hull', 'attention', 'transfer')
DEFAULT = TABLES[:-1]
DETECTORS = ('faster_rcnn', 'ssd')
ATTACKS = ('fgsm', 'pgd', 'autoattack')
LEAST = {'num_images': 1, 'batch_size': 1, 'workers': 0, 'num_classes': 1, 'img_size': 1, 'resamples': 1, 'bins': 1,
         'attack_images': 1, 'pgd_steps': 1, 'pgd_restarts': 1, 'ood_images': 1, 'bank': 0, 'knn_k': 1, 'hull_batch': 2,
         'map_images': 0, 'transfer_epochs': 1, 'transfer_batch_size': 1, 'transfer_size': 32}


def fraction(text: str) -> float:
    """'8/255' or '0.03'."""
    top, _, bottom = text.partition('/')
    return float(top) / float(bottom or 1)


def names(text: str) -> list[str]:
    return [name.strip() for name in text.split(',') if name.strip()]


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description='Evaluate timm checkpoints: one table and its pictures for each of --on.',
                     allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add, on_off = parser.add_argument, argparse.BooleanOptionalAction
    add('checkpoints', nargs='+', metavar='CHECKPOINT',
        help="a folder that train.py wrote, a file of weights with --model, local-dir:…, hf-hub:…, or a timm model's "
             'name; NAME=CHECKPOINT names its column')
    add('--on', type=names, default=list(DEFAULT), metavar='TABLES',
        help=f'of {",".join(TABLES)}; all but transfer where it is not given')
    add('--output', default='', metavar='DIR', help='where report.md goes (default: ./output/evaluate/DATE)')
    add('--seed', type=int, default=0, metavar='N', help='of everything random')
    add('--device', default='auto', help='auto (CUDA, else MPS, else CPU), cuda, cuda:1, mps, cpu')

    g = parser.add_argument_group('Images').add_argument
    g('--data-dir', metavar='DIR', help='folder of images: one sub-folder per split, or the class folders themselves')
    g('--dataset', default='', metavar='NAME', help=f'as in timm; without --data-dir {DIGITS}')
    g('--split', default='validation', metavar='NAME', help='evaluated on')
    g('--train-split', default='train', metavar='NAME', help='for what looks at training images (KNN of ood)')
    g('--class-map', default='', metavar='FILE', help='class to index mapping')
    g('--num-images', type=int, default=None, metavar='N', help='at most so many, at random; default all')
    g('-b', '--batch-size', type=int, default=128, metavar='N', help=' ')
    g('-j', '--workers', type=int, default=2, metavar='N', help='data loading processes')

    g = parser.add_argument_group('Model, where the checkpoint does not say it').add_argument
    g('--model', default=None, metavar='MODEL', help='timm model of files of weights')
    g('--num-classes', type=int, default=None, metavar='N', help=' ')
    g('--model-kwargs', nargs='*', default={}, action=KeyValues, metavar='K=V', help='for timm.create_model')
    g('--img-size', type=int, default=None, metavar='N', help=' ')
    g('--crop-pct', type=float, default=None, metavar='N', help=' ')
    g('--mean', type=float, nargs='+', default=None, metavar='X', help=' ')
    g('--std', type=float, nargs='+', default=None, metavar='X', help=' ')
    g('--interpolation', choices=('', *INTERPOLATIONS), default='', help=' ')

    g = parser.add_argument_group('accuracy, calibration').add_argument
    g('--resamples', type=int, default=2000, metavar='N', help='of the bootstrap')
    g('--bins', type=int, default=15, metavar='N', help='of the calibration errors')

    g = parser.add_argument_group('robustness (pixels are from 0 to 1; 8/255 is a number)').add_argument
    g('--attacks', type=names, default=['fgsm', 'pgd'], metavar='NAMES', help='fgsm,pgd,autoattack')
    g('--attack-images', type=int, default=1000, metavar='N', help='at most so many')
    g('--fgsm-eps', type=fraction, default=8 / 255, metavar='E', help='ε of FGSM')
    g('--pgd-eps', type=fraction, default=4 / 255, metavar='E', help='ε of PGD and AutoAttack')
    g('--pgd-step', type=fraction, default=2 / 255, metavar='E', help=' ')
    g('--pgd-steps', type=int, default=10, metavar='N', help=' ')
    g('--pgd-restarts', type=int, default=1, metavar='N', help=' ')
    g('--curve', action=on_off, default=True, help='accuracy over ε, and checks of the attacks')

    g = parser.add_argument_group('ood').add_argument
    g('--ood', nargs='+', default=None, metavar='SET', help='folders of images, uniform, gaussian, digits, photographs '
                                                          '(default: all of these but the data itself)')
    g('--ood-images', type=int, default=2000, metavar='N', help='at most so many of each set')
    g('--bank', type=int, default=5000, metavar='N', help='training images for KNN, at most; 0 is no KNN')
    g('--knn-k', type=int, default=50, metavar='N', help='which neighbour')

    g = parser.add_argument_group('hull, embedding, attention').add_argument
    g('--hull-batch', type=int, default=128, metavar='N', help='examples in a mini-batch')
    g('--map-images', type=int, default=1000, metavar='N', help='on the map of the embeddings')
    g('--masks', default=None, metavar='DIR', help="a .png mask or a PASCAL VOC .xml under every image's name")
    g('--attention-norm', choices=('l1_relu', 'softmax'), default='l1_relu', help=' ')

    g = parser.add_argument_group('transfer').add_argument
    g('--transfer-data', default=None, metavar='DIR', help="boxes in PASCAL VOC's layout or in COCO's")
    g('--transfer-splits', nargs=2, default=None, metavar=('TRAIN', 'TEST'),
      help='VOC2007/trainval,VOC2012/trainval VOC2007/test, or train2017 val2017; found where not given')
    g('--detectors', type=names, default=list(DETECTORS), metavar='NAMES', help=','.join(DETECTORS))
    g('--transfer-epochs', type=int, default=12, metavar='N', help=' ')
    g('--transfer-batch-size', type=int, default=8, metavar='N', help=' ')
    g('--transfer-lr', type=float, default=None, metavar='LR', help='default: 0.02 (SSD 0.01) for 16 images a batch')
    g('--detector-kwargs', nargs='*', default={}, action=KeyValues, metavar='K=V', help="for torchvision's detector")
    g('--transfer-size', type=int, default=None, metavar='N', help='of the images; default: 600 (SSD 300)')
    return parser


def parse_args(argv: Optional[list[str]] = None) -> argparse.Namespace:
    """Parse and check what can be checked without looking at anything but the flags.

    Raises:
        SettingError: naming the flag, its value, and what would be right.
    """
    args = build_parser().parse_args(argv)
    for name in args.on:
        if name not in TABLES:
            raise SettingError(f'--on has {name!r}, but there are {",".join(TABLES)}.{nearest(name, TABLES)}')
    if not args.on:
        raise SettingError(f'--on is empty, but it names tables: {",".join(TABLES)}.')
    args.on = list(dict.fromkeys(args.on))
    args.on_given = args.on != list(DEFAULT)
    for name, least in LEAST.items():
        value = getattr(args, name)
        if value is not None and value < least:
            raise SettingError(f'--{name.replace("_", "-")} is {value}, but it must be at least {least}.')
    for name in ('fgsm_eps', 'pgd_eps', 'pgd_step'):
        if not 0 < getattr(args, name) <= 1:
            raise SettingError(f'--{name.replace("_", "-")} is {getattr(args, name):g}, but pixels are from 0 to 1: '
                               f'above 0, such as 8/255.')
    for name in args.detectors:
        if name not in DETECTORS:
            raise SettingError(f'--detectors has {name!r}, but there are {",".join(DETECTORS)}.'
                               f'{nearest(name, DETECTORS)}')
    for name in args.attacks:
        if name not in ATTACKS:
            raise SettingError(f'--attacks has {name!r}, but there are {",".join(ATTACKS)}.{nearest(name, ATTACKS)}')
    if ('transfer' in args.on) != bool(args.transfer_data):
        raise SettingError(
            '--on has transfer, but no --transfer-data says where the boxes are.' if 'transfer' in args.on else
            f'--transfer-data is {args.transfer_data!r}, but --on has no transfer: add it, or drop the data.')
    if args.transfer_lr is not None and not 0 < args.transfer_lr < float('inf'):
        raise SettingError(f'--transfer-lr is {args.transfer_lr}, but it must be above 0.')
    if not 0 <= args.seed < 2**32:
        raise SettingError(f'--seed is {args.seed}, but it must be from 0 to {2**32 - 1}.')
    if args.data_dir and args.dataset.lower() == DIGITS:
        raise SettingError(f'--data-dir is {args.data_dir!r} and --dataset is {args.dataset}, which has no folder: '
                           f'give only one.')
    if not args.data_dir and not args.dataset:
        args.dataset = DIGITS
    for name in ('data_dir', 'output', 'masks'):
        if getattr(args, name):
            setattr(args, name, os.path.expanduser(getattr(args, name)))
    return args
