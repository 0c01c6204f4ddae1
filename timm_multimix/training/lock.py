"""One process at a time trains in a folder."""
from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import SettingError

WAIT = 10.0  # seconds: the loading processes of a run that was killed hold its lock until they notice


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep a run folder to this process. The system lets go of it when the process dies, however it dies.

    Raises:
        SettingError: another process trains there.
    """
    lock = FileLock(folder / '.lock')
    try:
        lock.acquire(timeout=WAIT)
    except Timeout as e:
        raise SettingError(f'Another process trains in {folder}. Two would overwrite each other: wait until it has '
                           f'ended, stop it, or start a run of your own with another --experiment.') from e
    except NotImplementedError as e:  # a file system without locks
        warnings.warn(f'{folder} cannot be locked ({e}): start no second process that trains there.', stacklevel=2)
    try:
        yield
    finally:
        lock.release()
