"""What timm's flags mean here: models, losses and images by hand, and whole runs of timm's own YAML."""
from __future__ import annotations

import importlib.util
import re
import subprocess
from argparse import SUPPRESS
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from timm.optim import Lookahead

import train
from tests import forked
from tests.conftest import ROOT
from tests.test_from_timm import timm_yaml
from timm_multimix import SettingError
from timm_multimix.data import create_train_val
from timm_multimix.runs.flags import build_parser
from timm_multimix.runs.settings import changed_settings, parse_args
from timm_multimix.runs.summary import read_summary
from timm_multimix.training import build
from timm_multimix.training.checks import check_args
from timm_multimix.training.images import load_images

spec = importlib.util.spec_from_file_location('from_timm', ROOT / 'tools' / 'from_timm.py')
assert spec and spec.loader
docs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(docs)

SHOWN = {a.dest: a for a in build_parser()._actions if a.help != SUPPRESS}


# ------------------------------------------------------------------------------------------------------------- meanings

def model_of(*flags: str, name: str = 'test_resnet') -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(0)
    return build.build_model(parse_args(['--model', name, '--num-classes', '5', *flags]))


def test_initial_classifier() -> None:
    plain, scaled = model_of()[0].get_classifier(), model_of('--head-init-scale', '0.5')[0].get_classifier()
    assert torch.equal(scaled.weight, plain.weight / 2) and torch.equal(scaled.bias, plain.bias / 2)
    biased = model_of('--head-init-bias', '-4')[0].get_classifier()
    assert torch.equal(biased.weight, plain.weight) and bool((biased.bias == -4).all())
    two = model_of('--head-init-bias', '-4', name='deit_tiny_distilled_patch16_224')[0]  # two classifiers
    assert bool((two.head.bias == -4).all()) and bool((two.head_dist.bias == -4).all())


def test_batch_norm() -> None:
    momenta = {m.momentum for m in model_of('--bn-momentum', '0.02')[0].modules()
               if isinstance(m, torch.nn.BatchNorm2d)}
    assert momenta == {0.02}
    model, again = model_of('--bn-eps', '0.5', name='test_efficientnet')
    assert {m.eps for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {0.5}
    assert again['bn_eps'] == 0.5  # plain timm needs it to build the same
    with pytest.raises(SettingError, match='bn_eps'):
        model_of('--bn-eps', '0.5', name='test_vit')


def test_pretrained_path_adapts_the_classifier(tmp_path: Path) -> None:
    source = timm.create_model('test_resnet', num_classes=7, in_chans=3)
    torch.save(source.state_dict(), tmp_path / 'seven.pth')
    model, _ = model_of('--pretrained-path', str(tmp_path / 'seven.pth'))
    assert torch.equal(model.conv1[0].weight, source.conv1[0].weight) and model.get_classifier().out_features == 5
    grey, _ = model_of('--pretrained-path', str(tmp_path / 'seven.pth'), '--in-chans', '1')
    assert torch.allclose(grey.conv1[0].weight, source.conv1[0].weight.sum(1, keepdim=True), atol=1e-6)


def test_drop_block() -> None:
    assert 'DropBlock' in str(model_of('--drop-block', '0.2', name='resnet10t')[0])
    assert 'DropBlock' not in str(model_of(name='resnet10t')[0])


def test_binary_cross_entropy_by_hand() -> None:
    x, target = torch.randn(4, 3), torch.tensor([0, 1, 2, 1])
    def loss(*flags: str) -> Any:
        criterion = build.build_criterion(parse_args(['--bce-loss', *flags]))
        assert criterion is not None
        return criterion(x, target), criterion(x, soft)
    soft = torch.tensor([[0.7, 0.3, 0.0], [0.1, 0.9, 0.0], [0.0, 0.5, 0.5], [0.0, 1.0, 0.0]])
    hard = F.one_hot(target, 3).float()
    smooth = hard * 0.9 + 0.1 / 3
    both = loss('--smoothing', '0.1')
    assert torch.allclose(both[0], F.binary_cross_entropy_with_logits(x, smooth))
    assert torch.allclose(both[1], F.binary_cross_entropy_with_logits(x, soft))  # Mixup's own, smoothed already
    both = loss('--smoothing', '0', '--bce-sum', '--bce-target-thresh', '0.2')
    assert torch.allclose(both[0], F.binary_cross_entropy_with_logits(x, hard, reduction='sum') / 4)
    assert torch.allclose(both[1], F.binary_cross_entropy_with_logits(x, (soft > 0.2).float(), reduction='sum') / 4)
    weighted = F.binary_cross_entropy_with_logits(x, hard, pos_weight=torch.tensor(3.0))
    assert torch.allclose(loss('--smoothing', '0', '--bce-pos-weight', '3')[0], weighted)
    assert build.build_criterion(parse_args([])) is None


def first_batch(folder: Path, *flags: str) -> torch.Tensor:
    args = parse_args([str(folder), '-b', '18', '-j', '0', '--mean', '0', '--std', '1', *flags])
    train_set, val_set = create_train_val('', str(folder))
    data = {'input_size': (3, 32, 32), 'mean': (0, 0, 0), 'std': (1, 1, 1), 'interpolation': 'bilinear',
            'crop_pct': 1.0, 'crop_mode': 'center'}
    torch.manual_seed(0)
    loader = load_images(args, train_set, val_set, None, data, torch.device('cpu')).train_loader
    return next(iter(loader.batches(0)))[0]


def test_augmentation(image_folder: Path) -> None:
    def grey(images: torch.Tensor) -> torch.Tensor:
        return (images.amax(1) - images.amin(1)).amax((1, 2)) < 0.01
    still = ('--color-jitter', '0', '--scale', '1', '1', '--ratio', '1', '1')
    assert bool(grey(first_batch(image_folder, '--grayscale-prob', '1')).all())
    assert not bool(grey(first_batch(image_folder, *still)).any())
    sharp, blurred = (first_batch(image_folder, *still, '--gaussian-blur-prob', p).diff(dim=3).abs().mean()
                      for p in ('0', '1'))
    assert blurred < 0.7 * sharp
    # Erased pixels are noise, far outside of an image's range; --resplit leaves the first half alone.
    for flags, want in (((), 18), (('--resplit',), 9)):
        images = first_batch(image_folder, *still, '--reprob', '1', *flags)
        wild = (images.amax((1, 2, 3)) > 1.01) | (images.amin((1, 2, 3)) < -0.01)
        assert int(wild.sum()) == want and bool(wild[-9:].all())


# ---------------------------------------------------------------------------------------------------------- whole runs

def run(folder: Path, out: Path, *flags: str, name: str = 'x') -> list[dict[str, str]]:
    assert train.main([str(folder), '--model', 'test_resnet', '--img-size', '32', '-b', '6', '-j', '0', '--epochs', '1',
                       '--warmup-epochs', '0', '--lr', '0.01', '--output', str(out), '--experiment', name, *flags]) == 0
    return read_summary(out / name / 'summary.csv')


def test_timms_args_yaml_trains(tmp_path: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = timm_yaml(tmp_path, data_dir=str(image_folder), model='test_vit', device='cpu', batch_size=6, epochs=2,
                     warmup_epochs=0, workers=0, mixup=0.2, cutmix=1.0, mixup_off_epoch=1, aa='rand-m7-mstd0.5-inc1',
                     reprob=0.25, opt='lookahead_adamw', lr_base=0.01, layer_decay=0.9, clip_grad=1.0, amp=True,
                     amp_dtype='bfloat16', model_ema=True, img_size=64, model_kwargs={'img_size': 64}, drop_path=0.1,
                     output=str(tmp_path), experiment='x', jsd_loss=True)
    assert train.main(['-c', path]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert 'jsd_loss is True in timm' in out and 'images 64×64' in out and 'Dense MultiMix, preset default' in out
    assert len(read_summary(tmp_path / 'x' / 'summary.csv')) == 2
    state = torch.load(tmp_path / 'x' / 'last.pth.tar', weights_only=False)
    assert state['epoch'] == 1

    # args.yaml keeps what was asked, so that another batch size gets another rate.
    kept = yaml.safe_load((tmp_path / 'x' / 'args.yaml').read_text())
    assert kept['lr'] is None and kept['num_classes'] is None and kept['lr_base'] == 0.01
    assert train.main(['-c', str(tmp_path / 'x' / 'args.yaml'), '-b', '4', '--experiment', 'y', '--epochs', '1',
                       '--no-amp', '--sched', 'none']) == 0
    rate = float(read_summary(tmp_path / 'y' / 'summary.csv')[0]['lr'])
    assert rate == pytest.approx(0.01 * (4 / 256) ** 0.5)  # timm: by the square root for ada*
    assert train.main(['--resume', str(tmp_path / 'x'), '--epochs', '3']) == 0  # lookahead and EMA go on
    assert len(read_summary(tmp_path / 'x' / 'summary.csv')) == 3


def test_a_recipe_with_binary_cross_entropy_needs_one_line_only(
        tmp_path: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = timm_yaml(tmp_path, data_dir=str(image_folder), model='test_resnet', device='cpu', batch_size=6, epochs=1,
                     warmup_epochs=0, workers=0, mixup=0.1, cutmix=1.0, bce_loss=True, bce_target_thresh=0.2,
                     opt='lamb', lr=0.005, aa='rand-m7-mstd0.5-inc1', smoothing=0.0, drop_path=0.05, img_size=32,
                     output=str(tmp_path), experiment='x')
    assert train.main(['-c', path]) == 0, capsys.readouterr().err
    assert 'bce_loss=True' in capsys.readouterr().out
    row, = read_summary(tmp_path / 'x' / 'summary.csv')
    assert 0 < float(row['train_loss']) < 2  # the mean over the classes, not their sum

    settings = yaml.safe_load((tmp_path / 'x' / 'model' / 'multimix.yaml').read_text())
    assert settings['bce_loss'] and settings['bce_target_thresh'] == 0.2


def test_epochs_and_intervals(tmp_path: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = run(image_folder, tmp_path, '--epochs', '5', '--val-interval', '2', '--start-epoch', '1', '--bce-loss',
               '--mixup', '0.5', '--save-images', '--no-prefetcher')
    assert [(int(r['epoch']), r['eval_top1'] != '') for r in rows] == [(1, True), (2, False), (3, True), (4, True)]
    assert {p.name for p in (tmp_path / 'x').glob('checkpoint-*')} == {f'checkpoint-{i}.pth.tar' for i in (1, 3, 4)}
    with Image.open(tmp_path / 'x' / 'train-batch-0.jpg') as picture:
        assert picture.size == (6 * 32, 32)
    epochs = [line for line in capsys.readouterr().out.splitlines() if line.startswith('Epoch ')]
    assert len(epochs) == 4 and max(map(len, epochs)) < 120
    assert [' val ' in line for line in epochs] == [True, False, True, True]


def test_stopping_early_and_milestones(tmp_path: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ('--epochs', '4', '--save-epochs', '1', '3', '--val-interval', '2')
    whole = run(image_folder, tmp_path, *flags, name='whole')
    rows = run(image_folder, tmp_path, *flags, '--stop-epoch', '2')
    out = capsys.readouterr().out
    assert '4 epochs of 3 batches (stopping after 2)' in out and 'Epoch 2/2' in out
    assert [row['lr'] for row in rows] == [row['lr'] for row in whole[:2]]  # the schedule is that of 4
    assert [row['eval_top1'] != '' for row in whole] == [True, True, True, True]  # milestones are validated
    assert timm.create_model(f'local-dir:{tmp_path}/x/model', pretrained=True).num_classes == 3
    assert train.main(['--resume', str(tmp_path / 'x')]) == 0  # and now to the end
    there = {p.name for p in (tmp_path / 'x').glob('milestone-*')}
    assert there == {'milestone-1.pth.tar', 'milestone-3.pth.tar'}
    assert [torch.load(tmp_path / 'x' / f'milestone-{n}.pth.tar')['epoch'] for n in (1, 3)] == [0, 2]
    again = read_summary(tmp_path / 'x' / 'summary.csv')
    assert [row['train_loss'] for row in again] == [row['train_loss'] for row in whole]
    assert train.main(['--resume', str(tmp_path / 'x'), '--stop-epoch', '9']) == 2
    assert '--stop-epoch is 9, but the training has 4 epochs' in capsys.readouterr().err


def test_resume_auto_in_a_yaml(tmp_path: Path, image_folder: Path) -> None:
    path = timm_yaml(tmp_path, data_dir=str(image_folder), model='test_resnet', device='cpu', batch_size=6, epochs=2,
                     warmup_epochs=0, workers=0, lr=0.01, img_size=32, output=str(tmp_path), experiment='x',
                     resume='auto', loss='bce')
    assert train.main(['-c', path, '--stop-epoch', '1']) == 0
    assert len(read_summary(tmp_path / 'x' / 'summary.csv')) == 1
    assert train.main(['-c', path]) == 0
    assert len(read_summary(tmp_path / 'x' / 'summary.csv')) == 2
    assert yaml.safe_load((tmp_path / 'x' / 'args.yaml').read_text())['bce_loss']


@pytest.mark.parametrize('as_yaml', [False, True])
def test_a_rectangle_in_timms_own_way(tmp_path: Path, image_folder: Path, as_yaml: bool) -> None:
    (tmp_path / 'k.yaml').write_text('model_kwargs: {img_size: [32, 64]}\n')
    how = ('-c', str(tmp_path / 'k.yaml')) if as_yaml else ('--model-kwargs', 'img_size=(32,64)')
    assert train.main([str(image_folder), '--model', 'test_vit', '-b', '6', '-j', '0', '--epochs', '1', '--lr', '0.01',
                       '--warmup-epochs', '0', '--output', str(tmp_path), '--experiment', 'x', '--multimix', 'dense',
                       *how]) == 0
    model = timm.create_model(f'local-dir:{tmp_path}/x/model', pretrained=True)
    assert timm.data.resolve_model_data_config(model)['input_size'] == (3, 32, 64)
    assert model.patch_embed.img_size == (32, 64)


def test_cycles_are_counted_as_in_timm(tmp_path: Path, image_folder: Path) -> None:
    cycles = ('--epochs', '2', '--lr-cycle-limit', '2', '--lr-cycle-decay', '0.1')
    smooth, noisy = ([float(row['lr']) for row in run(image_folder, tmp_path, *cycles, *flags, name=f'x{len(flags)}')]
                     for flags in ((), ('--lr-noise', '0.9')))
    assert smooth == pytest.approx([0.01, 0.005, 0.001, 0.0005])
    assert noisy[:2] == smooth[:2] and noisy[2] != smooth[2] and noisy[3] != smooth[3]


def test_low_precision_weights_and_averages_on_the_cpu(tmp_path: Path, image_folder: Path) -> None:
    rows = run(image_folder, tmp_path, '--model-dtype', 'bfloat16', '--multimix', 'dense', '--input-size', '3', '64',
               '96', '--model-ema', '--model-ema-force-cpu', '--worker-seeding', 'part',
               '--no-persistent-workers', '--fast-norm', '--layer-decay', '0.8', '--layer-decay-min-scale', '0.1')
    assert 'eval_raw_top1' not in rows[0]  # the averages are not validated
    model = timm.create_model(f'local-dir:{tmp_path}/x/model', pretrained=True)
    assert tuple(timm.data.resolve_model_data_config(model)['input_size']) == (3, 64, 96)
    state = torch.load(tmp_path / 'x' / 'last.pth.tar', weights_only=False)
    assert {v.dtype for v in state['state_dict'].values() if v.is_floating_point()} == {torch.bfloat16}
    timm.layers.set_fast_norm(False)


@pytest.mark.slow
def test_compiled(tmp_path: Path, image_folder: Path) -> None:
    run(image_folder, tmp_path, '--multimix', 'dense', '--torchcompile', '--torchcompile-mode', 'default')


def test_lookahead_keeps_its_slow_weights(image_folder: Path) -> None:
    args = parse_args([str(image_folder), '--opt', 'lookahead_sgd', '--lr', '0.1'])
    check_args(args)
    assert isinstance(build.build_optimizer(args, timm.create_model('test_resnet')), Lookahead)


# ----------------------------------------------------------------------------------------------------------- the report

def test_report(tmp_path: Path, image_folder: Path) -> None:
    rows = run(image_folder, tmp_path, '--epochs', '2', '--multimix', 'multimix', '--multimix-n', '50')
    text = (tmp_path / 'x' / 'report.md').read_text()
    assert f'| last | 2 | {float(rows[1]["eval_top1"]):.2f} |' in text
    assert '![' in text and '(curves.png)' in text and 'effective examples of 6' in text
    settings = yaml.safe_load(text.split('```yaml\n')[1].split('```')[0])
    assert settings['multimix_n'] == 50 and settings['lr'] == 0.01 and 'momentum' not in settings
    assert settings == changed_settings(yaml.safe_load((tmp_path / 'x' / 'args.yaml').read_text()))
    assert f'torch {torch.__version__}' in text and f'timm {timm.__version__}' in text
    revision = subprocess.run(['git', '-C', str(ROOT), 'rev-parse', 'HEAD'], capture_output=True, text=True).stdout
    assert not revision or f'revision {revision[:12]}' in text

    commands = [re.sub(' +#.*', '', line) for line in text.split('```sh\n')[1].split('```')[0].splitlines()]
    for command in commands:  # they do what they say
        words = command.replace('--epochs N', '--epochs 3').replace('NEW', 'y').split()
        assert words[:2] == ['python', 'train.py'] and train.main(words[2:]) == 0
    assert len(read_summary(tmp_path / 'x' / 'summary.csv')) == 3
    assert len(read_summary(tmp_path / 'y' / 'summary.csv')) == 3  # args.yaml is that of the longer run now
    code = text.split('```python\n')[1].split('```')[0]
    done = forked.run('-c', code + 'print(model.num_classes)')
    assert done.stdout.strip() == '3', done.stderr
