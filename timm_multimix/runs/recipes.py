"""Recipes and commands by name, and where they lie: beside the package in a checkout, inside it once installed."""
from __future__ import annotations

import shutil
from pathlib import Path
from typing import Union

from ..errors import SettingError, nearest

_PACKAGE = Path(__file__).resolve().parents[1]
_INSTALLED = _PACKAGE / '_scripts'  # setup.py puts it into the wheel
# The folder with train.py, evaluate.py, hparams/ and checkpoints/.
SCRIPTS = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent
RECIPES, CHECKPOINTS = SCRIPTS / 'hparams', SCRIPTS / 'checkpoints'


def find_recipe(name: str) -> Path:
    """The file that `--config` names: a path, or the name of a recipe that comes with the package.

    Args:
        name: a path to a YAML file, or 'cifar10_resnet18', with or without '.yaml'.

    Raises:
        SettingError: there is neither such a file nor such a recipe.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    recipes = {p.stem: p for p in sorted(RECIPES.glob('*.yaml'))}
    stem = name.removesuffix('.yaml')
    if stem in recipes:
        return recipes[stem]
    if path.stem in recipes:
        raise SettingError(f'--config is {name!r}, but there is no such file here. The recipe that came along is '
                           f'-c {path.stem}.')
    beside = [p.name for p in path.parent.glob('*.y*ml')]
    raise SettingError(f'--config is {name!r}, but there is no such file'
                       + (f'.{nearest(path.name, beside)}' if path.name != name else
                          f', and no recipe of that name.{nearest(name, [*beside, *recipes])}'))


def published_recipe(name: Union[str, Path]) -> Path:
    """The file of a recipe that an args.yaml names, of which a published one has the last part alone."""
    path = Path(name)
    return path if path.is_file() else RECIPES / path.name


def program(command: str) -> list[str]:
    """The words that start a command where the user stands: `python train.py` beside it, `timm-multimix train` else.

    Args:
        command: train, evaluate, push, …, as `timm-multimix COMMAND` has it.
    """
    if SCRIPTS == _INSTALLED or (Path.cwd() != SCRIPTS and shutil.which('timm-multimix')):
        return ['timm-multimix', command]
    script = SCRIPTS / f'{command}.py'
    if not script.is_file():
        return ['python', '-m', 'timm_multimix', command]
    return ['python', script.name if Path.cwd() == SCRIPTS else str(script)]
