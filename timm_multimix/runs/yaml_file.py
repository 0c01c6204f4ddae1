"""Settings in a YAML file, checked against the flags."""
from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any, Union

import yaml
from timm.utils import ParseKwargs

from ..errors import SettingError, nearest
from ..files import load_yaml
from ..setting import Number
from .loss_names import NAMES, translated
from .not_taken import NOT_TAKEN, is_args_yaml, note_newer
from .parser import check_bounds, takes_several

_AS_DEFAULT = object()
# What null means in timm where the default is something else.
NULL_MEANS: dict[str, Any] = {
    'color_jitter': 0.0, 'aug_repeats': 0, 'dist_bn': '', 'train_interpolation': '', 'mixup_off_epoch': 0,
    'recovery_interval': 0, 'drop': None, 'scale': _AS_DEFAULT, 'ratio': _AS_DEFAULT,
    'smoothing': _AS_DEFAULT, 'eval_metric': _AS_DEFAULT}


def read_yaml(path: Union[str, Path], parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Settings of a YAML file, checked against the parser's flags. Dashes in keys mean underscores."""
    if not os.path.isfile(path):
        raise SettingError(f'--config is {str(path)!r}, but there is no such file.')
    loaded = load_yaml(path, _Loader)
    if not isinstance(loaded, dict):
        raise SettingError(f'{path} must hold settings, one "key: value" a line; it holds {type(loaded).__name__}.')
    return check_settings(loaded, str(path), parser)


def check_settings(loaded: dict[Any, Any], path: str, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Settings that a file holds, checked against the parser's flags. Dashes in keys mean underscores."""
    actions = {a.dest: a for a in parser._actions if a.dest != 'help'}
    settings: dict[str, Any] = {}
    newer: dict[str, Any] = {}
    ours = [name for name in actions if name.startswith('multimix')]
    for key, value in loaded.items():
        name = str(key).replace('-', '_')
        if name in settings:
            raise SettingError(f'{path} has {name!r} twice, once with dashes: keep one.')
        if name in ('recipe', 'resume_auto'):  # how a run came about, in its args.yaml
            continue
        if name not in actions and is_args_yaml(loaded) and not nearest(name, ours):
            newer[name] = value
            continue
        if name not in actions:
            raise SettingError(f'{path}: {key!r} is not a setting.{nearest(name, actions)}')
        known = name in NOT_TAKEN or name in NAMES
        settings[name] = value if known else _yaml_value(actions[name], value, f'{path}: {key}')
    note_newer(newer, path)
    return translated({name: value for name, value in settings.items() if value is not _AS_DEFAULT}, f'{path}:')


class _Loader(yaml.SafeLoader):
    """YAML keeps the last of two equal keys and says nothing: here it is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key.value, str):
                raise SettingError(f'{key.start_mark.name} has a list or a mapping for a key, in line '
                                   f'{key.start_mark.line + 1}: a key is the name of a setting.')
            if key.value in seen:
                raise SettingError(f'{key.start_mark.name} has {key.value!r} twice, in lines {seen[key.value]} and '
                                   f'{key.start_mark.line + 1}: keep one.')
            seen[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


def _yaml_value(action: argparse.Action, value: Any, where: str) -> Any:
    if value is None or (value == '' and action.choices is not None and '' not in action.choices):
        if action.dest in NULL_MEANS:
            return NULL_MEANS[action.dest]
        if isinstance(action.default, bool):
            return False
        if action.default in ({}, []):
            return _AS_DEFAULT
        if action.default not in (None, ''):
            raise SettingError(f'{where} is empty. Give it a value, or leave the line out for {action.default!r}.')
        return None
    if action.dest == 'torchcompile' and isinstance(value, bool):
        return action.const if value else None
    if isinstance(action, (argparse.BooleanOptionalAction, argparse._StoreTrueAction)):
        if not isinstance(value, bool):
            raise SettingError(f'{where} is {value!r}, but it is true or false.')
        return value
    if isinstance(action, ParseKwargs):
        if not isinstance(value, dict):
            raise SettingError(f'{where} is {value!r}, but it is a mapping of arguments.')
        return value
    values = value if isinstance(value, list) else [value]
    many = takes_several(action)
    wrong_count = isinstance(action.nargs, int) and len(values) != action.nargs
    if wrong_count or (isinstance(value, (list, dict)) and not many):
        count = f'{action.nargs} values' if many else 'one value'
        raise SettingError(f'{where} is {value!r}, but it is {count}.')
    kind: Any = action.type or str
    whole = isinstance(kind, Number) and kind.whole
    if whole:
        values = [int(v) if isinstance(v, float) and v.is_integer() else v for v in values]
    try:
        values = [kind(str(v)) for v in values]
    except ValueError as e:
        what = 'whole number' if whole else 'number'
        raise SettingError(f'{where} is {value!r}, but it is {what + "s" if many else "a " + what}.') from e
    for v in values:
        check_bounds(action, v, where)
        if action.choices is not None and v not in action.choices:
            choices = [str(c) for c in action.choices]
            raise SettingError(f'{where} is {v!r}, but it is one of {", ".join(filter(None, choices))}.'
                               f'{nearest(str(v), choices)}')
    return values if many else values[0]
