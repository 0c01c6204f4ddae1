"""Signals that a training loop is asked to answer."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import forked
from tests.conftest import ROOT
from timm_multimix.training.interrupt import Interrupt, Stopped


@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_is_a_question(signum: signal.Signals) -> None:
    outside = signal.getsignal(signum)
    if outside == signal.SIG_IGN:  # the tests were started with nohup, or in the background
        signal.signal(signum, signal.SIG_DFL)
    before = signal.getsignal(signum)
    with Interrupt('train.py --resume x') as stop:
        assert not stop()
        os.kill(os.getpid(), signum)
        assert stop()
        reason = stop.reason()
    assert isinstance(reason, Stopped) and reason.signal == signum and str(reason) == signum.name
    assert reason.go_on == 'train.py --resume x'
    assert signal.getsignal(signum) == before
    signal.signal(signum, outside)


def test_under_nohup_a_closed_terminal_stops_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupt() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop()
    finally:
        signal.signal(signal.SIGHUP, before)


def heard() -> None:
    """A process in the background of a shell ignores SIGINT, and its children do too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize('script', ['train.py', 'evaluate.py'])
def test_ctrl_c_in_the_first_seconds_is_a_sentence(script: str, tmp_path: Path) -> None:
    """It strikes within the import of a library, and then as the flags are parsed."""
    (tmp_path / 'torch.py').write_text('import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n')
    importing = subprocess.run([sys.executable, str(ROOT / script), 'x'], capture_output=True, text=True, timeout=120,
                               cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(tmp_path)}, preexec_fn=heard)
    code = ('import argparse, os, runpy, signal, sys\n'
            'signal.signal(signal.SIGINT, signal.default_int_handler)\n'
            'def strike(*_, **__):\n    os.kill(os.getpid(), signal.SIGINT)\n'
            'argparse.ArgumentParser.parse_args = strike\n'
            'runpy.run_path(sys.argv[1], run_name="__main__")')
    before_the_loop = forked.run('-c', code, str(ROOT / script), cwd=tmp_path)
    for done in (importing, before_the_loop):
        assert done.returncode == 130 and 'Stopped' in done.stderr and 'Traceback' not in done.stderr, done.stderr
