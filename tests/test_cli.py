"""Flags and YAML: timm's meaning, and no silent mistakes."""
from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from timm_multimix import SettingError
from timm_multimix.runs.settings import multimix_config, parse_args
from timm_multimix.training.checks import check_args

RECIPES = sorted((ROOT / 'hparams').glob('*.yaml'))
DIGITS = ROOT / 'hparams' / 'digits_vit_small.yaml'


def yaml_file(tmp_path: Path, text: str) -> str:
    (tmp_path / 'x.yaml').write_text(text)
    return str(tmp_path / 'x.yaml')


def test_a_flag_replaces_what_a_file_says_in_another_way(tmp_path: Path) -> None:
    path = tmp_path / 'args.yaml'
    for text, flags, want in (
            ('multimix: dense\nmultimix_ramp_epochs: 7\n', ['--multimix-ramp', '0.3'], (0.3, None)),
            ('multimix: dense\nmultimix_ramp: 0.7\n', ['--multimix-ramp-epochs', '3'], (None, 3))):
        path.write_text(text)
        config = multimix_config(parse_args(['-c', str(path), *flags]))
        assert config is not None and (config.ramp, config.ramp_epochs) == want
    path.write_text('multimix: dense\nmultimix_alpha: 0.5\n')
    config = multimix_config(parse_args(['-c', str(path), '--multimix-effective', '2']))
    assert config is not None and (config.alpha, config.effective) == (None, (2, 2))


def test_yaml_sets_defaults_and_flags_win(tmp_path: Path) -> None:
    path = yaml_file(tmp_path, 'model: resnet18\nlr: 1e-3\nepochs: 7\nscale: [0.5, 1]\nweight-decay: 0.1\namp: true')
    args = parse_args(['-c', path, '--epochs', '3', '--no-amp'])
    assert (args.model, args.lr, args.epochs, args.scale, args.weight_decay, args.amp) == (
        'resnet18', 1e-3, 3, [0.5, 1.0], 0.1, False)


def test_args_yaml_of_a_run_reruns_it(tmp_path: Path) -> None:
    args = parse_args(['--model', 'resnet18', '--multimix', 'dense', '--multimix-alpha', '0.5', '2', '--data-dir', 'x'])
    path = yaml_file(tmp_path, yaml.safe_dump({k: v for k, v in vars(args).items() if k != 'config'}))
    again = parse_args(['-c', path])
    assert {**vars(again), 'config': None, 'recipe': ''} == {**vars(args), 'config': None}


@pytest.mark.parametrize('text, words', [
    ('moddel: resnet18', "'moddel' is not a setting. Did you mean model"),
    ('multimix_alhpa: 1', 'Did you mean multimix_alpha'),
    ('epochs: ten', "epochs is 'ten', but it is a whole number"), ('epochs: 1.5', 'epochs is 1.5'),
    ('multimix: dens', "multimix is 'dens', but it is one of none, multimix, dense. Did you mean dense"),
    ('remode: pixle', 'Did you mean pixel'),
    ('amp: 1', 'true or false'), ('scale: [1]', 'scale is'), ('lr: [1, 2]', 'lr is'),
    ('batch_size:', 'batch_size is empty'),
    ('model_kwargs: 3', 'mapping'), ('- a\n- b', 'must hold settings'), ('a: [', 'is not YAML'),
])
def test_bad_yaml(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        parse_args(['-c', yaml_file(tmp_path, text)])


def test_home_folder_in_yaml(tmp_path: Path) -> None:
    args = parse_args(['-c', yaml_file(tmp_path, 'data_dir: ~/images\noutput: ~/runs')])
    assert args.data_dir == str(Path.home() / 'images') and args.output == str(Path.home() / 'runs')


def test_missing_yaml(tmp_path: Path) -> None:
    yaml_file(tmp_path, '')
    with pytest.raises(SettingError, match='no such file. Did you mean x.yaml'):
        parse_args(['-c', str(tmp_path / 'y.yaml')])


def test_embedded_data_and_its_recipe_are_the_default() -> None:
    args = parse_args([], DIGITS)
    assert args.dataset == 'sklearn/digits' and args.model == 'vit_small_patch16_224' and args.multimix == 'dense'
    args = parse_args(['--model', 'resnet18', '--multimix', 'none', '--dataset', 'sklearn/digits'], DIGITS)
    assert args.model == 'resnet18' and args.multimix == 'none' and args.opt == 'adamw'
    args = parse_args(['--data-dir', 'x'], DIGITS)
    assert args.recipe == '' and args.opt == 'sgd' and args.dataset is None and args.epochs == 300


def test_the_baseline_of_a_recipe_needs_one_flag(tmp_path: Path) -> None:
    path = yaml_file(tmp_path, 'multimix: dense\nmultimix_n: 50\nmultimix_effective: [2, 3]\n')
    assert multimix_config(parse_args(['-c', str(path)])).n == 50  # type: ignore[union-attr]
    args = parse_args(['-c', str(path), '--multimix', 'none'])
    assert multimix_config(args) is None and args.multimix_effective is None
    with pytest.raises(SettingError, match='--multimix-m is 5, but --multimix is none'):
        multimix_config(parse_args(['-c', str(path), '--multimix', 'none', '--multimix-m', '5']))
    yaml_file(tmp_path, 'multimix_n: 50\n')  # that switches nothing on: a mistake
    with pytest.raises(SettingError, match='--multimix-n is 50, but --multimix is none'):
        multimix_config(parse_args(['-c', str(path)]))


def test_a_folder_is_never_passed_over_for_the_embedded_data() -> None:
    assert parse_args(['-c', str(DIGITS), '--data-dir', 'x']).dataset is None
    with pytest.raises(SettingError, match="--data-dir is 'x' and --dataset is sklearn/digits"):
        parse_args(['--dataset', 'sklearn/digits', '--data-dir', 'x'], DIGITS)


@pytest.mark.parametrize('recipe', RECIPES, ids=lambda p: p.stem)
def test_recipes_are_valid_and_open_with_their_command(recipe: Path) -> None:
    first, second = recipe.read_text().splitlines()[:2]
    assert first.startswith('# ') and 'python train.py' in first + second
    args = parse_args(['-c', str(recipe)])
    check_args(args)
    config = multimix_config(args)
    if config is not None:
        config.check_batch(args.batch_size)


def config(*flags: str) -> object:
    return multimix_config(parse_args(list(flags)))


def test_flags_make_the_config() -> None:
    c = config('--multimix', 'dense', '--multimix-preset', 'paper', '--multimix-n', '5', '--multimix-alpha', '1',
               '--multimix-attention', 'cam', '--no-multimix-attention-detach', '--smoothing', '0.2',
               '--multimix-m', '3')
    assert (c.preset, c.n, c.alpha, c.attention, c.attention_detach, c.label_smoothing, c.m) == (  # type: ignore[attr-defined]
        'paper', 5, (1, 1), 'cam', False, 0.2, 3)
    assert config() is None
    assert config('--multimix', 'dense', '--multimix-effective', '3').effective == (3, 3)  # type: ignore[attr-defined]


def test_input_mixup_of_the_paper_gives_way_to_flags() -> None:
    paper = ('--multimix', 'dense', '--multimix-preset', 'paper')
    assert config(*paper).mixup == 2  # type: ignore[attr-defined]
    assert config(*paper, '--mixup', '0').mixup == 0  # type: ignore[attr-defined]
    assert config(*paper, '--cutmix', '1').mixup == 0  # type: ignore[attr-defined]


def test_who_asks_for_one_input_mixing_does_not_get_the_presets_other_one() -> None:
    default = ('--multimix', 'dense')
    for flags, expected in (((), (1, 1)), (('--mixup', '0.2'), (0.2, 0)), (('--cutmix', '0.5'), (0, 0.5)),
                            (('--mixup', '0'), (0, 1)), (('--cutmix', '0'), (1, 0)),
                            (('--cutmix-minmax', '0.2', '0.8'), (0, 1)),
                            (('--mixup', '0.2', '--cutmix', '0.5'), (0.2, 0.5))):
        c = config(*default, *flags)
        assert (c.mixup, c.cutmix, c.prob) == (*expected, 0.25)  # type: ignore[attr-defined]


def test_binary_cross_entropy_is_of_the_mixed_loss_too() -> None:
    c = config('--multimix', 'dense', '--bce-loss', '--bce-sum', '--bce-target-thresh', '0.2')
    assert (c.bce_loss, c.bce_sum, c.bce_target_thresh) == (True, True, 0.2)  # type: ignore[attr-defined]
    assert not config('--multimix', 'dense').bce_loss  # type: ignore[attr-defined]


def test_method_flags_without_the_method() -> None:
    with pytest.raises(SettingError, match='--multimix-n is 5, but --multimix is none'):
        config('--multimix-n', '5')
    with pytest.raises(SettingError, match='only --multimix dense'):
        config('--multimix', 'multimix', '--multimix-attention', 'gap')


def test_unknown_flag_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_args(['--multimix-alfa', '1'])
    assert 'Did you mean --multimix-alpha' in capsys.readouterr().err


@pytest.mark.parametrize('flags, words', [
    (['--model', 'resnet19'], "--model is 'resnet19'.* Did you mean resnet1"),
    (['--opt', 'adammw'], 'Did you mean .*adamw'), (['--mixup', '1', '-b', '9'], '--batch-size is 9'),
    (['--mean', '0.1', '0.2'], '--mean is'),
    (['--scale', '1', '0.5'], '--scale is 1 0.5'), (['--cutmix-minmax', '0.9', '0.1'], '--cutmix-minmax is'),
    (['--model-kwargs', 'num_classes=5'], 'use --num-classes'), (['--torchcompile', 'nonsense'], '--torchcompile is'),
    (['--scale', '5', '9'], '--scale is 5, .* up to 1'), (['--img-size', '100000'], '--img-size is 100000'),
    (['--start-epoch', '3', '--epochs', '3'], '--start-epoch is 3 .* nothing would be trained'),
    (['--resume', 'nowhere'], "--resume is 'nowhere'"), (['--num-classes', '0'], '--num-classes is 0'),
])
def test_values_that_cannot_be_right(flags: list[str], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        check_args(parse_args(flags))


@pytest.mark.parametrize('flags, words', [
    (['--epochs', '3', '--warmup-epochs', '3'], 'all of the training is warm-up'),
    (['--epochs', '4', '--warmup-epochs', '3'], 'so warm-up takes 3 of them. Try --warmup-epochs 0'),
    (['-j', '1000'], '--workers is 1000')])
def test_values_that_are_warned_of(flags: list[str], words: str) -> None:
    with pytest.warns(UserWarning, match=words):
        check_args(parse_args(flags))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        check_args(parse_args(['--epochs', '5', '--warmup-epochs', '2', '-j', '1']))
