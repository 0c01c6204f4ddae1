"""The examples, as a newcomer runs them: processes of their own, the scripts with fewer epochs."""
from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from tests import forked
from tests.conftest import ROOT
from timm_multimix.data import create_train_val


def run(example: str, folder: Path) -> str:
    code = ("import runpy, sys, warnings; warnings.simplefilter('error', UserWarning)\n"
            "runpy.run_path(sys.argv[1], run_name='__main__')")
    done = forked.run('-c', code, str(ROOT / 'examples' / example), cwd=folder, env={**os.environ, 'EPOCHS': '2'})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_minimal(tmp_path: Path) -> None:
    out = run('minimal.py', tmp_path)
    found = re.fullmatch(r'(\d+\.\d)% of 360 test images are right\n', out)
    assert found and float(found[1]) > 60, out  # guessing gets 10


def test_several_heads(tmp_path: Path) -> None:
    out = run('several_heads.py', tmp_path)
    found = re.fullmatch(r'(\d+\.\d)% of the digits are right, and (\d+\.\d)% of what they are like\n', out)
    assert found and float(found[1]) > 30 and float(found[2]) > 65, out  # guessing gets 10 and about 55
    assert len((ROOT / 'examples' / 'several_heads.py').read_text().splitlines()) <= 40


def test_stages(tmp_path: Path) -> None:
    first, both = (float(share) for share in re.findall(r'(\d+\.\d)% of 360', run('stages.py', tmp_path)))
    assert both > 60 and both > first  # the classifier of a body that was never trained is little better than guessing


def test_timm_task(tmp_path: Path) -> None:
    out = run('timm_task.py', tmp_path)
    raw, averaged = re.findall(r'(\d+\.\d) % ', out)[-2:]
    assert float(raw) > 60 and float(averaged) > 60, out
    assert re.search(r"'embeddings': [1-9]", out) and re.search(r"'inputs': [1-9]", out)

    model = timm.create_model('test_convnext', num_classes=10, checkpoint_path=str(tmp_path / 'digits.safetensors'))
    _, digits = create_train_val('sklearn/digits', None)
    transform = timm.data.create_transform((3, 64, 64), crop_pct=1)
    with torch.no_grad():
        logits = model.eval()(torch.stack([transform(image) for image, _ in digits]))
    right = (logits.argmax(1) == torch.tensor([target for _, target in digits])).float().mean()
    assert abs(100 * right - float(averaged)) < 0.1  # what it printed


NOTEBOOK = ROOT / 'examples' / 'photographs.ipynb'


def outputs(notebook: Path) -> list[dict[str, Any]]:
    """What the cells of code say, in order; each must have been executed."""
    cells = [cell for cell in json.loads(notebook.read_text())['cells'] if cell['cell_type'] == 'code']
    assert [cell['execution_count'] for cell in cells] == list(range(1, len(cells) + 1))
    return [output for cell in cells for output in cell['outputs']]


def said(notebook: Path) -> str:
    return ''.join(''.join(output.get('text', '')) for output in outputs(notebook))


def test_the_notebook_holds_what_it_said() -> None:
    assert not any(output['output_type'] == 'error' for output in outputs(NOTEBOOK))
    pictures = [output for output in outputs(NOTEBOOK) if 'image/png' in output.get('data', {})]
    assert len(pictures) == 3 and NOTEBOOK.stat().st_size < 1_000_000
    assert re.search(r'top-1, % +\d', said(NOTEBOOK)) and 'of timm.models.resnet' in said(NOTEBOOK)
    assert '/home/' not in NOTEBOOK.read_text() and str(ROOT) not in NOTEBOOK.read_text()


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    for name, module in (('nbconvert', 'nbconvert'), ('ipykernel', 'ipykernel'), ('scikit-image', 'skimage')):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{name} is not installed: pip install '.[notebook]'")
    done = subprocess.run([sys.executable, '-m', 'nbconvert', '--to', 'notebook', '--execute', str(NOTEBOOK),
                           '--output-dir', str(tmp_path)], capture_output=True, text=True, timeout=3600,
                          env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert done.returncode == 0, done.stderr
    found = re.search(r'top-1, % +(\d+\.\d+)', said(tmp_path / NOTEBOOK.name))
    assert found and float(found[1]) > 40, found  # guessing gets 8
