"""Processes without the seconds that importing torch and timm takes: forked off one that has imported them.

    done = forked.run('train.py', '--model', …)       # as subprocess.run([sys.executable, 'train.py', …])
    with forked.start('train.py', …) as process:      # as subprocess.Popen; none is left at the end

They are real processes, with a pid, a folder, an environment, signals and an exit status of their own, and what they
run is their `__main__`. But they have imported everything before, with the environment of the first call. A test of
imports, or of a variable that is read at an import, takes a fresh interpreter.

`deep`: what such a process starts with `sys.executable` is forked off it in turn.
`bare`: it has imported torch and torchvision alone. timm, the Hub's client and what is ours it imports itself, with its
own environment, as one who has never heard of us does, or who has us from a wheel. It alone draws its curves.png.
"""
from __future__ import annotations

import atexit
import functools
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn, Optional

ROOT = Path(__file__).resolve().parent.parent


# ------------------------------------------------------------------------------------------------- the side of a test

class Process:
    """A process that runs. It leads a session and a process group of its own."""

    def __init__(self, words: Sequence[str], cwd: Path, env: Mapping[str, str], deep: bool, bare: bool,
                 log: Optional[IO[bytes]]) -> None:
        self.words, self.returncode = words, None
        self._request = tempfile.TemporaryFile()
        self._out, self._err = (log or tempfile.TemporaryFile() for _ in range(2))
        self._request.write(json.dumps({'words': words, 'cwd': str(cwd), 'env': dict(env), 'deep': deep}).encode())
        self._request.seek(0)
        reading, writing = os.pipe()
        files = [self._request.fileno(), self._out.fileno(), self._err.fileno(), writing]
        socket.send_fds(servers()[bare], [b'.'], files)
        os.close(writing)
        self._said = os.fdopen(reading)
        self.pid = int(self._said.readline())

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def wait(self, timeout: float = 300) -> int:
        """Its exit status, or -N when signal N ended it. It is killed when the time is over."""
        if self.returncode is None:
            if not select.select([self._said], [], [], timeout)[0]:
                self.kill()
                raise subprocess.TimeoutExpired(self.words, timeout, self.stdout, self.stderr)
            self.returncode = int(self._said.readline())
        return self.returncode

    def poll(self) -> Optional[int]:
        """Its exit status; None while it runs."""
        return self.wait() if self.returncode is not None or select.select([self._said], [], [], 0)[0] else None

    def send_signal(self, signum: int) -> None:
        os.kill(self.pid, signum)

    def kill(self) -> None:
        """It and all that it has started, if it runs."""
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)

    @property
    def stdout(self) -> str:
        """What it has written until now."""
        return _text(self._out)

    @property
    def stderr(self) -> str:
        return _text(self._err)

    def has_said(self, words: str, timeout: float = 120) -> bool:
        """Waits until the words stand in its standard output; False when it has ended without them."""
        end = time.monotonic() + timeout
        while words not in self.stdout:
            if select.select([self._said], [], [], 0.02)[0] or time.monotonic() > end:
                return words in self.stdout
        return True


def _text(file: Any) -> str:
    return os.pread(file.fileno(), 1 << 24, 0).decode()


def start(*words: str, cwd: Path = ROOT, env: Optional[Mapping[str, str]] = None, path: Path = ROOT,
          deep: bool = False, bare: bool = False, log: Optional[IO[bytes]] = None) -> Process:
    """`python WORDS`: a script, `-m MODULE` or `-c CODE`, with its arguments; `path` is its PYTHONPATH, and `log` takes
    what it writes."""
    return Process(words, cwd, {**(os.environ if env is None else env), 'PYTHONPATH': str(path)}, deep, bare, log)


def run(*words: str, timeout: float = 300, **how: Any) -> subprocess.CompletedProcess[str]:
    """As `start`, to its end."""
    with start(*words, **how) as process:
        return subprocess.CompletedProcess(words, process.wait(timeout), process.stdout, process.stderr)


@functools.cache
def servers() -> tuple[socket.socket, socket.socket]:
    """One that has imported everything, and a bare one: for each process that runs tests, with which they end."""
    pairs = [socket.socketpair() for _ in range(2)]
    theirs = [pair[1].fileno() for pair in pairs]
    subprocess.Popen([sys.executable, __file__, *map(str, theirs)], pass_fds=theirs, cwd=ROOT,
                     stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                     env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'})
    for pair in pairs:
        pair[1].close()
    return pairs[0][0], pairs[1][0]


# ----------------------------------------------------------------------------------------------- the side of the server

class Forked(subprocess.Popen):
    """Popen([sys.executable, …]) without an interpreter of its own: the child goes on with this one."""

    def __init__(self, args: Sequence[str], *more: Any, deep: bool = True, **kwargs: Any) -> None:
        if args[0] == sys.executable:
            kwargs.update(preexec_fn=functools.partial(become, [*args[1:]], kwargs.get('env'), deep),
                          restore_signals=False)  # those that an interpreter ignores again as it starts
        super().__init__(args, *more, **kwargs)


def become(words: list[str], env: Optional[Mapping[str, str]], deep: bool) -> NoReturn:
    """Be `python WORDS` to its end, in a child that has its streams and its folder."""
    os.closerange(3, 1024)  # one of them tells the parent that the child has begun
    gc.enable()
    for left in list(weakref.finalize._registry):  # type: ignore[attr-defined]  # temporary folders of the parent
        left.detach()
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):  # the parent's answer, such as torchrun's, is not the child's
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    if env is not None:
        os.environ.clear()
        os.environ.update(env)
        tempfile.tempdir = None  # of another environment
    at = os.getcwd() if words[0].startswith('-') else os.path.dirname(os.path.abspath(words[0]))
    sys.path[:] = [at, *filter(None, os.environ.get('PYTHONPATH', '').split(os.pathsep)), *SITE]
    if deep:
        subprocess.Popen = Forked  # type: ignore[misc]
    code = 0
    try:
        if words[0] == '-u':
            del words[0]
        if words[0] == '-m':
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name='__main__', alter_sys=True)
        elif words[0] == '-c':
            sys.argv = ['-c', *words[2:]]
            exec(compile(words[1], '<string>', 'exec'), {'__name__': '__main__'})
        else:
            sys.argv = words
            runpy.run_path(words[0], run_name='__main__')
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
        if isinstance(e.code, str):
            print(e.code, file=sys.stderr)
    except BaseException as e:
        traceback.print_exc()
        code = -signal.SIGINT if isinstance(e, KeyboardInterrupt) else 1
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as the end of an interpreter does
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code)


def serve(channel: socket.socket) -> None:
    """Start what is asked for, until nobody can ask any more."""
    while fds := socket.recv_fds(channel, 1, 4)[1]:
        keeper = os.fork()  # waits for one process
        if not keeper and os.fork():
            os._exit(0)  # and nobody need wait for the keeper
        if not keeper:
            channel.close()
            with open(fds[0]) as file:
                asked = json.load(file)
            with open(fds[3], 'w', buffering=1) as said:
                process = Forked([sys.executable, *asked['words']], stdin=subprocess.DEVNULL, stdout=fds[1],
                                 stderr=fds[2], cwd=asked['cwd'], env=asked['env'], deep=asked['deep'],
                                 start_new_session=True)
                said.write(f'{process.pid}\n')
                said.write(f'{process.wait()}\n')
            os._exit(0)
        os.waitpid(keeper, 0)
        for fd in fds:
            os.close(fd)


if __name__ == '__main__':
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests run in the background
    SITE = sys.path[2:]  # all but this script's folder and PYTHONPATH
    import torchvision  # noqa: F401
    gc.freeze()
    if not os.fork():
        serve(socket.socket(fileno=int(sys.argv[2])))
        sys.exit()
    import matplotlib.backends.backend_agg  # noqa: F401
    import sklearn.datasets  # noqa: F401

    import benchmarks.accuracy  # noqa: F401
    import evaluate  # noqa: F401
    import train  # noqa: F401
    from tests import blank
    from timm_multimix.training import output
    output.plot_curves = blank.plot_curves
    gc.freeze()
    serve(socket.socket(fileno=int(sys.argv[1])))
