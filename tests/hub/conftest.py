"""A Hub on the loopback interface with a user logged in, and small models and runs to put there."""
from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, Optional

import pytest
import timm
import torch
import yaml
from huggingface_hub import constants

import timm_multimix
from tests import forked
from tests.conftest import ROOT
from tests.hub.server import HubServer
from timm_multimix import unwrap, wrap
from timm_multimix.hub import background, save_plain
from timm_multimix.runs.settings import parse_args

SHIPPED = ROOT / 'checkpoints' / 'test_efficientnet_digits'
SMALL = ('--epochs', '1', '--warmup-epochs', '0', '-j', '0', '--img-size', '32')


def push_process(command: list[str], env: dict[str, str], stdout: IO[bytes], **_: Any) -> forked.Process:
    """What BackgroundPush starts, without the seconds of its imports."""
    return forked.start(*command[1:], env=env, bare=True, log=stdout)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub with `user` logged in, for this process (whose client read its settings long ago) and its children."""
    monkeypatch.setattr(background, 'subprocess', SimpleNamespace(**{**vars(subprocess), 'Popen': push_process}))
    home = tmp_path / 'hf'
    with HubServer() as server:
        for name, value in server.env(home).items():
            monkeypatch.setenv(name, value)
        for name, value in (
                ('ENDPOINT', server.url), ('HUGGINGFACE_CO_URL_TEMPLATE', server.url + '/{repo_id}/resolve/{revision}/'
                 '{filename}'), ('HF_HUB_OFFLINE', False), ('HF_HUB_DISABLE_XET', True),
                ('HF_HUB_CACHE', str(home / 'hub')), ('HF_TOKEN_PATH', str(home / 'token'))):
            monkeypatch.setattr(constants, name, value)
        yield server


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was waited between attempts, without waiting."""
    found: list[float] = []
    monkeypatch.setattr(time, 'sleep', found.append)
    return found


def small_model(seed: int = 0, name: str = 'test_vit', **kwargs: Any) -> torch.nn.Module:
    torch.manual_seed(seed)
    return timm.create_model(name, num_classes=6, **kwargs)


def wrapped(seed: int = 0, **settings: Any) -> timm_multimix.MultiMixModel:
    return wrap(small_model(seed), 'dense', **{'n': 50, 'effective': 2, **settings})


def a_run(folder: Path, model: Optional[torch.nn.Module] = None, **args: Any) -> Path:
    """What train.py leaves behind, after 2 of 3 epochs."""
    parsed = vars(parse_args(['--model', 'test_vit', '--multimix', 'dense', '--epochs', '3']))
    folder.mkdir(parents=True)
    save_plain(model or wrapped(), folder / 'model', label_names=['cat', 'dog', 'eel', 'fox', 'gnu', 'hen'])
    (folder / 'args.yaml').write_text(yaml.safe_dump({**parsed, **args}))
    (folder / 'summary.csv').write_text('epoch,train_loss,eval_loss,eval_top1,eval_top5\n0,2,1.5,61.25,90\n'
                                        '1,1.5,1.25,58.75,91.5\n')
    (folder / 'curves.png').write_bytes(b'\x89PNG' + bytes(5000))
    return folder


def logits(model: torch.nn.Module) -> torch.Tensor:
    torch.manual_seed(7)
    with torch.no_grad():
        return model.eval()(torch.randn(2, *unwrap(model).pretrained_cfg['input_size']))
