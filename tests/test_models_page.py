"""docs/models.md, and what tools/models.py makes it of."""
from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import ROOT
from timm_multimix.hub import shipped


@pytest.fixture(scope='module')
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location('models', ROOT / 'tools' / 'models.py')
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(tool: ModuleType) -> None:
    assert tool.page() == tool.PAGE.read_text(), 'write it anew: python tools/models.py'
    assert all(f'(../checkpoints/{name}/README.md)' in tool.page() for name in shipped())


def test_figures_are_of_these_models() -> None:
    """What was measured fits what the training measured, and the command can be typed."""
    measured = [folder for folder in shipped().values() if (folder / 'figures.json').is_file()]
    assert measured
    for folder in measured:
        found = json.loads((folder / 'figures.json').read_text())
        assert found['command'].startswith(f'python evaluate.py checkpoints/{folder.name} ')
        [last] = re.findall(r'^\| top-1 %.*\n.*\n\| (\S+) ', (folder / 'README.md').read_text(), re.M)
        assert abs(found['figures']['top-1, %'] - float(last)) < 0.2, folder.name  # half precision, other batches


def test_wrong_names_and_images(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="has no model 'nothing'. It has .*test_efficientnet_digits"):
        tool.measure(['nothing'], '')
    folder = tmp_path / 'small'
    folder.mkdir()
    (folder / 'args.yaml').write_text('data_dir: pets\ndataset: \'\'\n')
    monkeypatch.setattr(tool, 'shipped', lambda: {'small': folder})
    with pytest.raises(SystemExit, match="small is of pets, and --data-dir is 'cars'"):
        tool.measure(['small'], 'cars')
    tool.measure([], 'cars')  # nothing of these images
    assert not (folder / 'figures.json').exists()
