"""What must hold for every timm model, whatever it ends in; and the smallest model of every module."""
from __future__ import annotations

import functools
import math
import warnings
from typing import Any, Optional

import timm
import torch
import torch.nn as nn
import torch.nn.functional as F

import timm_multimix
from timm_multimix import MultiMixConfig, SettingError, sample_lam
from timm_multimix.heads import classifier_leaves
from timm_multimix.mixing import reference

CLASSES, BATCH, TUPLES = 5, 3, 6


# Models of billions of operations at any size they come in: fewer layers and pixels, the same ending.
CUT: dict[str, dict[str, Any]] = {
    'deepseek_vit': dict(depth=2, img_size=112), 'gemma4_vit': dict(depth=2, img_size=96),
    'qwen3_vit': dict(depth=2, img_size=64)}


def unbuilt(name: str) -> Optional[nn.Module]:
    """A model on the meta device, which costs nothing; None for the few that compute with weights on being built."""
    try:
        with torch.device('meta'), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            return timm.create_model(name, num_classes=CLASSES)
    except Exception:
        return None


@functools.cache
def smallest(module: str) -> Optional[str]:
    """The model of a timm module that is the least work, by parameters times pixels, of those that keep a classifier
    when they are asked for one (encoders for language models do not); None for a module without models."""
    best: Optional[tuple[bool, float, str]] = None
    for name in timm.list_models(module=module):
        model = unbuilt(name)
        work = math.inf
        if model is not None:
            work = sum(p.numel() for p in model.parameters()) * math.prod(model.pretrained_cfg['input_size'])
        found = (model is not None and model.num_classes == 0, work, name)
        best = min(best or found, found)
    return best[2] if best else None


def refused_unbuilt(name: str) -> Optional[str]:
    """Why a model cannot be mixed at all, found without building its weights; None for a model that may be."""
    model = unbuilt(name)
    if model is None:
        return None
    try:
        timm_multimix.wrap(model, 'multimix')
    except SettingError as e:
        return str(e)
    return None


def build(name: str, cut: dict[str, Any]) -> tuple[nn.Module, tuple[int, ...]]:
    """A model, cut down, whose BatchNorm statistics are not those of a fresh one, and an image size that is quick."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        model = timm.create_model(name, num_classes=CLASSES, **cut)
    generator = torch.Generator().manual_seed(1)
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None:
            m.running_mean += 0.1 * torch.randn(m.running_mean.shape, generator=generator)
            m.running_var *= 1 + 0.5 * torch.rand(m.running_var.shape, generator=generator)
    for leaf in classifier_leaves(model):  # zero-initialised classifiers (volo, xcit, …) would pass on no gradient
        if not leaf.weight.any():
            leaf.weight.data.normal_(std=0.02, generator=generator)
    cfg = model.pretrained_cfg
    native = tuple(cfg['input_size'])
    if 'img_size' in cut:
        return model, (native[0], cut['img_size'], cut['img_size'])
    free = not cfg.get('fixed_input_size') and not hasattr(model, 'patch_embed')
    for size in ((native[0], 64, 64), (native[0], 128, 128)) if free else ():
        if size[1] >= native[1]:
            break
        try:
            with torch.no_grad():
                if torch.isfinite(model.eval()(torch.randn(2, *size))).all() and \
                        model.forward_features(torch.randn(2, *size)).numel() > 2 * model.num_features:
                    return model, size
        except Exception:
            continue
    return model, native


def plain_grads(model: nn.Module, images: torch.Tensor, target: torch.Tensor) -> set[str]:
    """Names of the parameters that ordinary training of the model reaches, by more than rounding: a bias before a
    BatchNorm has a gradient of zero, which some CPUs round to something else."""
    model.zero_grad()
    F.cross_entropy(model(images), target).backward()
    sizes = {n: float(p.grad.abs().max()) for n, p in model.named_parameters() if p.grad is not None}
    found = {n for n, size in sizes.items() if size > 1e-7 * max(sizes.values())}
    model.zero_grad()
    return found


def literal(model: nn.Module, config: MultiMixConfig, images: torch.Tensor, target: torch.Tensor,
            lam: torch.Tensor, single: Any) -> torch.Tensor:
    """The mixed loss by the literal equations, each position by itself through the model's own head (eval mode)."""
    features = model.forward_features(images)
    Y = F.one_hot(target, CLASSES).to(images.dtype)
    if not config.dense:
        L = model.forward_head(features)
        return reference.multimix_loss(L, Y, lam[:, 0], torch.eye(CLASSES, dtype=L.dtype), torch.zeros(()))
    positions = single(features)
    Z = torch.stack([model.forward_head(p, pre_logits=True).flatten(1) for p in positions], 1)
    L = torch.stack([model.forward_head(p) for p in positions], 1)
    a = reference.l1_relu(reference.gap_scores(Z))
    return reference.dense_multimix_loss(L, Y, lam, a, torch.eye(CLASSES, dtype=L.dtype), torch.zeros(()))


def positions_of(features: torch.Tensor, layout: str, prefix: int) -> list[torch.Tensor]:
    """Feature maps of one position each."""
    if layout == 'NCHW':
        return [features[:, :, i:i + 1, j:j + 1] for i in range(features.shape[2]) for j in range(features.shape[3])]
    if layout == 'NHWC':
        return [features[:, i:i + 1, j:j + 1] for i in range(features.shape[1]) for j in range(features.shape[2])]
    front = features[:, :prefix]
    return [torch.cat([front, features[:, i:i + 1]], 1) for i in range(prefix, features.shape[1])]


def check(name: str, mode: str, **cut: Any) -> Optional[str]:
    """The contract, for a model created with the arguments `cut`. Returns why it is refused, or None when it holds.

    Raises:
        AssertionError: it does not.
    """
    why = refused_unbuilt(name)
    if why:
        return why
    model, size = build(name, cut)
    model.eval()
    images = torch.randn(BATCH, *size)
    target = torch.arange(BATCH)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        before = model(images)
        try:
            wrapped = timm_multimix.wrap(
                model, mode, preset='embeddings', n=TUPLES, effective=1.5, clean_weight=0.0, input_size=size)
        except SettingError as e:
            assert torch.equal(model(images), before), 'a refused model has changed'
            return str(e)
        kwargs = wrapped.timm_args
        plain = model(images)
        assert kwargs or torch.equal(plain, before), 'wrapping changed the model'
        assert torch.equal(wrapped(images), plain), 'logits of the wrapped model in eval mode'
        head_info = wrapped.head_info
        P = head_info.positions if head_info else 1
        lam = sample_lam(TUPLES, P, BATCH, wrapped.multimix.config.alpha_range(BATCH))
        out = wrapped(images, target, lam=lam)
        assert torch.allclose(out.logits, plain, atol=1e-5), 'logits beside the loss'
        want = literal(model, wrapped.multimix.config, images, target, lam,
                       lambda f: positions_of(f, head_info.layout, head_info.prefix))
        assert torch.allclose(out.loss, want, rtol=2e-4, atol=1e-5), f'loss {out.loss} is not the literal {want}'

        model.train()
        torch.manual_seed(3)
        bare = model(images)
        torch.manual_seed(3)
        assert torch.equal(wrapped(images), bare), 'logits of the wrapped model in train mode'
        torch.manual_seed(3)
        expected = plain_grads(model, images, target)
        torch.manual_seed(3)
        out = wrapped(images, target)
        assert out.loss.isfinite(), 'loss in train mode'
        out.loss.backward()
        missing = {n for n, p in model.named_parameters() if n in expected
                   and (p.grad is None or not p.grad.abs().max() > 0)}
        assert not missing, f'no gradient for {sorted(missing)[:5]}'
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters()), 'gradient not finite'
        with torch.autocast('cpu', torch.bfloat16):
            assert wrapped(images, target).loss.isfinite(), 'loss under autocast'

        fresh = timm.create_model(name, num_classes=CLASSES, **cut, **kwargs).eval()
        fresh.load_state_dict(timm_multimix.unwrap(wrapped).state_dict())
        model.eval()
        assert torch.equal(fresh(images), model(images)), 'logits of a fresh model with the trained weights'
        try:
            wrapped.reset_classifier(0)
        except SettingError:
            return None
        raise AssertionError('reset_classifier(0) was taken')
