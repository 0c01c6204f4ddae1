"""wrap and unwrap on real timm models: the same logits, the same keys, the paper's loss."""
from __future__ import annotations

import copy
import inspect
import warnings
from typing import Any, Optional, Union

import pytest
import timm
import torch
import torch.nn as nn

from timm_multimix import MultiMixConfig, MultiMixModel, SettingError, attention, sample_lam, unwrap, wrap
from timm_multimix.backbones.depth import layer_name, output_of
from timm_multimix.mixing import reference

# timm's name, arguments, image side
MODELS: dict[str, tuple[str, dict[str, Any], int]] = {
    'vit class token': ('test_vit', {}, 160),
    'vit averaged': ('test_vit2', {}, 160),
    'vit attention pool': ('test_vit3', {}, 160),
    'vit_small': ('vit_small_patch16_224', {'img_size': 32, 'depth': 2}, 32),
    'resnet': ('test_resnet', {}, 64),
    'resnet18': ('resnet18', {'output_stride': 8}, 32),
    'convnext': ('test_convnext', {}, 64),
    'swin': ('swin_tiny_patch4_window7_224', {'img_size': 64, 'depths': (1, 1, 1, 1)}, 64),
    'nhwc mlp head': ('test_mambaout', {}, 64),
    'conv head': ('mobilenetv3_small_050', {}, 64),
    'batch norm in the head': ('efficientvit_b0', {}, 64),
}


def build(name: str, **kwargs: Any) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    timm_name, args, side = MODELS[name]
    model = timm.create_model(timm_name, num_classes=5, **args, **kwargs)
    return model, torch.randn(6, 3, side, side), torch.tensor([0, 1, 2, 3, 4, 0])


def quiet_wrap(model: nn.Module, *args: Any, **kwargs: Any) -> MultiMixModel:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return wrap(model, *args, **{'n': 20, **kwargs})


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


def test_one_step_is_the_paper_resnet() -> None:
    """The wrapped model's loss and gradients against the literal equations on the timm model's own features."""
    model, images, target = build('resnet18')
    twin = copy.deepcopy(model).double().eval()
    wrapped = quiet_wrap(model.double(), 'dense', clean_weight=0.0).eval()
    images = images.double()
    lam = sample_lam(20, 16, 6, (0.5, 2.0), dtype=torch.float64)
    out = wrapped(images, target, lam=lam)
    out.loss.backward()

    Z = twin.forward_features(images).flatten(2).transpose(1, 2)
    a = reference.l1_relu(reference.gap_scores(Z.detach()))
    Y = nn.functional.one_hot(target, 5).double()
    loss = reference.dense_multimix_loss(Z, Y, lam, a, twin.fc.weight, twin.fc.bias)
    loss.backward()
    torch.testing.assert_close(out.loss, loss, rtol=1e-10, atol=0)
    for (name, p), q in zip(wrapped.named_parameters(), twin.parameters()):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-8, atol=1e-10, msg=name)


@pytest.mark.parametrize('kind', ['gap', 'cam', 'uniform'])
def test_one_step_is_the_paper_vit(kind: str) -> None:
    model, images, target = build('vit_small')
    wrapped = quiet_wrap(model.double(), 'dense', clean_weight=0.5, attention=kind, label_smoothing=0.1).eval()
    lam = sample_lam(20, 4, 6, 0.1, dtype=torch.float64)
    out = wrapped(images.double(), target, lam=lam)
    Z = model.forward_features(images.double())[:, 1:]
    W, beta = model.head.weight, model.head.bias
    Y = nn.functional.one_hot(target, 5).double()
    scores = {'gap': lambda: reference.gap_scores(Z), 'cam': lambda: reference.cam_scores(Z, Y, W)}
    a = torch.full((6, 4), 0.25).double() if kind == 'uniform' else reference.l1_relu(scores[kind]())
    want = reference.dense_multimix_loss(Z, reference.smooth(Y, 0.1), lam, a, W, beta)
    clean = nn.functional.cross_entropy(Z.mean(1) @ W.t() + beta, target, label_smoothing=0.1)
    torch.testing.assert_close(out.signal['loss_mixed'], want.detach(), rtol=1e-10, atol=0)
    torch.testing.assert_close(out.loss, (want + 0.5 * clean) / 1.5, rtol=1e-10, atol=0)


@pytest.mark.parametrize('detach', [True, False])
def test_self_attention_weights_by_what_the_last_block_looks_at(detach: bool) -> None:
    model, images, target = build('vit_small')
    wrapped = quiet_wrap(model.double(), 'dense', attention='self', clean_weight=0.0, attention_detach=detach)
    layer = model.blocks[-1].attn
    seen: list[torch.Tensor] = []
    hook = layer.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    lam = sample_lam(20, 4, 6, 0.1, dtype=torch.float64)
    got = wrapped(images.double(), target, lam=lam).loss
    hook.remove()
    assert layer.fused_attn  # only while it was read
    q, k, _ = layer.qkv(seen[0]).view(6, 5, 3, layer.num_heads, -1).permute(2, 0, 3, 1, 4)
    looks = (q @ k.transpose(-1, -2) * layer.scale).softmax(-1).mean(1)
    a = looks[:, 1:, 1:].mean(1)  # of patches, at patches
    a = a / a.sum(1, keepdim=True)
    Z = model.forward_features(images.double())[:, 1:]
    want = reference.dense_multimix_loss(
        Z, nn.functional.one_hot(target, 5).double(), lam, a.detach() if detach else a, model.head.weight,
        model.head.bias)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=0)
    weight = layer.qkv.weight
    for one, other in zip(*(torch.autograd.grad(loss, [weight, model.head.weight]) for loss in (got, want))):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-12)


def test_self_attention_where_it_cannot_be_read() -> None:
    with pytest.raises(SettingError, match="'self'.*ResNet has none that can be read. Use 'gap'"):
        quiet_wrap(build('resnet')[0], 'dense', attention='self')
    model, images, target = build('swin')  # a window of the last stage is all of it, until images are larger
    wrapped = quiet_wrap(model, 'dense', attention='self')
    assert torch.isfinite(wrapped(images, target).loss)
    model, images, target = build('vit_small')
    wrapped = quiet_wrap(model, 'dense', attention='self')
    wrapped.set_grad_checkpointing(True)
    with pytest.raises(SettingError, match='--grad-checkpointing'):
        wrapped(images, target)
    wrapped.set_grad_checkpointing(False)
    torch.manual_seed(0)
    want = wrapped.eval()(images, target, lam=(lam := sample_lam(20, 4, 6, 1.0))).loss
    compiled = torch.compile(wrapped, backend='aot_eager')
    torch.testing.assert_close(compiled(images, target, lam=lam).loss, want, rtol=1e-4, atol=1e-4)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.isfinite(wrapped.train()(images, target).loss)


def test_multimix_step_is_the_paper() -> None:
    model, images, target = build('convnext')
    wrapped = quiet_wrap(model.double(), 'multimix', clean_weight=0.0).eval()
    lam = sample_lam(20, 1, 6, 1.0, dtype=torch.float64)
    Z = model.forward_head(model.forward_features(images.double()), pre_logits=True)
    want = reference.multimix_loss(Z, nn.functional.one_hot(target, 5).double(), lam[:, 0],
                                   model.head.fc.weight, model.head.fc.bias)
    torch.testing.assert_close(wrapped(images.double(), target, lam=lam).loss, want, rtol=1e-10, atol=0)


def test_positions_pass_through_norms_in_the_head_one_by_one() -> None:
    model, images, target = build('convnext')
    wrapped = quiet_wrap(model.double(), 'dense', clean_weight=0.0).eval()
    features = model.forward_features(images.double())
    Z = model.head.norm(features.flatten(2).transpose(1, 2)[..., None, None].flatten(0, 1)).flatten(1).view(6, -1, 64)
    lam = sample_lam(20, Z.shape[1], 6, 0.5, dtype=torch.float64)
    a = reference.l1_relu(reference.gap_scores(Z))
    want = reference.dense_multimix_loss(Z, nn.functional.one_hot(target, 5).double(), lam, a,
                                         model.head.fc.weight, model.head.fc.bias)
    torch.testing.assert_close(wrapped(images.double(), target, lam=lam).loss, want, rtol=1e-10, atol=0)


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
    assert list(wrapped.state_dict()) == list(model.state_dict())
    assert [k for k, _ in wrapped.named_parameters()] == [k for k, _ in model.named_parameters()]
    assert [k for k, _ in wrapped.named_buffers()] == [k for k, _ in model.named_buffers()]
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


def test_copies_are_independent() -> None:
    model, images, target = build('vit class token')
    wrapped = quiet_wrap(model, 'dense').eval()
    twin = copy.deepcopy(wrapped)
    lam = sample_lam(20, 100, 6, 1.0)
    assert torch.equal(twin(images, target, lam=lam).loss, wrapped(images, target, lam=lam).loss)
    with torch.no_grad():
        next(twin.parameters()).add_(1)
    assert not torch.equal(twin(images), wrapped(images))


def test_seeded_draws_repeat() -> None:
    model, images, target = build('resnet')
    wrapped = quiet_wrap(model, 'dense').eval()
    losses = [wrapped(images, target, generator=torch.Generator().manual_seed(s)).loss.item() for s in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]
    want = sample_lam(20, 4, 6, wrapped.config.alpha_range(6), torch.Generator().manual_seed(1))
    assert wrapped(images, target, lam=want).loss.item() == losses[0]


def test_soft_targets_are_taken_as_they_are() -> None:
    model, images, target = build('resnet')
    hard = nn.functional.one_hot(target, 5).float()
    wrapped = quiet_wrap(model, 'dense', label_smoothing=0.1).eval()
    lam = sample_lam(20, 4, 6, 1.0)
    soft = wrapped(images, reference.smooth(hard, 0.1), lam=lam)
    assert torch.equal(soft.loss, wrapped(images, target, lam=lam).loss)


def test_mixtures_keep_their_length_on_request() -> None:
    model, images, target = build('resnet')
    lam = sample_lam(6, 1, 6, 1.0)
    out = quiet_wrap(model, 'multimix', keep_norm=True).eval()(images, target, lam=lam)
    mixed = lam[:, 0] @ model(images) / lam[:, 0].norm(dim=1, keepdim=True)
    y = nn.functional.one_hot(target, 5).float()
    want = (nn.functional.cross_entropy(mixed, lam[:, 0] @ y) + nn.functional.cross_entropy(model(images), y)) / 2
    torch.testing.assert_close(out.loss, want)


@pytest.mark.parametrize('layer', ['embedding', 0])
@pytest.mark.parametrize('thresh, total', [(None, False), (0.2, True)])
def test_binary_cross_entropy(layer: Union[str, int], thresh: Optional[float], total: bool) -> None:
    model, images, target = build('resnet')
    soft = torch.tensor([[0.5, 0.3, 0.2, 0, 0]] * 3 + [[0, 0, 0.9, 0, 0.1]] * 3)
    wrapped = quiet_wrap(model, 'multimix', bce_loss=True, bce_sum=total, bce_target_thresh=thresh, layer=layer,
                         clean_weight=0.5, label_smoothing=0.1).eval()
    lam = sample_lam(6, 1, 6, 1.0)
    bce = nn.functional.binary_cross_entropy_with_logits
    for given, y in ((soft, soft), (target, reference.smooth(nn.functional.one_hot(target, 5).float(), 0.1))):
        if thresh is not None:
            y = (y > thresh).float()
        out = wrapped(images, given, lam=lam)
        scale = 5 if total else 1
        if layer == 'embedding':
            mixed = lam[:, 0] @ model(images)
        else:
            with output_of(model, layer_name(model, layer), lambda x: torch.einsum('nb,bchw->nchw', lam[:, 0], x)):
                mixed = model(images)
        want = (bce(mixed, lam[:, 0] @ y) + 0.5 * bce(model(images), y)) / 1.5 * scale
        torch.testing.assert_close(out.loss, want)
        assert 0 < out.signal['target_entropy'] <= 1


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_low_precision(dtype: torch.dtype) -> None:
    model, images, target = build('resnet')
    wrapped = quiet_wrap(model, 'dense')
    with torch.autocast('cpu', dtype=dtype):
        out = wrapped(images, target)
    assert out.loss.dtype == torch.float32 and torch.isfinite(out.loss)
    out.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in wrapped.parameters())
    low = wrapped.to(dtype)
    out = low.eval()(images.to(dtype), target)
    assert out.loss.dtype == torch.float32 and out.logits.dtype == dtype and torch.isfinite(out.loss)
    assert next(unwrap(low).parameters()).dtype == dtype


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
    assert not fresh.ending.bare


@pytest.mark.parametrize('name', ['vit averaged', 'swin', 'resnet', 'convnext'])
def test_head_dropout_reaches_the_positions(name: str) -> None:
    model, images, target = build(name, drop_rate=0.5)
    wrapped = quiet_wrap(model, 'dense', clean_weight=0.0).train()
    lam = sample_lam(20, wrapped.ending.positions if name == 'vit averaged' else 4, 6, 1.0)
    assert wrapped(images, target, lam=lam).loss.item() != wrapped(images, target, lam=lam).loss.item()


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


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_cam_with_soft_targets_under_autocast(dtype: torch.dtype) -> None:
    model, images, _ = build('vit averaged')
    wrapped = quiet_wrap(model, 'dense', attention='cam')
    with torch.autocast('cpu', dtype=dtype):
        assert torch.isfinite(wrapped(images, torch.rand(6, 5).softmax(1)).loss)


def test_setting_attributes_reaches_the_timm_model() -> None:
    model, images, _ = build('resnet')
    wrapped = quiet_wrap(model, 'dense')
    wrapped.fc = nn.Linear(96, 3)
    wrapped.num_classes = 3
    assert wrapped(images).shape == (6, 3) and model.num_classes == 3
    timm.utils.freeze(wrapped, 'bn1')
    assert not any(p.requires_grad for p in model.bn1.parameters())
    assert wrapped.config.n == 20 and 'config' not in vars(model)


def test_reset_classifier_inspects_anew() -> None:
    model, images, _ = build('vit_small')
    wrapped = quiet_wrap(model, 'dense')
    wrapped.reset_classifier(3, global_pool='token')
    assert model.global_pool == 'avg' and wrapped.timm_args == {'global_pool': 'avg', 'fc_norm': False}
    assert wrapped(images, torch.tensor([0, 1, 2, 0, 1, 2])).logits.shape == (6, 3)
    with pytest.raises(SettingError, match='no classifier'):
        wrapped.reset_classifier(0)


def test_mode_of_the_model_is_kept() -> None:
    assert not quiet_wrap(build('resnet')[0].eval(), 'dense').training
    assert quiet_wrap(build('resnet')[0], 'dense').training


def test_compiled_models_are_wrapped_first() -> None:
    with pytest.raises(SettingError, match='Wrap it first'):
        wrap(torch.compile(build('resnet')[0]), 'multimix')


def test_m_larger_than_the_batch() -> None:
    model, images, target = build('resnet')
    with pytest.raises(SettingError, match=r'm \(--multimix-m\) is 7, but a batch of 6'):
        quiet_wrap(model, 'dense', m=7)(images, target)


def test_last_batch_of_one() -> None:
    model, images, target = build('vit averaged')
    out = quiet_wrap(model, 'dense')(images[:1], target[:1])
    assert torch.isfinite(out.loss)


def test_targets_outside_the_classes() -> None:
    model, images, _ = build('resnet')
    with pytest.raises(SettingError, match='class 5, but the model has the 5 classes 0 to 4'):
        quiet_wrap(model, 'multimix')(images, torch.tensor([0, 1, 2, 3, 4, 5]))


def test_own_loop_is_told_when_there_is_no_signal() -> None:
    model, images, target = build('resnet')
    wrapped = wrap(model, 'multimix', preset='paper')
    with pytest.warns(UserWarning, match='Nothing will be learned'):
        wrapped(images.repeat(8, 1, 1, 1), target.repeat(8))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        wrapped(images, target)  # once is enough


def test_own_loop_is_told_of_a_single_position() -> None:
    model = timm.create_model('test_resnet', num_classes=5)
    with pytest.warns(UserWarning, match='one position'):
        wrap(model, 'dense')(torch.randn(4, 3, 32, 32), torch.arange(4))


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
    assert wrap(build('resnet')[0], config).config is config
    assert wrap(build('resnet')[0], config, attention='cam').config == MultiMixConfig('dense', n=7, attention='cam')


def test_attention_gradient_flows_only_when_asked() -> None:
    model, images, target = build('resnet')
    grads = []
    for detach in (True, False):
        wrapped = quiet_wrap(copy.deepcopy(model), 'dense', attention_detach=detach, clean_weight=0.0).eval()
        wrapped(images, target, generator=torch.Generator().manual_seed(0)).loss.backward()
        grads.append(wrapped.conv1[0].weight.grad.clone() if isinstance(wrapped.conv1, nn.Sequential)
                     else wrapped.conv1.weight.grad.clone())
    assert not torch.allclose(*grads)


def test_public_attention_is_what_the_model_uses() -> None:
    model, images, _ = build('resnet18')
    model.eval()
    a = attention(model.forward_features(images).flatten(2).transpose(1, 2))
    assert a.shape == (6, 16)
