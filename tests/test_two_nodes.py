"""More than one machine: torchrun's own launcher, tried as two agents on the loopback address."""
from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests import forked
from tests.conftest import ROOT, write_images
from tests.test_resume import RUN, differences
from timm_multimix.runs.flags import build_parser
from timm_multimix.runs.summary import read_summary


def agent(folder: Path, data: Path, port: int) -> subprocess.Popen[bytes]:
    """What a user starts on each machine, in a group of its own."""
    return subprocess.Popen(
        [sys.executable, '-m', 'torch.distributed.run', '--nnodes=2', '--nproc-per-node=1', '--max-restarts=3',
         '--rdzv-backend=c10d', f'--rdzv-endpoint=127.0.0.1:{port}', '--rdzv-id=x', '--local-addr=127.0.0.1',
         str(ROOT / 'train.py'), *RUN, '--data-dir', str(data), '--output', str(folder), '--experiment', 'x',
         '--epochs', '8', '--recovery-interval', '1'],
        stdout=(folder / 'log').open('ab'), stderr=subprocess.STDOUT, start_new_session=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT), 'TORCH_DISABLE_SHARE_RDZV_TCP_STORE': '1'})


def strike(group: subprocess.Popen[bytes]) -> None:
    """What a machine does that loses its power. The worker of an agent is in a session of its own."""
    children = subprocess.run(['pgrep', '-P', str(group.pid)], capture_output=True, text=True).stdout.split()
    for pid in (group.pid, *map(int, children)):
        os.kill(pid, signal.SIGKILL)
    group.wait()


@pytest.mark.slow
@pytest.mark.parametrize('killed', [False, True])
def test_two_agents(killed: bool, tmp_path: Path) -> None:
    """One is killed and started again by the same command; the run ends as one that was not."""
    data = write_images(tmp_path / 'images')
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    folder = tmp_path / 'run'
    folder.mkdir()
    agents = [agent(folder, data, port)]
    time.sleep(5)  # the first hosts the meeting place, and must outlive the other
    agents.append(agent(folder, data, port))
    try:
        if killed:
            summary, until = folder / 'x' / 'summary.csv', time.monotonic() + 600
            while not (summary.exists() and len(read_summary(summary)) >= 2):
                assert time.monotonic() < until and agents[0].poll() is None, (folder / 'log').read_text()[-4000:]
                time.sleep(0.2)
            strike(agents[1])
            assert len(read_summary(summary)) < 8  # there was something left to do
            agents[1] = agent(folder, data, port)
        for each in agents:
            assert each.wait(timeout=900) == 0, (folder / 'log').read_text()[-4000:]
    finally:
        for each in agents:
            if each.poll() is None:
                strike(each)
    assert [row['epoch'] for row in read_summary(folder / 'x' / 'summary.csv')] == [str(i) for i in range(8)]

    alone = tmp_path / 'alone'
    done = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2', str(ROOT / 'train.py'),
         *RUN, '--data-dir', str(data), '--output', str(alone), '--experiment', 'x', '--epochs', '8'],
        capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)})
    assert done.returncode == 0, done.stderr[-4000:]
    one, two = (torch.load(f / 'x' / 'last.pth.tar', weights_only=True)['state_dict'] for f in (folder, alone))
    assert not differences(one, two)


def test_the_slurm_script_starts_what_there_is(tmp_path: Path) -> None:
    """Its commands, caught: torchrun's and train.py's flags exist."""
    for name, does in (('scontrol', 'echo node1; echo node2'), ('srun', 'printf "%s\\n" "$@"')):
        (tmp_path / name).write_text(f'#!/bin/bash\n{does}\n')
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        ['bash', str(ROOT / 'examples' / 'slurm.sh')], capture_output=True, text=True, check=True,
        env={'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'SLURM_JOB_NODELIST': 'node[1-2]', 'SLURM_NNODES': '2',
             'SLURM_JOB_ID': '7', 'SLURM_JOB_NAME': 'multimix'})
    words = done.stdout.split('\n')[:-1]
    cut = words.index('train.py')
    assert words[0] == 'torchrun' and '--rdzv-endpoint=node1:29500' in words and '--nnodes=2' in words
    help_ = forked.run('-m', 'torch.distributed.run', '--help')
    for word in words[1:cut]:
        assert word.split('=')[0] in help_.stdout, word
    args = build_parser().parse_args(words[cut + 1:])
    assert args.resume == 'auto' and args.experiment == 'multimix' and args.recovery_interval == 500
    assert shlex.join(words[cut:]).startswith('train.py --model resnet50 --multimix dense')
