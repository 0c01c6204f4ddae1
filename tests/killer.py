"""`python tests/killer.py [ranks:N] PLAN … -- FLAGS`: train.py, killed as planned and gone on with, until it ends.

A plan is a list of moments, one a run: `step:K` after the K-th optimizer step of that run, `file:K` before the K-th
change to the file system, `time:S` S seconds after the first step, each optionally with a signal, `step:3:TERM`.
Children are forked, so that a kill costs no imports. With ranks, the last one is struck, and when one dies the others
are killed, as torchrun does. Prints what ended each run.
"""
from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import train
from timm_multimix import MultiMixTask


def arm(moment: str) -> None:
    kind, at, name = [*moment.split(':'), 'KILL'][:3]
    signum, seen = getattr(signal, 'SIG' + name), 0

    def strike() -> None:
        os.kill(os.getpid(), signum)

    def counted(function: Any, before: bool) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal seen
            seen += 1
            if before and seen == int(at):
                strike()
            result = function(*args, **kwargs)
            if not before and seen == int(at):
                strike()
            return result
        return call

    if kind == 'file':
        for owner, attribute in ((os, 'replace'), (os, 'link'), (os, 'unlink'), (os, 'fsync'), (torch, 'save')):
            setattr(owner, attribute, counted(getattr(owner, attribute), before=True))
    elif kind == 'step':
        MultiMixTask.update_ema = counted(MultiMixTask.update_ema, before=False)
    else:
        def first(*args: Any, **kwargs: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen == 1:
                threading.Timer(float(at), strike).start()
            return update(*args, **kwargs)
        update, MultiMixTask.update_ema = MultiMixTask.update_ema, first


def run(flags: list[str], moment: str, ranks: int) -> int:
    with socket.socket() as s:
        s.bind(('localhost', 0))
        port = s.getsockname()[1]
    pids = []
    for rank in range(ranks):
        pids.append(os.fork())
        if not pids[-1]:
            if ranks > 1:
                os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), MASTER_ADDR='localhost',
                                  MASTER_PORT=str(port))
            if moment and rank == ranks - 1:
                arm(moment)
            code = train.main(flags)
            sys.stdout.flush()
            os._exit(code)
    result = 0
    while pids:
        pid, status = os.wait()
        pids.remove(pid)
        code = os.waitstatus_to_exitcode(status)
        result = result or code
        if code and code != 128 + signal.SIGTERM:  # who was asked to stop has asked the others
            for other in pids:
                os.kill(other, signal.SIGKILL)
    return result


def main() -> int:
    # A loading process holds the lock of its run's folder until it notices, in that many seconds, that the run is dead.
    torch.utils.data._utils.worker.MP_STATUS_CHECK_INTERVAL = 0.2
    cut = sys.argv.index('--')
    plan, flags = sys.argv[1:cut], sys.argv[cut + 1:]
    ranks = int(plan.pop(0).split(':')[1]) if plan and plan[0].startswith('ranks:') else 1
    for moment in [*plan, *[''] * 3]:
        status = run(flags, moment, ranks)
        print(f'ended: {moment or "unharmed"} {status}', flush=True)
        if status == 0:
            return 0
    return 1


if __name__ == '__main__':
    sys.exit(main())
