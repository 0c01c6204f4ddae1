"""Settings of a run: flags over the YAML that applies."""
from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional, Union

from ..config import MODES, PAIRS, MultiMixConfig
from ..data import DIGITS
from ..errors import SettingError
from .find import find_run, is_repo, names_folder_of, settings_of_run, starting_folder
from .flags import MULTIMIX_FLAGS, PATHS, build_parser, on_the_line
from .loss_names import NAMES, translated
from .not_taken import drop_not_taken
from .recipes import find_recipe
from .yaml_file import read_yaml


def parse_args(argv: Optional[list[str]] = None, digits_recipe: Union[str, Path, None] = None) -> argparse.Namespace:
    """Parse flags over the YAML that applies: `--config`; or args.yaml of a resumed run; or, on the embedded data set,
    its recipe. `--multimix none` leaves out the settings of MultiMix that the YAML has. The namespace gets `recipe`,
    the path of the YAML that was used ('' for none).

    Raises:
        SettingError: a YAML or recipe that is missing, not a mapping, or holds an unknown key or an impossible value.
    """
    parser = build_parser()
    defaults = {a.dest: a.default for a in parser._actions if a.dest not in ('help', *NAMES)}
    given = translated(on_the_line(argv))
    data_dir = given.get('data_dir') or given.get('data')
    if given.get('data') and data_dir != given['data']:
        raise SettingError(f'DIR is {given["data"]!r} and --data-dir is {data_dir!r}: give only one.')
    resumed = given.get('resume') not in (None, '', 'auto')
    if resumed and given.get('experiment') and names_folder_of(given):
        del given['experiment']
        given.pop('output', None)
    for name in ('output', 'experiment'):
        if resumed and given.get(name):
            raise SettingError(f'--{name} is {given[name]!r}, but a run that is resumed stays in its folder: '
                               f'drop it, or start afresh from the weights with --initial-checkpoint.')
    recipe = find_recipe(given['config']) if given.get('config') else None
    settings = {} if recipe is None else _under_flags(read_yaml(recipe, parser), given)
    args = argparse.Namespace(**{**defaults, **settings, **given})
    auto = args.resume == 'auto'
    resume = find_run(args, given) if auto else args.resume
    if recipe is None:
        if resume:
            recipe, settings = settings_of_run(resume, parser)
        elif not data_dir and (given.get('dataset') or DIGITS).lower() == DIGITS and digits_recipe:
            recipe = Path(digits_recipe)
            settings = read_yaml(recipe, parser)
        settings = _under_flags(settings, given)
        args = argparse.Namespace(**{**defaults, **settings, **given})
    else:
        args.config = str(recipe)
        if resumed:
            warnings.warn(f'--config is given, so the settings are those of {recipe} and of this command, not those of '
                          f'the run. Leave it out to go on as before.', stacklevel=2)
    if args.multimix == 'none' and 'multimix' in settings:  # what the file says of mixing is for those who ask for it
        vars(args).update({name: given.get(name) for name in ('multimix_' + name for name in MULTIMIX_FLAGS)})
    drop_not_taken(args)
    args.resume, args.resume_auto = resume, auto
    args.data_dir = data_dir or args.data_dir or args.data
    del args.data
    args.initial_checkpoint = starting_folder(args.initial_checkpoint)
    if is_repo(args.initial_checkpoint) and not given.get('model'):
        args.model = args.initial_checkpoint  # its architecture, not the default's or the recipe's
    if args.data_dir and (args.dataset or '').lower() == DIGITS:
        if given.get('dataset'):
            raise SettingError(f'--data-dir is {args.data_dir!r} and --dataset is {args.dataset}, which comes with '
                               f'scikit-learn and has no folder: give only one.')
        args.dataset = None  # the folder that was asked for, not the data set of the recipe
    if not args.data_dir and not args.dataset:
        args.dataset = DIGITS
    if args.log_wandb:
        args.log = list(dict.fromkeys([*(args.log or ()), 'wandb']))
    for name in ('resume', *PATHS):  # YAML has no shell to do it
        if getattr(args, name):
            setattr(args, name, os.path.expanduser(getattr(args, name)))
    args.recipe = str(recipe or '')
    return args


def _under_flags(settings: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A file's settings, without those that a flag says in another way."""
    pairs = [tuple(f'multimix_{name}' for name in pair) for pair in PAIRS]
    dropped = {other for pair in pairs for one, other in (pair, pair[::-1]) if one in given and other not in given}
    return {name: value for name, value in settings.items() if name not in dropped}


def changed_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of args.yaml that differ from the flags' defaults, in the order of the flags."""
    defaults = {a.dest: a.default for a in build_parser()._actions}
    defaults['smoothing'] = smoothing(argparse.Namespace(smoothing=None, multimix=settings.get('multimix', 'none')))
    return {name: settings[name] for name, default in defaults.items()
            if name in settings and settings[name] != default and not (settings[name] is None and default == '')}


def multimix_config(args: argparse.Namespace) -> Optional[MultiMixConfig]:
    """The method's settings from the flags; None for `--multimix none`.

    Raises:
        SettingError: settings that do not fit together, or any of them with `--multimix none`.
    """
    given = {name: tuple(v) if isinstance(v, list) else v for name in MULTIMIX_FLAGS
             if (v := getattr(args, 'multimix_' + name)) is not None}
    if args.multimix == 'none':
        if given:
            name = next(iter(given))
            raise SettingError(f'--multimix-{name.replace("_", "-")} is {given[name]!r}, but --multimix is none: '
                               f'choose --multimix {" or ".join(MODES)}, or drop it.')
        return None
    given.update({name: value for name in ('mixup', 'cutmix') if (value := getattr(args, name)) is not None})
    if args.cutmix_minmax:
        given['cutmix'] = 1.0  # as timm's Mixup has it
    if args.bce_loss:
        given.update({name: getattr(args, name) for name in ('bce_loss', 'bce_sum', 'bce_target_thresh')})
    return MultiMixConfig.from_dict({'mode': args.multimix, 'label_smoothing': smoothing(args), **given})


def smoothing(args: argparse.Namespace) -> float:
    """Label smoothing: as it was given, else timm's 0.1, and none beside mixing, which it makes worse calibrated."""
    if args.smoothing is not None:
        return float(args.smoothing)
    return 0.1 if args.multimix == 'none' else 0.0


def starts_pretrained(settings: Mapping[str, Any]) -> bool:
    """Whether a run begins with weights of another training, by its flags or its args.yaml."""
    return any(settings.get(name) for name in ('pretrained', 'pretrained_path', 'initial_checkpoint'))
