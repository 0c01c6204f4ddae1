"""Nothing is lost: runs that are killed, stopped, or write to a full disk end as unbroken ones do, to the bit."""
from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from tests import forked
from tests.conftest import write_images
from timm_multimix import MultiMixTask
from timm_multimix.runs.find import candidates, damage, newest_whole
from timm_multimix.runs.summary import read_summary

RUN = ('--model', 'test_resnet', '--img-size', '32', '-b', '4', '--epochs', '4', '--opt', 'adamw', '--lr', '3e-3',
       '--warmup-epochs', '1', '--sched-on-updates', '--multimix', 'dense', '--multimix-prob', '0.6', '--multimix-n',
       '20', '--mixup', '0.5', '--model-ema', '--model-ema-decay', '0.8', '--aa', 'rand-m5-mstd0.5', '--reprob', '0.3',
       '--drop', '0.2', '--checkpoint-hist', '2', '--resume', 'auto')
FEW = ('--model', 'test_resnet', '--img-size', '32', '-b', '6', '-j', '0', '--warmup-epochs', '0')


def with_kills(folder: Path, data: Path, *plan: str, flags: tuple[str, ...] = ()) -> str:
    done = forked.run('tests/killer.py', *plan, '--', *RUN, '--data-dir', str(data), '--output', str(folder),
                      '--experiment', 'x', *flags, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.splitlines()[-1] == 'ended: unharmed 0'  # the plan was carried out
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
    rows = [read_summary(folder / 'summary.csv') for folder in (a, b)]
    for row in (*rows[0], *rows[1]):
        del row['train_images_per_second']
    assert rows[0] == rows[1] and [row['epoch'] for row in rows[0]] == [str(i) for i in range(len(rows[0]))]
    assert (a / 'model' / 'model.safetensors').read_bytes() == (b / 'model' / 'model.safetensors').read_bytes()


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp('data') / 'images')


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    folder = tmp_path_factory.mktemp('unbroken')
    assert 'a new one starts' in with_kills(folder, data, flags=('-j', '0'))
    rows = read_summary(folder / 'x' / 'summary.csv')
    assert len({row['train_effective'] for row in rows}) == 4  # no epoch repeats another
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


def test_killed_with_a_teacher_and_attention_that_learns(tmp_path: Path, data: Path) -> None:
    """The average that teaches, and the attention with its optimizer, go on where they were."""
    flags = ('-j', '0', '--img-size', '64', '--multimix-teacher', 'ema', '--multimix-teacher-start', '0.25',
             '--multimix-attention', 'learned', '--recovery-interval', '1')
    with_kills(tmp_path / 'unbroken', data, flags=flags)
    out = with_kills(tmp_path / 'killed', data, 'step:7', 'step:3', flags=flags)
    assert 'after batch' in out and 'A teacher had its share on' in out
    assert_same(tmp_path / 'unbroken', tmp_path / 'killed')
    state = torch.load(tmp_path / 'killed' / 'x' / 'last.pth.tar', weights_only=True)
    learned = state['task_state']['attention']
    assert float(learned['u'].abs().max()) > 0 and set(learned['adam']) == {'step', 'exp_avg', 'exp_avg_sq'}
    assert not any('attention' in key or 'teacher' in key for key in state['state_dict'])


def test_killed_after_an_epoch_without_validation(tmp_path: Path, data: Path) -> None:
    flags = ('-j', '0', '--epochs', '4', '--val-interval', '2')
    with_kills(tmp_path / 'unbroken', data, flags=flags)
    batches = len(list(data.glob('train/*/*'))) // 4
    out = with_kills(tmp_path / 'killed', data, f'step:{batches + 1}', flags=flags)
    assert f'resuming at epoch 1, after batch {batches}' in out  # trained, and nothing of it is lost
    assert ' 0 img/s' not in out
    speeds = [row['train_images_per_second'] for row in read_summary(tmp_path / 'killed' / 'x' / 'summary.csv')]
    assert speeds[0] == '' and all(float(speed) > 0 for speed in speeds[1:])  # this process loaded none of them
    assert_same(tmp_path / 'unbroken', tmp_path / 'killed')


@pytest.mark.slow
def test_killed_twenty_times(tmp_path: Path, data: Path) -> None:
    draw = random.Random(6)
    plan = [draw.choice([f'step:{draw.randint(1, 3)}', f'file:{draw.randint(1, 24)}',
                         f'time:{draw.uniform(0, 0.5):.3f}']) for _ in range(20)]
    with_kills(tmp_path / 'unbroken', data, flags=('-j', '0', '--epochs', '40'))
    out = with_kills(tmp_path / 'killed', data, *plan, flags=('-j', '1', '--epochs', '40', '--recovery-interval', '1'))
    assert out.count(' -9\n') == 20
    assert_same(tmp_path / 'unbroken', tmp_path / 'killed')


@pytest.mark.slow
@pytest.mark.parametrize('dtype', [('--amp', '--amp-dtype', 'float16'), ('--model-dtype', 'bfloat16')], ids='/'.join)
def test_accumulated_updates_in_half_precision(tmp_path: Path, data: Path, dtype: tuple[str, ...]) -> None:
    flags = ('-j', '0', '--grad-accum-steps', '2', '--clip-grad', '1', '--sched', 'plateau', '--patience-epochs', '0',
             '--no-sched-on-updates', *dtype)
    with_kills(tmp_path / 'unbroken', data, flags=flags)
    with_kills(tmp_path / 'killed', data, 'step:1:TERM', 'file:9', 'step:2:TERM', flags=flags)
    assert_same(tmp_path / 'unbroken', tmp_path / 'killed')


# ------------------------------------------------------------------------------------------------ damage and full disks

SHORT = ('--model', 'test_resnet', '--img-size', '32', '-b', '4', '-j', '0', '--warmup-epochs', '0', '--sched', 'none',
         '--lr', '1e-3')


def start(folder: Path, data: Path, *flags: str) -> int:
    return train.main([*SHORT, '--data-dir', str(data), '--output', str(folder), '--experiment', 'x', *flags])


def test_damaged_checkpoints_are_passed_over(
        tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(tmp_path, data, '--epochs', '3') == 0
    run = tmp_path / 'x'
    whole = (run / 'last.pth.tar').read_bytes()
    assert damage(run / 'last.pth.tar') is None

    def spoil(name: str, content: bytes) -> None:
        (run / name).unlink()  # its hard links stay whole
        (run / name).write_bytes(content)

    for content in (whole[:len(whole) // 2], b'', bytes(whole[:90_000]) + b'!' + whole[90_001:]):
        spoil('last.pth.tar', content)
        assert newest_whole(run)[0] == run / 'checkpoint-2.pth.tar'
    spoil('checkpoint-2.pth.tar', whole[:1000])
    found, problems = newest_whole(run / 'last.pth.tar')
    assert found == run / 'checkpoint-1.pth.tar' and len(problems) == 2 and 'checksum' in problems[0]
    capsys.readouterr()
    assert train.main(['--resume', str(run), '--epochs', '4']) == 0
    out = capsys.readouterr().out
    assert f'{run}/last.pth.tar is damaged' in out and f'Going on from {run}/checkpoint-1.pth.tar' in out
    assert 'resuming at epoch 3' in out
    assert [row['epoch'] for row in read_summary(run / 'summary.csv')] == ['0', '1', '2', '3']
    assert all(damage(run / name) is None for name in ('last.pth.tar', 'checkpoint-2.pth.tar', 'model_best.pth.tar'))


def test_a_full_disk_keeps_what_was_there(tmp_path: Path, data: Path) -> None:
    assert start(tmp_path / 'whole', data, '--epochs', '4') == start(tmp_path / 'full', data, '--epochs', '2') == 0
    run = tmp_path / 'full' / 'x'
    before = (run / 'last.pth.tar').read_bytes()
    code = ('import resource, runpy, sys\n'
            'resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))\n'
            "sys.argv = sys.argv[2:]; runpy.run_path(sys.argv[0], run_name='__main__')")
    done = forked.run('-c', code, str(len(before) // 10), 'train.py', '--resume', str(run), '--epochs', '4')
    assert done.returncode == 2, done.stdout + done.stderr
    for epoch in (3, 4):
        assert f'Warning: a checkpoint of epoch {epoch} could not be written' in done.stdout
    assert f'{run}/last.pth.tar stays the last one' in done.stdout
    assert f'{run}/model could not be written' in done.stderr
    assert (run / 'last.pth.tar').read_bytes() == before and not [n for n in os.listdir(run) if 'tmp' in n]
    assert train.main(['--resume', str(run), '--epochs', '4']) == 0
    assert len(read_summary(run / 'summary-4-epochs.csv')) == 4  # what was trained and could not be kept
    (run / 'summary-4-epochs.csv').unlink()
    assert_same(tmp_path / 'whole', tmp_path / 'full')


# ----------------------------------------------------------------------------------------------------- what goes wrong

def test_updates_that_are_no_numbers_are_left_out(
        tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    forward, bad = MultiMixTask.forward, {2, 3, 6}

    def poisoned(task: MultiMixTask, input: torch.Tensor, target: torch.Tensor) -> dict[str, Any]:
        return forward(task, input * float('nan') if task.training and task.policy.step in bad else input, target)

    monkeypatch.setattr(MultiMixTask, 'forward', poisoned)
    assert start(tmp_path, data, '--epochs', '2', '--multimix', 'multimix', '--model-ema') == 0
    assert '2 updates without a finite gradient left out' in capsys.readouterr().out
    rows = read_summary(tmp_path / 'x' / 'summary.csv')
    assert [row['train_skipped'] for row in rows] == ['2', '1']
    assert all(float(row[name]) < 10 for row in rows for name in ('train_loss', 'eval_loss'))
    saved = torch.load(tmp_path / 'x' / 'last.pth.tar', weights_only=True)
    assert all(t.isfinite().all() for key in ('state_dict', 'state_dict_ema') for t in saved[key].values())
    assert {int(state['step']) for state in saved['optimizer']['state'].values() if 'step' in state} <= {5}

    bad.update(range(8, 99))
    run = tmp_path / 'x'
    assert train.main(['--resume', str(run), '--epochs', '9', '--nonfinite-limit', '3']) == 2
    error = capsys.readouterr().err
    assert '3 updates in a row' in error and 'Lower --lr' in error and f'--resume {run}/last.pth.tar' in error
    assert torch.load(run / 'last.pth.tar', weights_only=True)['epoch'] == 1


@pytest.mark.parametrize('how', ['raises', 'dies'])
def test_the_image_that_broke_a_worker_is_named(
        how: str, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    from timm.data.dataset import ImageDataset
    load = ImageDataset.__getitem__

    def broken(dataset: Any, index: int) -> Any:
        if index == 13 and torch.utils.data.get_worker_info() is not None:
            if how == 'dies':
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError('no such colour')
        return load(dataset, index)

    monkeypatch.setattr(ImageDataset, '__getitem__', broken)
    assert start(tmp_path, data, '--epochs', '2', '-j', '1', '--no-aug') == 2
    error = capsys.readouterr().err
    assert f'{data}/train/class_2/1.png (image 13)' in error
    assert ('no such colour' if how == 'raises' else 'was killed') in error and 'Traceback' not in error


def test_ctrl_c_for_all_processes_saves_within_the_epoch(tmp_path: Path, data: Path) -> None:
    """A terminal sends it to the loading processes too."""
    with forked.start('train.py', *SHORT, '--data-dir', str(data), '--output', str(tmp_path), '--experiment', 'x',
                      '--epochs', '100000', '-j', '2') as process:
        assert process.has_said('\nEpoch '), process.stderr
        os.killpg(process.pid, signal.SIGINT)
        code, out, err = process.wait(120), process.stdout, process.stderr
    assert code == 130 and 'Stopped by SIGINT' in out and 'Traceback' not in err, out + err
    assert candidates(tmp_path / 'x')[0].name.startswith('recovery-') and damage(candidates(tmp_path / 'x')[0]) is None


def test_the_rate_after_a_last_group_that_is_smaller(tmp_path: Path, data: Path) -> None:
    """Batches that accumulation does not divide: an epoch ends with an update of fewer."""
    batches = len(list(data.glob('train/*/*'))) // 4
    accum = next(n for n in range(2, batches) if batches % n)
    flags = ('-j', '0', '--val-interval', '2', '--grad-accum-steps', str(accum))
    with_kills(tmp_path / 'unbroken', data, flags=flags)
    with_kills(tmp_path / 'killed', data, f'step:{-(-batches // accum) + 1}', flags=flags)
    assert_same(tmp_path / 'unbroken', tmp_path / 'killed')
