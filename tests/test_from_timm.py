"""What runs in timm's train.py runs here: every flag is accounted for, and those that are taken do what they say."""
from __future__ import annotations

import importlib.util
import inspect
import re
import subprocess
import sys
import warnings
from argparse import SUPPRESS, Namespace
from pathlib import Path
from typing import Any, Optional

import pytest
import timm
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from timm.optim import Lookahead, optimizer_kwargs
from timm.scheduler.scheduler_factory import scheduler_kwargs

import train
from tests.conftest import ROOT
from timm_multimix import SettingError
from timm_multimix.data import create_train_val
from timm_multimix.runs.flags import build_parser
from timm_multimix.runs.loss_names import LOSSES, NAMES
from timm_multimix.runs.not_taken import NOT_TAKEN, OLD
from timm_multimix.runs.settings import changed_settings, parse_args
from timm_multimix.runs.summary import read_summary
from timm_multimix.training import build
from timm_multimix.training.checks import check_args
from timm_multimix.training.images import load_images, open_data_sets

spec = importlib.util.spec_from_file_location('from_timm', ROOT / 'tools' / 'from_timm.py')
assert spec and spec.loader
docs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(docs)

SHOWN = {a.dest: a for a in build_parser()._actions if a.help != SUPPRESS}


# ---------------------------------------------------------------------------------------------------------- the table

def test_every_flag_of_timms_is_taken_or_not() -> None:
    taken = set(docs.TIMM) & set(SHOWN)
    assert set(docs.TIMM) == taken | (set(NOT_TAKEN) - set(OLD))
    assert not set(SHOWN) & set(NOT_TAKEN)
    assert set(docs.DIFFERENT) <= taken
    assert {name: NOT_TAKEN[name].default for name in set(NOT_TAKEN) - set(OLD)} == {
        name: docs.TIMM[name] for name in set(NOT_TAKEN) - set(OLD)}


def test_the_page_has_the_table() -> None:
    page = (ROOT / 'docs' / 'from_timm.md').read_text()
    assert docs.table() in page and docs.lists() in page, 'write it anew: python tools/from_timm.py'


@pytest.mark.parametrize('name', sorted(set(docs.TIMM) & set(SHOWN) - set(docs.DIFFERENT)))
def test_defaults_are_timms(name: str) -> None:
    assert SHOWN[name].default == docs.TIMM[name]


class Reads(dict[str, Any]):
    """Stands for args, and notes what is read of it."""

    def __getattr__(self, name: str) -> str:
        self[name] = ''
        return ''

    def get(self, name: str, default: Any = None) -> Any:
        self[name] = ''
        return None


def test_the_table_has_what_the_installed_timm_reads_of_its_flags() -> None:
    read = Reads()
    scheduler_kwargs(read)
    optimizer_kwargs(read)
    timm.data.resolve_data_config(read)
    no_flags = {'opt_args', 'opt_foreach', 'chans', 'crop_mode'}
    assert {'lr_k_decay', 'opt_betas', 'img_size'} <= set(read)
    assert set(read) - no_flags <= set(docs.TIMM)
    create = getattr(timm.loss, 'create_classification_loss', None)
    if create is not None:  # timm ≥ 1.0.31
        options = {name: p.default for name, p in inspect.signature(create).parameters.items()
                   if name.startswith(('asl_', 'poly_', 'twoway_', 'db_'))}
        assert options == {name: docs.TIMM[name] for name in options} and options
        assert timm.loss._loss_factory.LOSS_TYPES == LOSSES


# ------------------------------------------------------------------------------------------------------------ its YAML

def timm_yaml(tmp_path: Path, **changes: Any) -> str:
    """args.yaml as timm writes it, all keys, with what a user set and one line added."""
    settings = {**docs.TIMM, 'smoothing': 0.1, **changes}
    del settings['config']
    (tmp_path / 'args.yaml').write_text(yaml.safe_dump(settings) + 'multimix: dense\n')
    return str(tmp_path / 'args.yaml')


def parse(*flags: str) -> tuple[Namespace, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        return parse_args(list(flags)), [str(w.message) for w in caught if issubclass(w.category, UserWarning)]


def test_args_yaml_of_timm_parses_to_the_same_settings(tmp_path: Path) -> None:
    args, said = parse('-c', timm_yaml(tmp_path, data_dir='x', lr=0.5, opt_betas=[0.9, 0.95], torchcompile='inductor'))
    assert args.multimix == 'dense' and args.lr == 0.5 and args.opt_betas == [0.9, 0.95]
    for name in set(docs.TIMM) & set(SHOWN) - {'config', 'data', 'data_dir', 'lr', 'opt_betas', 'torchcompile', *NAMES}:
        want = docs.TIMM[name]
        if want is not None:  # null is whatever the default is here
            assert getattr(args, name) == want or (name in ('mixup', 'cutmix') and not getattr(args, name)), name
    assert not set(vars(args)) & set(NOT_TAKEN)
    line, = said
    assert 'at their defaults, so nothing changes' in line
    assert all(name in line for name in set(NOT_TAKEN) - set(OLD))


def test_what_is_not_taken_is_named_when_it_is_set(tmp_path: Path) -> None:
    _, said = parse('-c', timm_yaml(tmp_path, data='x', kd_model_name='resnet152', aug_splits=3), '--naflex-loader',
                    '--train-img-sizes', '128', '160', '--local_rank', '3')
    said = [line for line in said if 'no effect' in line]
    assert len(said) == 4 and "kd_model_name is 'resnet152' in timm" in ''.join(said) and 'teacher' in ''.join(said)


def test_older_keys_are_known_and_unknown_ones_are_not(tmp_path: Path) -> None:
    path = tmp_path / 'old.yaml'
    path.write_text('native_amp: true\ndata: x\n')
    _, said = parse('-c', str(path))
    assert 'native_amp is True in timm' in said[0] and '--amp' in said[0]
    path.write_text('kd_model_nam: x\n')
    with pytest.raises(SettingError, match='Did you mean kd_model_name'):
        parse('-c', str(path))


def test_keys_of_a_newer_timm_warn_in_its_own_args_yaml_alone(tmp_path: Path) -> None:
    path = timm_yaml(tmp_path, data='x', newer_flag=3, other_flag=None)
    args, said = parse('-c', path)
    line, = (line for line in said if 'by a timm that is newer' in line)
    assert 'newer_flag: 3, other_flag: None' in line and not hasattr(args, 'newer_flag')
    Path(path).write_text(Path(path).read_text() + 'multimix_pob: 0.5\n')  # a slip of whoever added a line
    with pytest.raises(SettingError, match='Did you mean multimix_prob'):
        parse('-c', path)
    (tmp_path / 'own.yaml').write_text('data: x\nnewer_flag: 3\n')
    with pytest.raises(SettingError, match="'newer_flag' is not a setting"):
        parse('-c', str(tmp_path / 'own.yaml'))


@pytest.mark.parametrize('yaml_has, flags, want', [
    ({'loss': 'bce'}, '', (True, None)), ({'loss': 'ce'}, '', (False, None)), ({'loss': None}, '', (False, None)),
    ({'loss': None, 'bce_loss': True}, '', (True, None)), ({'loss': 'bce', 'bce_loss': True}, '', (True, None)),
    ({'loss': 'bce', 'loss_pos_weight': '2.0'}, '', (True, 2.0)), ({'loss': 'bce'}, '--loss ce', (False, None)),
    ({'loss': 'bce'}, '--no-bce-loss', (False, None)), ({'loss': 'ce'}, '--bce-loss', (True, None)),
    ({'bce_loss': True}, '--loss ce', (False, None)), ({}, '--loss bce --loss-pos-weight 3', (True, 3.0)),
])
def test_loss_by_its_newer_name(tmp_path: Path, yaml_has: dict[str, Any], flags: str,
                                want: tuple[bool, Optional[float]]) -> None:
    args, said = parse('-c', timm_yaml(tmp_path, data='x', **yaml_has), *flags.split())
    assert (args.bce_loss, args.bce_pos_weight) == want and not any('no effect' in line for line in said)
    assert not hasattr(args, 'loss') and not hasattr(args, 'loss_pos_weight')


def test_losses_of_timms_alone(tmp_path: Path) -> None:
    args, said = parse('-c', timm_yaml(tmp_path, data='x', loss='asl', asl_gamma_neg=2.0, loss_pos_weight='neg_pos'))
    text = '\n'.join(said)
    assert not args.bce_loss and args.bce_pos_weight is None
    assert "loss is 'asl' in timm" in text and 'asl_gamma_neg is 2.0' in text and "loss_pos_weight is 'neg_pos'" in text
    assert "--loss is 'poly' in timm" in parse('--loss', 'poly')[1][0]
    for given, words in (({'loss': 'asl', 'bce_loss': True}, 'give only one'), ({'loss': 'pol'}, 'Did you mean poly')):
        with pytest.raises(SettingError, match=words):
            parse('-c', timm_yaml(tmp_path, data='x', **given))
    with pytest.raises(SettingError, match='give only one'):
        parse('--loss', 'ce', '--bce-loss')


def test_null_means_what_it_means_in_timm(tmp_path: Path, image_folder: Path) -> None:
    nulls = {'color_jitter': 0.0, 'dist_bn': '', 'train_interpolation': '', 'mixup_off_epoch': 0, 'drop': None,
             'recovery_interval': 0, 'aug_repeats': 0, 'amp': False, 'pin_mem': False, 'persistent_workers': False,
             'scale': [0.08, 1.0], 'ratio': [3 / 4, 4 / 3], 'model_kwargs': {}, 'wandb_tags': [], 'save_epochs': []}
    args, _ = parse('-c', timm_yaml(tmp_path, data='x', **dict.fromkeys(nulls)))
    assert {name: getattr(args, name) for name in nulls} == nulls
    with pytest.raises(SettingError, match='batch_size is empty'):
        parse('-c', timm_yaml(tmp_path, data='x', batch_size=None))


@pytest.mark.parametrize('text, words', [
    ('lr: 1\nepochs: 2\nlr: 2\n', "has 'lr' twice, in lines 1 and 3"),
    ('weight-decay: 1\nweight_decay: 2\n', "has 'weight_decay' twice, once with dashes"),
    ('model_kwargs: {a: 1, a: 2}\n', "has 'a' twice"),
])
def test_keys_given_twice(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / 'x.yaml').write_text(text)
    with pytest.raises(SettingError, match=words):
        parse('-c', str(tmp_path / 'x.yaml'))


def test_the_data_folder_by_its_place(tmp_path: Path) -> None:
    assert parse('x', '--epochs', '3')[0].data_dir == 'x'
    (tmp_path / 'x.yaml').write_text('data_dir: y\nepochs: 3.0\n')
    assert parse('x', '-c', str(tmp_path / 'x.yaml'))[0].data_dir == 'x'
    args = parse('-c', str(tmp_path / 'x.yaml'))[0]
    assert args.data_dir == 'y' and args.epochs == 3
    with pytest.raises(SettingError, match="DIR is 'x' and --data-dir is 'y'"):
        parse('x', '--data-dir', 'y')


def test_errors_on_the_command_line_are_short(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as e:
        parse('--epochs', 'ten')
    assert e.value.code == 2
    error = capsys.readouterr().err
    assert error.count('\n') == 2 and "argument --epochs: invalid int value: 'ten'" in error and '--help' in error


# ---------------------------------------------------------------------------------------------------- values and checks

@pytest.mark.parametrize('flags, words', [
    ('--opt-betas 0.9 1.0', 'each must be from 0'), ('--opt adamw --opt-betas 0.9', 'has 2 of them'),
    ('--opt adan --opt-betas 0.9 0.9', 'has 3 of them'), ('--opt lookahead_adamm', 'Did you mean .*adam'),
    ('--layer-decay 1.5', '--layer-decay is 1.5'), ('--layer-decay 0', '--layer-decay is 0'),
    ('--decay-rate 0', '--decay-rate is 0'), ('--decay-epochs -1', '--decay-epochs is -1'),
    ('--mixup-off-epoch -1', '--mixup-off-epoch is -1'), ('--recount 0', '--recount is 0'),
    ('--decay-milestones 30 30', '--decay-milestones is'), ('--decay-milestones 0', '--decay-milestones is'),
    ('--lr-noise 0.9 0.4', '--lr-noise is'), ('--lr-noise 0.4 40', '--lr-noise is'),
    ('--input-size 3 0 9', '--input-size is'), ('--input-size 3 32 32 --in-chans 1', '--in-chans is 1 and'),
    ('--img-size 32 --model-kwargs img_size=64', 'they are the same'), ('--aug-repeats 3', 'torchrun'),
    ('--amp --model-dtype bfloat16', 'give only one'), ('--torchcompile-mode max-autotune', 'add --torchcompile'),
    ('--pretrained-path nowhere', 'no such file'),
    ('--bce-loss --bce-pos-weight 2 --multimix dense', 'no such weight: drop it'),
    ('--model-kwargs img_size=(32,)', 'height and width'), ('--model-kwargs img_size=big', 'height and width'),
    ('--model-kwargs img_size=(32,64) --img-size 32', 'they are the same'),
    ('--model-kwargs img_size=(32,64) --input-size 3 64 32', 'they are the same'),
    ('--pretrained-cfg-overlay file=x', 'that is --pretrained-path'),
    ('--start-epoch 3 --stop-epoch 3', 'nothing would be trained'),
    ('--val-split=', '--val-split is empty'), ('--drop-block 2', '--drop-block is 2'),
])
def test_values_that_cannot_be_right(flags: str, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        check_args(parse_args(flags.split()))


@pytest.mark.parametrize('flags, words', [
    ('--multimix dense --multimix-m 1', 'nothing is mixed'), ('--bce-sum', 'no effect without --bce-loss'),
    ('--model-dtype float16', 'no loss scaling'),
])
def test_values_that_are_odd(flags: str, words: str) -> None:
    with pytest.warns(UserWarning, match=words):
        check_args(parse_args(flags.split()))


def test_a_folder_with_one_class(image_folder: Path) -> None:
    for split in ('train', 'validation'):
        for c in (1, 2):
            (image_folder / split / f'class_{c}').rename(image_folder.parent / f'{split}_{c}')
    with pytest.warns(UserWarning, match='one class only'):
        open_data_sets(parse_args([str(image_folder), '-b', '4']))


def test_a_resumed_run_keeps_its_folder(tmp_path: Path) -> None:
    for flag in ('--output', '--experiment'):
        with pytest.raises(SettingError, match=f'{flag} is .* stays in its folder'):
            parse_args(['--resume', str(tmp_path), flag, 'x'])


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
    assert f'| last | 2 | {float(rows[1]["eval_top1"]):.2f} % |' in text
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
    done = subprocess.run([sys.executable, '-c', code + 'print(model.num_classes)'], capture_output=True, text=True)
    assert done.stdout.strip() == '3', done.stderr
