"""The study runner on a tiny study: real train.py processes, resumed, and its table."""
from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import timm
import torch
import yaml
from filelock import FileLock
from safetensors.torch import save_file

from benchmarks import accuracy, variants
from tests import forked
from tests.conftest import ROOT, write_images
from timm_multimix import SettingError, wrap
from timm_multimix.mixing import LamSampler, effective_examples
from timm_multimix.runs.settings import multimix_config, parse_args
from timm_multimix.training.checks import check_args


def command(*args: object) -> subprocess.CompletedProcess[str]:
    return forked.run('-m', 'benchmarks.accuracy', *map(str, args), deep=True)


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
    stopped = command('run', study, '--data-dir', data, '--seeds', 2, '--budget', 0.0001)  # by what is known now
    assert 'Stopped: none, seed 2' in stopped.stdout
    assert 'Did you mean dense' in command('run', study, '--data-dir', data, '--only', 'dens').stderr
    table = command('report', study.with_suffix('.jsonl'), '--out', tmp_path / 'new' / 'table.md')
    assert table.returncode == 0 and '| dense | 1 |' in table.stdout
    assert '12 training images, 1 epochs, 6 images held out of the training data' in table.stdout
    assert (tmp_path / 'new' / 'table.md').read_text() == table.stdout
    # other images go into the same file, and into a table of their own
    other = command('run', study, '--data-dir', data, '--only', 'none', '--subset', 1)
    assert other.returncode == 0, other.stderr
    rows = accuracy.read_results(study.with_suffix('.jsonl'))
    assert [(row['name'], row['data'].get('subset')) for row in rows] == [('none', None), ('dense', None), ('none', 1)]
    assert command('report', study.with_suffix('.jsonl')).stdout == table.stdout
    others = command('report', study.with_suffix('.jsonl'), '--subset', 1).stdout
    assert '| dense |' not in others and '12 other training images (--subset 1), 1 epochs' in others
    assert 'none of them is of this study' in command('report', study.with_suffix('.jsonl'), '--subset', 2).stderr


def test_trains_on_the_digits_that_come_along(study: Path, tmp_path: Path) -> None:
    assert 'needs --data-dir' in command('run', study).stderr
    assert f'there is no {tmp_path}/none/train' in command('run', study, '--data-dir', tmp_path / 'none').stderr
    settings = yaml.safe_load(study.read_text())
    settings['data'] = {'images': 'digits', 'train': 100, 'held_out': 50, 'test': 340, 'imbalance': 5}
    study.write_text(yaml.safe_dump(settings, sort_keys=False))
    done = command('run', study, '--only', 'none')
    assert done.returncode == 0, done.stderr
    row, = accuracy.read_results(study.with_suffix('.jsonl'))
    assert row['images'] == 50 and row['data']['images'] == 'digits'
    groups = [row[f'top1 {name}'] for name in ('many', 'medium', 'few')]  # three classes, four, and three
    assert row['top1'] == pytest.approx((3 * groups[0] + 4 * groups[1] + 3 * groups[2]) / 10)
    table = command('report', study.with_suffix('.jsonl')).stdout
    assert '| many | medium | few |' in table and '100 training images, thinned to a tail of 5 : 1, ' in table
    assert f'so --data-dir {tmp_path} must go' in command('run', study, '--data-dir', tmp_path).stderr
    settings['data']['train'] = 5000
    study.write_text(yaml.safe_dump(settings, sort_keys=False))
    assert '0 has 143 images, but 500 are needed' in command('run', study, '--only', 'none').stderr


def write_results(study: Path, found: dict[str, tuple[float, ...]], **more: dict[str, float]) -> dict:
    """Finished runs of a study: top-1 of seeds 1, 2, …; the study."""
    read = accuracy.read_study(study)
    with study.with_suffix('.jsonl').open('w') as f:
        for name, tops in found.items():
            for seed, top1 in enumerate(tops, 1):
                f.write(json.dumps({
                    'name': name, 'seed': seed, 'key': accuracy.key_of(read, name, seed), 'top1': top1,
                    'median of last ten': top1, 'nll': 1.0, 'ece': 0.1, 'images': 6, 'epochs': 1, 'minutes': 1.0,
                    'images per second': 100, **more.get(name, {})}) + '\n')
    return read


def test_statistics_of_the_report(study: Path) -> None:
    read = write_results(study, {'none': (70.0, 72.0), 'dense': (71.0, 75.0)},
                         dense={'images per second': 80, 'ece': 0.3})
    lines = accuracy.report(study.with_suffix('.jsonl'), read).splitlines()
    assert '| median of last ten, 6 images |' in lines[2]
    line = next(line for line in lines if line.startswith('| dense'))
    # differences 1 and 3: mean 2, standard error 1, t(0.975, 1) = 12.71
    assert '| 73.00 ± 2.00 |' in line and '| +2.00 [-10.71, +14.71] |' in line and '| 1.25× |' in line
    assert '| +0.200 [+0.200, +0.200] |' in line
    lines = accuracy.report(study.with_suffix('.jsonl'), read, against='dense').splitlines()
    assert '| top-1 against dense, 95 % interval |' in lines[2] and '| -2.00 [-14.71, +10.71] |' in lines[4]
    lines = command('report', study.with_suffix('.jsonl'), '--seeds', 2).stdout.splitlines()
    assert lines[4].startswith('| none | 1 | 72.00 |') and '| +3.00 |' in lines[5]
    with pytest.raises(SettingError, match='Did you mean dense'):
        accuracy.report(study.with_suffix('.jsonl'), read, against='dens')


def test_means_over_data_sets(study: Path) -> None:
    read = write_results(study, {'none': (70.0, 72.0), 'dense': (71.0, 75.0)})
    other = study.with_name('other.yaml')
    other.write_text(study.read_text())
    write_results(other, {'none': (50.0, 52.0), 'dense': (53.0, 53.0)}, dense={'images per second': 50})
    done = command('report', study.with_suffix('.jsonl'), other.with_suffix('.jsonl'))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    # dense is 62 and 64; its differences are the means of 1 and 3, and of 3 and 1
    assert lines[0].startswith('Means of 2 studies, of images held out')
    assert '| 63.00 ± 1.00 |' in lines[-1] and '| +2.00 [+2.00, +2.00] |' in lines[-1]
    assert lines[-1].endswith('| 1.50× |')  # as long in one, twice as long in the other
    read['seeds'] = [1]
    paths = [study.with_suffix('.jsonl'), other.with_suffix('.jsonl')]
    paths[1].write_text(paths[1].read_text().splitlines()[0] + '\n')  # none, seed 1: the other runs have no partner
    assert accuracy.report(paths[0], read, more=[(paths[1], read)]).count('\n| none | 1 |') == 1
    paths[1].write_text('')
    with pytest.raises(SettingError, match='none of them is of this study'):
        accuracy.report(paths[0], read, more=[(paths[1], read)])


def test_rows_of_other_settings_are_not_shown(study: Path) -> None:
    write_results(study, {'none': (70.0, 72.0), 'dense': (71.0, 75.0)})
    settings = yaml.safe_load(study.read_text())
    settings['runs']['dense']['multimix_effective'] = 4
    settings['runs']['never mixed'] = settings['runs'].pop('none')  # a run may be called otherwise later
    study.write_text(yaml.safe_dump(settings, sort_keys=False))
    table = accuracy.report(accuracy.beside(study, 'studies', 'results', '.jsonl'), accuracy.read_study(study))
    assert '| never mixed | 2 |' in table and '| dense |' not in table


def test_differences_to_the_best_rival_and_the_picture(study: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load(study.read_text())
    settings['runs'] = {'none': {}, 'mixup': {'mixup': 1.0}, 'cutmix': {'cutmix': 1.0}, 'dense': {'multimix': 'dense'},
                        'not run yet': {'smoothing': 0.2}}
    study.write_text(yaml.safe_dump({**settings, 'rivals': ['mixup', 'cutmix']}, sort_keys=False))
    write_results(study, {'none': (70, 72), 'mixup': (71, 73), 'cutmix': (73, 72), 'dense': (75, 75)})
    done = command('report', study.with_suffix('.jsonl'), '--plot', tmp_path / 'new' / 'figure.png')
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert '| top-1 against cutmix |' in lines[2] and not any('not run yet' in line for line in lines)
    assert '| +2.50 [' in next(line for line in lines if line.startswith('| dense'))
    assert (tmp_path / 'new' / 'figure.png').read_bytes().startswith(b'\x89PNG')


def test_one_process_trains_a_run_and_its_death_frees_it(study: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load(study.read_text())
    settings['base']['epochs'] = 100_000  # so that the first process is still at it when the second one asks
    study.write_text(yaml.safe_dump(settings, sort_keys=False))
    data = write_images(tmp_path / 'images', classes=3, per_class=6)
    locks = [study.with_suffix('.claims') / accuracy.key_of(accuracy.read_study(study), name, 1)
             for name in ('none', 'dense')]
    temporary = tmp_path / 'temporary'
    temporary.mkdir()
    with FileLock(locks[1]), forked.start(  # as if another process were at it
            '-m', 'benchmarks.accuracy', 'run', str(study), '--data-dir', str(data), '--only', 'none',
            env={**os.environ, 'TMPDIR': str(temporary)}, deep=True) as first:
        deadline = time.time() + 120
        while not any(temporary.glob('*/out/run/summary.csv')):
            assert first.poll() is None and time.time() < deadline, first.stderr
            time.sleep(0.05)
        both = command('run', study, '--data-dir', data)
        assert both.stdout.splitlines() == [f'{name}, seed 1: another process has it' for name in ('none', 'dense')]
        assert any(temporary.glob('*/data'))
        first.send_signal(signal.SIGTERM)
        assert first.wait(60) == 143 and not any(temporary.glob('*/data'))  # it ended its train.py, and tidied up
    with FileLock(locks[0], timeout=10):  # which its death has freed
        pass


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


def test_a_long_tail(tmp_path: Path) -> None:
    """The first class keeps all its training images, the last an Nth; whoever judges sees all classes alike."""
    data = write_images(tmp_path / 'images', classes=3, per_class=20)
    accuracy.make_folder(data, {'train': 48, 'held_out': 6, 'test': 30, 'imbalance': 16}, 'test', tmp_path / 'x')

    def counts(part: str) -> list[int]:
        return [len(list(folder.iterdir())) for folder in sorted((tmp_path / 'x' / part).iterdir())]

    assert [(name, group.tolist()) for name, group in accuracy.thirds(tmp_path / 'x' / 'train')] == [
        ('many', [0]), ('medium', [1]), ('few', [2])]
    assert counts('train') == [16, 4, 1] and counts('judge') == counts('validation') == [10, 10, 10]


def test_the_images_of_a_study(study: Path, tmp_path: Path) -> None:
    data = write_images(tmp_path / 'images', classes=2, per_class=8)
    settings = {**accuracy.read_study(study), 'data': {'train': 4, 'held_out': 8, 'test': 4, 'watch': 4}}
    accuracy.make_folder(data, settings['data'], 'held_out', tmp_path / 'run')
    accuracy.write_images(settings, data, tmp_path / 'written')
    parts = {part: sorted(p.relative_to(tmp_path / 'run' / part) for p in (tmp_path / 'run' / part).rglob('*.png'))
             for part in ('train', 'judge')}
    assert sorted(p.name for p in (tmp_path / 'written').iterdir()) == ['train', 'validation']
    for part, other in (('train', 'train'), ('validation', 'judge')):  # all that judge, not the watched ones alone
        folder = tmp_path / 'written' / part
        assert sorted(p.relative_to(folder) for p in folder.rglob('*.png')) == parts[other]
        assert all(p.read_bytes() for p in folder.rglob('*.png'))
    with pytest.raises(SettingError, match='written exists'):
        accuracy.write_images(settings, data, tmp_path / 'written')
    settings['data'] = {**settings['data'], 'subset': 'seed'}
    with pytest.raises(SettingError, match='other images for every seed'):
        accuracy.write_images(settings, data, tmp_path / 'other')
    done = command('images', study, tmp_path / 'all', '--data-dir', tmp_path / 'nowhere')
    assert done.returncode == 1 and not (tmp_path / 'all').exists()


def test_few_images_of_pretrained_weights_drawn_for_every_seed(study: Path, tmp_path: Path) -> None:
    data = write_images(tmp_path / 'images', classes=3, per_class=6)
    settings = yaml.safe_load(study.read_text())
    settings['data']['subset'] = 'seed'
    settings['base'].update(pretrained=True, val_interval=2, epochs=2, opt='sgd', lr=1e-9, warmup_epochs=0)
    settings['runs'] = {'none': {}, 'frozen': {'variant': 'frozen'}}
    study.write_text(yaml.safe_dump(settings, sort_keys=False))
    model = timm.create_model('test_resnet', num_classes=3)
    weights = {**model.state_dict()}
    weights['fc.weight'][:] = 0
    save_file(weights, tmp_path / 'weights.safetensors')
    done = command('run', study, '--data-dir', data, '--seeds', 1, 2,
                   '--pretrained-path', tmp_path / 'weights.safetensors')
    assert done.returncode == 0, done.stdout + done.stderr
    rows = accuracy.read_results(study.with_suffix('.jsonl'))
    assert len(rows) == 4 and not any('pretrained_path' in row['settings'] for row in rows)
    for row in rows:
        assert row['scaled nll'] > 0 and 0 <= row['scaled ece'] <= 1 and 'median of last ten' not in row
    table = command('report', study.with_suffix('.jsonl')).stdout
    assert '12 training images, others for each seed, 2 epochs' in table and '| NLL, scaled | ECE, scaled |' in table


def test_a_second_phase_begins_where_the_first_ended(study: Path, tmp_path: Path) -> None:
    data = write_images(tmp_path / 'images', classes=3, per_class=6)
    settings = yaml.safe_load(study.read_text())
    settings['base'].update(opt='sgd', warmup_epochs=0, clip_grad=1.0)
    still = {'variant': 'frozen', 'lr': 1e-9}
    settings['runs'] = {'none': {'lr': 0.05}, 'still': still, 'phase': {**still, 'after': 'none'}}
    study.write_text(yaml.safe_dump(settings, sort_keys=False))
    done = command('run', study, '--data-dir', data)
    assert done.returncode == 0, done.stdout + done.stderr
    none, alone, phase = (row['nll'] for row in accuracy.read_results(study.with_suffix('.jsonl')))
    assert phase == pytest.approx(none, rel=1e-4) and abs(alone - none) > 1e-3


def test_a_finished_run_teaches_and_is_kept(study: Path, tmp_path: Path) -> None:
    """A run of another study, on the images of this one, that teaches two."""
    data = write_images(tmp_path / 'images', classes=3, per_class=6)
    settings = yaml.safe_load(study.read_text())
    settings['base'].update(opt='sgd', lr=0.05, warmup_epochs=0, clip_grad=1.0)
    study.with_name('other.yaml').write_text(yaml.safe_dump({**settings, 'runs': {'first': {'epochs': 2}}}))
    taught = {'multimix': 'dense', 'multimix_prob': 0, 'mixup': 0, 'cutmix': 0, 'multimix_teacher_start': 0,
              'multimix_teacher': {'study': 'other.yaml', 'run': 'first'}}
    settings['runs'] = {'half': taught, 'all': {**taught, 'multimix_teacher_weight': 1}}
    study.write_text(yaml.safe_dump(settings, sort_keys=False))
    done = command('run', study, '--data-dir', data, '--keep', tmp_path / 'kept')
    assert done.returncode == 0, done.stdout + done.stderr
    (kept,) = (p for p in (tmp_path / 'kept').iterdir() if p.is_dir())
    half, whole = accuracy.read_results(study.with_suffix('.jsonl'))
    assert half['nll'] != whole['nll'] and half['settings']['multimix_teacher']['epochs'] == 2
    args = yaml.safe_load((kept / 'args.yaml').read_text())
    assert (args['epochs'], args['seed'], args['multimix']) == (2, 1, 'none')


def test_a_study_like_another_takes_what_it_does_not_say(study: Path) -> None:
    other = study.with_name('other.yaml')
    other.write_text(yaml.safe_dump({'like': study.name, 'base': {'epochs': 2}, 'seeds': [3]}))
    first, second = accuracy.read_study(study), accuracy.read_study(other)
    assert second == {**first, 'base': {**first['base'], 'epochs': 2}, 'seeds': [3]}


def test_only_the_classifier_of_a_frozen_network_learns() -> None:
    model = timm.create_model('test_resnet', num_classes=3)
    task = variants.Frozen(model)
    task.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    task(torch.rand(6, 3, 64, 64), torch.arange(6) % 3)['loss'].backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {'fc.weight', 'fc.bias'}


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
    ({'rivals': ['dence']}, "'dence' of rivals is not one of the runs. Did you mean dense"),
    ({'runs': {'a': {}, 'b': {'after': 'c'}}}, "'b' has after 'c', which is not one of the runs"),
    ({'runs': {'a': {}, 'b': {'multimix_teacher': {'run': 'c'}}}}, "'b' has multimix_teacher 'c', which is not one of"),
    ({'runs': {'a': {}, 'b': {'after': 'a'}, 'c': {'after': 'b'}}}, 'which needs another run itself')])
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
        run.pop('after', None)
        if isinstance(run.get('multimix_teacher'), dict):
            run['multimix_teacher'] = 'local-dir:teacher'
        line = accuracy.flags(run)
        args = parse_args([*line, '--data-dir', 'images'])
        check_args(args)
        config = multimix_config(args)
        assert (config is None) == (args.multimix == 'none')
        if config is not None:
            config.check_batch(args.batch_size)


PAGES = ''.join(path.read_text() for path in sorted((ROOT / 'docs').glob('*.md')))
REPORTS = sorted(set(re.findall(
    r"accuracy report((?: benchmarks/results/\w+\.jsonl)+)(?: --subset (\d+))?(?: --against '([^']+)')?"
    r"(?: --seeds ([\d ]+))?", PAGES)))


@pytest.mark.parametrize('paths, subset, against, seeds', REPORTS)
def test_the_pages_show_what_was_measured(paths: str, subset: str, against: str, seeds: str) -> None:
    first, *more = [(ROOT / path, accuracy.read_study(accuracy.beside(ROOT / path, 'results', 'studies', '.yaml'),
                                                      int(subset or 0))) for path in paths.split()]
    only = [int(seed) for seed in seeds.split()] or None
    assert accuracy.report(*first, against=against or None, more=more, only=only) in PAGES


def test_the_pages_leave_out_no_study() -> None:
    studies = {path.stem for path in (ROOT / 'benchmarks' / 'studies').glob('*.yaml')}  # others have files of their own
    found = {path.stem for path in (ROOT / 'benchmarks' / 'results').glob('*.jsonl')}
    assert {Path(path).stem for paths, *_ in REPORTS for path in paths.split()} == found & studies


@pytest.mark.parametrize('name', ['dominant', 'same-class', 'neighbours'])
def test_mixtures_of_the_variants(name: str) -> None:
    draw = {'dominant': variants.dominant, 'same-class': variants.same_class, 'neighbours': variants.neighbours}[name]
    sampler = LamSampler(200, 3, 32, 0.05)
    y = torch.eye(4)[torch.arange(32) % 4]
    logits = torch.randn(32, 3, 4)
    lam = draw(sampler, y, logits)
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


@pytest.mark.parametrize('name, begin, end', [('mix-late', 0.25, 1), ('mix-early', 0, 0.75)])
def test_schedules_of_the_variants(name: str, begin: float, end: float) -> None:
    model = wrap(timm.create_model('test_resnet', num_classes=3), 'multimix', preset='embeddings')
    task = variants.VARIANTS[name](model)
    mixed = []
    for step in range(40):
        task.set_progress(step, 40)
        mixed.append(task(torch.rand(2, 3, 64, 64), torch.tensor([0, 1]))['mixed'] == 'embeddings')
    assert mixed == [40 * begin <= step < 40 * end for step in range(40)]


def test_the_variant_that_follows_memorisation() -> None:
    task = variants.Memorised(wrap(timm.create_model('test_resnet', num_classes=3), 'multimix', n=10))
    images, target = torch.rand(6, 3, 64, 64), torch.arange(6) % 3
    optimizer = torch.optim.SGD(task.parameters(), lr=0.05)
    shares = []
    for step in range(60):
        task.set_progress(step, 60)
        shares.append(task.policy.share)
        task(images, target)['loss'].backward()
        optimizer.step(), optimizer.zero_grad()
    assert shares[0] == shares[1] == 0 and shares[-1] > 0.2 and task.policy.counts['embeddings'] > 0
    task.running = 0.1 * task.start
    assert task.policy.share == pytest.approx(0.9)
