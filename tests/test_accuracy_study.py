"""The study runner on a tiny study: real train.py processes, resumed, and its table."""
from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import yaml

import train
from benchmarks import accuracy, variants
from timm_multimix import MultiMixTask, SettingError, wrap
from timm_multimix.checks import check_args
from timm_multimix.cli import multimix_config, parse_args
from timm_multimix.mixing import LamSampler, effective_examples

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
    other = command('run', study, '--data-dir', data, '--only', 'none', '--seeds', 1, '--subset', 1,
                    '--results', tmp_path / 'other.jsonl')
    assert other.returncode == 0, other.stderr
    assert [(row['name'], row['data']['subset']) for row in accuracy.read_results(tmp_path / 'other.jsonl')] == [
        ('none', 1)]
    assert 'Did you mean dense' in command('run', study, '--data-dir', data, '--only', 'dens').stderr
    table = command('report', study.with_suffix('.jsonl'), '--out', tmp_path / 'new' / 'table.md')
    assert table.returncode == 0 and '| dense | 1 |' in table.stdout
    assert '12 training images, 1 epochs, 6 images held out of the training data' in table.stdout
    assert (tmp_path / 'new' / 'table.md').read_text() == table.stdout
    assert not study.with_suffix('.claims').exists()


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


def test_differences_to_the_best_rival_and_the_picture(study: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load(study.read_text())
    settings['runs'] = {'none': {}, 'mixup': {}, 'cutmix': {}, 'dense': {}, 'not run yet': {}}
    study.write_text(yaml.safe_dump({**settings, 'rivals': ['mixup', 'cutmix']}, sort_keys=False))
    with study.with_suffix('.jsonl').open('w') as f:
        for name, tops in (('none', (70, 72)), ('mixup', (71, 73)), ('cutmix', (73, 72)), ('dense', (75, 75))):
            for seed, top1 in zip((1, 2), tops):
                f.write(json.dumps({'name': name, 'seed': seed, 'top1': top1, 'median of last ten': top1, 'nll': 1.0,
                                    'ece': 0.1, 'images': 6, 'epochs': 1, 'images per second': 100}) + '\n')
    done = command('report', study.with_suffix('.jsonl'), '--plot', tmp_path / 'new' / 'figure.png')
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert '| top-1 against cutmix |' in lines[2] and not any('not run yet' in line for line in lines)
    assert '| +2.50 [' in next(line for line in lines if line.startswith('| dense'))
    assert (tmp_path / 'new' / 'figure.png').read_bytes().startswith(b'\x89PNG')


def test_claims_of_the_dead_are_taken_over(tmp_path: Path) -> None:
    path = tmp_path / 'claim'
    assert accuracy.claim(path) and path.read_text() == f'{platform.node()}:{os.getpid()}'
    assert not accuracy.claim(path)
    dead = subprocess.Popen([sys.executable, '-c', ''])
    dead.wait()
    path.write_text(f'{platform.node()}:{dead.pid}')
    assert accuracy.claim(path)
    path.write_text(f'another-{platform.node()}:{dead.pid}')
    assert not accuracy.claim(path)


def test_watched_images_and_other_subsets(tmp_path: Path) -> None:
    data = write_images(tmp_path / 'images', classes=2, per_class=8)
    found = {}
    for subset in (0, 1):
        sizes = {'train': 4, 'held_out': 8, 'test': 4, 'watch': 4, 'subset': subset}
        accuracy.make_folder(data, sizes, 'held_out', tmp_path / str(subset))
        found[subset] = {part: {p.resolve() for p in (tmp_path / str(subset) / part).rglob('*.png')}
                         for part in ('train', 'validation', 'judge')}
        assert len(found[subset]['validation']) == 4 and len(found[subset]['judge']) == 8
        assert found[subset]['validation'] < found[subset]['judge']
        assert not found[subset]['train'] & found[subset]['judge']
    assert found[0]['train'] != found[1]['train']


def test_held_out_and_training_images_are_different(tmp_path: Path) -> None:
    data = write_images(tmp_path / 'images', classes=3, per_class=6)
    for on, source in (('held_out', 'train'), ('test', 'validation')):
        folder = tmp_path / on
        accuracy.make_folder(data, {'train': 12, 'held_out': 6, 'test': 6}, on, folder)
        parts = {part: {p.resolve() for p in (folder / part).rglob('*.png')}
                 for part in ('train', 'validation', 'judge')}
        assert len(parts['train']) == 12 and parts['validation'] == parts['judge'] and len(parts['judge']) == 6
        assert not parts['train'] & parts['validation']
        assert {p.parent.parent.name for p in parts['validation']} == {source}
    with pytest.raises(SettingError, match='has 6 images, but 7 are needed'):
        accuracy.make_folder(data, {'train': 21, 'held_out': 6, 'test': 6}, 'test', tmp_path / 'more')


@pytest.mark.parametrize('change, words', [
    ({'seed': [1]}, "'seed' is not a part of a study. Did you mean seeds"), ({'judge': 'validation'}, 'held_out, test'),
    ({'runs': None}, "'runs' is missing"),
    ({'rivals': ['dence']}, "'dence' of rivals is not one of the runs. Did you mean dense")])
def test_bad_studies(study: Path, change: dict, words: str) -> None:
    study.write_text(yaml.safe_dump({**yaml.safe_load(study.read_text()), **change}))
    with pytest.raises(SettingError, match=words):
        accuracy.read_study(study)


@pytest.mark.parametrize('path', sorted((ROOT / 'benchmarks' / 'studies').glob('*.yaml')), ids=lambda p: p.stem)
def test_studies_that_come_with_us_are_whole(path: Path) -> None:
    """Every run of every study is a command line that train.py takes, and no two runs are the same."""
    read = accuracy.read_study(path)
    runs = [{**read['base'], **(run or {})} for run in read['runs'].values()]
    assert len({tuple(accuracy.flags(run)) for run in runs}) == len(runs)
    assert len(read['seeds']) == len(set(read['seeds']))
    for run in runs:
        assert run.pop('variant', 'dominant') in variants.VARIANTS
        line = accuracy.flags(run)
        args = parse_args([*line, '--data-dir', 'images'])
        check_args(args)
        config = multimix_config(args)
        assert (config is None) == (args.multimix == 'none')
        if config is not None:
            config.check_batch(args.batch_size)


@pytest.mark.parametrize('name', [
    'methods_resnet', 'long_resnet', 'methods_vit', 'long_vit', 'tune_vit', 'ablations_resnet', 'beyond_resnet',
    'share_vit', 'share_resnet', 'all_resnet', 'all_resnet_40'])
def test_the_results_page_shows_what_was_measured(name: str) -> None:
    table = accuracy.report(ROOT / 'benchmarks' / 'studies' / f'{name}.jsonl')
    assert table in (ROOT / 'docs' / 'results.md').read_text()


@pytest.mark.parametrize('name', ['dominant', 'same-class', 'neighbours'])
def test_mixtures_of_the_variants(name: str) -> None:
    draw = {'dominant': variants.dominant, 'same-class': variants.same_class, 'neighbours': variants.neighbours}[name]
    sampler = LamSampler(200, 3, 32, 0.05)
    y = torch.eye(4)[torch.arange(32) % 4]
    logits = torch.randn(32, 3, 4)
    lam = draw(sampler, logits, y)
    assert lam.shape == (3, 200, 32) and (lam >= 0).all()
    torch.testing.assert_close(lam.sum(-1), torch.ones(3, 200))
    if name == 'dominant':
        assert (lam.amax(-1) >= 0.5).all() and lam.argmax(-1).unique().numel() == 32
    elif name == 'same-class':
        torch.testing.assert_close((lam @ y).amax(-1), torch.ones(3, 200))
        assert 1.2 < float(effective_examples(lam).mean()) < 5
    else:
        assert (lam.gt(0).sum(-1) <= variants.NEIGHBOURS).all()
        mean = logits.mean(1)
        far = torch.cdist(mean, mean).argmax(1)
        first = lam.argmax(-1)
        assert (lam.gather(-1, far[first].unsqueeze(-1)) < 0.5).all()


@pytest.mark.parametrize('begin, end', [(0.25, 1), (0, 0.75)])
def test_schedules_of_the_variants(begin: float, end: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, 'create_scheduler_v2', lambda *_, **__: (None, 4))
    monkeypatch.setattr(MultiMixTask, 'mixes', MultiMixTask.mixes)  # put back afterwards
    variants.with_schedule(begin, end)
    train.create_scheduler_v2(updates_per_epoch=10)
    model = wrap(timm.create_model('test_resnet', num_classes=3), 'multimix', preset='alone', input_size=(3, 64, 64))
    mixed = [MultiMixTask(model).mixes(step) for step in range(40)]
    assert mixed == [40 * begin <= step < 40 * end for step in range(40)]
