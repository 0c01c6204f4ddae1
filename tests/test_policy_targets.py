"""Targets and losses are the same on steps of every kind; and pages and flags that name a task of one's own."""
from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, Optional

import pytest
import timm
import torch
import torch.nn as nn
from timm.data import Mixup
from torch._dynamo.utils import counters

import timm_multimix
import train
from tests.conftest import ROOT, write_images
from tests.models import IMAGES, TARGET
from tests.models import a_resnet as model
from timm_multimix import SettingError
from timm_multimix.mixing import LamSampler
from timm_multimix.runs.summary import read_summary


@pytest.mark.parametrize('layer', ['embedding', 1])
@pytest.mark.parametrize('prob', [0.0, 1.0])
def test_every_path_takes_the_same_targets(prob: float, layer: Any) -> None:
    def losses(target: torch.Tensor, **more: Any) -> float:
        torch.manual_seed(0)
        wrapped = model(preset='embeddings', prob=prob, layer=layer, n='batch', **more)
        return float(wrapped(IMAGES, target).loss.detach())

    want = losses(TARGET)
    one_hot = nn.functional.one_hot(TARGET, 5)
    for target in (TARGET.int(), TARGET.to(torch.uint8), TARGET.to(torch.int16), one_hot, one_hot.bool(),
                   one_hot.to(torch.uint8), one_hot.half(), one_hot.double()):
        assert losses(target) == pytest.approx(want, rel=1e-5), target.dtype
    many = one_hot.float() + one_hot.roll(1, 1)
    for target, words in ((TARGET[:, None], 'squeeze'), (TARGET.float(), 'must be integers'), (many, 'bce_loss'),
                          (torch.where(TARGET == 0, -100, TARGET), '-100'), (one_hot[:, :4].float(), '4 columns'),
                          (TARGET[:5], '5 examples'), (torch.full((8, 5), math.nan), 'nan')):
        with pytest.raises(SettingError, match=words):
            losses(target)
    assert math.isfinite(losses(many, bce_loss=True))


@pytest.mark.parametrize('layer', ['embedding', 'input'])
def test_class_weights_hold_on_steps_of_every_kind(layer: str) -> None:
    weight = torch.tensor([5.0, 1, 2, 0.5, 3])
    wrapped = model(ramp=0, prob=0.4, layer=layer, n='batch', class_weight=weight, label_smoothing=0.1)
    seen: list[torch.Tensor] = []

    def look(lam: LamSampler, y: torch.Tensor, logits: Optional[torch.Tensor]) -> torch.Tensor:
        seen.append(lam.draw(lam.positions, lam.n).transpose(0, 1))
        return seen[-1]

    wrapped.sampler = look
    logits: list[torch.Tensor] = []
    wrapped.fc.register_forward_hook(lambda module, args, out: logits.append(out))
    y = nn.functional.one_hot(TARGET, 5) * 0.9 + 0.02
    kinds = set()
    for _ in range(20):
        seen.clear(), logits.clear()
        out = wrapped(IMAGES, TARGET)
        kinds.add(out.mixed)
        if out.mixed != 'embeddings':
            continue
        clean = nn.functional.cross_entropy(out.logits, TARGET, weight=weight, label_smoothing=0.1)
        torch.testing.assert_close(out.signal['loss_clean'], clean.detach())
        lam = seen[0][:, 0]
        mixed = lam @ out.logits if layer == 'embedding' else logits[0][8:]
        want = -(weight * (lam @ y) * mixed.log_softmax(1)).sum() / (lam @ weight[TARGET]).sum()
        torch.testing.assert_close(out.signal['loss_mixed'], want.detach())
    assert {'embeddings', 'mixup', 'cutmix'} <= kinds
    with pytest.raises(SettingError, match='3 weights, but the model has 5 classes'):
        model(class_weight=(1, 2, 3))
    for bad in ((1, -1, 1, 1, 1), (0,) * 5, 'abc', (1, math.nan, 1, 1, 1)):
        with pytest.raises(SettingError, match='class_weight'):
            model(class_weight=bad)
    with pytest.raises(SettingError, match='no weighted mean'):
        model(class_weight=(1,) * 5, bce_loss=True)


@pytest.mark.parametrize('mode', ['elem', 'pair', 'batch'])
def test_images_of_half_precision_are_mixed_in_every_way(mode: str) -> None:
    mixup = Mixup(0.3, 1.0, num_classes=5, mode=mode)
    wrapped = model(prob=0.0, ramp=0, mixup_fn=mixup).to(torch.bfloat16)
    for _ in range(20):
        assert wrapped(IMAGES.bfloat16(), TARGET).loss.isfinite()


@pytest.mark.parametrize('layer', ['embedding', 'input'])
@pytest.mark.parametrize('prob', [0.0, 1.0])
def test_a_class_that_the_model_masks_is_as_if_it_were_not_there(layer: str, prob: float) -> None:
    wrapped = model(preset='embeddings', prob=prob, mixup=1.0 - prob, layer=layer, n='batch')
    with torch.no_grad():
        wrapped.fc.bias[4] = -math.inf
    for _ in range(4):
        out = wrapped(IMAGES, TARGET % 4)
        out.loss.backward()
        assert out.loss.isfinite() and out.loss < 5
    assert all(p.grad.isfinite().all() for p in wrapped.parameters())


def test_evaluation_compiles_once() -> None:
    torch._dynamo.reset()
    counters.clear()
    wrapped = model(ramp=0)
    compiled = torch.compile(wrapped, backend='eager')
    graphs = []
    for _ in range(6):
        wrapped.train()
        for _ in range(4):
            compiled(IMAGES, TARGET)
        wrapped.eval()
        compiled(IMAGES, TARGET)
        graphs.append(counters['stats']['unique_graphs'])
    assert graphs[2] == graphs[-1]


def test_the_page_on_changing_the_method_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r'```python\n(.*?)```', (ROOT / 'docs' / 'changing_the_method.md').read_text(), re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, Any] = {'torch': torch, 'timm': timm, 'timm_multimix': timm_multimix}
    exec(blocks[0], names)
    sampled = names['model'].train()
    sampled.policy.configure(sampled.multimix.config.replace(preset='embeddings', ramp=0.0))
    out = sampled(IMAGES, TARGET)
    assert out.mixed == 'embeddings' and 2 < float(out.signal['effective']) < 5 and torch.isfinite(out.loss)
    lam = names['half_of_one_example'](LamSampler(50, 2, 8, 0.1), torch.eye(8), torch.zeros(8, 2, 8))
    assert lam.shape == (50, 2, 8) and (lam.amax(-1) >= 0.5).all()
    torch.testing.assert_close(lam.sum(-1), torch.ones(50, 2))

    names['net'] = timm.create_model('test_resnet', num_classes=5)
    exec(blocks[1], names)
    names['model'].set_progress(0.2)
    assert {names['model'](IMAGES, TARGET).mixed for _ in range(10)} == {'nothing'}

    (tmp_path / 'my_module.py').write_text('import timm_multimix\n' + blocks[2])
    monkeypatch.chdir(tmp_path)
    command = ['--model', 'test_resnet', '--multimix', 'dense', '--multimix-task', 'my_module:Late', '-j', '0',
               '--output', str(tmp_path), '--experiment', 'x', '--warmup-epochs', '0', '-b', '6', '--img-size', '32',
               '--data-dir', str(write_images(tmp_path / 'images', per_class=24))]
    assert train.main([*command, '--epochs', '4']) == 0
    mixed = [int(row['train_unmixed']) for row in read_summary(tmp_path / 'x' / 'summary.csv')]
    assert mixed[0] > 0 and mixed[1:] == [0, 0, 0]
    assert train.main(['--resume', str(tmp_path / 'x'), '--epochs', '5']) == 0  # args.yaml says which task


@pytest.mark.parametrize('name, words', [
    ('nowhere:Late', "no module 'nowhere'"), ('timm_multimix:wrap', 'no subclass of timm_multimix.MultiMixTask'),
    ('timm_multimix', 'module:Class')])
def test_a_task_that_is_none(name: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(['--model', 'test_resnet', '--multimix-task', name, '--output', str(tmp_path)]) == 2
    assert words in capsys.readouterr().err
