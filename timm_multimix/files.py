"""Files and folders that are whole or not there: written beside their place, flushed, and renamed into it.

And files of others, which may hold anything: `load_yaml` and `load_json`.
"""
from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Union

import yaml

from .errors import SettingError, reason

Paths = Union[str, Path]


@contextmanager
def whole(path: Paths) -> Iterator[Path]:
    """A name beside `path` to write a file to. It takes the place of `path` if nothing goes wrong, else it is removed.

    Raises:
        OSError: as writing and renaming raise it; what was at `path` is then still there.
    """
    path = Path(path)
    temporary = path.with_name(f'{path.name}.tmp')
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Paths, flushed: bool = True) -> Iterator[Path]:
    """The same for a folder, which begins empty. What was at `path` stays until the new one takes its place.

    Args:
        flushed: flush every file. Leave it out for many files that can be made again.
    """
    path = Path(path)
    temporary, old = path.with_name(f'.{path.name}.tmp'), path.with_name(f'.{path.name}.old')  # hidden: not a user's
    if old.exists() and not path.exists():  # of a process that was killed in between
        old.rename(path)
    for left in (temporary, old):
        shutil.rmtree(left, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.rglob('*') if flushed else ():
            if file.is_file():
                flush(file)
        if path.exists():
            path.rename(old)
        try:
            temporary.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
        flush(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Paths, text: str) -> None:
    """Write a text file whole, in UTF-8."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding='utf-8')


def flush(path: Paths) -> None:
    """Ask the system to put a file, or a folder's list of names, on the disk."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # a folder, on systems that open none
        return
    try:
        os.fsync(handle)
    except OSError:  # a file system that cannot
        pass
    finally:
        os.close(handle)


def check_writable(folder: Paths) -> None:
    """Raise `OSError` unless files can be written in this folder, which is made if it is not there."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / '.writable'
    probe.touch()
    probe.unlink()


def load_yaml(path: Paths, loader: Any = yaml.SafeLoader) -> Any:
    """What a YAML file holds: plain values, and no objects. Raises `SettingError` for what cannot be read."""
    return _read(path, 'YAML', lambda file: yaml.load(file, loader))


def load_json(path: Paths) -> Any:
    """What a JSON file holds. Raises `SettingError` for what cannot be read."""
    return _read(path, 'JSON', json.load)


def _read(path: Paths, kind: str, parse: Callable[[Any], Any]) -> Any:
    try:
        with open(path, encoding='utf-8') as file:
            return parse(file)
    except SettingError:
        raise
    except OSError as e:
        raise SettingError(f'{path} cannot be read: {e.strerror or e}.') from e
    except RecursionError as e:
        raise SettingError(f'{path} is not {kind} that can be read: it is nested too deeply.') from e
    except Exception as e:  # parsers raise nearly anything on broken bytes
        raise SettingError(f'{path} is not {kind}: {reason(e)}') from e
