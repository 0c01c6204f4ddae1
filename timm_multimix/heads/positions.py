"""Features → positions → embeddings → logits, for whatever timm puts at the end of a model.

One idea serves nearly all families: turn every position into an image of its own with a 1×1 feature map (or into a
sequence of one token, behind the image's prefix tokens) and apply the model's own head. Norms, MLPs and attention pools
in the head then act exactly as they would on a feature map with that one position.
"""
from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Optional, Union

import torch
import torch.nn as nn
from timm.layers import SpaceToDepth
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import REFUSALS, SettingError, in_words, reason
from .parts import Model, TimmAdapter


@dataclass(frozen=True)
class HeadInfo:
    """How one model ends. Made by `inspect_head`, read by `position_logits`; plain values, so copies stay valid.

    Attributes:
        layout: of the features: 'NCHW', 'NHWC' or 'NLC' (tokens).
        prefix: class, register or distillation tokens in front of the patch tokens.
        positions: P at the size that was tried.
        width: D, the embedding that the last linear layer takes.
        direct: `get_classifier()` applied to an embedding gives its logits, so the head need not run twice.
        bare: the embedding of a position is that position's feature itself: pooling, then the linear layer, with
            nothing in between that could change in training (a norm, dropout).
        batch_norms: names of BatchNorm layers that the head runs; they must not learn statistics from positions.
    """
    layout: str
    prefix: int
    positions: int
    width: int
    direct: bool
    bare: bool
    batch_norms: tuple[str, ...]


def classifier_leaves(model: Model) -> list[nn.Module]:
    """The linear layers that give the logits: usually one, several for distilled and multi-headed models.

    Raises:
        SettingError: the model has no linear classifier.
    """
    num_classes = getattr(model, 'num_classes', None)
    name = name_of(model)
    if not hasattr(model, 'get_classifier') or num_classes is None:
        if hasattr(model, 'feature_info'):  # FeatureListNet and its relatives
            raise SettingError(f'{name} is what features_only=True makes: it ends in feature maps and has no '
                               f'classifier. Create the model without features_only, or, if a network of your own is '
                               f'built on it, wrap that with parts=Parts(…).')
        raise SettingError(f'{name} is not a timm classifier (it has no get_classifier() or num_classes). Wrap what '
                           f'timm.create_model returns, or say how the network ends: wrap(…, parts=Parts(…)).')
    if num_classes < 1:
        raise SettingError(f'{name} has num_classes={num_classes}, so it ends in features, not in a classifier to mix '
                           f'for. Create it with num_classes=N, or call reset_classifier(N) before wrapping.')
    found = model.get_classifier()  # type: ignore[operator]
    heads = found if isinstance(found, (tuple, list)) else [found]
    leaves = [m for head in heads if isinstance(head, nn.Module) for m in head.modules() if _classes(m) == num_classes]
    if not leaves:
        raise SettingError(f'{name} has no linear classifier: get_classifier() holds no Linear or 1×1 convolution with '
                           f'{num_classes} outputs. Mixing embeddings needs one as the last layer.')
    return leaves


@torch.no_grad()
def check_affine(model: Model, input_size: Optional[tuple[int, ...]] = None) -> None:
    """Logits must be an affine map of what the last linear layer gives, or mixing them is not mixing embeddings.

    It is tried with values: the layer is made to give two rows and their mean, in its classifier alone and in the whole
    network. What cannot be run so is believed.

    Raises:
        SettingError: something not linear follows the layer, such as a Softmax.
    """
    found = model.get_classifier()  # type: ignore[operator]
    net: Any = model.net if isinstance(model, TimmAdapter) else model
    for head in found if isinstance(found, (tuple, list)) else [found]:
        linear = [m for m in head.modules() if _classes(m) is not None] if isinstance(head, nn.Module) else []
        if not linear or linear[0].weight.is_meta:  # type: ignore[union-attr]
            continue
        weight: Any = linear[0].weight
        embeddings = weight.new_ones(3, weight.shape[1], *[1] * (weight.ndim - 2))
        for module, input in ((head, lambda z=embeddings: z), (net, lambda: probe(model, input_size))):
            if module is linear[-1]:
                continue
            error = _bend(model, module, input, linear[-1])
            if not error <= 1e-2:
                inside = (f' ({type(head).__name__} ends in {type(list(head.modules())[-1]).__name__})'
                          if module is head else '')
                raise SettingError(
                    f'Mixing embeddings needs a linear last layer, but the logits of {name_of(model)} are no linear '
                    f'function of what its last Linear gives: something follows it, such as a Softmax or a Sigmoid'
                    f'{inside}. Remove it: the loss takes logits.')


def _bend(model: Model, module: Any, input: Callable[[], Tensor], leaf: nn.Module) -> float:
    """`leaf` is made to give two rows and their mean. How far a module's output for the mean is from the mean of its
    outputs for the two, relative to the rows; 0 where the module cannot be run."""
    given: list[Tensor] = []

    def two_and_their_mean(layer: nn.Module, args: Any, output: Tensor) -> Tensor:
        rows = 3 * torch.randn((2, *output.shape[1:]), generator=torch.Generator().manual_seed(0)).to(output)
        given.append(torch.cat([rows, rows.mean(0, keepdim=True)]))
        return given[-1]

    hook = leaf.register_forward_hook(two_and_their_mean)
    try:
        with evaluating(model):
            out = module(input())
    except REFUSALS:  # it takes more than embeddings, or than an image of this size
        return 0.0
    finally:
        hook.remove()
    if not given or not isinstance(out, Tensor) or len(out) != 3:
        return 0.0
    return float((out[2] - out[:2].mean(0)).abs().max() / given[0].abs().max())


def name_of(model: Model) -> str:
    return type(model.net if isinstance(model, TimmAdapter) else model).__name__


def _classes(module: nn.Module) -> Optional[int]:
    if isinstance(module, nn.Linear):
        return module.out_features
    return module.out_channels if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) else None


def switch_class_token(model: nn.Module) -> dict[str, Any]:
    """Make a class-token transformer pool its patch tokens instead, in place; the parameters stay the same.

    The final norm stays before the pool. Returns the arguments with which `timm.create_model` builds the same model,
    empty if there was nothing to switch.

    Raises:
        SettingError: timm has no arguments for that.
    """
    if getattr(model, 'global_pool', None) != 'token':
        return {}
    args: dict[str, Any] = {'global_pool': 'avg'}
    if hasattr(model, 'fc_norm'):  # else average pooling might bring a norm of its own, or move one: other keys
        taken = {name for c in type(model).__mro__ if '__init__' in vars(c)  # classes pass **kwargs on to their parents
                 for name in inspect.signature(vars(c)['__init__']).parameters}
        names = [name for name in ('fc_norm', 'use_fc_norm') if name in taken]
        if not names:
            raise SettingError(f"'dense' averages patch tokens, and this version of timm builds {name_of(model)} "
                               f"with other layers for that: create it with global_pool='avg' and wrap that.")
        args[names[0]] = not isinstance(model.fc_norm, nn.Identity)
    model.global_pool = 'avg'  # type: ignore[assignment]
    if hasattr(model, '_model_args'):  # timm ≥ 1.0.31 remembers how a model was made, for the Hub
        model._model_args = {**model._model_args, **args}  # type: ignore[assignment, dict-item]
    return args


def inspect_head(model: Model, input_size: Optional[tuple[int, ...]] = None) -> HeadInfo:
    """Find out how a model ends by running it once on one image, in eval mode; nothing about it changes.

    Args:
        model: a timm model with a classifier.
        input_size: (C, H, W) to try; by default what the model says it takes.

    Raises:
        SettingError: the model has no positions to mix at, with the reason and what to use instead.
    """
    name = name_of(model)
    instead = "Use 'multimix', which mixes pooled embeddings and needs no positions."
    if not hasattr(model, 'forward_features') or not hasattr(model, 'forward_head'):
        raise SettingError(f"'dense' needs forward_features() and forward_head(), which {name} lacks. {instead}")
    if next(model.parameters()).is_meta:
        raise SettingError(f"'dense' runs {name} once to see how it ends, which needs its weights: materialise it "
                           f"first (model.to_empty(device=…) and its weights), or use 'multimix'.")
    image = probe(model, input_size)
    with evaluating(model), torch.no_grad(), torch.autocast(image.device.type, enabled=False):
        try:
            features = model.forward_features(image)  # type: ignore[operator]
        except Exception as e:
            other = ', or give example=… of Parts, an input that it takes' if isinstance(model, TimmAdapter) else ''
            why = str(e).rstrip('.')
            raise in_words(f'{name} cannot take an image of {tuple(image.shape[1:])}: {why}. Choose another '
                           f'--img-size (input_size=(C, H, W) of wrap){other}.', e) from e
        if not isinstance(features, Tensor) or features.ndim not in (3, 4):
            what = f'a tensor of {tuple(features.shape)}' if isinstance(features, Tensor) else type(features).__name__
            raise SettingError(f"'dense' mixes features at every position, but {name}.forward_features() returns "
                               f'{what}. {instead}')
        layout = 'NLC' if features.ndim == 3 else getattr(model, 'output_fmt', 'NCHW')
        prefix = _prefix(model, features) if layout == 'NLC' else 0
        tokens = features.shape[1]
        if layout == 'NLC' and tokens <= (prefix if hasattr(model, 'num_prefix_tokens') else 1):
            raise SettingError(f"'dense' needs patch tokens, but {name} returns only its {tokens} class token(s). "
                               f'{instead}')
        # Random features from here on: a second norm looks like nothing on features that a first one made.
        generator = torch.Generator().manual_seed(0)
        features = (torch.randn(features.shape, generator=generator) * 2 + 0.5).to(features)
        _check_pooling(model, features, prefix, instead)
        return _try_head(model, features, layout, prefix, instead)


def probe(model: Model, input_size: Optional[tuple[int, ...]] = None) -> Tensor:
    """An image to try a model with, (1, C, H, W), on its device and of its dtype; or the example of its `Parts`."""
    parameter = next(model.parameters())
    example = model.parts.example if isinstance(model, TimmAdapter) else None
    if example is not None:
        return example.to(parameter.device, parameter.dtype if example.is_floating_point() else None)
    size = tuple(input_size) if input_size else input_size_of(model)
    image = torch.linspace(-1, 1, size[0] * size[1] * size[2], dtype=torch.float32)
    return image.view(1, *size).to(parameter.device, parameter.dtype)


def _prefix(model: Model, features: Tensor) -> int:
    """How many tokens stand in front of the patch tokens; where timm does not say, how many the pooling leaves out."""
    if hasattr(model, 'num_prefix_tokens'):
        return int(model.num_prefix_tokens)  # type: ignore[arg-type]
    for prefix in range(features.shape[1]):
        other = features.clone()
        other[:, prefix] += 1 + torch.arange(features.shape[2]).to(features)  # not a constant: a norm would hide it
        try:
            a, b = (model.forward_head(f, pre_logits=True) for f in (features, other))  # type: ignore[operator]
        except REFUSALS:  # `_try_head` tells
            return 0
        if not isinstance(a, Tensor) or not torch.equal(a, b):
            return prefix
    return 0


def _check_pooling(model: Model, features: Tensor, prefix: int, instead: str) -> None:
    """A head that ignores the patch tokens was not trained on them, and must not be applied to them."""
    if not prefix:
        return
    other = features.clone()
    other[:, prefix:] = 1 - other[:, prefix:]
    a, b = (model.forward_head(f, pre_logits=True) for f in (features, other))  # type: ignore[operator]
    if isinstance(a, Tensor) and torch.equal(a, b):
        raise SettingError(f"'dense' trains the classifier on patch tokens, but {name_of(model)} classifies its "
                           f'class token alone and could not be switched to average pooling. {instead}')


def _try_head(model: Model, features: Tensor, layout: str, prefix: int, instead: str) -> HeadInfo:
    fired: set[nn.Module] = set()
    hooks = [m.register_forward_hook(lambda m, *_: fired.add(m)) for m in model.modules()
             if isinstance(m, (_BatchNorm, nn.Dropout))]
    single = _single_positions(features, layout, prefix)
    try:
        logits = model.forward_head(single)  # type: ignore[operator]
        z = _flat(model.forward_head(single, pre_logits=True))  # type: ignore[operator]
    except Exception as e:
        why = reason(e).rstrip('.')
        if getattr(model, 'aux_head', None) is not None:  # VOLO adds the largest of its tokens' logits
            instead = f'Create it with use_aux_head=False, if it has that argument. {instead}'
        raise in_words(f"'dense' applies the model's head to one position at a time, but that of "
                       f'{name_of(model)} does not take one: {why}. {instead}', e) from e
    finally:
        for hook in hooks:
            hook.remove()
    if not isinstance(z, Tensor) or z.ndim != 2 or logits.shape != (len(single), model.num_classes):
        raise SettingError(f"'dense' applies the model's head to one position at a time, but that of "
                           f'{name_of(model)} returns embeddings {getattr(z, "shape", "?")} and logits '
                           f'{tuple(logits.shape)} for {len(single)} positions. {instead}')
    if not (z.isfinite().all() and logits.isfinite().all()):  # the mean of no tokens: a prefix that timm does not name
        raise SettingError(f"'dense' applies the model's head to one position at a time, but that of {name_of(model)} "
                           f'makes no numbers of one: its class token is not told apart from its patch tokens. '
                           f'{instead}')
    classifier = model.get_classifier()  # type: ignore[operator]
    norms = {m for m in fired if isinstance(m, _BatchNorm)}
    direct = False
    # A fresh BatchNorm is nearly the identity, so it is looked for, not felt: behind pre_logits it must be in there.
    if isinstance(classifier, nn.Module) and norms <= set(classifier.modules()):
        try:
            direct = _same(classifier(z), logits)
        except REFUSALS:  # not a layer for flat embeddings, such as a convolution
            direct = False
    dropout = any(isinstance(m, nn.Dropout) and m.p > 0 for m in fired)
    bare = direct and not norms and not dropout and _same(_channels_last(features, layout, prefix).flatten(0, 1), z)
    names = tuple(n for n, m in model.named_modules() if m in norms)
    return HeadInfo(layout, prefix, len(single), z.shape[1], direct, bare, names)


def look(model: Any, head_info: HeadInfo, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Optional[Tensor]]:
    """What a model makes of images: logits (B, C); of their positions embeddings (B, P, D) and logits (B, P, C); and
    which positions exist, (B, P), bool, where not all do."""
    features = model.forward_features(images)
    mask = model.mask_of(images) if isinstance(model, TimmAdapter) else None
    logits = model.forward_head(features) if mask is None else model.forward_head(features, mask=mask)
    return logits, *position_logits(model, head_info, features), mask


def position_logits(model: Model, head_info: HeadInfo, features: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings (B, P, D) and logits (B, P, C) of every position, by the model's own head."""
    B = features.shape[0]
    if head_info.bare and not getattr(model, 'drop_rate', 0):
        z = _channels_last(features, head_info.layout, head_info.prefix)
        return z, model.get_classifier()(z)  # type: ignore[operator]
    single = _single_positions(features, head_info.layout, head_info.prefix)
    with _frozen_statistics(model, head_info.batch_norms):
        z = _flat(model.forward_head(single, pre_logits=True))  # type: ignore[operator]
        logits = (model.get_classifier()(z) if head_info.direct  # type: ignore[operator]
                  else model.forward_head(single))  # type: ignore[operator]
    return z.unflatten(0, (B, -1)), logits.unflatten(0, (B, -1))


def _channels_last(features: Tensor, layout: str, prefix: int) -> Tensor:
    """(B, P, D), without prefix tokens."""
    if layout == 'NCHW':
        return features.flatten(2).transpose(1, 2)
    return features.flatten(1, 2) if layout == 'NHWC' else features[:, prefix:]


def _single_positions(features: Tensor, layout: str, prefix: int) -> Tensor:
    """Every position as a feature map of its own: (B·P, D, 1, 1), (B·P, 1, 1, D) or (B·P, prefix + 1, D)."""
    z = _channels_last(features, layout, prefix)
    P = z.shape[1]
    z = z.flatten(0, 1)
    if layout == 'NCHW':
        return z[:, :, None, None]
    if layout == 'NHWC':
        return z[:, None, None, :]
    return torch.cat([features[:, :prefix].repeat_interleave(P, 0), z[:, None]], 1) if prefix else z[:, None]


def _flat(z: Tensor) -> Tensor:
    return z.flatten(1) if isinstance(z, Tensor) and z.ndim == 4 else z


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a.float(), b.float(), rtol=1e-4, atol=1e-4)


def input_size_of(model: Model) -> tuple[int, ...]:
    cfg: dict[str, Any] = getattr(model, 'pretrained_cfg', None) or {}
    channels, height, width = cfg.get('input_size') or (3, 224, 224)
    first = cfg.get('first_conv')
    first = next(iter(first), None) if isinstance(first, (tuple, list)) else first
    try:
        layer = model.get_submodule(first) if first else None
    except AttributeError:
        layer = None
    if isinstance(layer, nn.Conv2d):
        channels = layer.in_channels
        for m in model.modules():
            if isinstance(m, SpaceToDepth):  # in front of it, TResNet makes channels of blocks of pixels
                channels //= m.bs ** 2
    fixed: Union[tuple[int, int], None] = getattr(getattr(model, 'patch_embed', None), 'img_size', None)
    return (channels, *fixed) if fixed else (channels, height, width)


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """Eval mode, and every module's own mode back afterwards (users freeze parts of their models)."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for m, mode in modes:
            m.training = mode


@contextmanager
def _frozen_statistics(model: Model, names: tuple[str, ...]) -> Iterator[None]:
    """BatchNorm in the head uses its running statistics: a batch of single positions has other ones."""
    norms = [m for m in (model.get_submodule(name) for name in names) if m.training]
    for m in norms:
        m.training = False
    try:
        yield
    finally:
        for m in norms:
            m.training = True
