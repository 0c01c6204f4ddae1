"""Each setting is said once: its flag, its checks, its help and its page follow from that."""
from __future__ import annotations

import argparse
import importlib.util
import math
from pathlib import Path

import pytest

import evaluate
import train
from tests.conftest import ROOT
from timm_multimix import MultiMixConfig, SettingError
from timm_multimix.config import SETTINGS, flag
from timm_multimix.evaluate import flags as evaluate_flags
from timm_multimix.runs import flags as train_flags
from timm_multimix.runs.settings import parse_args
from timm_multimix.setting import Number, number, whole

TRAIN = {a.dest: a for a in train_flags.build_parser()._actions}


def test_the_page_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location('settings', ROOT / 'tools' / 'settings.py')
    assert spec and spec.loader
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.page() == tool.PAGE.read_text(), 'write it anew: python tools/settings.py'


def test_every_setting_has_its_flag_and_is_explained() -> None:
    flags = {option for action in TRAIN.values() for option in action.option_strings}
    for name, about in SETTINGS.items():
        assert flag(name) in flags
        assert f'{name}: {about.text[:20]}' in (MultiMixConfig.__doc__ or '')


@pytest.mark.parametrize('build', [train_flags.build_parser, evaluate_flags.build_parser])
def test_every_flag_has_a_help_text(build: object) -> None:
    actions = build()._actions  # type: ignore[operator]
    assert [a.dest for a in actions if not (a.help or '').strip()] == []


@pytest.mark.parametrize('main', [train.main, evaluate.main])
def test_help_is_printed(main: object, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as e:
        main(['--help'])  # type: ignore[operator]
    text = capsys.readouterr().out
    assert e.value.code == 0 and '--seed N' in text and '(default: None)' not in text


def test_lists_of_flags_name_flags() -> None:
    assert set(train_flags.FREE_ON_RESUME) | {f'multimix_{n}' for n in train_flags.MULTIMIX_FLAGS} <= set(TRAIN)


@pytest.mark.parametrize('name', [name for name, a in TRAIN.items() if isinstance(a.type, Number)])
def test_defaults_are_within_the_bounds(name: str) -> None:
    action = TRAIN[name]
    values = action.default if isinstance(action.default, list) else [action.default]
    assert all(value is None or not action.type.wrong(value) for value in values)  # type: ignore[union-attr]


@pytest.mark.parametrize('flags, says', [
    ('--epochs 0', '--epochs is 0, but it must be at least 1.'),
    ('-b -3', '--batch-size is -3, but it must be at least 1.'),
    ('--lr -0.5', '--lr is -0.5, but it must be at least 0.'),
    ('--lr nan', '--lr is nan, but it must be a finite number.'),
    ('--weight-decay inf', '--weight-decay is inf, but it must be a finite number.'),
    ('--dr 0', '--decay-rate is 0, but it must be above 0.'),
    ('--hflip 2', '--hflip is 2, but it must be from 0 to 1.'),
    ('--smoothing 1', '--smoothing is 1, but it must be from 0 to below 1.'),
    ('--std 0.5 0 0.5', '--std is 0, but each must be above 0.'),
    ('--seed 4294967296', '--seed is 4294967296, but it must be from 0 to 4294967295.'),
    ('--multimix-n 0', "--multimix-n is 0, but it must be at least 1, or 'batch'."),
    ('--multimix-alpha 0.5 -1', '--multimix-alpha is -1, but each must be above 0.'),
])
def test_out_of_bounds(flags: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(flags.split()) == 2
    assert capsys.readouterr().err == f'train.py: error: {says}\n'
    option, *values = flags.split()
    name = next(a.dest for a in TRAIN.values() if option in a.option_strings)
    (tmp_path / 'x.yaml').write_text(f'{name}: {values[0] if len(values) == 1 else "[" + ", ".join(values) + "]"}\n'
                                     .replace('nan', '.nan').replace('inf', '.inf'))
    with pytest.raises(SettingError) as e:
        parse_args(['-c', str(tmp_path / 'x.yaml')])
    assert str(e.value).startswith(f'{tmp_path}/x.yaml: {name} is ') and says.partition(', but')[2] in str(e.value)


def test_the_ends_of_the_bounds() -> None:
    assert not whole(least=1).wrong(1) and whole(least=1).wrong(0) and whole(least=1).wrong(1.0)
    assert not whole(least=1, word='batch').wrong('batch') and whole(least=1, word='batch').wrong('all')
    assert number(above=0).wrong(0) and not number(above=0, most=2).wrong(2) and number(above=0, most=2).wrong(2.1)
    assert not number(least=0, below=1).wrong(0) and number(least=0, below=1).wrong(1.0)
    assert number().wrong(math.nan) and number().wrong('1') and number().wrong(True) and not number().wrong(-1e9)


def test_a_number_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    for text in ('8/0', 'x'):
        with pytest.raises(SystemExit) as e:
            evaluate.main(['x', '--pgd-eps', text])
        assert e.value.code == 2 and f'--pgd-eps: invalid float value: {text!r}' in capsys.readouterr().err
    assert isinstance(evaluate_flags.parse_args(['x', '--pgd-eps', '8/255']), argparse.Namespace)
