"""`wrap` and `unwrap`: a timm model that also knows its MultiMix loss."""
from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple, Optional, Union

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.utils.model import unwrap_model
from torch import Tensor

from .backbones import (
    Ending,
    InTimmsWords,
    Parts,
    classifier_leaves,
    inspect_ending,
    position_logits,
    switch_class_token,
)
from .backbones.depth import layer_name, output_of
from .backbones.self_attention import attended, last_attention, recorded
from .backbones.split import evaluating, probe
from .config import MultiMixConfig
from .errors import SettingError
from .mixing import LamSampler, attention, mixed_cross_entropy, sample_lam, signal
from .mixing.loss import soft_target
from .mixing.ranks import agree, gather, rank, share_of, world
from .mixing.signal import signal_warning


class MultiMixOutput(NamedTuple):
    """What a wrapped model returns when it is given targets.

    Attributes:
        loss: scalar to call `backward()` on: (mixed loss + clean_weight · clean loss) / (1 + clean_weight). float32.
        logits: (B, C), of the clean images; of the mixed ones when `layer` is not the embedding and `clean_weight` 0.
        signal: scalars on the device, detached: 'effective' and 'target_entropy' (see `mixing.signal`), 'loss_mixed',
            'loss_clean'.
    """
    loss: Tensor
    logits: Tensor
    signal: dict[str, Tensor]


class MultiMixModel(nn.Module):
    """A timm model with the MultiMix loss beside it. Made by `wrap`.

    Without targets it *is* the timm model: the same logits to the bit, in train and eval mode. Its parameters,
    state_dict keys and attributes are the timm model's own.
    """

    def __init__(
            self, model: nn.Module, config: MultiMixConfig, input_size: Optional[tuple[int, ...]] = None,
            parts: Optional[Parts] = None) -> None:
        super().__init__()
        if hasattr(model, '_orig_mod'):
            raise SettingError('This model is compiled already. Wrap it first, then torch.compile the wrapped model.')
        self.parts = parts
        self.model = model
        classifier_leaves(self.in_timms_words)
        self.config = config
        self.input_size = input_size
        self.timm_args: dict[str, Any] = {}
        self.ending: Optional[Ending] = None
        self.attending: Optional[str] = None  # the layer whose attention is 'self'
        self.needs_first_check = True
        self.training = model.training
        self.register_load_state_dict_pre_hook(_load_inside_a_parent)
        self.multimix_layers = {layer: layer_name(model, layer) for layer in config.layers if layer != 'embedding'}
        if config.dense:
            self._make_dense()

    @property
    def in_timms_words(self) -> Any:
        """What answers to `forward_features`, `forward_head` and `get_classifier`: the model, or its `Parts`."""
        return self.model if self.parts is None else InTimmsWords(self.model, self.parts)

    def _make_dense(self) -> None:
        model = self.in_timms_words
        before = {k: getattr(model, k) for k in ('global_pool', '_model_args') if hasattr(model, k)}
        args = switch_class_token(model) if self.parts is None else {}
        try:
            self.ending = inspect_ending(model, self.input_size)
            leaves = classifier_leaves(model)
            if self.config.attention == 'cam' and not (
                    len(leaves) == 1 and self._cam_weight().shape[1] == self.ending.width):
                raise SettingError(f"attention 'cam' (--multimix-attention) weights features by the classifier's row "
                                   f'of a class, but {type(self.model).__name__} has no single linear classifier on '
                                   f"its embedding. Use 'gap'.")
            if self.config.attention == 'self':
                self._find_self_attention()
        except SettingError:
            if args:  # leave the model as it came
                for name, value in before.items():
                    setattr(model, name, value)
            raise
        if args:
            self.timm_args = args
            warnings.warn(
                f'{type(model).__name__} classified its class token. Dense MultiMix needs patch tokens that classify, '
                f'so it now averages them. Build it again in plain timm with timm.create_model(…, '
                f'{", ".join(f"{k}={v!r}" for k, v in args.items())}): same keys, same weights.', stacklevel=5)

    def _find_self_attention(self) -> None:
        assert self.ending is not None
        with evaluating(self.model):
            self.attending = last_attention(
                self.in_timms_words, probe(self.in_timms_words, self.input_size), self.ending)
        if self.attending is None:
            raise SettingError(f"attention 'self' (--multimix-attention) reads the last self-attention over all "
                               f'positions, but {type(self.model).__name__} has none that can be read. Use '
                               f"'gap'.")

    def reset_classifier(self, num_classes: int, *args: Any, **kwargs: Any) -> None:
        """timm's `reset_classifier`, after which the model is inspected anew.

        Raises:
            SettingError: no classes, or an ending that cannot be mixed.
        """
        if self.parts is not None:
            raise SettingError(f'{type(self.model).__name__} is not of timm and cannot reset its classifier: unwrap() '
                               f'it, replace its layer {self.parts.classifier!r}, and wrap it again.')
        if num_classes < 1:
            raise SettingError(f'reset_classifier({num_classes}) would leave no classifier to mix for: unwrap() the '
                               f'model first.')
        self.model.reset_classifier(num_classes, *args, **kwargs)  # type: ignore[operator]
        if self.config.dense:
            self._make_dense()

    def forward(
            self,
            input: Tensor,
            target: Optional[Tensor] = None,
            *,
            lam: Optional[Tensor] = None,
            generator: Optional[torch.Generator] = None,
    ) -> Union[Tensor, MultiMixOutput]:
        """Logits of the images; with targets, the training loss too (in train and in eval mode).

        Args:
            input: images (B, 3, H, W).
            target: class indices (B,) or soft targets (B, C).
            lam: interpolation vectors (N, P, B) to use instead of drawing them; with `gather` those of the whole batch,
                the same on every rank.
            generator: draws them, on its own device; default the global generator of the images' device.

        Returns:
            Logits (B, C) without targets, a `MultiMixOutput` with.

        Raises:
            SettingError: m larger than the batch; shapes that do not fit; targets outside the classes (on the CPU).
        """
        if target is None:
            return self.model(input)  # type: ignore[no-any-return]
        layers = self.config.layers
        layer = layers[0] if len(layers) == 1 else layers[int(torch.randint(len(layers), ()))]
        if layer != 'embedding':
            return self._mix_inside(self.multimix_layers[layer], input, target, lam, generator)
        z = None
        ranks = world() if self.config.gather else 1
        if self.ending is None:
            logits = self.model(input)
            dense = logits.unsqueeze(1)
        else:
            model = self.in_timms_words
            if self.attending and getattr(self.model, 'grad_checkpointing', False):
                raise SettingError("attention 'self' (--multimix-attention) reads what a block computes, which "
                                   "gradient checkpointing (--grad-checkpointing) does not keep. Use 'gap'.")
            with recorded(self.model.get_submodule(self.attending) if self.attending else None) as seen:
                features = model.forward_features(input)
            logits = model.forward_head(features)
            z, dense = position_logits(model, self.ending, features)
        B, P, C = dense.shape
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        config = self.config
        self._first_check(B * ranks, P, C)
        y = self._targets(target, C, dtype)
        a = None
        if self.attending:
            a = attended(seen[-1].detach() if config.attention_detach else seen[-1], P).to(dtype)
            if a.shape != (B, P):
                raise SettingError(f"attention 'self' (--multimix-attention) of images of {tuple(input.shape[1:])} is "
                                   f'not over their {P} positions: wrap the model with '
                                   f'input_size={tuple(input.shape[1:])}.')
        elif z is not None:
            a = self._attention(z, target)
        loss_clean = self._compare(logits.to(dtype), y)
        n = config.n
        if ranks > 1:
            dense, y, a = gather(dense), gather(y), None if a is None else gather(a)
            n, lam = share_of(n), None if lam is None else lam[rank()::ranks]
        mixtures = self._mixtures(lam, n, P, B * ranks, generator, input.device, dtype)
        if ranks > 1 and isinstance(mixtures, LamSampler) and mixtures.low < mixtures.high:
            agree(mixtures.alpha)
        loss_mixed = mixed_cross_entropy(
            dense, y, mixtures, a, normalize=config.normalize or 'position', engine=config.engine,
            over_ranks=ranks > 1, binary=config.bce_loss, keep_norm=config.keep_norm) * (C if config.bce_sum else 1)
        report = signal(mixtures, y, None if a is None else a.detach().to(dtype))
        return self._output(loss_mixed, loss_clean, logits, report)

    def _mix_inside(self, name: str, input: Tensor, target: Tensor, lam: Optional[Tensor],
                    generator: Optional[torch.Generator]) -> MultiMixOutput:
        """Mix what a module gives, or the images, and let the rest of the network classify the mixtures."""
        B, config = len(input), self.config
        dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
        mixtures = self._mixtures(lam, B, 1, B, generator, input.device, dtype)
        lam = (mixtures.draw(1, B)[0] if isinstance(mixtures, LamSampler) else mixtures[:, 0]).to(dtype)
        beside = config.clean_weight > 0

        def mix(x: Tensor) -> Tensor:
            with torch.autocast(input.device.type, enabled=False):
                mixed = (lam.to(x.dtype) @ x.flatten(1)).view(len(lam), *x.shape[1:])  # type: ignore[union-attr]
            return torch.cat([x, mixed]) if beside else mixed

        if name:
            with output_of(self.model, name, mix):
                logits = self.model(input)
        else:
            logits = self.model(mix(input))
        C = logits.shape[1]
        self._first_check(B, 1, C)
        y = self._targets(target, C, dtype)
        clean, mixed = (logits[:B], logits[B:]) if beside else (logits, logits)
        with torch.autocast(input.device.type, enabled=False):
            mixed_y = lam @ y
        loss_mixed = self._compare(mixed.to(dtype), mixed_y)
        loss_clean = self._compare(clean.to(dtype), y) if beside else None
        return self._output(loss_mixed, loss_clean, clean, signal(lam.unsqueeze(1), y))

    def _targets(self, target: Tensor, C: int, dtype: torch.dtype) -> Tensor:
        config = self.config
        y = soft_target(target, C, dtype, config.label_smoothing if target.ndim == 1 else 0.0)
        return y if config.bce_target_thresh is None else (y > config.bce_target_thresh).to(dtype)

    def _compare(self, logits: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            if not self.config.bce_loss:
                return F.cross_entropy(logits, y)
            loss = F.binary_cross_entropy_with_logits(logits, y)
            return loss * logits.shape[1] if self.config.bce_sum else loss

    def _mixtures(self, lam: Optional[Tensor], n: int, positions: int, batch: int,
                  generator: Optional[torch.Generator], device: torch.device, dtype: torch.dtype,
                  ) -> Union[Tensor, LamSampler]:
        """Λ as it was given, or what draws it."""
        if lam is not None:
            return lam.to(device)
        alpha, m = self.config.alpha_range(batch), self.config.m
        if generator is None or generator.device == device:
            return LamSampler(n, positions, batch, alpha, generator, m=m, device=device, dtype=dtype)
        return sample_lam(n, positions, batch, alpha, generator, m=m, dtype=dtype).to(device)

    def _output(self, loss_mixed: Tensor, loss_clean: Optional[Tensor], logits: Tensor, report: dict[str, Tensor],
                ) -> MultiMixOutput:
        # A mean, not a sum: a learning rate that was tuned without mixing stays right with it.
        w = self.config.clean_weight
        loss = (loss_mixed + w * loss_clean) / (1 + w) if w and loss_clean is not None else loss_mixed
        report['loss_mixed'] = loss_mixed.detach()
        if loss_clean is not None:
            report['loss_clean'] = loss_clean.detach()
        return MultiMixOutput(loss, logits, report)

    def _attention(self, z: Tensor, target: Tensor) -> Optional[Tensor]:
        config = self.config
        if config.attention == 'uniform':
            return None
        cam: dict[str, Tensor] = {}
        if config.attention == 'cam':
            cam = {'target': target, 'weight': self._cam_weight()}
        if config.attention_detach:
            with torch.no_grad():
                return attention(z, config.attention, config.attention_norm, **cam)
        return attention(z, config.attention, config.attention_norm, **cam)

    def _cam_weight(self) -> Tensor:
        return classifier_leaves(self.in_timms_words)[0].weight.flatten(1)  # type: ignore[operator, no-any-return]

    def _first_check(self, batch: int, positions: int, num_classes: int) -> None:
        """Tell the user, once and on the first training batch, when the settings cannot do what they are for.

        Not under torch.compile, which has no place for warnings; `MultiMixTask` tells there too.
        """
        if not self.needs_first_check or not self.training or torch.compiler.is_compiling():
            return
        self.needs_first_check = False
        for message in (
                signal_warning(self.config, batch, num_classes, alternates=False),
                one_position_note(self.config, positions)):
            if message:
                warnings.warn(message, stacklevel=3)

    # The timm model's own names, inside and out: optimizers group parameters by them and checkpoints are read by
    # people who never heard of us.

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            modules = self.__dict__.get('_modules', {})
            if 'model' not in modules:  # while being copied or unpickled
                raise
            parts = self.__dict__.get('parts')
            return getattr(InTimmsWords(modules['model'], parts) if parts else modules['model'], name)

    def __setattr__(self, name: str, value: Any) -> None:
        inner = self.__dict__.get('_modules', {}).get('model')
        own = inner is None or name in self.__dict__ or hasattr(type(self), name) or not hasattr(inner, name)
        super().__setattr__(name, value) if own else setattr(inner, name, value)

    def add_module(self, name: str, module: Optional[nn.Module]) -> None:
        inner = self.__dict__.get('_modules', {}).get('model')
        super().add_module(name, module) if inner is None else inner.add_module(name, module)

    def named_modules(
            self, memo: Optional[set[nn.Module]] = None, prefix: str = '', remove_duplicate: bool = True,
    ) -> Iterator[tuple[str, nn.Module]]:
        """The timm model's names, for parameters and buffers too, also when this is a part of another module."""
        memo = set() if memo is None else memo
        if self not in memo:
            if remove_duplicate:
                memo.add(self)
            yield prefix, self
            yield from self.model.named_modules(memo, prefix, remove_duplicate)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        return self.model.load_state_dict(*args, **kwargs)

    def extra_repr(self) -> str:
        return str(self.config)


def _load_inside_a_parent(
        module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """A parent module loads its children without calling their load_state_dict: give it the keys it looks for."""
    for key in [k for k in state_dict if k.startswith(prefix)]:
        state_dict[prefix + 'model.' + key[len(prefix):]] = state_dict.pop(key)


def one_position_note(config: MultiMixConfig, positions: int) -> Optional[str]:
    """A sentence for a dense model whose feature map has a single position, else None."""
    if not config.dense or positions > 1:
        return None
    return ('The last feature map has one position at this image size, so Dense MultiMix is the same as MultiMix. '
            'Larger images give it more (--img-size), and so does a smaller stride (--model-kwargs output_stride=8, '
            'where the model takes it).')


def wrap(
        model: nn.Module,
        config: Union[str, MultiMixConfig] = 'dense',
        *,
        input_size: Optional[tuple[int, ...]] = None,
        parts: Optional[Parts] = None,
        **settings: Any,
) -> MultiMixModel:
    """Give a timm model the MultiMix loss.

        model = timm_multimix.wrap(timm.create_model('resnet50', num_classes=100), 'dense')
        out = model(images, target)
        out.loss.backward()

    The model is not copied. A class-token transformer wrapped for 'dense' is switched to average pooling over its
    patches (a warning says so): `timm.create_model(…, **model.timm_args)` builds it again.

    Args:
        model: a timm model with a classifier, or any network with `parts`.
        config: 'dense', 'multimix', or a `MultiMixConfig`.
        input_size: (C, H, W) that it will see, where it differs from what the model says.
        parts: how a network that is not timm's ends.
        **settings: any field of `MultiMixConfig`: preset='paper', n=500, attention='cam', …

    Raises:
        SettingError: a setting is off, or the model cannot be mixed: with the reason and what to do instead.
    """
    if isinstance(model, MultiMixModel):
        raise SettingError('This model is wrapped already. unwrap() it first to wrap it with other settings.')
    if isinstance(config, MultiMixConfig):
        config = config.replace(**settings) if settings else config
    else:
        config = MultiMixConfig.from_dict({'mode': config, **settings})
    return MultiMixModel(model, config, input_size, parts)


def unwrap(model: nn.Module) -> nn.Module:
    """The timm model inside, from under DDP, torch.compile and timm's EMA too. A plain model comes back as it is."""
    model = unwrap_model(model)
    return model.model if isinstance(model, MultiMixModel) else model
