"""`python -m timm_multimix.hub`: push a run to the Hub, look at what would be pushed, and list what is there."""
from __future__ import annotations

import argparse
import sys
from typing import Optional

from ..errors import SettingError
from .load import list_checkpoints
from .push import export, push_to_hub


def main(argv: Optional[list[str]] = None, prog: str = 'python -m timm_multimix.hub') -> int:
    parser = argparse.ArgumentParser(prog=prog, description=__doc__.partition(': ')[2],
                                     allow_abbrev=False)
    commands = parser.add_subparsers(dest='command', required=True)
    push = commands.add_parser('push', help='a run folder to a repository')
    push.add_argument('run', metavar='RUN_FOLDER', help='of train.py, or a folder with config.json and weights')
    push.add_argument('repo_id', metavar='user/name', help='made if there is none')
    push.add_argument('--private', action='store_true', help='make it private')
    push.add_argument('--revision', metavar='BRANCH', help='default: main')
    push.add_argument('--message', metavar='TEXT', default='', help='of the commit')
    write = commands.add_parser('export', help='write the folder that push would push, to look at it')
    write.add_argument('run', metavar='RUN_FOLDER')
    write.add_argument('folder', metavar='FOLDER', help='where to')
    write.add_argument('--name', default='', help='how the card loads it (default: local-dir:FOLDER)')
    for command in (push, write):
        command.add_argument('--license', metavar='NAME', help='of the weights, as the Hub names it: apache-2.0, …')
    find = commands.add_parser('list', help='models on the Hub that were pushed with their settings')
    find.add_argument('--author', metavar='NAME', help='a user or organisation')
    find.add_argument('--search', metavar='WORD', help='in the name')
    find.add_argument('--limit', type=int, metavar='N', default=50, help='default: 50')
    args = parser.parse_args(argv)
    try:
        if args.command == 'push':
            done = push_to_hub(args.run, args.repo_id, private=args.private or None, revision=args.revision,
                               message=args.message, license=args.license)
            print(f'Pushed: {done.commit_url}')
        elif args.command == 'export':
            print(f'Written: {export(args.run, args.folder, args.name, args.license)}/')
        else:
            found = list_checkpoints(args.author, args.search, args.limit)
            for info in found:
                print(f'hf-hub:{info.id}\t{info.downloads or 0} downloads')
            if not found:
                print('None found.', file=sys.stderr)
    except SettingError as e:
        print(f'hub: error: {e}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
