"""Every command of hparams/README.md: parsed, built, and run for two steps on images of the right shape."""
from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler_factory import scheduler_kwargs

import train
from tests.conftest import ROOT
from tests.test_data_helpers import raw_cifar
from timm_multimix.runs.settings import multimix_config, parse_args
from timm_multimix.runs.summary import read_summary
from timm_multimix.training import build
from timm_multimix.training.checks import check_args

README = (ROOT / 'hparams' / 'README.md').read_text()
SYSTEMS = {'cifar10_preactresnet18': (10, 32), 'cifar10_wideresnet16_8': (10, 32), 'cifar100_preactresnet18': (100, 32),
           'cifar100_wideresnet16_8': (100, 32), 'tinyimagenet_preactresnet18': (200, 64),
           'imagenet_resnet50': (1000, 224), 'imagenet_vit_small': (1000, 224)}  # classes, pixels
METHODS = {'none': ('none', 0), 'mixup': ('none', 1), 'multimix': ('multimix', 2), 'dense': ('dense', 2)}


def commands() -> dict[tuple[str, str], list[str]]:
    """(recipe, method) → flags, as the README has them, and for short recipes as it says to change them."""
    found: dict[tuple[str, str], list[str]] = {}
    for method, command in re.findall(r'^\| (\w+) \| `python train\.py (.*?)`', README, re.M):
        flags = shlex.split(command)
        name = Path(flags[flags.index('-c') + 1]).stem
        assert (name, method) not in found
        found[name, method] = flags
        short = shlex.split(command.replace(f'{name}.yaml', f'{name}_short.yaml').replace(
            ' --multimix-preset paper', ''))
        found[f'{name}_short', method] = short
    return found


COMMANDS = commands()
IDS = ['-'.join(key) for key in COMMANDS]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # the README's commands are for there


def test_every_system_length_and_method_has_its_command() -> None:
    assert set(COMMANDS) == {(f'{name}{length}', method) for name in SYSTEMS for length in ('', '_short')
                             for method in METHODS}
    files = {p.stem for p in (ROOT / 'hparams').glob('*.yaml')}
    assert files == {name for name, _ in COMMANDS} | {'digits_vit_small', 'cifar10_resnet18', 'finetune'}


@pytest.mark.parametrize('name, method', COMMANDS, ids=IDS)
def test_says_what_it_does(name: str, method: str) -> None:
    args = parse_args(COMMANDS[name, method])
    check_args(args)
    config, (mode, mixup) = multimix_config(args), METHODS[method]
    short = name.endswith('_short')
    assert args.multimix == mode
    if config is None:
        assert (args.mixup or 0) == (0.2 if mixup and args.model in ('resnet50', 'vit_small_patch16_224') else mixup)
    else:
        config.check_batch(args.batch_size)
        assert config.preset == ('default' if short else 'paper') and (config.mixup, config.cutmix) == (
            (1, 1) if short else (2, 0))
        assert (config.alpha, config.prob) == ((None, 0.25) if short else ((0.5, 2), 0.5))


def learning_rates(name: str) -> tuple[list[float], torch.optim.Optimizer]:
    """Of each epoch, as train.py sets them."""
    args = parse_args(['-c', f'hparams/{name}.yaml'])
    args.decay_epochs = args.decay_epochs or 90
    optimizer = build.build_optimizer(args, torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)))
    scheduler, epochs = create_scheduler_v2(optimizer, **scheduler_kwargs(args), updates_per_epoch=10)
    rates = []
    for epoch in range(epochs):
        rates.append(optimizer.param_groups[-1]['lr'])
        for update in range(10):
            scheduler.step_update(num_updates=epoch * 10 + update + 1)
        scheduler.step(epoch + 1)
    return rates, optimizer


@pytest.mark.parametrize('name, epochs, decays, nesterov', [
    *((name, 2000, [500, 1000, 1500], False) for name in SYSTEMS if name.startswith('cifar')),
    ('tinyimagenet_preactresnet18', 1200, [600, 900], False), ('imagenet_resnet50', 300, [75, 150, 225], True)])
def test_published_schedules(name: str, epochs: int, decays: list[int], nesterov: bool) -> None:
    rates, optimizer = learning_rates(name)
    assert rates == pytest.approx([0.1 * 0.1 ** sum(epoch >= d for d in decays) for epoch in range(epochs)])
    for group in optimizer.param_groups:  # biases and norms decay like weights
        assert (group['momentum'], group['weight_decay'], group['nesterov']) == (0.9, 1e-4, nesterov)
    assert sum(len(g['params']) for g in optimizer.param_groups) == 4


@pytest.mark.parametrize('name', SYSTEMS)
def test_short_versions_differ_in_their_schedule_only(name: str) -> None:
    full, short = (yaml.safe_load((ROOT / 'hparams' / f'{name}{s}.yaml').read_text()) for s in ('', '_short'))
    assert short['epochs'] * 10 == full['epochs']
    schedule = {'epochs', 'sched', 'sched_on_updates', 'warmup_epochs', 'warmup_lr', 'min_lr', 'decay_milestones',
                'decay_epochs', 'decay_rate'}
    rest_of_full, rest_of_short = ({k: v for k, v in r.items() if k not in schedule} for r in (full, short))
    assert rest_of_full == rest_of_short
    rates, _ = learning_rates(f'{name}_short')
    peak = max(range(len(rates)), key=rates.__getitem__)
    assert peak == short['warmup_epochs'] and rates[peak] > 0.95 * full['lr'] and rates[-1] < 0.05 * full['lr']
    assert rates[:peak] == sorted(rates[:peak]) and rates[peak:] == sorted(rates[peak:], reverse=True)


def test_batches_of_eight_gpus_are_the_published_ones() -> None:
    batch = {name: parse_args(['-c', f'hparams/{name}.yaml']).batch_size for name in SYSTEMS}
    assert {n: b * 8 if n.startswith('imagenet') else b for n, b in batch.items()} == {
        name: 1024 if name.startswith('imagenet') else 256 if name.startswith('tiny') else 128 for name in SYSTEMS}


def test_weight_decay_of_the_vit_is_as_timm_has_it() -> None:
    args = parse_args(['-c', 'hparams/imagenet_vit_small.yaml'])
    optimizer = build.build_optimizer(args, timm.create_model('test_vit'))
    assert {g['weight_decay'] for g in optimizer.param_groups} == {0.0, 0.05}
    assert type(optimizer) is type(create_optimizer_v2(timm.create_model('test_vit'), 'adamw'))


def generated(folder: Path, size: int, classes: int = 4) -> Path:
    """Photographs of nothing: `classes` × 2 for each split, and ImageNet's larger than its crops."""
    generator = torch.Generator().manual_seed(0)
    stored = size if size < 100 else size + 32
    for split in ('train', 'validation'):
        for c in range(classes):
            (folder / split / f'n{c:08d}').mkdir(parents=True)
            for i in range(2):
                pixels = torch.randint(0, 256, (stored, stored, 3), generator=generator, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(folder / split / f'n{c:08d}' / f'{i}.png')
    return folder


def two_steps(name: str, method: str, tmp_path: Path, data: Path, *more: str) -> None:
    """The README's command on 8 images, in batches of 4, for one epoch."""
    classes, size = SYSTEMS[name.removesuffix('_short')]
    out = tmp_path / 'runs'
    code = train.main([*COMMANDS[name, method], '--data-dir', str(data), '-b', '4', '--epochs', '1', '-j', '0',
                       '--device', 'cpu', '--warmup-epochs', '0', '--output', str(out), '--experiment', 'x', *more])
    assert code == 0
    (row,) = read_summary(out / 'x' / 'summary.csv')
    assert 0 < float(row['train_loss']) < 100 and 0 < float(row['eval_loss']) < 100
    saved = yaml.safe_load((out / 'x' / 'model' / 'config.json').read_text())
    assert saved['num_classes'] == classes and saved['pretrained_cfg']['input_size'] == [3, size, size]
    assert torch.load(out / 'x' / 'last.pth.tar', weights_only=False)['optimizer']['state']  # there were steps
    shutil.rmtree(out)


@pytest.mark.slow  # large networks; one of them runs below
@pytest.mark.parametrize('name, method', COMMANDS, ids=IDS)
def test_two_steps(name: str, method: str, tmp_path: Path) -> None:
    classes, size = SYSTEMS[name.removesuffix('_short')]
    data = generated(tmp_path / 'data', size)
    folder = ['--dataset', 'folder', '--no-dataset-download'] if name.startswith('cifar') else []
    two_steps(name, method, tmp_path, data, '--num-classes', str(classes), *folder)


@pytest.mark.parametrize('model', ['test_resnet', 'test_vit', 'test_efficientnet', 'test_convnext'])
def test_fine_tuning_of_any_model(model: str, tmp_path: Path) -> None:
    data, weights, out = generated(tmp_path / 'data', 64), tmp_path / 'weights.safetensors', tmp_path / 'runs'
    start = timm.create_model(model).state_dict()
    save_file(start, weights)
    code = train.main(['-c', 'hparams/finetune.yaml', '--model', model, '--pretrained-path', str(weights), '--data-dir',
                       str(data), '-b', '4', '--epochs', '2', '-j', '0', '--device', 'cpu', '--output', str(out),
                       '--experiment', 'x'])
    assert code == 0
    row = read_summary(out / 'x' / 'summary.csv')[-1]
    assert 0 < float(row['train_loss']) < 3  # the new classifier starts without opinions
    end = timm.create_model(f'local-dir:{out}/x/model', pretrained=True).state_dict()
    assert all(torch.equal(end[name], value) for name, value in start.items() if 'running' in name)  # --bn-eval
    assert all(not torch.equal(end[name], value) for name, value in start.items()
               if end[name].shape == value.shape and value.ndim > 1)  # all layers learn


def test_two_steps_on_cifar_as_torchvision_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw_cifar(tmp_path / 'raw', monkeypatch)
    two_steps('cifar10_preactresnet18', 'dense', tmp_path, tmp_path / 'raw', '--num-classes', '10',
              '--no-dataset-download')


def test_the_recipe_of_fine_tuning_mixes_embeddings_alone_where_mixing_is_asked_for() -> None:
    assert multimix_config(parse_args(['-c', 'finetune'])) is None
    config = multimix_config(parse_args(['-c', 'finetune', '--multimix', 'dense']))
    assert config is not None and config.preset == 'embeddings' and config.mixup == config.cutmix == 0
    config = multimix_config(parse_args(['-c', 'finetune', '--multimix', 'multimix', '--multimix-preset', 'manifold']))
    assert config is not None and config.preset == 'manifold'
