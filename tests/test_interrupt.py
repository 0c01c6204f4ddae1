"""Signals that a training loop is asked to answer."""
from __future__ import annotations

import os
import signal

import pytest

from timm_multimix.training.interrupt import Interrupt, Stopped


@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_is_a_question(signum: signal.Signals) -> None:
    before = signal.getsignal(signum)
    with Interrupt() as stop:
        assert not stop()
        os.kill(os.getpid(), signum)
        assert stop()
        reason = stop.reason()
    assert isinstance(reason, Stopped) and reason.signal == signum and str(reason) == signum.name
    assert signal.getsignal(signum) == before


def test_under_nohup_a_closed_terminal_stops_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupt() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop()
    finally:
        signal.signal(signal.SIGHUP, before)
