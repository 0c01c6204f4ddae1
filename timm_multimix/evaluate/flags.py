"""Flags of evaluate.py."""
from __future__ import annotations

import argparse
import os
from typing import Any, Optional

from ..config import ATTENTION_NORMS
from ..data import DIGITS
from ..data.factory import CHANNELS
from ..errors import SettingError, nearest
from ..runs.flags import CROP_PCT, INTERPOLATIONS, SEED
from ..runs.parser import KeyValues, Parser
from ..setting import number, whole
from .detection.detectors import DETECTORS
from .report import MODULES
from .tables.robustness import NAMES as ATTACKS

DEFAULT = [name for name in MODULES if name != 'transfer']

# What --quick sets, where the command does not: its value, the tables that it shortens (none: all), and in words.
QUICK: dict[str, tuple[Any, tuple[str, ...], str]] = {
    'num_images': (300, (), 'at most {} images (all)'),
    'resamples': (200, ('accuracy',), '{} resamples of the bootstrap ({})'),
    'attack_images': (50, ('robustness',), '{} images attacked ({})'),
    'pgd_steps': (5, ('robustness',), '{} steps of PGD ({}), so its accuracy may come out too high'),
    'curve': (False, ('robustness',), 'no accuracy over ε, and none of the checks of the attacks'),
    'ood_images': (200, ('ood',), 'at most {} images of each set of ood ({})'),
    'bank': (1000, ('ood',), 'KNN among {} training images ({})'),
    'map_images': (200, ('embedding',), '{} images on the map of the embeddings ({})'),
}


def fraction(text: str) -> float:
    """'8/255' or '0.03'."""
    top, _, bottom = text.partition('/')
    if bottom and not float(bottom):
        raise ValueError('nothing is divided by 0')
    return float(top) / float(bottom or 1)


EPS = number(above=0, most=1, read=fraction)


def names(text: str) -> list[str]:
    return [name.strip() for name in text.split(',') if name.strip()]


def build_parser() -> argparse.ArgumentParser:
    parser = Parser('Evaluate timm checkpoints: one table and its pictures for each of --on.')
    add, on_off = parser.add_argument, argparse.BooleanOptionalAction
    add('checkpoints', nargs='+', metavar='CHECKPOINT',
        help="a folder that train.py wrote, a file of weights with --model, local-dir:…, hf-hub:…, or the name of "
             'a model that came along or of a timm model; NAME=CHECKPOINT names its column')
    add('--on', type=names, default=DEFAULT, metavar='TABLES',
        help=f'of {",".join(MODULES)}; all but transfer where it is not given')
    add('--quick', action='store_true',
        help='a first look: fewer images, attacks and resamples (the report says which), unless the command gives them')
    add('--output', default='', metavar='DIR', help='where report.md goes (default: ./output/evaluate/DATE)')
    add('--seed', type=SEED, default=0, metavar='N', help='seed of all random numbers')
    add('--device', default='auto', help='auto (CUDA, else MPS, else CPU), cuda, cuda:1, mps, cpu')

    g = parser.add_argument_group('Images').add_argument
    g('--data-dir', metavar='DIR',
      help='folder of images: one sub-folder per split, or the class folders themselves, of which a run is evaluated '
           'on what it held out')
    g('--dataset', default='', metavar='NAME', help=f'as in timm; without --data-dir {DIGITS}')
    g('--split', default='validation', metavar='NAME', help='split that is evaluated on')
    g('--train-split', default='train', metavar='NAME', help='split of the training images (for the KNN of ood)')
    g('--class-map', default='', metavar='FILE', help='class to index mapping')
    g('--num-images', type=whole(least=1), default=None, metavar='N',
      help='evaluate at most so many images, drawn at random (default: all)')
    g('-b', '--batch-size', type=whole(least=1), default=128, metavar='N', help='images computed at once')
    g('-j', '--workers', type=whole(least=0), default=2, metavar='N', help='data loading processes')

    g = parser.add_argument_group('Model, where the checkpoint does not say it').add_argument
    g('--model', default=None, metavar='MODEL', help='timm model that files of weights are of')
    g('--num-classes', type=whole(least=1), default=None, metavar='N',
      help='number of classes (default: as the weights have)')
    g('--model-kwargs', nargs='*', default={}, action=KeyValues, metavar='K=V',
      help='more arguments of timm.create_model')
    g('--img-size', type=whole(least=1), default=None, metavar='N',
      help="side of an image in pixels (default: the model's)")
    g('--input-img-mode', choices=CHANNELS, default=None, metavar='MODE',
      help="images are converted to this mode of Pillow's (default: the checkpoint's)")
    g('--crop-pct', type=CROP_PCT, default=None, metavar='N',
      help="share of an image that is kept, after it is resized (default: the model's)")
    g('--mean', type=number(), nargs='+', default=None, metavar='X',
      help="mean of each channel that images are normalised with, of pixels from 0 to 1 (default: the model's)")
    g('--std', type=number(above=0), nargs='+', default=None, metavar='X',
      help="standard deviation of each channel, as --mean (default: the model's)")
    g('--interpolation', choices=('', *INTERPOLATIONS), default='',
      help="how images are resized (default: the model's)")

    g = parser.add_argument_group('accuracy, calibration').add_argument
    g('--resamples', type=whole(least=1), default=2000, metavar='N', help='resamples of the bootstrap')
    g('--bins', type=whole(least=1), default=15, metavar='N', help='bins of the calibration errors')

    g = parser.add_argument_group('robustness (pixels are from 0 to 1; 8/255 is a number)').add_argument
    g('--attacks', type=names, default=['fgsm', 'pgd'], metavar='NAMES', help=f'attacks, of {",".join(ATTACKS)}')
    g('--attack-images', type=whole(least=1), default=1000, metavar='N', help='attack at most so many images')
    g('--fgsm-eps', type=EPS, default=8 / 255, metavar='E', help='ε of FGSM, the largest change of a pixel')
    g('--pgd-eps', type=EPS, default=4 / 255, metavar='E',
      help='ε of PGD and AutoAttack, the largest change of a pixel')
    g('--pgd-step', type=EPS, default=2 / 255, metavar='E', help='change of a pixel in a step of PGD')
    g('--pgd-steps', type=whole(least=1), default=10, metavar='N', help='steps of PGD')
    g('--pgd-restarts', type=whole(least=1), default=1, metavar='N',
      help='random starts of PGD; an image is fooled where one of them fools it')
    g('--curve', action=on_off, default=True, help='measure accuracy over ε too, and check the attacks')

    g = parser.add_argument_group('ood').add_argument
    g('--ood', nargs='+', default=None, metavar='SET', help='folders of images, uniform, gaussian, digits, photographs '
                                                          '(default: all of these but the data itself)')
    g('--ood-images', type=whole(least=1), default=2000, metavar='N', help='at most so many images of each set')
    g('--bank', type=whole(least=0), default=5000, metavar='N', help='training images for KNN, at most; 0 is no KNN')
    g('--knn-k', type=whole(least=1), default=50, metavar='N', help='neighbour whose distance counts')

    g = parser.add_argument_group('hull, embedding, attention').add_argument
    g('--hull-batch', type=whole(least=2), default=128, metavar='N', help='examples in a mini-batch')
    g('--map-images', type=whole(least=0), default=1000, metavar='N', help='images on the map of the embeddings')
    g('--masks', default=None, metavar='DIR', help="a .png mask or a PASCAL VOC .xml under every image's name")
    g('--attention-norm', choices=ATTENTION_NORMS, default=ATTENTION_NORMS[0],
      help='how attention is normalised, as --multimix-attention-norm')

    g = parser.add_argument_group('transfer').add_argument
    g('--transfer-data', default=None, metavar='DIR', help="boxes in PASCAL VOC's layout or in COCO's")
    g('--transfer-splits', nargs=2, default=None, metavar=('TRAIN', 'TEST'),
      help='VOC2007/trainval,VOC2012/trainval VOC2007/test, or train2017 val2017; found where not given')
    g('--detectors', type=names, default=list(DETECTORS), metavar='NAMES', help=f'detectors, of {",".join(DETECTORS)}')
    g('--transfer-epochs', type=whole(least=1), default=12, metavar='N', help='epochs that a detector is trained')
    g('--transfer-batch-size', type=whole(least=1), default=8, metavar='N', help='images in a batch of the detector')
    g('--transfer-lr', type=number(above=0), default=None, metavar='LR',
      help='learning rate (default: 0.02, of SSD 0.01, for 16 images a batch)')
    g('--detector-kwargs', nargs='*', default={}, action=KeyValues, metavar='K=V',
      help="more arguments of torchvision's detector")
    g('--transfer-size', type=whole(least=32), default=None, metavar='N',
      help='side of an image in pixels (default: 600, of SSD 300)')
    return parser


def parse_args(argv: Optional[list[str]] = None) -> argparse.Namespace:
    """Parse and check what can be checked without looking at anything but the flags.

    Raises:
        SettingError: naming the flag, its value, and what would be right.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    args.left_out = []
    if args.quick:
        full = {name: parser.get_default(name) for name in QUICK}
        parser.set_defaults(**{name: value for name, (value, _, _) in QUICK.items()})
        args = parser.parse_args(argv)  # what the command gives itself stays
        args.left_out = [text.format(value, full[name]) for name, (value, tables, text) in QUICK.items()
                         if getattr(args, name) == value and (not tables or set(tables) & set(args.on))]
    for flag, given, known in (('--on', args.on, MODULES), ('--detectors', args.detectors, DETECTORS),
                               ('--attacks', args.attacks, ATTACKS)):
        for name in given:
            if name not in known:
                raise SettingError(f'{flag} has {name!r}, but there are {",".join(known)}.{nearest(name, known)}')
    if not args.on:
        raise SettingError(f'--on is empty, but it names tables: {",".join(MODULES)}.')
    args.on = list(dict.fromkeys(args.on))
    args.on_given = args.on != DEFAULT
    if ('transfer' in args.on) != bool(args.transfer_data):
        raise SettingError(
            '--on has transfer, but no --transfer-data says where the boxes are.' if 'transfer' in args.on else
            f'--transfer-data is {args.transfer_data!r}, but --on has no transfer: add it, or drop the data.')
    if args.data_dir and args.dataset.lower() == DIGITS:
        raise SettingError(f'--data-dir is {args.data_dir!r} and --dataset is {args.dataset}, which has no folder: '
                           f'give only one.')
    if not args.data_dir and not args.dataset:
        args.dataset = DIGITS
    for name in ('data_dir', 'output', 'masks'):
        if getattr(args, name):
            setattr(args, name, os.path.expanduser(getattr(args, name)))
    return args
