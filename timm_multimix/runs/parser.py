"""argparse with errors and help texts as the rest of the program has them."""
from __future__ import annotations

import argparse
from typing import Any, NoReturn, Optional

from timm.utils import ParseKwargs

from ..errors import SettingError, nearest
from ..setting import Number


class KeyValues(ParseKwargs):
    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any,
                 option_string: Optional[str] = None) -> None:
        for value in values:
            if '=' not in value:
                parser.error(f'{option_string} takes arguments as key=value, not {value!r}')
        super().__call__(parser, namespace, values, option_string)


def takes_several(action: argparse.Action) -> bool:
    """Whether a flag takes more than one value."""
    return action.nargs in ('+', '*') or isinstance(action.nargs, int)


def check_bounds(action: argparse.Action, value: Any, name: str) -> None:
    """Raise `SettingError` for a value out of the bounds of its flag. name: as the user wrote the flag."""
    if isinstance(action.type, Number) and (right := action.type.wrong(value, each=takes_several(action))):
        shown = repr(value).removesuffix('.0') if isinstance(value, float) else value
        raise SettingError(f'{name} is {shown}, but {right}')


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults that are values."""

    def _get_help_string(self, action: argparse.Action) -> Optional[str]:
        return action.help if action.default in (None, '', [], {}) else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Its errors are short; a number out of its bounds raises `SettingError`."""

    def __init__(self, description: str, prog: Optional[str] = None) -> None:
        super().__init__(prog, description=description, allow_abbrev=False, formatter_class=Help)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        super()._check_value(action, value)
        check_bounds(action, value, f'--{action.dest.replace("_", "-")}')

    def error(self, message: str) -> NoReturn:
        if message.startswith('unrecognized arguments: '):
            for word in message.split(': ', 1)[1].split():
                if word.startswith('--'):
                    message += nearest(word.split('=')[0], self._option_string_actions)
                    break
        self.exit(2, f'{self.prog}: error: {message}\n({self.prog} --help lists the flags.)\n')
