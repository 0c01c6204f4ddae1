"""`python -m timm_multimix describe NAME …`: how timm models end, and what mixing does with them."""
from __future__ import annotations

import argparse
import sys
import warnings
from typing import Any, Optional

import timm

from ..errors import SettingError, nearest
from .describing import describe


def main(argv: Optional[list[str]] = None, prog: str = 'python -m timm_multimix.describe') -> int:
    parser = argparse.ArgumentParser(prog=prog, description='How timm models end, and what mixing does with them.')
    parser.add_argument('model', nargs='+', metavar='NAME', help='as timm.create_model takes it')
    parser.add_argument('--img-size', type=int, metavar='N', help='images of N×N pixels; default what the model says')
    parser.add_argument('--num-classes', type=int, metavar='N', help='default what the model says')
    args = parser.parse_args(argv)
    for i, name in enumerate(args.model):
        kwargs: dict[str, Any] = {} if args.num_classes is None else {'num_classes': args.num_classes}
        try:
            if not timm.is_model(name) and ':' not in name:
                raise SettingError(f'timm has no model {name!r}.{nearest(name, timm.list_models())}')
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                try:
                    model = timm.create_model(name, **kwargs, **({'img_size': args.img_size} if args.img_size else {}))
                except TypeError:  # convolutional networks take any size and no such argument
                    model = timm.create_model(name, **kwargs)
                print('\n' * bool(i) + name)
                describe(model, (3, args.img_size, args.img_size) if args.img_size else None)
        except SettingError as e:
            print(f'describe: error: {name}: {e}', file=sys.stderr)
            return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
