"""`python -m timm_multimix describe NAME …`: how timm models end, and what mixing does with them."""
from __future__ import annotations

import argparse
import sys
import warnings
from typing import Any, Optional

import timm
import torch.nn as nn

from ..errors import SettingError, in_words, nearest, reason, shown
from .describing import describe


def main(argv: Optional[list[str]] = None, prog: str = 'python -m timm_multimix.describe') -> int:
    parser = argparse.ArgumentParser(prog=prog, description='How timm models end, and what mixing does with them.')
    parser.add_argument('model', nargs='+', metavar='NAME', help='as timm.create_model takes it')
    parser.add_argument('--img-size', type=int, metavar='N',
                        help='images of N×N pixels; default what the model says')
    parser.add_argument('--num-classes', type=int, metavar='N', help='default what the model says')
    args = parser.parse_args(argv)
    for name in ('img_size', 'num_classes'):
        if (value := getattr(args, name)) is not None and value < 1:
            parser.error(f'--{name.replace("_", "-")} is {value}, but it must be at least 1')
    for i, name in enumerate(args.model):
        kwargs: dict[str, Any] = {} if args.num_classes is None else {'num_classes': args.num_classes}
        try:
            if not timm.is_model(name) and ':' not in name:
                raise SettingError(f'timm has no model {name!r}.{nearest(name, timm.list_models())}')
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                model = _create(name, kwargs, args.img_size)
                print('\n' * bool(i) + name)
                describe(model, (3, args.img_size, args.img_size) if args.img_size else None)
        except SettingError as e:
            print(f'describe: error: {name}: {shown(e)}', file=sys.stderr)
            return 2
    return 0


def _create(name: str, kwargs: dict[str, Any], img_size: Optional[int]) -> nn.Module:
    try:
        try:
            return timm.create_model(name, **({**kwargs, 'img_size': img_size} if img_size else kwargs))
        except TypeError:  # convolutional networks take any size and no such argument
            return timm.create_model(name, **kwargs)
    except Exception as e:  # timm and the hub raise many kinds
        raise in_words(f'it cannot be built: {reason(e)}', e) from e


if __name__ == '__main__':
    sys.exit(main())
