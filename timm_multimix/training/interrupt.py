"""SIGTERM, SIGHUP and Ctrl-C as a question that the training loop asks when it is ready for the answer."""
from __future__ import annotations

import os
import signal
import threading
from typing import Any, Optional

from ..distributed import Vote, from_all, rank


class Stopped(Exception):
    """A run that was asked to stop, and has saved.

    Attributes:
        signal: which signal asked.
        go_on: the command that goes on.
    """

    def __init__(self, signum: int, go_on: str) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signal, self.go_on = signum, go_on


class Interrupt:
    """`with Interrupt() as stop:` … `if stop():` save, then `raise stop.reason()`.

    Ranks that were told to stop at different moments agree: all get the answer at the same call. A second Ctrl-C stops
    at once.

    Args:
        go_on: the command that goes on after that.
    """

    def __init__(self, go_on: str = '') -> None:
        self.go_on = go_on
        self.signal: Optional[int] = None
        self.vote = Vote()
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        return self.vote(self.signal is not None)

    def requested(self) -> bool:
        """Whether this rank was told to stop; the others may not know."""
        return self.signal is not None

    def reason(self) -> Stopped:
        """Every rank calls it."""
        return Stopped(next((s for s in from_all(self.signal) if s), signal.SIGTERM), self.go_on)

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            for signum in filter(None, (signal.SIGTERM, signal.SIGINT, getattr(signal, 'SIGHUP', None))):
                if signum != signal.SIGINT and signal.getsignal(signum) == signal.SIG_IGN:  # under nohup it goes on
                    continue
                self._before[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _handle(self, signum: int, frame: Any) -> None:
        if self.signal is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal is None and rank() == 0:  # not through a buffer that may be in use
            again = '; once more to stop at once, without it' if signum == signal.SIGINT else ''
            os.write(2, f'\nStopping: a checkpoint will be written{again}.\n'.encode())
        self.signal = signum
