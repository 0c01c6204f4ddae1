"""`python -m timm_multimix.hub`: push a run or all models, look at what would be pushed, and list what there is."""
from __future__ import annotations

import argparse
import sys
from typing import Optional

from ..errors import SettingError
from .load import list_checkpoints
from .publishing import publications, publish
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
    write.add_argument('--half', action='store_true', help='weights as float16: half as large')
    for command in (push, write):
        command.add_argument('--license', metavar='NAME', help='of the weights, as the Hub names it: apache-2.0, …')
    every = commands.add_parser('publish', help='all models of a folder to repositories of their names')
    every.add_argument('namespace', metavar='USER', help='a user or organisation of the Hub')
    every.add_argument('--folder', metavar='FOLDER', help='holds a folder for each model (default: those that came '
                                                          'along)')
    every.add_argument('--private', action='store_true', help='make them private')
    every.add_argument('--dry-run', action='store_true', help='say what would be pushed, and push nothing')
    find = commands.add_parser('list', help='models that came along, and on the Hub those with their settings')
    find.add_argument('--here', action='store_true', help='those that came along alone; needs no network')
    find.add_argument('--author', metavar='NAME', help='a user or organisation')
    find.add_argument('--search', metavar='WORD', help='in the name')
    find.add_argument('--limit', type=int, metavar='N', help='so many of the Hub at most (default: 50)')
    args = parser.parse_args(argv)
    try:
        if args.command == 'push':
            done = push_to_hub(args.run, args.repo_id, private=args.private or None, revision=args.revision,
                               message=args.message, license=args.license)
            print(f'Pushed: {done.commit_url}')
        elif args.command == 'export':
            print(f'Written: {export(args.run, args.folder, args.name, args.license, half=args.half)}/')
        elif args.command == 'publish' and args.dry_run:
            for one in publications(args.namespace, args.folder):
                print(f'{one.folder} → {one.repo_id}\t{one.size / 1e6:.1f} MB, licence '
                      f'{one.license or "not stated"}' + ', private' * args.private)
        elif args.command == 'publish':
            for one, done in publish(args.namespace, args.folder, private=args.private or None):
                print(f'Pushed: {one.repo_id}\t{done.commit_url}', flush=True)
        else:
            limit = args.limit if args.limit is not None or args.here else 50
            found = list_checkpoints(args.author, args.search, limit, hub=not args.here)
            for model in found:
                print(f'{model.name}\t' + ('came along' if model.downloads is None else f'{model.downloads} downloads'))
            if not found:
                print('None found.', file=sys.stderr)
    except SettingError as e:
        print(f'hub: error: {e}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
