"""The one exception a user meets for bad input, and what becomes of exceptions that nobody foresaw."""
from __future__ import annotations

import difflib
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Optional

# What libraries raise about the settings they were given; and what a network raises that was given something else than
# it takes.
_OF_SETTINGS = (RuntimeError, ValueError, TypeError, KeyError, AssertionError, OSError)
REFUSALS = (*_OF_SETTINGS, IndexError, AttributeError)


class SettingError(ValueError):
    """A setting, path or model that cannot work. The message names it, its value, and what would be right.

    `train.py` prints the message alone and exits with status 2; in your own code it is an ordinary `ValueError`.
    """


class UnforeseenError(SettingError):
    """The same around an exception that may be a bug, in a user's own model say: its traceback is shown first."""


def in_words(message: str, cause: Exception) -> SettingError:
    """The error to raise `from cause`.

    A library that refuses what it was given is foreseen. An exception is not where a user's own file is on the way to
    it, or this package raised it, or it is of no kind that is about values.
    """
    if isinstance(cause, SettingError):
        return SettingError(message)
    files = [Path(frame.filename) for frame in traceback.extract_tb(cause.__traceback__)]
    libraries = [Path(sysconfig.get_path(name)) for name in ('stdlib', 'purelib', 'platlib')]
    own = (Path(__file__).parent, Path(__file__).parent.parent / 'train.py')

    def inside(file: Path, places: Iterable[Path]) -> bool:
        return any(file == place or place in file.parents for place in places)

    foreseen = (isinstance(cause, _OF_SETTINGS) and bool(files) and not inside(files[-1], own)
                and all(inside(file, (*libraries, *own)) or not file.is_file() for file in files))
    return (SettingError if foreseen else UnforeseenError)(message)


def shown(error: SettingError) -> str:
    """What a program prints: the sentence, and before it the traceback of what nobody foresaw."""
    if not isinstance(error, UnforeseenError) or error.__cause__ is None:
        return str(error)
    return ''.join(traceback.format_exception(error.__cause__)) + str(error)


def reason(error: BaseException, lines: Optional[int] = None) -> str:
    """What an exception says, or its kind where it says nothing; or the first lines of that, without blank ones."""
    said = str(error).strip() or type(error).__name__
    if lines is None:
        return said
    return '\n  '.join([line.strip()[:300] for line in said.splitlines() if line.strip()][:lines])


def nearest(name: str, candidates: Iterable[str]) -> str:
    """A suffix such as `' Did you mean x, y?'`, or an empty string where nothing comes near."""
    close = difflib.get_close_matches(name, list(candidates), n=3, cutoff=0.55)
    return f' Did you mean {", ".join(close)}?' if close else ''
