"""Processes that are forked off one with all imports behave as fresh ones do."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import forked


@pytest.mark.parametrize('end, code', [
    ('', 0), ('sys.exit(3)', 3), ('sys.exit()', 0), ('sys.exit("no")', 1), ('1 / 0', 1), ('os._exit(4)', 4),
    ('os.kill(os.getpid(), signal.SIGKILL)', -9), ('os.kill(os.getpid(), signal.SIGTERM)', -15)])
def test_what_a_fresh_interpreter_says_and_how_it_ends(end: str, code: int, tmp_path: Path) -> None:
    script = tmp_path / 'script.py'
    script.write_text(
        'import atexit, os, signal, sys, threading\n'
        'print(__name__, sys.argv, os.getcwd(), os.environ["SAID"], "HOME" in os.environ, sys.stdin.read())\n'
        'print(signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGPIPE),\n'
        '      signal.getsignal(signal.SIGXFSZ), sys.stdout.isatty(), flush=True)\n'
        'threading.Timer(0.2, lambda: print("thread")).start()\n'
        f'atexit.register(lambda: print("end"))\n{end}\n')
    words, env = [str(script), 'a', '--b c'], {'SAID': 'é', 'PYTHONUTF8': '1', 'LD_LIBRARY_PATH': ''}
    ours = forked.run(*words, cwd=tmp_path, env=env)
    theirs = subprocess.run([sys.executable, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                            cwd=tmp_path, env=env, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    assert (ours.returncode, ours.stdout) == (theirs.returncode, theirs.stdout) and ours.returncode == code
    assert ours.stderr.splitlines()[-1:] == theirs.stderr.splitlines()[-1:]


def test_a_process_of_its_own(tmp_path: Path) -> None:
    script = tmp_path / 'script.py'
    script.write_text('import os, threading, time\nimport torch\nprint(os.getpid(), os.getpgid(0), flush=True)\n'
                      'assert threading.active_count() == 1 and torch.get_num_threads() == 1\n'
                      'torch.rand(300, 300) @ torch.rand(300, 300)\nprint("computed", flush=True)\ntime.sleep(100)\n')
    with forked.start(str(script)) as process:
        assert process.has_said('computed') and process.stdout.split()[:2] == [str(process.pid)] * 2
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01)
    assert process.wait() == -signal.SIGKILL
    with forked.start(str(script)) as again:
        assert again.has_said('computed') and again.poll() is None
        os.killpg(again.pid, signal.SIGINT)
        assert again.wait() == -signal.SIGINT and again.stderr.endswith('KeyboardInterrupt\n')


def test_children_of_children_are_forked_too(tmp_path: Path) -> None:
    (tmp_path / 'child.py').write_text('import sys\nprint("imported" if "train" in sys.modules else "fresh")')
    (tmp_path / 'parent.py').write_text(
        'import os, subprocess, sys, tempfile\nfolder = tempfile.TemporaryDirectory()\n'
        'subprocess.run([sys.executable, "child.py"])\nassert os.path.exists(folder.name)')
    for deep, said in ((True, 'imported\n'), (False, 'fresh\n')):
        done = forked.run('parent.py', cwd=tmp_path, deep=deep)
        assert (done.returncode, done.stdout) == (0, said), done.stderr
