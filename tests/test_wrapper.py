"""wrap and unwrap on real timm models: the same logits, the same keys."""
from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import timm
import torch
import torch.nn as nn

import timm_multimix
from tests.models import IMAGES, MODELS, TARGET, a_resnet, build, quiet_wrap
from timm_multimix import MixingPolicy, MultiMixConfig, SettingError, sample_lam, unwrap, wrap


def logits_in_both_modes(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """Train mode twice, so that what BatchNorm remembers shows as well; seeded, as stochastic depth draws."""
    torch.manual_seed(5)
    out = [model.train()(images), model(images * 2)]
    return out + [model.eval()(images)]


@pytest.mark.parametrize('mode', ['multimix', 'dense'])
@pytest.mark.parametrize('name', MODELS)
def test_logits_are_the_timm_models_to_the_bit(name: str, mode: str) -> None:
    model, images, target = build(name)
    wrapped = quiet_wrap(copy.deepcopy(model), mode)
    timm_name, args, _ = MODELS[name]
    plain = timm.create_model(timm_name, num_classes=5, **args, **wrapped.timm_args)
    plain.load_state_dict(model.state_dict())
    for a, b in zip(logits_in_both_modes(plain, images), logits_in_both_modes(wrapped, images)):
        assert torch.equal(a, b)
    assert torch.equal(wrapped.eval()(images, target).logits, wrapped(images))


@pytest.mark.parametrize('mode', ['multimix', 'dense'])
@pytest.mark.parametrize('name', MODELS)
def test_every_parameter_learns_and_weights_go_home(name: str, mode: str) -> None:
    model, images, target = build(name)
    model.train()
    nn.functional.cross_entropy(model(images), target).backward()
    used = {k for k, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    model.zero_grad()
    wrapped = quiet_wrap(model, mode)
    out = wrapped(images, target)
    out.loss.backward()
    assert torch.isfinite(out.loss) and out.logits.shape == (6, 5)
    assert set(out.signal) == {'effective', 'target_entropy', 'loss_mixed', 'loss_clean'}
    silent = [k for k, p in wrapped.named_parameters() if k in used and (p.grad is None or not p.grad.abs().sum())]
    assert not silent

    timm_name, args, _ = MODELS[name]
    fresh = timm.create_model(timm_name, num_classes=5, **args, **wrapped.timm_args).eval()
    fresh.load_state_dict(unwrap(wrapped).state_dict())
    assert torch.equal(fresh(images), wrapped.eval()(images))


def test_class_token_switch_is_said_aloud_and_documented() -> None:
    model, images, _ = build('vit_small')
    before = model.eval()(images)
    with pytest.warns(UserWarning, match=r"averages them.*global_pool='avg', fc_norm=False"):
        wrapped = wrap(model, 'dense')
    assert wrapped.timm_args == {'global_pool': 'avg', 'fc_norm': False}
    tokens = model.forward_features(images)[:, 1:]
    torch.testing.assert_close(wrapped(images), model.head(tokens.mean(1)))
    assert not torch.equal(before, wrapped(images))


def test_multimix_leaves_the_class_token_alone() -> None:
    model, images, _ = build('vit_small')
    before = model.eval()(images)
    wrapped = wrap(model, 'multimix')
    assert wrapped.timm_args == {} and torch.equal(wrapped.eval()(images), before)


def test_a_failed_wrap_leaves_the_model_as_it_was() -> None:
    model = timm.create_model('deit_tiny_distilled_patch16_224', num_classes=5, img_size=32)
    with pytest.raises(SettingError, match="class token alone.*Use 'multimix'"):
        wrap(model, 'dense')
    assert model.global_pool == 'token'
    assert getattr(model, '_model_args', {}).get('global_pool') is None
    assert torch.isfinite(quiet_wrap(model, 'multimix')(torch.randn(4, 3, 32, 32), torch.arange(4)).loss)
    vit, other = (timm.create_model('test_vit', num_classes=classes) for classes in (5, 7))
    for settings, words in (({'teacher': other}, 'The teacher has 7 classes, but the model has 5'),
                            ({'ramp': 0.3, 'schedule': lambda progress: 1.0}, 'schedule says')):
        with pytest.raises(SettingError, match=words):
            wrap(vit, 'dense', **settings)
        assert vit.global_pool == 'token'


def test_wrapping_before_or_after_loading_weights() -> None:
    model, images, _ = build('vit averaged')
    weights = {k: v + 0.01 for k, v in model.state_dict().items()}
    after = quiet_wrap(model, 'dense')
    after.load_state_dict(weights)
    model2, _, _ = build('vit averaged')
    model2.load_state_dict(weights)
    before = quiet_wrap(model2, 'dense')
    assert torch.equal(after.eval()(images), before.eval()(images))


def test_names_are_the_timm_models_own() -> None:
    model, _, _ = build('resnet')
    wrapped = quiet_wrap(model, 'dense')
    parent = nn.Sequential(wrapped)
    assert list(parent.state_dict()) == ['0.' + k for k in model.state_dict()]
    assert [k for k, _ in parent.named_parameters()] == ['0.' + k for k, _ in model.named_parameters()]
    other = nn.Sequential(quiet_wrap(build('resnet')[0], 'multimix'))
    assert not other.load_state_dict(parent.state_dict()).missing_keys
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), parent.parameters()))
    assert wrapped.num_classes == 5 and wrapped.pretrained_cfg is model.pretrained_cfg  # timm's attributes too
    with pytest.raises(AttributeError, match='nonsense'):
        wrapped.nonsense  # noqa: B018
    with pytest.raises(RuntimeError, match='Unexpected key'):
        wrapped.load_state_dict({**wrapped.state_dict(), 'x': torch.zeros(1)})


def test_wrapping_a_half_precision_model() -> None:
    model, images, target = build('vit class token')
    assert torch.isfinite(quiet_wrap(model.bfloat16(), 'dense')(images.bfloat16(), target).loss)


def test_channels_last_and_gradient_checkpointing() -> None:
    model, images, target = build('resnet')
    wrapped = quiet_wrap(model, 'dense').eval()
    lam = sample_lam(20, 4, 6, 1.0)
    want = wrapped(images, target, lam=lam).loss
    wrapped.to(memory_format=torch.channels_last)
    wrapped.set_grad_checkpointing(True)
    got = wrapped(images.contiguous(memory_format=torch.channels_last), target, lam=lam).loss
    got.backward()
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_torch_compile() -> None:
    model, images, target = build('resnet')
    wrapped = quiet_wrap(model, 'dense').eval()
    compiled = torch.compile(wrapped, backend='aot_eager')
    torch.testing.assert_close(compiled(images), wrapped(images))
    lam = sample_lam(20, 4, 6, 1.0)
    got, want = compiled(images, target, lam=lam), wrapped(images, target, lam=lam)
    torch.testing.assert_close(got.loss, want.loss)
    got.loss.backward()
    assert unwrap(compiled) is model


def test_wrapping_changes_nothing_but_the_pooling() -> None:
    model, images, _ = build('batch norm in the head')
    model.train()
    model.stem.eval()  # a user who froze part of it
    modes = [m.training for m in model.modules()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(3)
    want = torch.rand(2)
    torch.manual_seed(3)
    quiet_wrap(model, 'dense')
    assert torch.equal(torch.rand(2), want), 'wrapping used random numbers'
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_batch_norm_in_the_head_sees_pooled_features_only() -> None:
    model, images, target = build('batch norm in the head')
    twin = copy.deepcopy(model)
    twin.train()(images)
    quiet_wrap(model, 'dense').train()(images, target)
    for (name, a), b in zip(model.named_buffers(), twin.buffers()):
        assert torch.equal(a, b), name


@pytest.mark.parametrize('name', ['repvit_m0_9', 'efficientvit_m0', 'levit_128s'])
def test_batch_norm_inside_the_classifier(name: str) -> None:
    """Positions pass through it with its running statistics, whatever those were when the model was wrapped."""
    torch.manual_seed(1)
    side = 224 if name != 'repvit_m0_9' else 64
    model = timm.create_model(name, num_classes=5)
    fresh = quiet_wrap(copy.deepcopy(model), 'dense')
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    fresh.load_state_dict(model.state_dict())
    trained = quiet_wrap(model, 'dense')
    images, target = torch.randn(2, 3, side, side), torch.tensor([0, 1])
    losses = []
    for wrapped in (fresh, trained):
        state = copy.deepcopy(wrapped.state_dict())
        wrapped.train()(images, target).loss.backward()  # runs in train mode
        wrapped.load_state_dict(state)
        losses.append(wrapped.eval()(images, target, generator=torch.Generator().manual_seed(0)).loss)
    torch.testing.assert_close(*losses)
    assert not fresh.head_info.bare


@pytest.mark.parametrize('name, kwargs', [
    ('vit_small_patch16_rope_224', dict(depth=1, img_size=32)), ('test_vit', dict(global_pool='token', fc_norm=True)),
    ('beit_base_patch16_224', dict(depth=1, img_size=32, global_pool='token')), ('xcit_nano_12_p16_224', {}),
])
def test_arguments_that_build_the_switched_model_again(name: str, kwargs: dict) -> None:
    model = timm.create_model(name, num_classes=5, **kwargs)
    if 'beit' in name and 'use_fc_norm' not in inspect.signature(type(model).__init__).parameters:
        with pytest.raises(SettingError, match="create it with global_pool='avg'"):  # timm 1.0.27
            wrap(model, 'dense')
        return
    wrapped = quiet_wrap(model, 'dense').eval()
    again = timm.create_model(name, num_classes=5, **{**kwargs, **wrapped.timm_args}).eval()
    again.load_state_dict(wrapped.state_dict())
    side = kwargs.get('img_size', 160 if name == 'test_vit' else 224)
    images = torch.randn(2, 3, side, side)
    assert torch.equal(again(images), wrapped(images))


def test_a_zero_head_is_no_obstacle() -> None:
    model, images, target = build('vit averaged')
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    assert torch.isfinite(quiet_wrap(model, 'dense')(images, target).loss)


def test_setting_attributes_reaches_the_timm_model() -> None:
    model, images, _ = build('resnet')
    wrapped = quiet_wrap(model, 'dense')
    wrapped.fc = nn.Linear(96, 3)
    wrapped.num_classes = 3
    assert wrapped(images).shape == (6, 3) and model.num_classes == 3
    timm.utils.freeze(wrapped, 'bn1')
    assert not any(p.requires_grad for p in model.bn1.parameters())
    assert wrapped.multimix.config.n == 20 and 'config' not in vars(model)


def test_reset_classifier_inspects_anew() -> None:
    model, images, _ = build('vit_small')
    wrapped = quiet_wrap(model, 'dense')
    wrapped.reset_classifier(3, global_pool='token')
    assert model.global_pool == 'avg' and wrapped.timm_args == {'global_pool': 'avg', 'fc_norm': False}
    assert wrapped(images, torch.tensor([0, 1, 2, 0, 1, 2])).logits.shape == (6, 3)
    with pytest.raises(SettingError, match='no classifier'):
        wrapped.reset_classifier(0)


def test_compiled_models_are_wrapped_first() -> None:
    with pytest.raises(SettingError, match='Wrap it first'):
        wrap(torch.compile(build('resnet')[0]), 'multimix')


@pytest.mark.parametrize('name, kwargs, mode, words', [
    ('test_resnet', dict(num_classes=0), 'multimix', 'num_classes=0'),
    ('crossvit_tiny_240', dict(num_classes=5), 'dense', "returns list.*Use 'multimix'"),
    ('pit_ti_224', dict(num_classes=5), 'dense', "Use 'multimix'"),
])
def test_models_that_cannot(name: str, kwargs: dict, mode: str, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        wrap(timm.create_model(name, **kwargs), mode)


def test_what_is_not_a_timm_classifier() -> None:
    with pytest.raises(SettingError, match='not a timm classifier'):
        wrap(nn.Linear(3, 4))
    model = timm.create_model('test_resnet', num_classes=5)
    model.fc = nn.Sequential(nn.ReLU())
    with pytest.raises(SettingError, match='no linear classifier'):
        wrap(model, 'multimix')
    with pytest.raises(SettingError, match='wrapped already'):
        wrap(wrap(timm.create_model('test_resnet', num_classes=5)))
    with pytest.raises(SettingError, match='Did you mean dense'):
        wrap(timm.create_model('test_resnet', num_classes=5), 'dens')


def test_config_object_and_keywords() -> None:
    config = MultiMixConfig('dense', n=7)
    assert wrap(build('resnet')[0], config).multimix.config is config
    changed = wrap(build('resnet')[0], config, attention='cam')
    assert changed.multimix.config == MultiMixConfig('dense', n=7, attention='cam')


@pytest.mark.parametrize('mode', ['multimix', 'dense'])
@pytest.mark.parametrize('last', [torch.sigmoid, lambda x: x.softmax(1), lambda x: 2 * x + 1])
def test_what_follows_outside_the_classifier(last: Any, mode: str) -> None:
    plain = timm.create_model('test_resnet', num_classes=4)

    class Own(type(plain)):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return last(super().forward(x))  # type: ignore[no-any-return]

    plain.__class__ = Own
    if last(torch.zeros(1, 2)).sum() == 2:  # affine
        wrap(plain, mode)
        return
    with pytest.raises(SettingError, match='Mixing embeddings needs a linear last layer'):
        wrap(plain, mode)


@pytest.mark.parametrize('mode', ['multimix', 'dense'])
@pytest.mark.parametrize('last', [nn.Softmax(1), nn.Sigmoid(), nn.LogSoftmax(1), nn.ReLU()])
def test_a_head_whose_last_layer_is_not_linear_is_refused(mode: str, last: nn.Module) -> None:
    model = timm.create_model('test_resnet', num_classes=4)
    model.fc = nn.Sequential(nn.Linear(model.num_features, 4), last)
    with pytest.raises(SettingError, match=f'needs a linear last layer.*ends in {type(last).__name__}'):
        wrap(model, mode)
    model.fc = nn.Sequential(nn.Linear(model.num_features, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 4))
    assert wrap(model, mode).training


@pytest.mark.parametrize('mode', ['multimix', 'dense'])
def test_a_softmax_in_the_forward_of_ones_own_network_is_refused(mode: str) -> None:
    class Net(nn.Module):
        def __init__(self, soft: bool) -> None:
            super().__init__()
            self.conv, self.fc, self.soft = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 5), soft

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.fc(self.conv(x).mean((2, 3)))
            return x.softmax(-1) if self.soft else x

    parts = timm_multimix.Parts(lambda net, x: net.conv(x), lambda net, f: f.mean((2, 3)), 'fc')
    with pytest.raises(SettingError, match='needs a linear last layer'):
        wrap(Net(True), mode, parts=parts, input_size=(3, 32, 32))
    assert wrap(Net(False), mode, parts=parts, input_size=(3, 32, 32)).training


@pytest.mark.parametrize('arguments, words', [
    ({'model': 'resnet18'}, "model is 'resnet18', but it must be a network"), ({'model': None}, 'model is None'),
    ({'policy': MixingPolicy(None, 5)}, 'a subclass of MixingPolicy'), ({'sampler': 5}, 'sampler is 5, but')])
def test_arguments_of_another_kind(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        wrap(**{'model': timm.create_model('test_resnet', num_classes=5), **arguments})


@pytest.mark.parametrize('lam, words', [
    (torch.rand(8, 1, 8) * 3, 'lam (holds|has a row)'), (-torch.rand(8, 1, 8), 'lam holds'),
    (sample_lam(8, 3, 8), 'lam must be'), (sample_lam(8, 1, 7), 'lam must be'),
    (sample_lam(20, 1, 8), 'lam has 20 mixtures, but .* one for each of the 8 images')])
def test_a_lam_for_another_layer_is_looked_at(lam: torch.Tensor, words: str) -> None:
    model = a_resnet(preset='manifold', layer=1, n='batch')
    with pytest.raises(SettingError, match=words):
        model(IMAGES, TARGET, lam=lam)
