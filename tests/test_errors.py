"""What is said of mistakes: a sentence for those that were foreseen, and where it happened for all others."""
from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import pytest

import timm_multimix
import train
from timm_multimix import SettingError
from timm_multimix.errors import UnforeseenError, in_words, shown

FLAGS = ('--epochs', '1', '--warmup-epochs', '0', '-b', '8', '-j', '0', '--img-size', '32')
NETWORK = '''
import timm
import torch

class Net(torch.nn.Module):
    num_classes = 10
    pretrained_cfg = {'input_size': (3, 32, 32), 'num_classes': 10}

    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(3, 10)

    def get_classifier(self):
        return self.fc

    def forward(self, x):
        return self.fc(misspelt(x).mean((2, 3)))

@timm.models.register_model
def own_network(pretrained=False, **kwargs):
    return Net()
'''


def test_a_mistake_in_the_users_own_model_names_its_line(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / 'own_network.py').write_text(NETWORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module('own_network')
    assert train.main(['--model', 'own_network', '--multimix', 'none', *FLAGS, '--output', str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f'{tmp_path}/own_network.py", line 17, in forward' in error
    assert error.splitlines()[-1].startswith('  (--model own_network') and "name 'misspelt' is not defined" in error


def test_a_setting_that_timm_refuses_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags in (('--model-kwargs', 'no_such_argument=1'), ('--aa', 'no-such-policy')):
        assert train.main(['--model', 'test_vit', *FLAGS, *flags, '--output', str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert 'Traceback' not in error and error.startswith('train.py: error: --')


def test_what_counts_as_foreseen() -> None:
    def raised(call: object) -> SettingError:
        try:
            call()  # type: ignore[operator]
        except Exception as e:
            error = in_words('said', e)
            error.__cause__ = e
            return error
        raise AssertionError

    own = raised(lambda: int('x'))  # this file is nobody's library
    assert isinstance(own, UnforeseenError) and 'test_errors.py' in shown(own) and shown(own).endswith('said')
    assert not isinstance(raised(lambda: timm_multimix.MultiMixConfig('sparse')), UnforeseenError)  # has its sentence


def test_no_module_has_the_name_of_a_function_beside_it() -> None:
    for info in pkgutil.walk_packages(timm_multimix.__path__, 'timm_multimix.'):
        package, _, name = info.name.rpartition('.')
        if name.startswith('__') or info.name == 'timm_multimix.describe':  # which gives the function for itself
            continue
        found = getattr(importlib.import_module(package), name, None)
        assert found is None or found is importlib.import_module(info.name), info.name
