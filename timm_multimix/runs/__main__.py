"""`python -m timm_multimix advise RUN`: is mixing likely to help this training?"""
from __future__ import annotations

import sys
from typing import Optional

from ..errors import SettingError, shown
from ..setting import number
from .advice import OPTIONS, SCRATCH, advise, closest, evidence, read_run, sentences, table
from .parser import Parser


def main(argv: Optional[list[str]] = None, prog: str = 'python -m timm_multimix.runs') -> int:
    parser = Parser('Whether mixing is likely to help a training, from a run of it without mixing and from what mixing '
                    'did to the trainings of our studies that are most like it.', prog)
    parser.add_argument('run', metavar='RUN', help='output folder of train.py, of a run without mixing')
    parser.add_argument('--images-per-class', type=number(above=0), metavar='N',
                        help='training images of a class on average; default what the run says')
    parser.add_argument('--train-top1', type=number(least=0, most=100), metavar='N',
                        help="top-1 on training images, in percent, for a run of timm's train.py; default what the run "
                             'says')
    try:
        args = parser.parse_args(argv)
        run, known = read_run(args.run, args.images_per_class, args.train_top1), evidence()
        option, gain, like = advise(run, known)
    except SettingError as e:
        print(f'advise: error: {shown(e)}', file=sys.stderr)
        return 2
    print(f'{args.run}: {sentences(run, option, gain, like)}\n')
    print(table(closest(run, like)))
    if flags := OPTIONS[run.kind][option]:
        half = run.kind != SCRATCH and '--multimix' in flags  # what held-out images chose for these
        rate = ', and half the learning rate' if half else ''
        print(f'\nNext:\n  the same command with another --experiment and {flags}{rate}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
