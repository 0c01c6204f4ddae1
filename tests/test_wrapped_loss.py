"""The loss of wrapped timm models is the paper's, whatever the target, precision or batch."""
from __future__ import annotations

import copy
import warnings
from typing import Optional, Union

import pytest
import timm
import torch
import torch.nn as nn

from tests.models import build, quiet_wrap
from timm_multimix import SettingError, attention, sample_lam, unwrap, wrap
from timm_multimix.heads.layers import layer_name, output_of
from timm_multimix.mixing import extensions, reference


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
    want = reference.dense_multimix_loss(Z, extensions.smooth(Y, 0.1), lam, a, W, beta)
    clean = nn.functional.cross_entropy(Z.mean(1) @ W.t() + beta, target, label_smoothing=0.1)
    torch.testing.assert_close(out.signal['loss_mixed'], want.detach(), rtol=1e-10, atol=0)
    torch.testing.assert_close(out.loss, (want + 0.5 * clean) / 1.5, rtol=1e-10, atol=0)


def test_multimix_step_is_the_paper() -> None:
    model, images, target = build('convnext')
    wrapped = quiet_wrap(model.double(), 'multimix', clean_weight=0.0).eval()
    lam = sample_lam(20, 1, 6, 1.0, dtype=torch.float64)
    Z = model.forward_head(model.forward_features(images.double()), pre_logits=True)
    want = reference.multimix_loss(Z, nn.functional.one_hot(target, 5).double(), lam[:, 0],
                                   model.head.fc.weight, model.head.fc.bias)
    torch.testing.assert_close(wrapped(images.double(), target, lam=lam).loss, want, rtol=1e-10, atol=0)


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
    compiled = torch.compile(wrapped, backend='eager')
    torch.testing.assert_close(compiled(images, target, lam=lam).loss, want, rtol=1e-4, atol=1e-4)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.isfinite(wrapped.train()(images, target).loss)


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


def test_seeded_draws_repeat() -> None:
    model, images, target = build('resnet')
    wrapped = quiet_wrap(model, 'dense').eval()
    losses = [wrapped(images, target, generator=torch.Generator().manual_seed(s)).loss.item() for s in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]
    want = sample_lam(20, 4, 6, wrapped.multimix.config.alpha_range(6), torch.Generator().manual_seed(1))
    assert wrapped(images, target, lam=want).loss.item() == losses[0]


def test_soft_targets_are_taken_as_they_are() -> None:
    model, images, target = build('resnet')
    hard = nn.functional.one_hot(target, 5).float()
    wrapped = quiet_wrap(model, 'dense', label_smoothing=0.1).eval()
    lam = sample_lam(20, 4, 6, 1.0)
    soft = wrapped(images, extensions.smooth(hard, 0.1), lam=lam)
    torch.testing.assert_close(soft.loss, wrapped(images, target, lam=lam).loss)


@pytest.mark.parametrize('rare', [1.0, 1e-3])
def test_pooled_embeddings_mix_alike_by_either_name(rare: float) -> None:
    """What is pooled is what the classifier sees, smoothed labels of a class that weighs next to nothing and all."""
    lam, target, found = sample_lam(6, 1, 6, 0.3, dtype=torch.float64), torch.tensor([0, 0, 0, 0, 0, 1]), []
    net, images, _ = build('resnet')
    for layer in ('embedding', 'global_pool'):
        model = quiet_wrap(copy.deepcopy(net).double(), 'multimix', preset='embeddings', n='batch', layer=layer,
                           clean_weight=0.0, label_smoothing=0.1, class_weight=[rare, 1.0, 1.0, 1.0, 1.0])
        found.append(model.eval()(images.double(), target, lam=lam).loss)
    torch.testing.assert_close(*found)


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
    for given, y in ((soft, soft), (target, extensions.smooth(nn.functional.one_hot(target, 5).float(), 0.1))):
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
def test_cam_with_soft_targets_under_autocast(dtype: torch.dtype) -> None:
    model, images, _ = build('vit averaged')
    wrapped = quiet_wrap(model, 'dense', attention='cam')
    with torch.autocast('cpu', dtype=dtype):
        assert torch.isfinite(wrapped(images, torch.rand(6, 5).softmax(1)).loss)


@pytest.mark.parametrize('name', ['vit averaged', 'swin', 'resnet', 'convnext'])
def test_head_dropout_reaches_the_positions(name: str) -> None:
    model, images, target = build(name, drop_rate=0.5)
    wrapped = quiet_wrap(model, 'dense', clean_weight=0.0).train()
    lam = sample_lam(20, wrapped.head_info.positions if name == 'vit averaged' else 4, 6, 1.0)
    assert wrapped(images, target, lam=lam).loss.item() != wrapped(images, target, lam=lam).loss.item()


def test_last_batch_of_one() -> None:
    model, images, target = build('vit averaged')
    out = quiet_wrap(model, 'dense')(images[:1], target[:1])
    assert torch.isfinite(out.loss)


def test_own_loop_is_told_when_there_is_no_signal() -> None:
    model, images, target = build('resnet')
    wrapped = wrap(model, 'multimix', preset='paper', prob=1.0)
    with pytest.warns(UserWarning, match='Nothing will be learned'):
        wrapped(images.repeat(8, 1, 1, 1), target.repeat(8))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        wrapped(images, target)  # once is enough


def test_own_loop_is_told_of_a_single_position() -> None:
    model = timm.create_model('test_resnet', num_classes=5)
    with pytest.warns(UserWarning, match='one position'):
        wrap(model, 'dense', preset='embeddings')(torch.randn(4, 3, 32, 32), torch.arange(4))


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
