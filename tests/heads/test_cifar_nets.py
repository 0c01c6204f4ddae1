"""The paper's networks for small images: counted by hand, computed again by hand, and good citizens of timm."""
from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.data import resolve_model_data_config
from timm.optim import create_optimizer_v2
from torch import Tensor

import timm_multimix
from tests import forked
from timm_multimix.hub import save_plain

NETS = {'preactresnet18': dict(stem=64, depths=(2, 2, 2, 2), widths=(64, 128, 256, 512), side=4),
        'wideresnet16_8': dict(stem=16, depths=(2, 2, 2), widths=(128, 256, 512), side=8)}


def counted(stem: int, depths: tuple[int, ...], widths: tuple[int, ...], classes: int) -> int:
    """Weights of 3×3 and 1×1 convolutions without biases, two numbers a channel for each norm, and the linear layer."""
    total, c = 3 * stem * 9, stem
    for stage, (depth, width) in enumerate(zip(depths, widths)):
        for block in range(depth):
            total += 2 * c + c * width * 9 + 2 * width + width * width * 9
            total += c * width if c != width or (stage and not block) else 0
            c = width
    return total + 2 * c + c * classes + classes


@pytest.mark.parametrize('name, classes, published', [
    ('preactresnet18', 10, 11.17e6), ('preactresnet18', 200, 11.27e6), ('wideresnet16_8', 10, 10.96e6),
    ('wideresnet16_8', 100, 11.01e6)])
def test_parameters(name: str, classes: int, published: float) -> None:
    net = NETS[name]
    model = timm.create_model(name, num_classes=classes)
    found = sum(p.numel() for p in model.parameters())
    assert found == counted(net['stem'], net['depths'], net['widths'], classes)  # type: ignore[arg-type]
    assert abs(found - published) < 0.005e6
    kernels = [m.kernel_size for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    if name == 'preactresnet18':  # 18 layers with the linear one, without shortcuts; WRN-16 counts all convolutions
        assert kernels.count((3, 3)) + 1 == 18
    else:
        assert len(kernels) == 16 and kernels.count((1, 1)) == 3


def by_hand(state: dict[str, Tensor], depths: tuple[int, ...], x: Tensor) -> tuple[Tensor, Tensor]:
    """Features and logits in eval mode, from the weights alone: BN, ReLU, convolution, twice, and the shortcut."""
    def act(x: Tensor, name: str) -> Tensor:
        mean, var, w, b = (state[f'{name}.{k}'][:, None, None] for k in (
            'running_mean', 'running_var', 'weight', 'bias'))
        return ((x - mean) / (var + 1e-5).sqrt() * w + b).relu()

    x = F.conv2d(x, state['stem.weight'], padding=1)
    for stage, depth in enumerate(depths):
        for i in range(depth):
            block, stride = f'stages.{stage}.{i}', 2 if stage and not i else 1
            a = act(x, f'{block}.norm1')
            projection = state.get(f'{block}.downsample.conv.weight')
            shortcut = x if projection is None else F.conv2d(a, projection, stride=stride)
            a = F.conv2d(a, state[f'{block}.conv1.weight'], stride=stride, padding=1)
            x = shortcut + F.conv2d(act(a, f'{block}.norm2'), state[f'{block}.conv2.weight'], padding=1)
    x = act(x, 'norm')
    return x, x.mean((2, 3)) @ state['head.fc.weight'].T + state['head.fc.bias']


def warm(name: str, **kwargs: object) -> torch.nn.Module:
    """A model whose norms have seen something."""
    model = timm.create_model(name, **kwargs)
    for m in model.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(m.weight, 0.5, 1.5)
            torch.nn.init.normal_(m.bias, std=0.1)
            torch.nn.init.normal_(m.running_mean, std=0.1)  # type: ignore[arg-type]
            torch.nn.init.uniform_(m.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    return model.eval()


@pytest.mark.parametrize('name', NETS)
def test_equals_the_equations(name: str) -> None:
    model, x = warm(name).double(), torch.randn(2, 3, 32, 32).double()
    features, logits = by_hand(model.state_dict(), NETS[name]['depths'], x)  # type: ignore[arg-type]
    side = NETS[name]['side']
    assert features.shape == (2, 512, side, side)
    torch.testing.assert_close(model.forward_features(x), features)
    torch.testing.assert_close(model(x), logits)
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), features.mean((2, 3)))


def test_positions_at_64_pixels() -> None:
    model = timm.create_model('preactresnet18', num_classes=200)
    assert model.forward_features(torch.randn(1, 3, 64, 64)).shape == (1, 512, 8, 8)


@pytest.mark.parametrize('name', NETS)
def test_is_a_timm_model(name: str) -> None:
    assert name in timm.list_models(name) and timm.is_model(name)
    model, x = warm(name, num_classes=7, in_chans=1, drop_rate=0.5, drop_path_rate=0.1), torch.randn(2, 1, 32, 32)
    assert model(x).shape == (2, 7) and model.num_features == model.head_hidden_size == 512
    data = resolve_model_data_config(model)
    assert data['input_size'][1:] == (32, 32) and data['crop_pct'] == 1 and data['mean'] == (0.4914, 0.4822, 0.4465)
    assert model.pretrained_cfg['architecture'] == name and model.get_classifier() is model.head.fc
    assert not torch.equal(model.train()(x), model(x))  # dropout is on
    model.eval().reset_classifier(5)
    assert model.num_classes == model.get_classifier().out_features == 5 and model(x).shape == (2, 5)
    model.reset_classifier(0, '')
    assert model(x).shape == model.forward_features(x).shape
    with pytest.raises(RuntimeError, match='No pretrained weights'):
        timm.create_model(name, pretrained=True)
    ids = {g['lr_scale'] for g in create_optimizer_v2(timm.create_model(name), 'adamw', layer_decay=0.5).param_groups}
    assert len(ids) >= sum(NETS[name]['depths'])  # type: ignore[arg-type]


@pytest.mark.parametrize('name', NETS)
def test_feature_maps(name: str) -> None:
    net, x = NETS[name], torch.randn(1, 3, 32, 32)
    model = warm(name)
    shapes = [(1, net['stem'], 32, 32)] + [
        (1, width, 32 // 2 ** i, 32 // 2 ** i) for i, width in enumerate(net['widths'])]  # type: ignore[arg-type]
    maps = timm.create_model(name, features_only=True)
    assert [tuple(f.shape) for f in maps(x)] == shapes
    assert maps.feature_info.channels() == [s[1] for s in shapes]
    assert maps.feature_info.reduction() == [32 // s[2] for s in shapes]
    features, found = model.forward_intermediates(x, norm=True)
    assert [tuple(f.shape) for f in found] == shapes
    assert torch.equal(features, model.forward_features(x)) and torch.equal(features, found[-1])
    early = model.forward_intermediates(x, indices=[0, 2], stop_early=True, intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(early, (found[0], found[2]), strict=True))
    pruned = copy.deepcopy(model)
    assert pruned.prune_intermediate_layers([1]) == [1] and torch.equal(pruned(x), found[1])


def test_checkpointing_and_scripting_change_nothing() -> None:
    a = timm.create_model('wideresnet16_8')
    b, x = copy.deepcopy(a), torch.randn(2, 3, 16, 16)
    b.set_grad_checkpointing()
    for m in (a, b):
        m(x).square().sum().backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(a.parameters(), b.parameters()))
    assert torch.allclose(torch.jit.script(a.eval())(x), a(x), atol=1e-6)


@pytest.mark.parametrize('name', NETS)
def test_mixes_at_its_positions(name: str) -> None:
    model = timm_multimix.wrap(timm.create_model(name, num_classes=5), 'dense', n=10)
    head_info = model.head_info
    assert head_info is not None and head_info.positions == NETS[name]['side'] ** 2 and head_info.bare  # type: ignore[operator]
    out = model(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3]))
    out.loss.backward()
    assert out.loss.isfinite() and model.stem.weight.grad.abs().sum() > 0
    staged = timm_multimix.wrap(timm.create_model(name, num_classes=5), 'multimix', layer=(0, 2))
    assert staged(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])).loss.isfinite()


def test_plain_timm_loads_it_after_one_import(tmp_path: Path) -> None:
    folder = save_plain(warm('wideresnet16_8', num_classes=3), tmp_path / 'model')
    assert json.loads((folder / 'config.json').read_text())['architecture'] == 'wideresnet16_8'
    load = f"timm.create_model('local-dir:{folder}', pretrained=True)"
    code = (f'import timm\ntry:\n    {load}\nexcept RuntimeError as e:\n    print(e)\n'
            f'import timm_multimix\nprint({load}.num_classes)')
    done = forked.run('-c', code, bare=True)
    without, with_us = done.stdout.splitlines()
    assert 'Unknown model' in without and with_us == '3', done.stderr
