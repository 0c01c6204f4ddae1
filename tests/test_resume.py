"""Nothing is lost: runs that are killed, stopped, or write to a full disk end as unbroken ones do, to the bit."""
from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from timm_multimix.report import read_summary

from .conftest import ROOT, write_images

ENV = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}
RUN = ('--model', 'test_resnet', '--img-size', '32', '-b', '4', '--epochs', '4', '--opt', 'adamw', '--lr', '3e-3',
       '--warmup-epochs', '1', '--sched-on-updates', '--multimix', 'dense', '--multimix-prob', '0.6', '--multimix-n', '20',
       '--mixup', '0.5', '--model-ema', '--model-ema-decay', '0.8', '--aa', 'rand-m5-mstd0.5', '--reprob', '0.3',
       '--drop', '0.2', '--checkpoint-hist', '2', '--resume', 'auto')


def with_kills(folder: Path, data: Path, *plan: str, flags: tuple[str, ...] = ()) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / 'tests' / 'killer.py'), *plan, '--', *RUN, '--data-dir', str(data),
         '--output', str(folder), '--experiment', 'x', *flags], capture_output=True, text=True, timeout=600, env=ENV)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert 'ended: unharmed 0' in done.stdout.splitlines()[-1]
    return done.stdout + done.stderr


def differences(a: Any, b: Any, where: str = '') -> list[str]:
    if isinstance(a, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [where]
    if isinstance(a, dict):
        return [where] if a.keys() != b.keys() else [d for k in a for d in differences(a[k], b[k], f'{where}/{k}')]
    if isinstance(a, (list, tuple)):
        return [where] if len(a) != len(b) else [
            d for i, (x, y) in enumerate(zip(a, b)) for d in differences(x, y, f'{where}/{i}')]
    return [] if a == b or (a != a and b != b) else [f'{where}: {a} {b}']


def assert_same(a: Path, b: Path) -> None:
    """The same files, checkpoints equal to the bit, and the same table but for the speed."""
    a, b = a / 'x', b / 'x'
    assert sorted(os.listdir(a)) == sorted(os.listdir(b))
    for name in sorted(n for n in os.listdir(a) if n.endswith('.pth.tar')):
        one, two = (torch.load(folder / name, weights_only=True) for folder in (a, b))
        for state in (one, two):
            del state['args']
        assert not differences(one, two, name)
    rows = [[{k: v for k, v in row.items() if k != 'train_images_per_second'} for row in read_summary(f / 'summary.csv')]
            for f in (a, b)]
    assert rows[0] == rows[1] and [row['epoch'] for row in rows[0]] == [str(i) for i in range(len(rows[0]))]
    assert (a / 'model' / 'model.safetensors').read_bytes() == (b / 'model' / 'model.safetensors').read_bytes()


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp('data') / 'images')


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    folder = tmp_path_factory.mktemp('unbroken')
    assert 'starts afresh' in with_kills(folder, data, flags=('-j', '0'))
    return folder


def test_killed_three_times(tmp_path: Path, data: Path, unbroken: Path) -> None:
    """Within an epoch, within a checkpoint, and with SIGTERM; with workers, unlike the unbroken run."""
    out = with_kills(tmp_path, data, 'step:2', 'file:14', 'step:3:TERM', flags=('-j', '1', '--recovery-interval', '1'))
    assert 'ended: step:2 -9' in out and 'ended: file:14 -9' in out and 'ended: step:3:TERM 143' in out
    assert 'resuming at epoch 1, after batch 1' in out
    assert_same(unbroken, tmp_path)


def test_two_ranks_killed(tmp_path: Path, data: Path) -> None:
    """One of two ranks dies within an epoch, one is asked to stop; BatchNorm's statistics differ between them."""
    flags = ('-j', '0', '--multimix-gather', '--no-ddp-bb', '--recovery-interval', '1')
    with_kills(tmp_path / 'unbroken', data, 'ranks:2', flags=flags)
    out = with_kills(tmp_path / 'killed', data, 'ranks:2', 'step:3', 'step:2:TERM', flags=flags)
    assert 'ended: step:3 -9' in out and 'ended: step:2:TERM 143' in out
    assert out.count('Stopped by SIGTERM') == 1 and 'resuming at epoch 2, after batch 2' in out
    assert_same(tmp_path / 'unbroken', tmp_path / 'killed')


@pytest.mark.slow
def test_killed_twenty_times(tmp_path: Path, data: Path, unbroken: Path) -> None:
    draw = random.Random(6)
    plan = [draw.choice([f'step:{draw.randint(1, 3)}', f'file:{draw.randint(1, 24)}', f'time:{draw.uniform(0, 0.5):.3f}'])
            for _ in range(20)]
    out = with_kills(tmp_path, data, *plan, flags=('-j', '1', '--recovery-interval', '1'))
    assert out.count(' -9\n') >= 12, out  # late moments may come after the end of a run
    assert_same(unbroken, tmp_path)


@pytest.mark.slow
def test_accumulated_updates_in_half_precision(tmp_path: Path, data: Path) -> None:
    flags = ('-j', '0', '--grad-accum-steps', '2', '--clip-grad', '1', '--amp', '--amp-dtype', 'float16', '--sched',
             'plateau', '--patience-epochs', '0')
    with_kills(tmp_path / 'unbroken', data, flags=flags)
    with_kills(tmp_path / 'killed', data, 'step:1:TERM', 'file:9', 'step:2:TERM', flags=flags)
    assert_same(tmp_path / 'unbroken', tmp_path / 'killed')
