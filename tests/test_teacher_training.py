"""A teacher in train.py: of a run's folder or of the average, and what the run says of it."""
from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import timm
import torch
import yaml

import train
from tests import forked
from timm_multimix.runs.summary import read_summary
from timm_multimix.training.teacher import build_teacher

SHORT = ('--model', 'test_resnet', '--epochs', '2', '-j', '0', '--img-size', '32', '-b', '4', '--warmup-epochs', '0',
         '--multimix-n', '20', '--smoothing', '0')


def run(data: Path, out: Path, name: str, *flags: str) -> list[dict[str, str]]:
    assert train.main([*SHORT, '--data-dir', str(data), '--output', str(out), '--experiment', name, *flags]) == 0
    return read_summary(out / name / 'summary.csv')


def test_a_trained_teacher_and_the_average(
        tmp_path: Path, image_folder: Path, capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of another architecture and normalisation teaches; then it may be gone, and nothing is missing."""
    steps = run(image_folder, tmp_path, 'teacher', '--multimix', 'dense', '--multimix-teacher', 'ema', '--model-ema',
                '--model-ema-decay', '0.5', '--multimix-teacher-start', '0', '--multimix-teacher-reading', 'logits',
                '--grad-accum-steps', '2', '--amp', '--mean', '0.5', '--std', '0.5')
    assert [row['train_taught'] for row in steps] == [row['train_steps'] for row in steps]
    asked: list[torch.Tensor] = []

    def watched(*args: object) -> object:
        teacher = build_teacher(*args)  # type: ignore[arg-type]
        return lambda images: asked.append(images) or teacher(images)  # type: ignore[func-returns-value, misc]

    monkeypatch.setattr(train, 'build_teacher', watched)
    monkeypatch.chdir(tmp_path)
    rows = run(image_folder, tmp_path, 'student', '--multimix', 'multimix', '--multimix-prob', '0', '--mixup', '0',
               '--cutmix', '0', '--multimix-teacher', 'teacher', '--multimix-teacher-start-epoch', '1')
    assert [row['train_taught'] for row in rows] == ['0', '4']
    assert 'A teacher had its share on 4.' in capsys.readouterr().out
    assert 'A teacher had its share on 4.' in (tmp_path / 'student' / 'report.md').read_text()
    assert len(asked) == 5  # and once in the rehearsal
    saved = yaml.safe_load((tmp_path / 'student' / 'args.yaml').read_text())
    assert saved['multimix_teacher'] == str(tmp_path / 'teacher')  # a place that is the same from anywhere
    state = torch.load(tmp_path / 'student' / 'last.pth.tar', weights_only=True)['state_dict']
    shutil.rmtree(tmp_path / 'teacher')
    code = (f'import sys, timm; m = timm.create_model("local-dir:{tmp_path}/student/model", pretrained=True)\n'
            'assert not any(name.startswith("timm_multimix") for name in sys.modules); print(len(m.state_dict()))')
    loaded = forked.run('-c', code, cwd=tmp_path, bare=True)
    assert loaded.stdout.strip() == str(len(state)), loaded.stderr


def test_it_sees_images_as_it_was_trained_on_them(tmp_path: Path) -> None:
    """Normalised with its own mean and standard deviation, whatever the student has."""
    torch.manual_seed(0)
    network = timm.create_model('test_resnet', num_classes=3)
    network.pretrained_cfg.update(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), num_classes=3)
    timm.models.save_for_hf(network, str(tmp_path / 'teacher'), safe_serialization=True)
    args = train.parse_args(['--multimix', 'dense', '--multimix-teacher', str(tmp_path / 'teacher'), '--num-classes',
                             '3'])
    config = train.multimix_config(args)
    ask = build_teacher(args, config, {'input_size': (3, 32, 32), 'mean': (0.5,) * 3, 'std': (0.25,) * 3},
                        torch.device('cpu'))
    pixels = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(network.pretrained_cfg[key]).view(3, 1, 1) for key in ('mean', 'std'))
    want = network.eval()((pixels - mean) / std)
    assert ask is not None
    torch.testing.assert_close(ask((pixels - 0.5) / 0.25), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('flags, says', [
    ('--multimix-teacher ema', 'no weights are averaged: add --model-ema'),
    ('--multimix-teacher ema --model-ema --model-ema-force-cpu', '--model-ema-force-cpu keeps it away'),
    ('--multimix-teacher ema --model-ema --multimix-teacher-start-epoch 2', 'the training has 2 epochs'),
    ('--multimix-teacher-weight 0.5', 'there is no teacher (--multimix-teacher)'),
    ('--multimix-teacher given', 'for a loop of your own'),
    ('--multimix-teacher resnet81', 'timm has no such model. Did you mean'),
    ('--multimix-teacher NUMBERS', 'tells 7 classes apart, but the data has 3'),
    ('--multimix-teacher NAMES', "whose class 1 is 'class_2', but that of the data is 'class_1'"),
    ('--multimix none --multimix-teacher ema --model-ema', 'but --multimix is none'),
    ('--multimix multimix --multimix-teacher ema --model-ema --multimix-teacher-at position', 'only --multimix dense'),
])
def test_what_is_wrong_is_said_before_training(
        flags: str, says: str, tmp_path: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if 'NUMBERS' in flags:
        timm.models.save_for_hf(timm.create_model('test_resnet', num_classes=7), str(tmp_path / 'seven'),
                                safe_serialization=True)
        flags = flags.replace('NUMBERS', str(tmp_path / 'seven'))
    if 'NAMES' in flags:
        names = {'label_names': ['class_0', 'class_2', 'class_1']}
        timm.models.save_for_hf(timm.create_model('test_resnet', num_classes=3), str(tmp_path / 'named'),
                                model_config=names, safe_serialization=True)
        flags = flags.replace('NAMES', str(tmp_path / 'named'))
    code = train.main(['--multimix', 'dense', *SHORT, '--data-dir', str(image_folder),
                       '--output', str(tmp_path / 'out'), *flags.split()])
    assert code == 2 and says in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()
