"""The benchmarks run as their documentation says, and write what it shows. What they measure is not tested."""
from __future__ import annotations

import json
from pathlib import Path

import pytest

from timm_multimix.evaluate.images import boxes_as_mask

from . import forked
from .conftest import ROOT


def run(*args: str) -> str:
    done = forked.run('-m', *args, deep=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_loss(tmp_path: Path) -> None:
    out = run('benchmarks.loss', '--shapes', 'CIFAR R-18', '--repeat', '1', '--device', 'cpu',
              '--json', str(tmp_path / 'new' / 'loss.json'), '--picture', str(tmp_path / 'new' / 'loss.png'))
    row = json.loads((tmp_path / 'new' / 'loss.json').read_text())['rows']['CIFAR R-18']
    assert f'{row["faster"]:.1f}×' in out.splitlines()[-1]
    assert row['MiB']['ours'] < row['MiB']['literal'] and (tmp_path / 'new' / 'loss.png').stat().st_size > 1000


def test_sweep(tmp_path: Path) -> None:
    run('benchmarks.sweep', '--shape', 'CIFAR R-18', '--largest', '2', '--repeat', '1', '--device', 'cpu',
        '--json', str(tmp_path / 'sweep.json'), '--picture', str(tmp_path / 'sweep.png'))
    rows = json.loads((tmp_path / 'sweep.json').read_text())['rows']
    assert [row['n'] for row in rows] == [1, 10, 100]
    assert all(row['loss'] > 0 and 'literal' in row['MiB'] for row in rows)


@pytest.mark.slow  # spawns interpreters
def test_distributed(tmp_path: Path) -> None:
    out = run('benchmarks.distributed', '--model', 'test_resnet', '--modes', 'plain', 'dense, gather', '--ranks', '2',
              '--batch-size', '4', '--num-classes', '5', '--img-size', '64', '--repeat', '1', '--device', 'cpu',
              '--json', str(tmp_path / 'ranks.json'))
    rows = json.loads((tmp_path / 'ranks.json').read_text())['rows']
    for row in rows:
        one, two = row['images per second'].values()
        assert row['ratio'] == pytest.approx(two / one) and f'| {two / one:.2f}× |' in out


@pytest.mark.slow  # starts six trainings
def test_trainer(image_folder: Path, tmp_path: Path) -> None:
    """With our own script in the place of timm's, which no package holds."""
    out = run('benchmarks.trainer', '--timm', str(ROOT / 'train.py'), '--data-dir', str(image_folder), '--repeat', '1',
              '--num-classes', '3', '--batch-size', '6', '--epochs', '1', '--json', str(tmp_path / 'trainer.json'))
    found = json.loads((tmp_path / 'trainer.json').read_text())
    assert len(found['trainers']) == 3 and all(side['start'] > 0 for side in found['trainers'].values())
    assert all(seconds > 0 for seconds in found['loaders'].values())
    assert f'| ours | {found["trainers"]["ours"]["start"]:.2f} s |' in out


@pytest.mark.parametrize('model, more', [
    ('test_resnet', []), ('test_vit', ['--img-size', '32', '--model-kwargs', 'img_size=32', 'patch_size=8'])])
def test_step(model: str, more: list[str], tmp_path: Path) -> None:
    out = run('benchmarks.step', '--models', model, '--batch-size', '4', '--num-classes', '5', '--repeat', '1',
              '--device', 'cpu', '--json', str(tmp_path / 'step.json'), '--picture', str(tmp_path / 'step.png'), *more)
    assert (tmp_path / 'step.png').stat().st_size > 1000
    row, = json.loads((tmp_path / 'step.json').read_text())['rows']
    assert set(row['seconds']) == {'plain', 'multimix', 'dense'} and model in out


def test_gpu_runs_each_part_once_and_goes_on_after_one_that_failed(tmp_path: Path) -> None:
    out = tmp_path / 'new'
    command = ['-m', 'benchmarks.gpu', '--device', 'cpu', '--tiny', '--output', str(out)]
    (tmp_path / 'empty').mkdir()
    done = forked.run(*command, '--only', 'cuda-tests', 'loss', 'cifar', '--data-dir', str(tmp_path / 'empty'),
                      deep=True)
    records = {path.stem: json.loads(path.read_text()) for path in out.glob('*.json')}
    assert done.returncode == 1, done.stderr
    assert records['loss']['state'] == 'passed' and records['loss']['figures']['rows']['tiny']['faster'] > 0
    assert records['cuda-tests']['state'] == 'skipped' and 'CUDA' in records['cuda-tests']['error']
    assert records['cifar']['state'] == 'failed' and 'Exit status' in records['cifar']['error']
    summary = (out / 'summary.md').read_text()
    assert records['machine']['torch'] in summary and '≥ 20×' in summary and records['cifar']['error'][:12] in summary

    before = (out / 'loss.json').read_text()
    assert 'loss: there already' in run(*command[1:], '--only', 'loss') and (out / 'loss.json').read_text() == before


def test_boxes(tmp_path: Path) -> None:
    """Tiny ImageNet in small, as published: the box of a validation image is its mask, counted from 1."""
    source, out = tmp_path / 'tiny', tmp_path / 'out'
    for c in range(6):
        images = source / f'train/n{c}/images'
        images.mkdir(parents=True)
        for i in range(25):
            (images / f'n{c}_{i}.JPEG').touch()
    (source / 'val/images').mkdir(parents=True)
    (source / 'val/images/val_0.JPEG').touch()
    (source / 'val/val_annotations.txt').write_text('val_0.JPEG\tn5\t0\t10\t63\t58\nval_1.JPEG\tn1\t0\t0\t9\t9\n')
    run('benchmarks.boxes', 'tinyimagenet', str(source), str(out))
    assert [len(list(p.iterdir())) for p in sorted((out / 'images/train').iterdir())] == [20, 20]  # of n0 and n5
    assert [p.name for p in (out / 'images/validation').rglob('*.JPEG')] == ['val_0.JPEG']
    mask = boxes_as_mask(out / 'boxes/n5/val_0.xml')
    assert mask.size == (64, 64) and mask.getbbox() == (0, 10, 64, 59)
