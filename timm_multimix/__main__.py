"""`python -m timm_multimix COMMAND …`, and `timm-multimix COMMAND …` once the package is installed."""
from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path
from typing import Optional

from .data.__main__ import main as data
from .heads.__main__ import main as describe
from .hub.__main__ import main as hub
from .runs.__main__ import main as advise
from .runs.recipes import SCRIPTS

COMMANDS = {
    'train': 'train a model: train.py with its flags',
    'evaluate': 'compare checkpoints: evaluate.py with its flags',
    'describe': 'say how a timm model ends, and what mixing does with it',
    'advise': 'say whether mixing is likely to help, from a run without it',
    'data': "put the paper's data sets in order",
    'push': 'push a run to the Hub',
    'publish': "push all models of a folder to a user's repositories",
    'export': 'write the folder that push would push',
    'list': 'list the models that came along, and those on the Hub with their settings',
}


def main(argv: Optional[list[str]] = None) -> int:
    """Run one command. What follows its name is its own, `--help` too.

    Returns:
        The exit status: 0, or 2 for a wrong setting.
    """
    prog = 'python -m timm_multimix' if Path(sys.argv[0]).name == '__main__.py' else 'timm-multimix'
    parser = argparse.ArgumentParser(
        prog=prog, usage=f'{prog} COMMAND …', formatter_class=argparse.RawDescriptionHelpFormatter,
        description='MultiMix and Dense MultiMix for timm.\n\n' + ''.join(
            f'  {name:<10}{text}\n' for name, text in COMMANDS.items()),
        epilog=f'{prog} COMMAND --help says more.')
    parser.add_argument('command', choices=COMMANDS, metavar='COMMAND', help=argparse.SUPPRESS)
    argv = sys.argv[1:] if argv is None else argv
    command, rest = parser.parse_args(argv[:1]).command, argv[1:]
    if command in ('train', 'evaluate'):
        script = SCRIPTS / f'{command}.py'
        sys.argv = [str(script), *rest]
        runpy.run_path(str(script), run_name='__main__')  # as `python train.py`; it exits by itself
    own = {'describe': describe, 'advise': advise, 'data': data}.get(command)
    return own(rest, f'{prog} {command}') if own else hub([command, *rest], prog)


if __name__ == '__main__':
    sys.exit(main())
