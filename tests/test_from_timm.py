"""What runs in timm's train.py runs here: every flag is accounted for, and those that are taken do what they say."""
from __future__ import annotations

import importlib.util
import inspect
import warnings
from argparse import SUPPRESS, Namespace
from pathlib import Path
from typing import Any, Optional

import pytest
import timm
import yaml
from timm.optim import optimizer_kwargs
from timm.scheduler.scheduler_factory import scheduler_kwargs

from tests.conftest import ROOT
from timm_multimix import SettingError
from timm_multimix.runs.flags import build_parser
from timm_multimix.runs.loss_names import LOSSES, NAMES
from timm_multimix.runs.not_taken import NOT_TAKEN, OLD
from timm_multimix.runs.settings import parse_args
from timm_multimix.training.checks import check_args
from timm_multimix.training.images import open_data_sets

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
    assert said == []  # what is not taken stands at its default, so nothing changes


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
    ('--val-split=', '--val-split is empty'),
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
    with pytest.raises(SettingError, match="one class only, 'class_0'.*FOLDER/train/CLASS"):
        open_data_sets(parse_args([str(image_folder), '-b', '4']))


def test_a_resumed_run_keeps_its_folder(tmp_path: Path) -> None:
    for flag in ('--output', '--experiment'):
        with pytest.raises(SettingError, match=f'{flag} is .* stays in its folder'):
            parse_args(['--resume', str(tmp_path), flag, 'x'])
    (tmp_path / 'x').mkdir()
    args, said = parse('--resume', str(tmp_path / 'x'), '--output', str(tmp_path), '--experiment', 'x')  # that folder
    assert args.experiment is None or not args.experiment
    assert not said
    _, said = parse('--resume', str(tmp_path / 'x'), '-c', 'finetune')
    assert any('not those of the run' in line for line in said)
