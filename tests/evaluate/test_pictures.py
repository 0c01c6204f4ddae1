"""No picture of evaluate.py has text that is cut off or lies on other text, whatever checkpoints and classes are
called."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn as nn

from tests.evaluate.conftest import batches
from tests.pictures import watched
from timm_multimix import evaluate
from timm_multimix.evaluate.tables import accuracy, attention, calibration, embedding, hull, ood, robustness

pytestmark = pytest.mark.filterwarnings('error')  # matplotlib warns where there is no room
FEW_MIXTURES: dict[str, Any] = {'batch': 16, 'n': 40, 'ns': (5, 20), 'batches': 1, 'alphas': (0.01, 1.0)}
LONG = '20261129-120000-vit_small_patch16_224-multimix-ramp-seed3'


@pytest.fixture(scope='module', params=[pytest.param(2, marks=pytest.mark.slow), 20])
def tables(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Name of an evaluation → its table, of an untrained network of some number of classes."""
    classes = request.param
    torch.manual_seed(0)
    model: nn.Module = timm.create_model('test_resnet', num_classes=classes, output_stride=8).eval()
    g = torch.Generator().manual_seed(1)
    loader = batches(torch.rand(120, 3, 32, 32, generator=g), torch.arange(120) % classes)
    names = [f'class {c} of a long name, hyacinth macaw'[:5 + 9 * (c % 5)] for c in range(classes)]
    seen = evaluate.collect(model, loader)
    others = {f'{name} of another set': batches(torch.rand(40, 3, 32, 32, generator=g), torch.zeros(40).long())
              for name in ('noise', 'photographs', 'textures')}
    pixels = {'mean': (0.5,) * 3, 'std': (0.5,) * 3}
    return {
        'accuracy': evaluate.accuracy(model, seen, class_names=names, resamples=5),
        'calibration': evaluate.calibration(model, seen),
        'embedding': evaluate.embedding(model, seen, class_names=names, map_images=40),
        'hull': evaluate.hull(model, seen, class_names=names, **FEW_MIXTURES),
        'ood': evaluate.ood(model, seen, others, bank=seen, k=5),
        'robustness': evaluate.robustness(model, [(x * 2 - 1, y) for x, y in loader[:1]], steps=1, **pixels),
        'attention': evaluate.attention(model, loader[:1], pictures=3, **pixels)}


@pytest.mark.parametrize('columns', [['dense'], [LONG, f'{LONG}-2', f'{LONG}-3', 'd']],
                         ids=['one', 'long'])
@pytest.mark.parametrize('module', [accuracy, attention, calibration, embedding, hull, ood, robustness],
                         ids=lambda module: module.__name__.rpartition('.')[2])
def test_pictures_of_an_evaluation(tables: dict[str, Any], module: Any, columns: list[str], tmp_path: Path) -> None:
    table = tables[module.__name__.rpartition('.')[2]]
    with watched() as found:
        paths = module.draw(dict.fromkeys(columns, table), tmp_path)
    assert len(found) == len(paths) > 0
    assert {name: faults for name, faults in found.items() if faults} == {}
