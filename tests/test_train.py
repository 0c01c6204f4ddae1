"""train.py as users run it: real processes, real models, killed and resumed, and wrong in many ways."""
from __future__ import annotations

import argparse
import os
import re
import signal
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

import train
from tests import forked
from tests.conftest import ROOT, write_images
from timm_multimix import MultiMixTask
from timm_multimix.policy import told
from timm_multimix.runs.summary import read_summary
from timm_multimix.training.checkpoint import AtomicCheckpointSaver

SMALL = ('--model', 'test_resnet', '--epochs', '2', '-j', '0', '--img-size', '32')


def on(folder: Path) -> list[str]:
    """Flags for 18 images: three steps an epoch."""
    return ['--data-dir', str(folder), '-b', '6', '--warmup-epochs', '0']


def finished(folder: Path) -> list[dict]:
    rows = read_summary(folder / 'summary.csv')
    assert {'args.yaml', 'summary.csv', 'curves.png', 'last.pth.tar', 'model_best.pth.tar', 'model'} <= set(
        os.listdir(folder))
    with Image.open(folder / 'curves.png') as picture:
        picture.load()
    return rows


def test_the_default_data_set_and_recipe(tmp_path: Path) -> None:
    done = forked.run('train.py', '--model', 'test_vit2', '--multimix', 'dense', '--epochs', '2', '--lr', '3e-3',
                      '--output', str(tmp_path), '--experiment', 'x', bare=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'sklearn/digits' in done.stdout and 'effective examples of 64' in done.stdout
    end = done.stdout.split('Done in')[1]
    assert end.count(f'In {tmp_path}/x:\n') == 1 and "  timm.create_model('local-dir:" in end
    assert f'  python evaluate.py {tmp_path}/x --on accuracy,calibration\n' in end
    assert f'  python -m timm_multimix push {tmp_path}/x user/name\n' in end
    rows = finished(tmp_path / 'x')
    with Image.open(tmp_path / 'x' / 'curves.png') as picture:
        assert picture.width > 500
    assert [int(r['epoch']) for r in rows] == [0, 1]
    assert float(rows[-1]['train_loss_clean']) < float(rows[0]['train_loss_clean'])
    assert 1 < float(rows[0]['train_effective']) < 4

    # What it says about loading is true, in a process that has never heard of us.
    commands = [line.strip() for line in done.stdout.splitlines() if 'timm.create_model(' in line]
    script = tmp_path / 'load.py'
    script.write_text(
        'import sys, timm, torch\n'
        f'a = {commands[0]}.eval()\n'
        "b = timm.create_model('test_vit2', num_classes=10, img_size=32,\n"
        f"                      checkpoint_path='{tmp_path}/x/model/model.safetensors').eval()\n"
        'x = torch.randn(2, 3, 32, 32)\n'
        'assert torch.equal(a(x), b(x)) and a(x).shape == (2, 10)\n'
        'assert tuple(timm.data.resolve_model_data_config(a)["input_size"]) == (3, 32, 32)\n'
        'assert not any(name.startswith("timm_multimix") for name in sys.modules)\n'
        "print('loaded')\n")
    loaded = forked.run(str(script), cwd=tmp_path, bare=True)
    assert loaded.stdout.strip() == 'loaded', loaded.stderr


@pytest.mark.parametrize('flags', [
    ('--multimix', 'none'),
    ('--multimix', 'multimix', '--multimix-preset', 'paper', '--model-ema', '--model-ema-decay', '0.9'),
    ('--multimix', 'multimix', '--multimix-layer', 'input', '2', 'embedding', '--multimix-clean-weight', '0', '--amp'),
    ('--multimix', 'dense', '--mixup', '0.5', '--cutmix', '1', '--grad-accum-steps', '2', '--clip-grad', '1', '--amp'),
    ('--multimix', 'dense', '--amp', '--amp-dtype', 'float16', '--channels-last', '--opt', 'adamw', '--lr', '1e-3'),
], ids=lambda f: ' '.join(f[1:3]))
def test_ways_to_train(tmp_path: Path, flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / 'images', per_class=12)
    code = train.main([*SMALL, *on(images), '-b', '16', '--output', str(tmp_path), '--experiment', 'x', *flags])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    rows = finished(tmp_path / 'x')
    assert len(rows) == 2
    assert ('train_effective' in rows[0]) == ('none' not in flags)
    model = timm.create_model(f'local-dir:{tmp_path}/x/model', pretrained=True).eval()
    saved = torch.load(tmp_path / 'x' / 'last.pth.tar', weights_only=False)
    state = saved['state_dict_ema' if '--model-ema' in flags else 'state_dict']
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    if 'paper' in flags:
        assert 'take' in captured.out and 'many epochs' in captured.out


def test_says_how_much_a_short_training_mixes(
        tmp_path: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([*SMALL, '--data-dir', str(image_folder), '--multimix', 'dense', '-b', '8', '--output',
                       str(tmp_path), '--experiment', 'x', '--warmup-epochs', '0']) == 0
    out, report = capsys.readouterr().out, (tmp_path / 'x' / 'report.md').read_text()
    assert 'steps about 1 will mix embeddings, 2 inputs, and 1 nothing. The share that mixes grows over' in out
    assert 'the first half of the training (--multimix-ramp 0.5).' in out
    saved = yaml.safe_load((tmp_path / 'x' / 'model' / 'multimix.yaml').read_text())
    assert told(saved['mixed_steps']) in out and told(saved['mixed_steps']) in report


def test_a_short_fine_tuning_mixes(tmp_path: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Embeddings on a tenth of the steps or more, or a warning before training; as the CSV counts it."""
    more = [*SMALL, '--data-dir', str(image_folder), '--multimix', 'dense', '-b', '6', '--epochs', '6', '--output',
            str(tmp_path), '--warmup-epochs', '0']
    assert train.main([*more, '--experiment', 'x']) == 0
    out = capsys.readouterr().out
    rows = read_summary(tmp_path / 'x' / 'summary.csv')
    counts = yaml.safe_load((tmp_path / 'x' / 'model' / 'multimix.yaml').read_text())['mixed_steps']
    assert counts['steps'] == 18 and counts['embeddings'] >= 2
    for column, name in (('train_steps', 'steps'), ('train_mixed_embeddings', 'embeddings'),
                         ('train_mixed_inputs', 'inputs'), ('train_unmixed', 'nothing')):
        assert sum(int(row[column]) for row in rows) == counts.get(name, 0)
    assert 'Labels are not smoothed' in out and out.count('Warning') == 1  # of its one position
    assert train.main([*more, '--experiment', 'y', '--multimix-ramp-epochs', '100', '--smoothing', '0.1']) == 0
    out = capsys.readouterr().out
    assert 'fewer than 1 of 18 steps will mix embeddings' in out and 'ramp_epochs' in out
    assert 'Labels are not smoothed' not in out


def test_class_weights_from_a_file_and_from_the_data(
        tmp_path: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in sorted((image_folder / 'train' / 'class_0').glob('*'))[3:]:
        path.unlink()
    weights = tmp_path / 'weights.yaml'
    weights.write_text('class_2: 1\nclass_0: 4\nclass_1: 0.5\n')
    more = [*SMALL, '--data-dir', str(image_folder), '-b', '4', '--output', str(tmp_path), '--warmup-epochs', '0']
    for i, (given, want) in enumerate((('auto', [5 / 3, 5 / 6, 5 / 6]), (str(weights), [4.0, 0.5, 1.0]))):
        assert train.main([*more, '--multimix', 'multimix', '--class-weight', given, '--experiment', str(i)]) == 0
        saved = yaml.safe_load((tmp_path / str(i) / 'model' / 'multimix.yaml').read_text())
        assert saved['class_weight'] == pytest.approx(want)
        assert train.main([*more, '--class-weight', given, '--experiment', f'none{i}']) == 0
        assert re.search(r'Last epoch: top1 [\d.]+, mean over classes [\d.]+; best', capsys.readouterr().out)
        assert '| | epoch | top-1 % | mean over classes % |' in (tmp_path / f'none{i}' / 'report.md').read_text()
    for text, words in (('1 2', '2 numbers, but there are 3 classes'), ('class_0: 1\n', "lacks 'class_1'"),
                        ('a b c', 'does not hold a number for each class')):
        weights.write_text(text)
        capsys.readouterr()
        assert train.main([*more, '--class-weight', str(weights), '--experiment', 'bad']) == 2
        assert words in capsys.readouterr().err
    assert train.main([*more, '--class-weight', 'auto', '--bce-loss', '--experiment', 'bad']) == 2
    assert '--class-weight' in capsys.readouterr().err


def test_classes_of_very_different_size_are_told_in_fine_tuning(
        tmp_path: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in sorted((image_folder / 'train' / 'class_0').glob('*'))[1:]:
        path.unlink()
    weights = tmp_path / 'weights.safetensors'
    save_file(timm.create_model('test_resnet').state_dict(), weights)
    more = [*SMALL, '--data-dir', str(image_folder), '-b', '4', '--output', str(tmp_path), '--warmup-epochs', '0']
    pretrained = ['--pretrained-path', str(weights)]
    for i, (flags, words) in enumerate((
            (pretrained, 'try --class-weight auto, and compare the means over classes (docs'),
            ([*pretrained, '--multimix', 'multimix'], 'try --class-weight auto --smoothing 0.1, and compare'),
            ([*pretrained, '--class-weight', 'auto'], ''), ([], ''))):
        assert train.main([*more, *flags, '--experiment', str(i)]) == 0
        out = capsys.readouterr().out
        assert ('Classes have 1 to 6 training images' in out) == bool(words)
        assert words in out


def test_class_token_vit_goes_home_with_its_documented_arguments(tmp_path: Path, image_folder: Path) -> None:
    code = train.main(['--model', 'test_vit', '--img-size', '32', '--multimix', 'dense', '--epochs', '1', '-j', '0',
                       *on(image_folder), '--output', str(tmp_path), '--experiment', 'x'])
    assert code == 0
    a = timm.create_model(f'local-dir:{tmp_path}/x/model', pretrained=True).eval()
    b = timm.create_model('test_vit', num_classes=3, img_size=32, global_pool='avg', fc_norm=False,
                          checkpoint_path=str(tmp_path / 'x' / 'model' / 'model.safetensors')).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(a(x), b(x))


def test_killed_and_resumed(tmp_path: Path, image_folder: Path) -> None:
    folder = tmp_path / 'x'
    with forked.start('train.py', *SMALL, *on(image_folder), '--epochs', '100000', '--lr', '1e-3', '--model-ema',
                      '--output', str(tmp_path), '--experiment', 'x') as process:
        assert process.has_said(' 3/100000: '), process.stderr
        process.kill()
        assert process.wait() == -signal.SIGKILL
    before = read_summary(folder / 'summary.csv')
    assert len(before) >= 3
    done_epochs = torch.load(folder / 'last.pth.tar', weights_only=False)['epoch'] + 1
    done = forked.run('train.py', '--resume', str(folder), '--epochs', str(done_epochs + 2))
    assert done.returncode == 0, done.stderr[-3000:]
    assert f'resuming at epoch {done_epochs + 1}' in done.stdout
    rows = finished(folder)
    assert [int(r['epoch']) for r in rows] == list(range(done_epochs + 2))
    assert rows[:done_epochs] == before[:done_epochs]
    assert float(rows[-1]['train_loss']) < float(rows[0]['train_loss'])
    again = forked.run('train.py', '--resume', str(folder))  # args.yaml of the resumed run: nothing is left to do
    assert again.returncode == 0 and 'nothing left to train' in again.stdout, again.stderr


def test_summary_keeps_its_columns_when_settings_change(tmp_path: Path) -> None:
    flags = [*SMALL, *on(write_images(tmp_path / 'images', per_class=12)), '--output', str(tmp_path), '--experiment',
             'x', '--epochs', '1']
    assert train.main([*flags, '--multimix', 'none']) == 0
    assert train.main(['--resume', str(tmp_path / 'x'), '--epochs', '2', '--model-ema', '--multimix', 'dense',
                       '--multimix-ramp-epochs', '0']) == 0
    first, second = read_summary(tmp_path / 'x' / 'summary.csv')
    assert list(first) == list(second)
    assert first['train_effective'] == '' and 1 < float(second['train_effective']) < 5
    assert float(first['lr']) > 0 and 0 <= float(second['lr']) < 1 and second['eval_raw_top1'] != ''


def test_averaged_weights_that_are_still_untrained(
        tmp_path: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*SMALL, *on(image_folder), '--model-ema', '--output', str(tmp_path)]
    assert train.main(flags) == 0
    out = capsys.readouterr().out
    assert 'of the untrained weights in the average' in out and '--model-ema-warmup' in out
    assert '(raw ' in out
    assert train.main([*flags, '--model-ema-warmup', '--epochs', '8']) == 0
    assert 'of the untrained weights' not in capsys.readouterr().out


def test_resuming_what_cannot_go_on(
        tmp_path: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*SMALL, *on(image_folder), '--opt', 'adamw', '--output', str(tmp_path), '--experiment', 'x']
    assert train.main(flags) == 0
    capsys.readouterr()
    run = tmp_path / 'x'
    before = sorted(os.listdir(run / 'model'))
    error = error_of(capsys, *SMALL, '--resume', str(run / 'model' / 'model.safetensors'))
    assert 'weights alone' in error and '--initial-checkpoint' in error
    assert sorted(os.listdir(run / 'model')) == before
    error = error_of(capsys, '--resume', str(run), '--epochs', '3', '--opt', 'sgd')
    assert '--no-resume-opt' in error and '--opt is sgd' in error
    assert train.main(['--resume', str(run), '--epochs', '3', '--opt', 'sgd', '--no-resume-opt']) == 0


def test_batches_of_one(tmp_path: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = error_of(capsys, *SMALL, '--data-dir', str(image_folder), '-b', '1', '--output', str(tmp_path))
    assert 'Expected more than 1 value per channel' in error


def test_piped_output_is_plain_lines(tmp_path: Path, image_folder: Path) -> None:
    done = forked.run('train.py', *SMALL, *on(image_folder), '--output', str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert '\r' not in done.stdout + done.stderr
    assert sum(line.startswith('Epoch ') for line in done.stdout.splitlines()) == 2


# ------------------------------------------------------------------------------------------------------ wrong input

def error_of(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    assert train.main(list(flags)) == 2
    captured = capsys.readouterr()
    assert 'Traceback' not in captured.err
    assert 'Epoch' not in captured.out, 'training started'
    return captured.err


@pytest.mark.parametrize('flags, words', [
    (['--model', 'crossvit_tiny_240', '--multimix', 'dense', '--img-size', '240'], "Use 'multimix'"),
    (['--model', 'test_resnet', '--multimix-m', '65'], 'a batch of 64 has no 65'),
    (['--model', 'test_resnet', '--multimix-effective', '64'], 'must be below 64'),
    (['--model', 'test_resnet', '--num-classes', '5'], 'data set has 10 classes'),
    (['--model', 'test_resnet', '-b', '2000'], 'only 1442 training images'),
    (['--model', 'vit_small_patch16_224', '--img-size', '8'], 'Choose another --img-size'),
    (['--model', 'test_resnet', '--data-dir', '/nowhere/at/all'], 'no such folder'),
    (['--model', 'test_resnet', '--device', 'gpu'], "--device is 'gpu'"),
    (['--model', 'test_resnet', '--output', '/dev/null'], '--output'),
    (['--model', 'test_resnet', '--model-kwargs', 'nonsense=3'], '--model test_resnet cannot be built'),
    (['--model', 'test_resnet', '--initial-checkpoint', 'x.safetensors'], 'no such file'),
    (['--model', 'test_resnet', '--opt-kwargs', 'nonsense=3'], '--opt adamw cannot be built'),
    (['--model', 'local-dir:/nowhere'], 'cannot be built'),
    (['-c', 'hparams/digits.yaml'], 'Did you mean digits_vit_small.yaml'),
    (['--model', 'test_resnet', '--sched', 'cosin'], '--sched'),
    (['--model', 'test_resnet', '--opt', 'adahessian'], '--opt is adahessian'),
    (['--model', 'test_resnet', '--device', 'meta'], "--device is 'meta'"),
    (['--model', 'test_resnet', '--aa', 'nonsense'], 'Unknown AA policy nonsense'),
    (['--model', 'test_resnet', '--experiment', '../elsewhere'], 'names one folder inside --output'),
    (['--model', 'test_resnet', '--val-split', 'train'], 'are the same images'),
    (['--model', 'test_resnet', '--in-chans', '1', '--input-img-mode', 'RGB'], "is 'RGB', which has 3,"),
])
def test_bad_input(flags: list[str], words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.symlink(ROOT / 'hparams', tmp_path / 'hparams')
    assert words in error_of(capsys, *flags)


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a CUDA device here')
def test_cuda_where_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    error = error_of(capsys, '--model', 'test_resnet', '--device', 'cuda')
    assert "--device is 'cuda'" in error and '--device auto' in error


def test_no_write_permission(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / 'file').touch()
    assert 'cannot be written there' in error_of(capsys, '--model', 'test_resnet', '--output', str(tmp_path / 'file'))


def test_checkpoints_of_another_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    state = timm.create_model('test_efficientnet', num_classes=10).state_dict()
    torch.save({'state_dict': state, 'optimizer': {}, 'epoch': 0}, tmp_path / 'last.pth.tar')
    for flag, path in (('--initial-checkpoint', tmp_path / 'last.pth.tar'), ('--resume', tmp_path)):
        error = error_of(capsys, '--model', 'test_resnet', flag, str(path), '-c', str(train.DIGITS_RECIPE))
        assert f'{flag} is' in error and 'do not fit --model test_resnet' in error
    (tmp_path / 'last.pth.tar').write_bytes(b'half a file')
    assert 'do not fit' in error_of(capsys, '--model', 'test_resnet', '--resume', str(tmp_path))


def test_a_run_is_never_overwritten(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / 'x').mkdir()
    (tmp_path / 'x' / 'last.pth.tar').write_bytes(b'dear')
    error = error_of(capsys, '--model', 'test_resnet', '--output', str(tmp_path), '--experiment', 'x')
    assert 'holds a run already' in error and (tmp_path / 'x' / 'last.pth.tar').read_bytes() == b'dear'


def test_unreadable_images_are_named_and_counted(
        capsys: pytest.CaptureFixture[str], tmp_path: Path, image_folder: Path) -> None:
    bad = image_folder / 'train' / 'class_1' / '3.png'
    bad.write_bytes(b'no picture')
    flags = [*SMALL, '--data-dir', str(image_folder), '-b', '4', '--output', str(tmp_path), '--warmup-epochs', '0']
    error = error_of(capsys, *flags)
    assert "1 of 18 images in 'train'" in error and str(bad) in error and '--bad-images skip' in error
    other = image_folder / 'validation' / 'class_0' / '1.png'
    kept = other.read_bytes()
    other.write_bytes(b'')
    error = error_of(capsys, *flags)  # of both splits at once
    assert str(bad) in error and str(other) in error
    other.write_bytes(kept)
    assert train.main([*flags, '--bad-images', 'skip']) == 0
    out = capsys.readouterr().out
    assert 'are left out' in out and '17 training' in out


@pytest.mark.parametrize('flags', [('--in-chans', '1'), ('--aa', 'rand-m9-mstd0.5-inc1', '--reprob', '0.3')])
def test_grey_images_and_timms_randaugment(tmp_path: Path, image_folder: Path, flags: tuple[str, ...]) -> None:
    assert train.main([*SMALL, '--data-dir', str(image_folder), '-b', '4', '--output', str(tmp_path),
                       '--multimix', 'dense', '--warmup-epochs', '0', '--epochs', '1', *flags]) == 0


def test_torchvision_data_sets_are_converted(tmp_path: Path) -> None:
    raw = tmp_path / 'data' / 'FashionMNIST' / 'raw'  # grey images in the files that torchvision reads
    raw.mkdir(parents=True)
    for part, count in (('train', 40), ('t10k', 20)):
        pixels, labels = torch.randint(0, 256, (count, 28, 28), dtype=torch.uint8), torch.arange(count) % 10
        (raw / f'{part}-images-idx3-ubyte').write_bytes(
            struct.pack('>IIII', 2051, count, 28, 28) + pixels.numpy().tobytes())
        (raw / f'{part}-labels-idx1-ubyte').write_bytes(
            struct.pack('>II', 2049, count) + labels.to(torch.uint8).numpy().tobytes())
    for flags in ((), ('--in-chans', '1')):
        assert train.main([*SMALL, '--dataset', 'torch/fashion_mnist', '--data-dir', str(tmp_path / 'data'), '-b', '8',
                           '--warmup-epochs', '0', '--epochs', '1', '--output', str(tmp_path), *flags]) == 0


def test_there_is_always_a_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = timm.create_model('test_resnet', num_classes=2)
    task = MultiMixTask(model, verbose=False)
    saver = AtomicCheckpointSaver(
        model, torch.optim.SGD(task.parameters(), lr=0.1), args=argparse.Namespace(model='test_resnet'), task=task,
        checkpoint_dir=str(tmp_path))
    saver.save_checkpoint(0, metric=1.0)
    whole = ('last.pth.tar', 'model_best.pth.tar')

    def checked(function: Callable[..., None]) -> Callable[..., None]:
        def call(*args: str) -> None:
            function(*args)
            for name in whole:  # after every single change to the folder
                assert torch.load(tmp_path / name, weights_only=True)['epoch'] in (0, 1)
        return call

    for name in ('replace', 'unlink', 'link', 'remove', 'rename'):
        monkeypatch.setattr(os, name, checked(getattr(os, name)))
    saver.save_checkpoint(1, metric=2.0)
    assert all(torch.load(tmp_path / name, weights_only=True)['epoch'] == 1 for name in whole)


def test_a_diverging_loss_stops_with_advice(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code = train.main([*SMALL, '--lr', '1e30', '--opt', 'sgd', '--warmup-epochs', '0', '--output', str(tmp_path),
                       '--log-interval', '1'])
    assert code == 2 and 'Lower --lr' in capsys.readouterr().err


def test_a_run_resumes_from_another_folder(tmp_path: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(image_folder.parent)
    flags = [*SMALL, '--data-dir', image_folder.name, '-b', '4', '--warmup-epochs', '0', '--output', 'out']
    assert train.main([*flags, '--experiment', 'x']) == 0
    (tmp_path / 'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path / 'elsewhere')
    run = image_folder.parent / 'out' / 'x'
    assert train.main(['--resume', str(run), '--epochs', '3']) == 0
    settings = (run / 'args.yaml').read_text()
    assert train.main(['--resume', str(run), '--epochs', '3']) == 0  # nothing is left to do
    assert train.main(['--resume', str(run), '--epochs', '3', '--lr', '5']) == 2
    assert (run / 'args.yaml').read_text() == settings
