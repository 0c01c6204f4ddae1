"""The study runner on a tiny study: real train.py processes, resumed, and its table."""
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from benchmarks import accuracy
from timm_multimix import SettingError

from .conftest import ROOT, write_images


def command(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, '-m', 'benchmarks.accuracy', *map(str, args)], capture_output=True,
                          text=True, timeout=300, cwd=ROOT)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / 'tiny.yaml'
    path.write_text(yaml.safe_dump({
        'data': {'train': 12, 'held_out': 6, 'test': 6}, 'judge': 'held_out', 'seeds': [1],
        'base': {'model': 'test_resnet', 'img_size': 32, 'batch_size': 6, 'epochs': 1, 'workers': 0, 'hflip': 0.0},
        'runs': {'none': {}, 'dense': {'multimix': 'dense', 'multimix_effective': [1.5, 2]}}}, sort_keys=False))
    return path


def test_runs_resumes_and_reports(study: Path, tmp_path: Path) -> None:
    data = write_images(tmp_path / 'images', classes=3, per_class=6)
    none = command('run', study, '--data-dir', data, '--budget', 0.0001)  # nothing known yet, so the first one starts
    assert none.returncode == 0, none.stderr
    rows = accuracy.read_results(study.with_suffix('.jsonl'))
    assert [row['name'] for row in rows] == ['none'] and 'Stopped: dense, seed 1' in none.stdout
    done = command('run', study, '--data-dir', data)
    assert done.returncode == 0, done.stderr
    rows = accuracy.read_results(study.with_suffix('.jsonl'))
    assert [(row['name'], row['seed']) for row in rows] == [('none', 1), ('dense', 1)]
    assert all(row['images'] == 6 and 0 <= row['ece'] <= 1 and row['judge'] == 'held_out' for row in rows)
    assert command('run', study, '--data-dir', data).stdout == ''
    table = command('report', study.with_suffix('.jsonl'), '--out', tmp_path / 'new' / 'table.md')
    assert table.returncode == 0 and '| dense | 1 |' in table.stdout
    assert '12 training images, 1 epochs, 6 images held out of the training data' in table.stdout
    assert (tmp_path / 'new' / 'table.md').read_text() == table.stdout


def test_statistics_of_the_report(study: Path) -> None:
    with study.with_suffix('.jsonl').open('w') as f:
        for name, tops in (('none', (70.0, 72.0)), ('dense', (71.0, 75.0))):
            for seed, top1 in zip((1, 2), tops):
                f.write(json.dumps({'name': name, 'seed': seed, 'key': name + str(seed), 'judge': 'held_out',
                                    'top1': top1, 'median of last ten': top1, 'nll': 1.0, 'ece': 0.1,
                                    'images': 6, 'epochs': 1,
                                    'images per second': 100 if name == 'none' else 80}) + '\n')
    lines = accuracy.report(study.with_suffix('.jsonl')).splitlines()
    line = next(line for line in lines if line.startswith('| dense'))
    # differences 1 and 3: mean 2, standard error 1, t(0.975, 1) = 12.71
    assert '| 73.00 ± 2.00 |' in line and '| +2.00 [-10.71, +14.71] |' in line and '| 1.25× |' in line


def test_held_out_and_training_images_are_different(tmp_path: Path) -> None:
    data = write_images(tmp_path / 'images', classes=3, per_class=6)
    for on, source in (('held_out', 'train'), ('test', 'validation')):
        folder = tmp_path / on
        accuracy.make_folder(data, {'train': 12, 'held_out': 6, 'test': 6}, on, folder)
        parts = {part: {p.resolve() for p in (folder / part).rglob('*.png')} for part in ('train', 'validation')}
        assert len(parts['train']) == 12 and len(parts['validation']) == 6
        assert not parts['train'] & parts['validation']
        assert {p.parent.parent.name for p in parts['validation']} == {source}
    with pytest.raises(SettingError, match='has 6 images, but 7 are needed'):
        accuracy.make_folder(data, {'train': 21, 'held_out': 6, 'test': 6}, 'test', tmp_path / 'more')


@pytest.mark.parametrize('change, words', [
    ({'seed': [1]}, "'seed' is not a part of a study. Did you mean seeds"), ({'judge': 'validation'}, 'held_out, test'),
    ({'runs': None}, "'runs' is missing")])
def test_bad_studies(study: Path, change: dict, words: str) -> None:
    study.write_text(yaml.safe_dump({**yaml.safe_load(study.read_text()), **change}))
    with pytest.raises(SettingError, match=words):
        accuracy.read_study(study)
