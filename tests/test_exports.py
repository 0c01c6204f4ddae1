"""What leaves torch, or is made small: the rows of the table in docs/your_loop.md, plain and wrapped."""
from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import timm
import torch
import torch.nn as nn
from torch import Tensor

import timm_multimix
from tests.conftest import ROOT

IMAGES = torch.randn(2, 3, 64, 64)
Run = Callable[[nn.Module, Path], Tensor]


def onnx(model: nn.Module, folder: Path, dynamo: bool = True) -> Tensor:
    import onnxruntime
    file = folder / 'model.onnx'
    torch.onnx.export(model, (IMAGES,), file, dynamo=dynamo, input_names=['images'])
    return torch.tensor(onnxruntime.InferenceSession(file).run(None, {'images': IMAGES.numpy()})[0])


def export(model: nn.Module, folder: Path) -> Tensor:
    torch.export.save(torch.export.export(model, (IMAGES,)), folder / 'model.pt2')
    return torch.export.load(folder / 'model.pt2').module()(IMAGES)


def script(model: nn.Module, folder: Path) -> Tensor:
    torch.jit.save(torch.jit.script(model), folder / 'model.pt')
    return torch.jit.load(folder / 'model.pt')(IMAGES)


def functional(model: nn.Module, folder: Path) -> Tensor:
    return torch.func.functional_call(model, dict(model.named_parameters()), (IMAGES,))


def dynamic(model: nn.Module, folder: Path) -> Tensor:
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)(IMAGES)


def torchao(model: nn.Module, folder: Path) -> Tensor:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_
    model = copy.deepcopy(model)
    quantize_(model, Int8WeightOnlyConfig())
    assert type(timm_multimix.unwrap(model).get_classifier().weight) is not nn.Parameter  # type: ignore[operator, union-attr]
    return model(IMAGES)


# The row of the table: what does it, what it needs, and how far its logits may be off.
ROWS: dict[str, tuple[Run, str, float]] = {
    '`torch.onnx.export`': (onnx, 'onnxscript', 1e-4),
    '`torch.onnx.export(…, dynamo=False)`': (lambda m, f: onnx(m, f, dynamo=False), 'onnxruntime', 1e-4),
    '`torch.export`': (export, 'torch', 1e-5),
    '`torch.jit.script`': (script, 'torch', 1e-5),
    '`torch.jit.trace`': (lambda m, f: torch.jit.trace(m, IMAGES)(IMAGES), 'torch', 1e-5),
    '`torch.fx.symbolic_trace`': (lambda m, f: torch.fx.symbolic_trace(m)(IMAGES), 'torch', 1e-5),
    '`torch.func.functional_call`': (functional, 'torch', 1e-5),
    '`torch.ao.quantization.quantize_dynamic`': (dynamic, 'torch', 0.05),
    '`torchao.quantization.quantize_`': (torchao, 'torchao', 0.05),
}
TABLE = re.findall(r'^\| (`torch[^|]+`) \| (yes|no) \| (yes|no)\b', (ROOT / 'docs' / 'your_loop.md').read_text(), re.M)


def test_the_table_has_these_rows() -> None:
    assert [row for row, _, _ in TABLE] == list(ROWS)


@pytest.mark.parametrize('row, plain, wrapped', TABLE)
def test_row(row: str, plain: str, wrapped: str, tmp_path: Path) -> None:
    run, needs, tolerance = ROWS[row]
    if find_spec(needs) is None or ('onnx' in row and find_spec('onnxruntime') is None):
        pytest.skip(f"needs {needs}: pip install '.[examples]'")
    net = timm.create_model('test_convnext', num_classes=5).eval()
    model = timm_multimix.wrap(net, 'dense', input_size=(3, 64, 64))
    want = timm_multimix.unwrap(model)(IMAGES).detach()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for works, each in ((plain, timm_multimix.unwrap(model)), (wrapped, model)):
            if works == 'no':
                with pytest.raises(Exception):  # noqa: B017  # whatever it says
                    run(each, tmp_path)
            else:
                assert float((run(each, tmp_path).detach() - want).abs().max()) < tolerance
    assert torch.equal(model(IMAGES), want)  # and it is what it was


def test_quantised_while_it_trains() -> None:
    """torchao's quantisation-aware training replaces the linear layers by ones that round: they are mixed as others."""
    pytest.importorskip('torchao', reason="needs torchao: pip install '.[examples]'")
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, quantize_
    from torchao.quantization.granularity import PerGroup
    from torchao.quantization.qat import QATConfig
    net = timm.create_model('test_vit', num_classes=5, img_size=64, global_pool='avg')
    model = timm_multimix.wrap(net, 'dense', preset='embeddings', n=20)
    plain = model(IMAGES, torch.tensor([0, 1])).loss
    quantize_(model, QATConfig(Int8DynamicActivationIntxWeightConfig(
        weight_dtype=torch.int4, weight_granularity=PerGroup(32)), step='prepare'))
    out = model(IMAGES, torch.tensor([0, 1]))
    out.loss.backward()
    assert out.mixed == 'embeddings' and not torch.equal(out.loss, plain)
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
