"""Which run goes on, from where and with which settings; and one process at a time in its folder."""
from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import train
from tests import forked
from tests.conftest import write_images
from tests.test_resume import FEW, SHORT, start
from timm_multimix.runs.find import candidates, newest_whole
from timm_multimix.runs.settings import parse_args
from timm_multimix.runs.summary import read_summary


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp('data') / 'images')


# ------------------------------------------------------------------------------------------------------ --resume auto

def test_auto_takes_the_newest_run_that_no_flag_contradicts(
        tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*SHORT, '--data-dir', str(data), '--output', str(tmp_path), '--resume', 'auto']
    for i, more in enumerate((['--epochs', '1'], ['--epochs', '1', '--smoothing', '0'])):
        assert train.main([*flags, *more, '--experiment', f'run{i}']) == 0
        assert 'there is no run to resume' in capsys.readouterr().out
        os.utime(tmp_path / f'run{i}' / 'last.pth.tar', (i + 1e9, i + 1e9))  # all names of one file
    (tmp_path / 'empty').mkdir()

    def goes_on_in(*more: str) -> str:
        assert train.main([*flags, *more]) == 0
        return capsys.readouterr().out.split('output in ')[1].split('; resuming')[0].split('.\n')[0]

    assert goes_on_in('--epochs', '2', '--smoothing', '0.1') == str(tmp_path / 'run0')
    assert goes_on_in('--epochs', '3', '-j', '1') == str(tmp_path / 'run0')  # now the newest
    assert goes_on_in('--epochs', '2', '--smoothing', '0') == str(tmp_path / 'run1')
    fresh = goes_on_in('--epochs', '1', '--smoothing', '0.2')
    assert fresh not in (str(tmp_path / 'run0'), str(tmp_path / 'run1'))
    shutil.rmtree(fresh)


def test_a_run_that_was_resumed_keeps_its_recipe(tmp_path: Path, data: Path) -> None:
    (tmp_path / 'mine.yaml').write_text('smoothing: 0.2\n')
    assert start(tmp_path / 'out', data, '--epochs', '1', '-c', str(tmp_path / 'mine.yaml')) == 0
    run = tmp_path / 'out' / 'x'
    for epochs in ('2', '3'):
        assert train.main(['--resume', str(run), '--epochs', epochs]) == 0
    assert yaml.safe_load((run / 'args.yaml').read_text())['recipe'] == str(tmp_path / 'mine.yaml')
    auto = [*SHORT, '--data-dir', str(data), '--output', str(tmp_path / 'out'), '--resume', 'auto', '-c']
    assert parse_args([*auto, str(tmp_path / 'mine.yaml')]).resume == str(run)
    assert parse_args([*auto, 'finetune']).resume == ''


def test_going_back_removes_what_came_after(
        tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(tmp_path, data, '--epochs', '3') == 0
    run = tmp_path / 'x'
    shutil.copy(run / 'last.pth.tar', run / 'recovery-3-1.pth.tar')
    before = (run / 'summary.csv').read_bytes()
    capsys.readouterr()
    assert train.main(['--resume', str(run / 'checkpoint-0.pth.tar'), '--epochs', '2']) == 0
    assert (f'Warning: the run goes back to epoch 2: 2 later epochs leave summary.csv. {run}/summary-3-epochs.csv '
            f'keeps them.') in capsys.readouterr().out
    assert not list(run.glob('recovery-*')) and candidates(run)[0] == run / 'last.pth.tar'
    assert torch.load(run / 'last.pth.tar', weights_only=True)['epoch'] == 1
    assert [row['epoch'] for row in read_summary(run / 'summary.csv')] == ['0', '1']
    two = (run / 'summary.csv').read_bytes()
    for name in ('summary-2-epochs.csv', 'summary-2-epochs-2.csv'):  # one epoch, and it is done
        assert train.main(['--resume', str(run / 'checkpoint-0.pth.tar'), '--epochs', '2']) == 0
        assert '1 later epoch leaves summary.csv' in capsys.readouterr().out and (run / name).exists()
    assert (run / 'summary-2-epochs.csv').read_bytes() == two and (run / 'summary-3-epochs.csv').read_bytes() == before
    os.link(run / 'checkpoint-0.pth.tar', tmp_path / 'first')
    os.replace(tmp_path / 'first', run / 'last.pth.tar')  # killed between the second epoch's row and its checkpoint
    (run / 'checkpoint-1.pth.tar').unlink()
    assert train.main(['--resume', str(run), '--epochs', '2']) == 0
    assert 'later epoch' not in capsys.readouterr().out and len(list(run.glob('summary-*'))) == 3


def test_results_without_checkpoints_are_a_run(
        tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Who frees a disk removes what is large."""
    run = tmp_path / 'x'
    for name, content in (('model/config.json', '{}'), ('summary.csv', 'epoch,eval_top1\n0,50\n1,60\n')):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(content)
        for more in ([], ['--resume', 'auto']):
            assert start(tmp_path, data, '--epochs', '1', *more) == 2
            assert f'{run} holds a run already. It has no checkpoint: choose another --experiment.' in (
                capsys.readouterr().err)
            assert (run / name).read_text() == content
        shutil.rmtree(run)
    run.mkdir()
    (run / 'summary.csv').write_text('epoch,eval_top1\n0,50\n')  # killed before the first checkpoint
    assert start(tmp_path, data, '--epochs', '1', '--resume', 'auto') == 0


def test_another_batch_size_starts_the_epoch_again(
        tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / 'x'
    saver = train.AtomicCheckpointSaver.drop_recoveries
    try:
        train.AtomicCheckpointSaver.drop_recoveries = lambda *a, **k: None  # type: ignore[method-assign]
        assert start(tmp_path, data, '--epochs', '1', '--recovery-interval', '3') == 0
    finally:
        train.AtomicCheckpointSaver.drop_recoveries = saver  # type: ignore[method-assign]
    (run / 'last.pth.tar').unlink()
    capsys.readouterr()
    assert train.main(['--resume', str(run / 'recovery-0-3.pth.tar'), '-b', '6']) == 0
    out = capsys.readouterr().out
    assert 'from within epoch 1' in out and 'that epoch starts again' in out
    assert [row['epoch'] for row in read_summary(run / 'summary.csv')] == ['0']


def test_data_that_changed_meanwhile_is_said_or_refused(
        tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = Path(shutil.copytree(data, tmp_path / 'images'))
    assert start(tmp_path, images, '--epochs', '1') == 0
    run = tmp_path / 'x'
    capsys.readouterr()
    assert train.main(['--resume', str(run), '--epochs', '2']) == 0
    assert 'the data has changed' not in capsys.readouterr().out
    next((images / 'validation' / 'class_1').glob('*.png')).unlink()
    assert train.main(['--resume', str(run), '--epochs', '3']) == 0
    before = len(list(images.glob('validation/*/*'))) + 1
    assert f'{before} validation images then and {before - 1} now' in capsys.readouterr().out
    for split in ('train', 'validation'):
        (images / split / 'class_0').rename(images / split / 'zebra')
    assert train.main(['--resume', str(run), '--epochs', '4']) == 2
    assert 'gone: class_0; new: zebra' in capsys.readouterr().err
    assert len(read_summary(run / 'summary.csv')) == 3


def test_settings_that_are_lost_are_those_of_the_checkpoint(
        tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i, damage_it in enumerate((lambda p: p.unlink(), lambda p: p.write_bytes(b'\xff\xfe: ['))):
        assert start(tmp_path / str(i), data, '--epochs', '1', '--multimix', 'multimix', '--multimix-n', '77') == 0
        run = tmp_path / str(i) / 'x'
        damage_it(run / 'args.yaml')
        capsys.readouterr()
        assert train.main(['--resume', str(run), '--epochs', '2']) == 0
        out = capsys.readouterr().out
        assert 'the settings of the run are taken from last.pth.tar' in out and 'n=77' in out
        assert yaml.safe_load((run / 'args.yaml').read_text())['multimix_n'] == 77


def test_a_torn_table_and_an_unreadable_neighbour_stop_no_run(tmp_path: Path, data: Path) -> None:
    assert start(tmp_path, data, '--epochs', '2') == 0
    table = tmp_path / 'x' / 'summary.csv'
    whole = table.read_text().splitlines()
    table.write_bytes('\n'.join([*whole, whole[-1][:9]]).encode() + b'\0\0,\xff')
    (tmp_path / 'neighbour').mkdir()
    shutil.copy(tmp_path / 'x' / 'last.pth.tar', tmp_path / 'neighbour')
    (tmp_path / 'neighbour' / 'args.yaml').write_bytes(b'\xff\xfe: [')
    (tmp_path / 'other').mkdir()
    shutil.copy(tmp_path / 'x' / 'last.pth.tar', tmp_path / 'other')
    (tmp_path / 'other' / 'args.yaml').write_text('- a list')
    assert train.main([*SHORT, '--data-dir', str(data), '--output', str(tmp_path), '--resume', 'auto', '--epochs',
                       '3']) == 0
    assert [row['epoch'] for row in read_summary(table)] == ['0', '1', '2']


# ------------------------------------------------------------------------------------------- one process in a folder

def test_two_processes_never_train_in_one_folder(
        tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(tmp_path, data, '--epochs', '1') == 0  # which lets go of the folder at its end
    run = tmp_path / 'x'
    monkeypatch.setattr('timm_multimix.training.lock.WAIT', 0.2)
    with forked.start('train.py', '--resume', str(run), '--epochs', '100000', '-j', '1') as process:
        assert process.has_said('\nEpoch '), process.stderr
        for again in (['--resume', str(run)], [*SHORT, '--data-dir', str(data), '--output', str(tmp_path),
                                               '--experiment', 'x', '--resume', 'auto']):
            assert train.main([*again, '--epochs', '3']) == 2
            assert f'Another process trains in {run}.' in capsys.readouterr().err
        process.send_signal(signal.SIGKILL)  # it alone: its worker has to notice
        process.wait(60)
    done = int(read_summary(run / 'summary.csv')[-1]['epoch']) + 1
    monkeypatch.setattr('timm_multimix.training.lock.WAIT', 10)  # until the process that loaded has noticed
    assert train.main(['--resume', str(run), '--epochs', str(done + 2)]) == 0
    epochs = [int(row['epoch']) for row in read_summary(run / 'summary.csv')]
    assert epochs == list(range(done + 2))


def test_a_run_that_fails_lets_go_of_its_folder(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('timm_multimix.training.lock.WAIT', 0.2)
    with monkeypatch.context() as broken:
        broken.setattr(train, 'train_epoch', lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            start(tmp_path, data, '--epochs', '1')
    assert start(tmp_path, data, '--epochs', '1') == 0


@pytest.mark.parametrize('content', [
    b'\xff\xfe: [', b'- a list', b'', b'? [a, b]\n: 1', b'{[1]: 2}', b'[' * 1200, b'a: 2024-13-45', b'recipe: [1, 2]',
    b'recipe: 3', b'model: {a: {b: c}}', b'!!python/object/apply:os.system [exit]'])
def test_no_file_below_output_breaks_auto(content: bytes, tmp_path: Path) -> None:
    for name in ('a', 'b'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'last.pth.tar').write_bytes(b'anything')
        (tmp_path / name / 'args.yaml').write_bytes(content)
    (tmp_path / 'c' / 'args.yaml').mkdir(parents=True)
    (tmp_path / 'c' / 'last.pth.tar').touch()
    for more in ([], ['-c', 'cifar10_resnet18']):
        args = parse_args(['--model', 'test_resnet', '--output', str(tmp_path), '--resume', 'auto', *more])
        assert args.resume == '' and args.resume_auto


def test_a_folder_that_vanishes_is_written_again(
        tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Between epochs; then every row is there, and the end names what is there."""
    trained = train.train_epoch

    def vanishing(state: Any, *args: Any) -> Any:
        found = trained(state, *args)
        if state.progress.epoch == 1:
            shutil.rmtree(state.folder)
        return found

    monkeypatch.setattr(train, 'train_epoch', vanishing)
    assert start(tmp_path, data, '--epochs', '3') == 0
    run, out = tmp_path / 'x', capsys.readouterr().out
    assert [row['epoch'] for row in read_summary(run / 'summary.csv')] == ['0', '1', '2']
    assert yaml.safe_load((run / 'args.yaml').read_text())['model'] == 'test_resnet'
    assert newest_whole(run)[0] == run / 'last.pth.tar'
    said = out.split(f'In {run}:\n')[1].split('\n\n')[0].splitlines()
    assert len(said) == 4
    for line in said:
        assert all((run / name).exists() for name in line.strip().split('   ')[0].split(', ')), line


def test_the_end_names_no_file_that_is_not_there(
        tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('timm_multimix.training.output.plot_curves', full)
    monkeypatch.setattr('timm_multimix.training.output.write_summary', full)
    monkeypatch.setattr(train.AtomicCheckpointSaver, 'save_checkpoint', full)
    assert start(tmp_path, data, '--epochs', '1') == 0
    end = capsys.readouterr().out.split('Done in')[1]
    assert f'In {tmp_path}/x:\n' in end and '\n  args.yaml\n' in end
    assert not any(name in end for name in ('curves.png', 'summary.csv', 'last.pth.tar', 'model_best'))
    report = (tmp_path / 'x' / 'report.md').read_text()
    assert not any(name in report for name in ('curves.png', 'model_best.pth.tar'))


def test_other_settings(image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a run that is done nothing is written; of one that goes on they are named."""
    assert train.main([*FEW, str(image_folder), '--epochs', '1', '--output', str(tmp_path), '--experiment', 'x']) == 0
    run = tmp_path / 'x'
    before = {path: path.read_bytes() for path in sorted(run.rglob('*')) if path.is_file()}
    resume = ['--resume', str(run)]
    capsys.readouterr()
    for flags, words in ((['--class-weight', 'auto'], '--class-weight auto (was None)'),
                         (['--img-size', '64'], '--img-size 64 (was 32)'),
                         (['--multimix', 'dense'], '--multimix dense (was none)')):
        assert train.main([*resume, *flags]) == 2
        err = capsys.readouterr().err
        assert words in err and 'has trained all of its 1 epochs' in err and '--epochs N trains on' in err
    assert before == {path: path.read_bytes() for path in sorted(run.rglob('*')) if path.is_file()}
    assert train.main([*resume, '--workers', '0']) == 0  # says nothing about the model
    assert 'nothing left to train; --epochs N trains on' in capsys.readouterr().out
    assert train.main([*resume, '--epochs', '2', '--class-weight', 'auto', '--lr', '0.01']) == 0
    out = capsys.readouterr().out
    assert 'Warning: settings have changed since the checkpoint was written: ' in out
    assert '--class-weight auto (was None)' in out and '--lr 0.01 (was ' in out and '--epochs' not in (
        out.split('was written: ')[1].split('\n')[0])


def test_flags_of_the_optimizer_hold_on_resume(image_folder: Path, tmp_path: Path) -> None:
    flags = [*FEW, '--epochs', '2', '--opt', 'adamw', '--sched', 'none', '--lr', '1e-3', str(image_folder), '--output',
             str(tmp_path)]
    assert train.main([*flags, '--stop-epoch', '1', '--experiment', 'x']) == 0
    new = ['--weight-decay', '5', '--opt-betas', '0.1', '0.2', '--lr', '0.02']
    assert train.main(['--resume', str(tmp_path / 'x'), *new]) == 0
    group = torch.load(tmp_path / 'x' / 'last.pth.tar', weights_only=True)['optimizer']['param_groups'][-1]
    assert (group['weight_decay'], tuple(group['betas']), group['lr']) == (5, (0.1, 0.2), 0.02)


def test_a_beginning_is_over(image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ['--model', 'test_vit', '--model-kwargs', 'img_size=(32,48)', 'patch_size=8', '-b', '6', '-j', '0',
             '--warmup-epochs', '0', '--epochs', '1', str(image_folder), '--output', str(tmp_path), '--experiment', 'x']
    assert train.main(flags) == 0
    capsys.readouterr()
    assert train.main(['--resume', str(tmp_path / 'x')]) == 0  # nothing has changed
    assert 'have changed' not in capsys.readouterr().out
    assert parse_args([*flags[:-2], '--resume', 'auto']).resume == str(tmp_path / 'x')  # a tuple is YAML's list
    assert train.main(['--resume', str(tmp_path / 'x'), '--epochs', '2', '--head-init-scale', '0.1']) == 2
    assert '--head-init-scale is 0.1 and was None, but it says what a run begins with' in capsys.readouterr().err


def test_auto_finds_paths_that_are_said_in_another_way(
        image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    flags = [*FEW, '--epochs', '1', str(image_folder)]
    assert train.main([*flags, '--output', 'teachers', '--experiment', 't']) == 0
    (tmp_path / 'map.txt').write_text('class_0\nclass_1\nclass_2\n')
    others = (['--model', 'test_resnet', '--multimix', 'dense', '--multimix-teacher', 'teachers/t/', '--class-map',
               'map.txt'], ['--model', 'local-dir:teachers/t/model', '--pretrained'])
    for i, more in enumerate(others):
        command = [*flags[2:], *more, '--output', f'runs{i}', '--resume', 'auto']
        assert train.main(command) == 0 and 'a new one starts' in capsys.readouterr().out
        assert train.main(command) == 0 and 'a new one starts' not in capsys.readouterr().out
    elsewhere = tmp_path / 'elsewhere'
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    run = next((tmp_path / 'runs0').iterdir())
    assert train.main(['--resume', str(run), '--epochs', '2']) == 0
