"""Finding a run, and the checkpoints in it that are whole."""
from __future__ import annotations

import argparse
import os
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional, Union

import torch

from ..config import EMA
from ..errors import SettingError, reason
from ..files import load_yaml
from .flags import FREE_ON_RESUME, PATHS, PERHAPS_PATHS
from .yaml_file import check_settings, read_yaml

OUTPUT = './output/train'  # where runs go without --output

SUFFIX = '.pth.tar'


def load(path: Union[str, Path]) -> dict[str, Any]:
    """A checkpoint, on the CPU. Of pickle, plain values and tensors alone (and the Namespace of timm's own)."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(  # type: ignore[no-any-return]
            path, map_location='cpu', weights_only=True, mmap=zipfile.is_zipfile(path))


def damage(path: Union[str, Path]) -> Optional[str]:
    """What is wrong with a checkpoint's file, or None. Reads all of it: torch.load does not look at checksums."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                record = archive.testzip()
            if record is not None:
                return f'the checksum of {record!r} in it is wrong'
        load(path)
    except Exception as e:  # broken bytes break the reader in any way
        return reason(e, 1)
    return None


def candidates(path: Union[str, Path]) -> list[Path]:
    """Checkpoints that `--resume` may go on from, the furthest first; a file that is named comes before its folder's.

    Within a folder: recovery checkpoints of the epoch after `last`, `last`, then what else there is.
    """
    path = Path(path)
    if path.is_file():
        return [path, *(p for p in candidates(path.parent) if p.name != path.name)] if SUFFIX in path.name else [path]
    last, best = path / f'last{SUFFIX}', path / f'model_best{SUFFIX}'
    done = epochs_done(path)
    numbered: dict[Path, tuple[int, int]] = {}
    for found in path.glob(f'*{SUFFIX}'):
        if match := re.fullmatch(r'recovery-(\d+)-(\d+)', found.name.removesuffix(SUFFIX)):
            numbered[found] = int(match[1]), int(match[2])
        elif match := re.fullmatch(r'checkpoint-(\d+)', found.name.removesuffix(SUFFIX)):
            numbered[found] = int(match[1]) + 1, 0
    order = sorted(numbered, key=lambda p: numbered[p], reverse=True)
    ahead = [p for p in order if p.name.startswith('recovery-') and numbered[p] >= (done, 0)]
    return [p for p in (*ahead, last, *(p for p in order if p not in ahead), best) if p.exists()]


def epochs_done(folder: Path) -> int:
    """How many epochs a run has done by its last.pth.tar; 0 where that is missing or damaged."""
    try:
        return int(load(folder / f'last{SUFFIX}')['epoch']) + 1
    except Exception:  # broken bytes break the reader in any way
        return 0


def newest_whole(path: Union[str, Path]) -> tuple[Optional[Path], list[str]]:
    """The first of `candidates` that is not damaged, or None; and a sentence on each damaged one before it."""
    problems: list[str] = []
    for found in candidates(path):
        problem = damage(found)
        if problem is None:
            return found, problems
        problems.append(f'{found} is damaged ({problem}).')
    return None, problems


def resume_checkpoint(path: str) -> Path:
    """The checkpoint of `--resume`, which may name it or the run folder it is in."""
    found = candidates(path) if os.path.isdir(path) else []
    return found[0] if found else Path(path) / 'last.pth.tar' if os.path.isdir(path) else Path(path)


def model_folder(path: Union[str, Path], *more: str) -> Optional[Path]:
    """Of a run's model/ and the folder itself the first with config.json, and `more` files; None without any."""
    places = (Path(path) / 'model', Path(path))
    return next((place for place in places if all((place / f).is_file() for f in ('config.json', *more))), None)


def starting_folder(path: str) -> str:
    """`--initial-checkpoint`, with a folder, of a run or with config.json in it, as `local-dir:` and absolute.

    Raises:
        SettingError: a folder without config.json, such as that of a run that has not come to its end.
    """
    name = os.path.expanduser(path.removeprefix('local-dir:'))
    if not os.path.isdir(name):
        return path if not path or is_repo(path) else os.path.abspath(os.path.expanduser(path))
    folder = model_folder(name)
    if folder is None:
        found = candidates(name)
        raise SettingError(f'--initial-checkpoint is {path!r}, a folder without config.json and model/config.json'
                           + (f': that run has not come to its end. Name its checkpoint, {found[0]}, and --model.'
                              if found else ', so there is no model in it.'))
    return f'local-dir:{folder.resolve()}'


def find_run(args: argparse.Namespace, flags: Mapping[str, Any]) -> str:
    """The run that `--resume auto` goes on with: the newest with a checkpoint that no flag on the line contradicts; ''
    for none."""
    root = Path(os.path.expanduser(args.output or OUTPUT))
    runs = [root / args.experiment] if args.experiment else [p for p in root.glob('*') if p.is_dir()]
    newest = sorted(((max(p.stat().st_mtime for p in found), run) for run in runs if (found := candidates(run))),
                    reverse=True)
    if args.experiment:
        return str(newest[0][1]) if newest else ''
    given = {k: v for k, v in flags.items() if k not in FREE_ON_RESUME}
    if 'data' in given:
        given.setdefault('data_dir', given.pop('data'))
    if 'initial_checkpoint' in given:
        given['initial_checkpoint'] = starting_folder(given['initial_checkpoint'])
    if given.get('pretrained') and is_repo(given.get('model')):  # args.yaml has where the weights come from
        given['initial_checkpoint'] = starting_folder(given.pop('model'))
        del given['pretrained']
    given = plain({**given, **absolute_paths(given)})
    for _, run in newest:
        try:
            saved = load_yaml(run / 'args.yaml')
        except SettingError:
            continue
        if not isinstance(saved, dict):
            continue
        recipe = Path(str(saved.get('recipe') or '')).name
        same_recipe = not args.config or recipe == Path(args.config).name
        if same_recipe and all(saved.get(k) == v for k, v in given.items()):
            return str(run)
    return ''


def names_folder_of(given: Mapping[str, Any]) -> bool:
    """Whether --output and --experiment name the folder of the run that --resume does."""
    folder = Path(os.path.expanduser(given.get('output') or OUTPUT)) / given['experiment']
    return folder.resolve() == resume_checkpoint(given['resume']).parent.resolve()


def absolute_paths(settings: Mapping[str, Any]) -> dict[str, str]:
    """The settings that are paths of this machine, as args.yaml has them: they mean the same from any folder."""
    found = {}
    for name in PATHS:
        path = os.path.expanduser(settings.get(name) or '')
        other = name in PERHAPS_PATHS and (path in (EMA, 'auto') or not os.path.exists(path))
        if path and not other and not is_repo(path):
            found[name] = os.path.abspath(path)
    return found


def settings_of_run(resume: str, parser: argparse.ArgumentParser) -> tuple[Optional[Path], dict[str, Any]]:
    """The settings of a run that is resumed, and the file that says them: args.yaml, else its checkpoint."""
    checkpoint = resume_checkpoint(resume)
    path = checkpoint.parent / 'args.yaml'
    problem = 'is missing'
    if path.exists():
        try:
            return path, read_yaml(path, parser)
        except SettingError as e:
            problem = f'cannot be read ({e})'
    try:
        saved = load(checkpoint).get('args')
    except Exception:  # no checkpoint, or a damaged one: whoever resumes it says so
        saved = None
    if not isinstance(saved, dict):
        if path.exists():
            raise SettingError(f'{path} {problem}, and {checkpoint} does not hold the settings of the run.')
        return None, {}
    warnings.warn(f'{path} {problem}: the settings of the run are taken from {checkpoint.name}.', stacklevel=3)
    known = {a.dest for a in parser._actions}
    known = {*known, 'recipe'} - {'resume', 'config'}
    return path, check_settings({k: v for k, v in saved.items() if k in known}, str(checkpoint), parser)


def is_repo(name: object) -> bool:
    """Whether a name is one of a repository or of a folder like one, as timm.create_model takes it."""
    return isinstance(name, str) and name.startswith(('hf-hub:', 'hf_hub:', 'local-dir:'))


def plain(value: Any) -> Any:
    """A setting as args.yaml gives it back, with lists in place of tuples."""
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, (list, tuple)) else value
