"""Mixing elsewhere than at the embedding: the input, a stage, any module."""
from __future__ import annotations

import copy

import pytest
import timm
import torch
import torch.nn.functional as F

import timm_multimix
from timm_multimix import MultiMixConfig, Parts, SettingError, sample_lam
from timm_multimix.heads.layers import layer_name, stages


def resnet() -> torch.nn.Module:
    return timm.create_model('test_resnet', num_classes=5).double().eval()


def test_the_input_is_mixed_literally() -> None:
    model, images, target = resnet(), torch.randn(4, 3, 64, 64).double(), torch.arange(4)
    lam = sample_lam(4, 1, 4, 0.5, dtype=torch.float64)
    wrapped = timm_multimix.wrap(model, 'multimix', preset='embeddings', layer='input', clean_weight=0.0)
    out = wrapped(images, target, lam=lam)
    mixed = torch.einsum('kb,bchw->kchw', lam[:, 0], images)
    want = F.cross_entropy(model(mixed), lam[:, 0] @ torch.eye(5).double()[target])
    torch.testing.assert_close(out.loss, want)
    assert 'loss_clean' not in out.signal and out.signal['effective'] > 1


@pytest.mark.parametrize('layer', [1, '1', 'layer2', 'layer3'])
@pytest.mark.parametrize('n', [4, 9])
def test_a_stage_is_mixed_literally_and_clean_images_go_beside(layer: object, n: int) -> None:
    model, images, target = resnet(), torch.randn(4, 3, 64, 64).double(), torch.arange(4)
    name = layer_name(model, layer)  # type: ignore[arg-type]
    twin = copy.deepcopy(model)
    lam = sample_lam(n, 1, 4, 0.5, dtype=torch.float64)
    wrapped = timm_multimix.wrap(model, 'multimix', preset='embeddings', layer=layer, clean_weight=0.5)
    out = wrapped(images, target, lam=lam)
    out.loss.backward()

    x = twin.maxpool(twin.act1(twin.bn1(twin.conv1(images))))
    for stage in ('layer1', 'layer2', 'layer3', 'layer4'):
        x = getattr(twin, stage)(x)
        if stage == name:
            x = torch.einsum('kb,bchw->kchw', lam[:, 0], x)
    Y = torch.eye(5).double()[target]
    want = (F.cross_entropy(twin.forward_head(x), lam[:, 0] @ Y) + 0.5 * F.cross_entropy(twin(images), Y)) / 1.5
    want.backward()
    torch.testing.assert_close(out.loss, want)
    torch.testing.assert_close(out.logits, twin(images))
    for p, q in zip(model.parameters(), twin.parameters()):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-6, atol=1e-10)
    assert torch.equal(wrapped(images), model(images)) and not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize('given, mixtures', [({}, 4), ({'n': 9}, 9)])
def test_as_many_mixtures_as_images_or_as_n_says(given: dict[str, int], mixtures: int) -> None:
    rows: list[int] = []
    wrapped = timm_multimix.wrap(resnet(), 'multimix', preset='embeddings', layer='layer3', **given).train()
    wrapped.layer4.register_forward_hook(lambda module, args, out: rows.append(len(out)))
    out = wrapped(torch.randn(4, 3, 64, 64).double(), torch.arange(4))
    assert rows == [4 + mixtures] and out.logits.shape == (4, 5)


@pytest.mark.parametrize('name', [
    'test_vit', 'test_convnext', 'test_efficientnet', 'levit_128s', 'swin_tiny_patch4_window7_224'])
def test_every_stage_of_other_families(name: str) -> None:
    model = timm.create_model(name, num_classes=5).eval()
    size = model.pretrained_cfg['input_size']
    images, target = torch.randn(2, *size), torch.tensor([1, 3])
    with torch.no_grad():
        for stage in range(len(stages(model))):
            out = timm_multimix.wrap(model, 'multimix', preset='embeddings', layer=stage)(images, target)
            assert out.loss.isfinite() and torch.allclose(out.logits, model(images), atol=1e-4)


def test_the_deepest_layer_is_the_embedding_up_to_the_pool() -> None:
    """What lies behind the last stage of a ResNet is linear, so its mixtures are those of the embedding."""
    model, images, target = resnet(), torch.randn(4, 3, 64, 64).double(), torch.arange(4)
    lam = sample_lam(4, 1, 4, 0.5, dtype=torch.float64)
    losses = [timm_multimix.wrap(model, 'multimix', preset='embeddings', layer=layer)(images, target, lam=lam).loss
              for layer in ('layer4', 'embedding')]
    torch.testing.assert_close(*losses)


def test_one_of_several_is_drawn_each_step() -> None:
    model = resnet().float()
    wrapped = timm_multimix.wrap(model, 'multimix', preset='embeddings', layer=['input', 0, 'embedding'], n=20).train()
    images, target = torch.randn(4, 3, 64, 64), torch.arange(4)
    lam = sample_lam(4, 1, 4, 0.5)
    losses = {round(float(wrapped(images, target, lam=lam).loss.detach()), 5) for _ in range(30)}
    assert len(losses) == 3
    assert wrapped.multimix.config.to_dict()['layer'] == ['input', 0, 'embedding']
    assert MultiMixConfig.from_dict(wrapped.multimix.config.to_dict()) == wrapped.multimix.config


def test_mixing_runs_in_half_precision_and_with_parts() -> None:
    wrapped = timm_multimix.wrap(
        timm.create_model('test_resnet', num_classes=5), 'multimix', preset='embeddings', layer=2).train()
    with torch.autocast('cpu', torch.bfloat16):
        loss = wrapped(torch.randn(4, 3, 64, 64), torch.arange(4)).loss
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 4, 4), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(64, 5))
    parts = Parts(lambda net, x: net[1](net[0](x)), lambda net, f: net[2](f), '3')
    assert timm_multimix.wrap(net, 'multimix', preset='embeddings', layer='1', parts=parts)(
        torch.randn(4, 3, 16, 16), torch.arange(4)).loss.isfinite()


@pytest.mark.parametrize('settings, words', [
    (dict(layer='layer9'), "no such module. Did you mean layer4"), (dict(layer=7), 'stages 0 to 4'),
    (dict(layer=[]), 'layer .--multimix-layer. is'), (dict(layer=-1), '--multimix-layer'),
    (dict(mode='dense', layer='input'), 'only --multimix multimix')])
def test_bad_layers(settings: dict, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        timm_multimix.wrap(resnet(), MultiMixConfig(**{'mode': 'multimix', **settings}))


def test_layers_that_do_not_run_or_give_no_tensor() -> None:
    model = timm.create_model('resnet18', num_classes=5)
    model.unused = torch.nn.Linear(2, 2)
    with pytest.raises(SettingError, match="'unused', but that module of ResNet does not run"):
        timm_multimix.wrap(model, 'multimix', preset='embeddings', layer='unused')(
            torch.randn(2, 3, 32, 32), torch.arange(2))


class Shared(torch.nn.Module):
    """Its activation runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.act = torch.nn.Linear(6, 8), torch.nn.Linear(8, 8), torch.nn.ReLU()
        self.fc = torch.nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.act(self.two(self.act(self.one(x)))))


def test_a_branch_or_a_shared_module_is_no_place_to_mix() -> None:
    vit = timm.create_model('test_vit', num_classes=5)
    for model, layer in ((resnet().train(), 'layer3.0.conv1'), (vit, 'blocks.1.attn')):
        with pytest.raises(SettingError, match=f"is '{layer}', but .* a branch beside others"):
            timm_multimix.wrap(model, 'multimix', preset='manifold', layer=layer)
        assert not any(m._forward_hooks for m in model.modules()) and model.training
    parts = Parts(lambda net, x: net.act(net.two(net.act(net.one(x))))[:, None], lambda net, f: f[:, 0], 'fc',
                  layout='NLC', example=torch.randn(1, 6))
    with pytest.raises(SettingError, match='runs more than once'):
        timm_multimix.wrap(Shared(), 'multimix', preset='manifold', layer='act', parts=parts)
    timm_multimix.wrap(Shared(), 'multimix', preset='manifold', layer='one', parts=parts)


@pytest.mark.parametrize('name, layer', [
    ('test_vit', 'blocks.0'), ('test_resnet', 2), ('test_efficientnet', 3), ('test_convnext', 'stages.1.blocks.0')])
def test_not_with_gradient_checkpointing(name: str, layer: object) -> None:
    model = timm.create_model(name, num_classes=5)
    wrapped = timm_multimix.wrap(model, 'multimix', preset='manifold', layer=layer)
    images, target = torch.randn(4, *model.pretrained_cfg['input_size']), torch.arange(4)
    assert wrapped(images, target).loss.isfinite()
    model.set_grad_checkpointing(True)
    with pytest.raises(SettingError, match='which gradient checkpointing'):
        wrapped(images, target)
    with pytest.raises(SettingError, match='which gradient checkpointing'):
        timm_multimix.wrap(model, 'multimix', preset='manifold', layer=layer)


@pytest.mark.parametrize('settings', [
    dict(preset='regmixup'), dict(preset='manifold', layer=2), dict(layer='input', tuples='within'),
    dict(preset='manifold', layer=['input', 1]), dict(preset='manifold', layer=[1, 2, 'embedding'])])
def test_a_compiled_network_takes_batches_of_other_sizes(settings: dict) -> None:
    torch._dynamo.reset()
    model = timm.create_model('test_resnet', num_classes=5)
    compiled = torch.compile(timm_multimix.wrap(model, 'multimix', **{'preset': 'embeddings', **settings}),
                             backend='eager')
    for batch in (6, 6, 6, 5, 5, 4):
        loss = compiled(torch.randn(batch, 3, 64, 64), torch.arange(batch) % 5).loss
        loss.backward()
        assert loss.isfinite()


@pytest.mark.parametrize('name, layer', [('test_vit', 'patch_embed'), ('test_resnet', 'act1'), ('test_convnext', 2)])
def test_gradient_checkpointing_of_other_layers(name: str, layer: object) -> None:
    model = timm.create_model(name, num_classes=5)
    wrapped = timm_multimix.wrap(model, 'multimix', preset='manifold', layer=layer)
    images, target, lam = torch.randn(4, *model.pretrained_cfg['input_size']), torch.arange(4), sample_lam(4, 1, 4, 1.0)
    grads = []
    for again in (False, True):
        model.set_grad_checkpointing(again)
        torch.manual_seed(0)
        grads.append(torch.autograd.grad(wrapped(images, target, lam=lam).loss, list(model.parameters())))
    for one, other in zip(*grads):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
