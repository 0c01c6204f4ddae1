"""Other people's loops: the examples, each in a process of its own, where what they need is installed."""
from __future__ import annotations

import os
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from scipy.io import wavfile

import timm_multimix
from tests import forked
from tests.conftest import ROOT
from timm_multimix import SettingError

NEEDS = {'accelerate_loop.py': 'accelerate', 'data_parallel.py': 'torch', 'fastai_loop.py': 'fastai',
         'fsdp2.py': 'torch', 'huggingface_trainer.py': 'transformers', 'lightning_loop.py': 'lightning',
         'lora.py': 'peft'}
LAUNCH = {'fsdp2.py': ('-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2')}


@pytest.mark.parametrize('example', [
    pytest.param(example, marks=[pytest.mark.slow] if example in LAUNCH else []) for example in NEEDS])
def test_example(example: str, tmp_path: Path) -> None:
    if find_spec(NEEDS[example]) is None:
        pytest.skip(f"needs {NEEDS[example]}: pip install '.[examples]'")
    done = forked.run(*LAUNCH.get(example, ()), str(ROOT / 'examples' / example), cwd=tmp_path, timeout=900,
                      env={**os.environ, 'EPOCHS': '2', 'ACCELERATE_USE_CPU': '1'}, deep=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found = re.search(r'^(\d+\.\d)% of 359 test images are right$', done.stdout, re.M)
    assert found and float(found[1]) > 40, done.stdout  # guessing gets 10


def test_examples_are_short() -> None:
    for example in (*NEEDS, 'sound.py'):
        assert len((ROOT / 'examples' / example).read_text().splitlines()) <= 40, example


def test_a_wrapped_model_says_why_it_is_not_for_dataparallel() -> None:
    """Its copies would be made on GPUs alone."""
    model = timm_multimix.wrap(timm.create_model('test_resnet', num_classes=5), 'multimix')
    with pytest.raises(SettingError, match=r'nn\.DataParallel .*examples/data_parallel\.py'):
        model._replicate_for_data_parallel()
    assert torch.nn.DataParallel(timm_multimix.unwrap(model))._modules


def test_sounds(tmp_path: Path) -> None:
    """Four kinds of noise, of several lengths and heights."""
    if find_spec('transformers') is None:
        pytest.skip("needs transformers: pip install '.[examples]'")
    rng = np.random.default_rng(0)
    kinds = {'tone': lambda t, f: np.sin(2 * np.pi * f * t), 'noise': lambda t, f: rng.normal(0, 1, len(t)),
             'beats': lambda t, f: np.sin(2 * np.pi * f * t) * (np.sin(2 * np.pi * 8 * t) > 0),
             'siren': lambda t, f: np.sin(2 * np.pi * f * t + 40 * np.sin(2 * np.pi * 5 * t))}
    for kind, wave in kinds.items():
        (tmp_path / 'sounds' / kind).mkdir(parents=True)
        for i in range(40):
            t = np.arange(int(8000 * rng.uniform(0.5, 1.5))) / 8000
            heard = wave(t, rng.uniform(500, 2000)) + rng.normal(0, 0.1, len(t))
            wavfile.write(tmp_path / 'sounds' / kind / f'{i}.wav', 8000, (5000 * heard).astype(np.int16))
    done = forked.run(str(ROOT / 'examples' / 'sound.py'), str(tmp_path / 'sounds'), timeout=900,
                      env={**os.environ, 'EPOCHS': '30'})
    assert done.returncode == 0, done.stderr[-4000:]
    found = re.fullmatch(r'(\d+\.\d)% of 32 test sounds are right\n', done.stdout)
    assert found and float(found[1]) > 45, done.stdout  # guessing gets 25
