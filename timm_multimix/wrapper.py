"""`wrap` and `unwrap`: a timm model that also knows its MultiMix loss."""
from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, Optional, Union

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.utils.model import unwrap_model
from torch import Tensor

from .config import MultiMixConfig
from .distributed import agree, gather, rank, share_of, world
from .errors import SettingError
from .heads import (
    HeadInfo,
    Parts,
    TimmAdapter,
    check_affine,
    classifier_leaves,
    inspect_head,
    position_logits,
    switch_class_token,
)
from .heads.layers import layer_name, output_of
from .heads.positions import evaluating, probe
from .heads.self_attention import attended, last_attention, recorded
from .mixing import LamSampler, attention, mixed_cross_entropy, sample_lam, signal
from .mixing.diagnostics import signal_warning
from .mixing.targets import cross_entropy, smooth, soft_target
from .policy import MixingPolicy, MixupFn, Plan, Schedule

Sampler = Callable[[LamSampler, Tensor, Optional[Tensor]], Union[Tensor, LamSampler]]

# So many training steps in a row without targets are a habit, not a look at the logits.
HABIT = 20


class MultiMixOutput(NamedTuple):
    """What a wrapped model returns when it is given targets.

    Attributes:
        loss: scalar to call `backward()` on. Where embeddings are mixed (mixed loss + clean_weight · clean loss) /
            (1 + clean_weight), elsewhere the loss of the images as the network saw them. float32. In eval mode the
            plain loss: no mixing, no smoothing, no class weights.
        logits: (B, C), of the images as the network saw them: mixed ones where inputs were mixed; and of mixtures when
            `layer` is not the embedding and `clean_weight` 0.
        signal: scalars on the device, detached. Where embeddings were mixed 'effective' and 'target_entropy' (see
            `mixing.diagnostics`), 'loss_mixed', 'loss_clean'; where nothing was, 'loss_clean'.
        mixed: what was done: 'nothing', 'embeddings', 'mixup', 'cutmix', or 'mixup and embeddings'; 'inputs' in place
            of 'mixup' for a `mixup_fn` that does not say which way it goes.
    """
    loss: Tensor
    logits: Tensor
    signal: dict[str, Tensor]
    mixed: str = 'nothing'


class MultiMixModel(nn.Module):
    """A timm model with the MultiMix loss beside it. Made by `wrap`.

    Without targets it *is* the timm model: the same logits to the bit, in train and eval mode. Its parameters,
    state_dict keys and attributes are the timm model's own.

    Attributes:
        config: the settings.
        policy: chooses what each training step mixes, and counts.
        sampler: draws Λ in the settings' place, or None.
    """

    def __init__(
            self, model: nn.Module, config: MultiMixConfig, input_size: Optional[tuple[int, ...]] = None,
            parts: Optional[Parts] = None, policy: Callable[..., MixingPolicy] = MixingPolicy,
            sampler: Optional[Sampler] = None) -> None:
        super().__init__()
        if hasattr(model, '_orig_mod'):
            raise SettingError('This model is compiled already. Wrap it first, then torch.compile the wrapped model.')
        self.parts = parts
        self.config = config  # before there is a model, whose own attributes of these names stay as they are
        self.sampler = sampler
        self.policy: MixingPolicy = None  # type: ignore[assignment]
        self.model = model
        classifier_leaves(self.timm_adapter)
        check_affine(self.timm_adapter, input_size)
        self.input_size = input_size
        self.timm_args: dict[str, Any] = {}
        self.head_info: Optional[HeadInfo] = None
        self.attending: Optional[str] = None  # the layer whose attention is 'self'
        self.needs_first_check = self.needs_position_check = True
        self.training = model.training
        self.register_load_state_dict_pre_hook(_load_inside_a_parent)
        self.multimix_layers = {layer: layer_name(model, layer) for layer in config.layers if layer != 'embedding'}
        self.policy = policy(config, int(self.timm_adapter.num_classes))
        self._without_target = 0
        self._class_weights: dict[Any, Tensor] = {}
        self._check_class_weight()
        if config.dense:
            self._make_dense()

    def reconfigure(self, **settings: Any) -> None:
        """Change settings that say how the loss is computed, such as `label_smoothing` and `class_weight`.

        Raises:
            SettingError: a setting is off, or decides how the model was wrapped.
        """
        for name in ('mode', 'layer', 'attention'):
            if name in settings:
                raise SettingError(f'{name} decides how a model is wrapped: unwrap() it and wrap it anew.')
        config = self.config.replace(**settings)
        self._check_class_weight(config)
        self.config = config
        self._class_weights.clear()
        self.policy.configure(config)

    def _check_class_weight(self, config: Optional[MultiMixConfig] = None) -> None:
        weights, classes = (config or self.config).class_weight, self.policy.num_classes
        if weights is not None and len(weights) != classes:
            raise SettingError(f'class_weight (--class-weight) has {len(weights)} weights, but the model has '
                               f'{classes} classes.')

    def set_progress(self, done: float, of: Optional[float] = None) -> None:
        """Say how far the training is, at least once an epoch: a fraction, or epochs `of` so many.

            model.set_progress(epoch, epochs)

        Raises:
            SettingError: see `MixingPolicy.set_progress`.
        """
        self.policy.set_progress(done, of)

    @property
    def timm_adapter(self) -> Any:
        """What answers to `forward_features`, `forward_head` and `get_classifier`: the model, or its `Parts`."""
        return self.model if self.parts is None else TimmAdapter(self.model, self.parts)

    def _make_dense(self) -> None:
        model = self.timm_adapter
        before = {k: getattr(model, k) for k in ('global_pool', '_model_args') if hasattr(model, k)}
        args = switch_class_token(model) if self.parts is None else {}
        try:
            self.head_info = inspect_head(model, self.input_size)
            leaves = classifier_leaves(model)
            if self.config.attention == 'cam' and not (
                    len(leaves) == 1 and self._cam_weight().shape[1] == self.head_info.width):
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
        assert self.head_info is not None
        with evaluating(self.model):
            self.attending = last_attention(
                self.timm_adapter, probe(self.timm_adapter, self.input_size), self.head_info)
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
        if self.config.class_weight is not None and len(self.config.class_weight) != num_classes:
            raise SettingError(f'reset_classifier({num_classes}): class_weight has {len(self.config.class_weight)} '
                               f'weights. reconfigure(class_weight=None) drops them first.')
        self.model.reset_classifier(num_classes, *args, **kwargs)  # type: ignore[operator]
        self.policy.configure(self.config, num_classes)
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
        """Logits of the images; with targets, the loss too.

        In train mode with targets this is a training step: the policy chooses what it mixes. In eval mode the loss is
        the plain one.

        Args:
            input: images (B, 3, H, W). They are not written to.
            target: class indices (B,) of any integer dtype, or soft targets (B, C).
            lam: interpolation vectors (N, P, B) to mix embeddings with on this call, whatever the policy says and in
                eval mode too; with `gather` those of the whole batch, the same on every rank.
            generator: the same, with vectors that it draws, on its own device.

        Returns:
            Logits (B, C) without targets, a `MultiMixOutput` with.

        Raises:
            SettingError: m larger than the batch; shapes that do not fit; targets that are none, with the reason
                (values are looked at on the CPU only).
        """
        if target is None:
            self._note_without_target()
            return self.model(input)  # type: ignore[no-any-return]
        asked = True if lam is not None or generator is not None else None
        if self.training:
            self._without_target = 0
            self.first_check(len(input))
            input, target, plan = self.policy.begin(input, target, asked)
        else:
            plan = Plan(0, bool(asked), '', self.config.layers[0], 0)
        if not plan.embeddings:
            return self._unmixed(input, target, plan)
        if generator is None and lam is None and not torch.compiler.is_compiling():
            generator = plan.generator(input.device)
        if plan.layer != 'embedding':
            return self._mix_inside(plan, input, target, lam, generator)
        return self._mix_embeddings(plan, input, target, lam, generator)

    def _unmixed(self, input: Tensor, target: Tensor, plan: Plan) -> MultiMixOutput:
        """The loss of the images as they are: of a step without embedding mixing, and in eval mode."""
        logits = self.model(input)
        loss = self._clean(logits, target, self.training)
        return MultiMixOutput(loss, logits, {} if plan.inputs else {'loss_clean': loss.detach()}, plan.mixed)

    def _mix_embeddings(self, plan: Plan, input: Tensor, target: Tensor, lam: Optional[Tensor],
                        generator: Optional[torch.Generator]) -> MultiMixOutput:
        """Mix what the classifier sees, once for the image or at every position."""
        z = None
        ranks = world() if self.config.gather else 1
        if self.head_info is None:
            logits = self.model(input)
            dense = logits.unsqueeze(1)
        else:
            model = self.timm_adapter
            if self.attending and getattr(self.model, 'grad_checkpointing', False):
                raise SettingError("attention 'self' (--multimix-attention) reads what a block computes, which "
                                   "gradient checkpointing (--grad-checkpointing) does not keep. Use 'gap'.")
            with recorded(self.model.get_submodule(self.attending) if self.attending else None) as seen:
                features = model.forward_features(input)
            logits = model.forward_head(features)
            z, dense = position_logits(model, self.head_info, features)
        B, P, C = dense.shape
        config = self.config
        self._note_one_position(P)
        y, smoothing = self._targets(target, C, logits)
        dtype, a = y.dtype, None
        if self.attending:
            a = attended(seen[-1].detach() if config.attention_detach else seen[-1], P).to(dtype)
            if a.shape != (B, P):
                raise SettingError(f"attention 'self' (--multimix-attention) of images of {tuple(input.shape[1:])} is "
                                   f'not over their {P} positions: wrap the model with '
                                   f'input_size={tuple(input.shape[1:])}.')
        elif z is not None:
            a = self._attention(z, target)
        loss_clean = self._clean(logits, target)
        n = config.mixtures(B * ranks)
        if ranks > 1:
            dense, y, a = gather(dense), gather(y), None if a is None else gather(a)
            n, lam = share_of(n), None if lam is None else lam[rank()::ranks]
        mixtures = self._mixtures(lam, n, P, B * ranks, generator, input.device, dtype)
        if ranks > 1 and isinstance(mixtures, LamSampler) and mixtures.low < mixtures.high:
            agree(mixtures.alpha)
        if self.sampler is not None and lam is None:
            assert isinstance(mixtures, LamSampler)
            mixtures = self.sampler(mixtures, smooth(y, smoothing), dense.detach())
        loss_mixed = mixed_cross_entropy(
            dense, y, mixtures, a, label_smoothing=smoothing, normalize=config.normalize or 'position',
            engine=config.engine, over_ranks=ranks > 1, binary=config.bce_loss, keep_norm=config.keep_norm,
            class_weight=self._class_weight(logits)) * (C if config.bce_sum else 1)
        report = signal(mixtures, smooth(y, smoothing), None if a is None else a.detach().to(dtype))
        return self._output(plan, loss_mixed, loss_clean, logits, report)

    def _mix_inside(self, plan: Plan, input: Tensor, target: Tensor, lam: Optional[Tensor],
                    generator: Optional[torch.Generator]) -> MultiMixOutput:
        """Mix what a module gives, or the images, and let the rest of the network classify the mixtures."""
        B, config, name = len(input), self.config, self.multimix_layers[plan.layer]
        dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
        mixtures = self._mixtures(lam, B, 1, B, generator, input.device, dtype)
        if self.sampler is not None and lam is None:
            assert isinstance(mixtures, LamSampler)
            y = soft_target(target, self.policy.num_classes, dtype, binary=config.bce_loss)
            mixtures = self.sampler(mixtures, y, None)
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
        clean, mixed = (logits[:B], logits[B:]) if beside else (logits, logits)
        y, smoothing = self._targets(target, logits.shape[1], clean)
        with torch.autocast(input.device.type, enabled=False):
            mixed_y = lam.to(y.dtype) @ y  # type: ignore[union-attr]
        weight = self._class_weight(mixed)
        if config.bce_loss:
            loss_mixed = self._binary(mixed, mixed_y)
        elif weight is None:
            loss_mixed = cross_entropy(mixed, smooth(mixed_y, smoothing))
        else:  # of mixtures that are mixed already: Λ is the identity
            eye = torch.eye(len(mixed), dtype=y.dtype, device=y.device).unsqueeze(1)
            loss_mixed = mixed_cross_entropy(mixed, mixed_y, eye, label_smoothing=smoothing, engine='torch',
                                             class_weight=weight)
        loss_clean = self._clean(clean, target) if beside else None
        report = signal(lam.unsqueeze(1), smooth(y, smoothing))  # type: ignore[union-attr]
        return self._output(plan, loss_mixed, loss_clean, clean, report)

    def _targets(self, target: Tensor, C: int, logits: Tensor, training: bool = True) -> tuple[Tensor, float]:
        """Y, (B, C), in the dtype that losses of these logits are computed in, and by how much it is still to be
        smoothed: a class weight is that of the class, smoothed or not."""
        config, dtype = self.config, torch.float64 if logits.dtype == torch.float64 else torch.float32
        y = soft_target(target, C, dtype, binary=config.bce_loss, batch=len(logits))
        smoothing = config.label_smoothing if training and target.ndim == 1 else 0.0
        if not config.bce_loss:
            return y, smoothing
        y = smooth(y, smoothing)
        return (y > config.bce_target_thresh).to(dtype) if training and config.bce_target_thresh is not None else y, 0.0

    def _clean(self, logits: Tensor, target: Tensor, training: bool = True) -> Tensor:
        """The loss of unmixed embeddings, logits (B, C): in eval mode the plain one."""
        config = self.config
        if config.bce_loss:
            return self._binary(logits, self._targets(target, logits.shape[1], logits, training)[0])
        return cross_entropy(
            logits, target, label_smoothing=config.label_smoothing if training and target.ndim == 1 else 0.0,
            class_weight=self._class_weight(logits) if training else None)

    def _binary(self, logits: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            loss = F.binary_cross_entropy_with_logits(logits.to(y.dtype), y)
            return loss * logits.shape[1] if self.config.bce_sum else loss

    def _class_weight(self, logits: Tensor) -> Optional[Tensor]:
        if self.config.class_weight is None:
            return None
        kind = torch.float64 if logits.dtype == torch.float64 else torch.float32, logits.device
        if kind not in self._class_weights:  # once: bringing them to an accelerator waits for it
            self._class_weights[kind] = torch.tensor(self.config.class_weight, dtype=kind[0], device=kind[1])
        return self._class_weights[kind]

    def _mixtures(self, lam: Optional[Tensor], n: int, positions: int, batch: int,
                  generator: Optional[torch.Generator], device: torch.device, dtype: torch.dtype,
                  ) -> Union[Tensor, LamSampler]:
        """Λ as it was given, or what draws it."""
        if lam is not None:
            return lam.to(device)
        m = None if self.config.m is None else min(self.config.m, batch)  # a last batch may be smaller
        alpha = self.config.alpha_range(batch, m)
        if self.sampler is not None and generator is not None and generator.device != device:
            generator = None  # a sampler of the user's draws where the logits are
        if generator is None or generator.device == device:
            return LamSampler(n, positions, batch, alpha, generator, m=m, device=device, dtype=dtype)
        return sample_lam(n, positions, batch, alpha, generator, m=m, dtype=dtype).to(device)

    def _output(self, plan: Plan, loss_mixed: Tensor, loss_clean: Optional[Tensor], logits: Tensor,
                report: dict[str, Tensor]) -> MultiMixOutput:
        # A mean, not a sum: a learning rate that was tuned without mixing stays right with it.
        w = self.config.clean_weight
        loss = (loss_mixed + w * loss_clean) / (1 + w) if w and loss_clean is not None else loss_mixed
        report['loss_mixed'] = loss_mixed.detach()
        if loss_clean is not None and not plan.inputs:
            report['loss_clean'] = loss_clean.detach()
        return MultiMixOutput(loss, logits, report, plan.mixed)

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
        return classifier_leaves(self.timm_adapter)[0].weight.flatten(1)  # type: ignore[operator, no-any-return]

    def first_check(self, batch: int) -> None:
        """Tell the user, once and on the first training step, when the settings cannot do what they are for.

        Not under torch.compile, which has no place for warnings; `MultiMixTask` tells there too.
        """
        if not self.needs_first_check or torch.compiler.is_compiling():
            return
        self.needs_first_check = False
        batch = self.config.mixed_batch(batch, world())
        self.config.tuple_size(batch)  # later batches may be smaller
        if message := signal_warning(self.config, batch, self.policy.num_classes):
            warnings.warn(message, stacklevel=4)

    def _note_one_position(self, positions: int) -> None:
        if self.needs_position_check and self.training and not torch.compiler.is_compiling():
            self.needs_position_check = False
            if note := one_position_note(self.config, positions):
                warnings.warn(note, stacklevel=5)

    def _note_without_target(self) -> None:
        """A loop that keeps its own criterion trains without mixing: say so, once."""
        if not self.training or torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        self._without_target += 1
        if self._without_target == HABIT:
            warnings.warn(f'{HABIT} training steps called model(images) without targets, and such a call mixes '
                          f'nothing. To train with MultiMix: loss = model(images, target).loss', stacklevel=3)

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
            return getattr(TimmAdapter(modules['model'], parts) if parts else modules['model'], name)

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
        seed: int = 42,
        mixup_fn: Optional[MixupFn] = None,
        schedule: Optional[Schedule] = None,
        sampler: Optional[Sampler] = None,
        policy: Callable[..., MixingPolicy] = MixingPolicy,
        **settings: Any,
) -> MultiMixModel:
    """Give a timm model the MultiMix loss.

        model = timm_multimix.wrap(timm.create_model('resnet50', num_classes=100), 'dense')
        for epoch in range(epochs):
            model.set_progress(epoch, epochs)
            for images, target in loader:
                model(images, target).loss.backward()
                …

    Each step mixes what the settings say: embeddings, inputs, or nothing. What is drawn depends on `seed` and on the
    number of the step (under torch.compile Λ comes from torch's global generator instead). The model is not copied. A
    class-token transformer wrapped for 'dense' is switched to average pooling over its patches (a warning says so):
    `timm.create_model(…, **model.timm_args)` builds it again.

    Args:
        model: a timm model with a classifier, or any network with `parts`.
        config: 'dense', 'multimix', or a `MultiMixConfig`.
        input_size: (C, H, W) that it will see, where it differs from what the model says.
        parts: how a network that is not timm's ends.
        seed: of what is mixed and by how much.
        mixup_fn: input mixing in place of the settings': see `MixingPolicy`.
        schedule: the share of the steps that mix, from the progress of the training: see `MixingPolicy`.
        sampler: another Λ: a function of the `LamSampler` that the settings make, the targets Y (B, C), and the
            logits (B, P, C) that are mixed, detached (None where `layer` is not the embedding). It gives Λ, (N, P, B)
            with rows of sum 1, or a `LamSampler`.
        policy: a subclass of `MixingPolicy` that chooses in another way.
        **settings: any field of `MultiMixConfig`: preset='paper', n=500, attention='cam', …

    Raises:
        SettingError: a setting is off, or the model cannot be mixed: with the reason and what to do instead.
    """
    if isinstance(model, MultiMixModel):
        raise SettingError('This model is wrapped already. unwrap() it first to wrap it with other settings.')
    if input_size is not None and not (
            isinstance(input_size, (tuple, list)) and len(input_size) == 3
            and all(isinstance(n, int) and n > 0 for n in input_size)):
        raise SettingError(f'input_size is {input_size!r}, but it must be (C, H, W) in pixels, such as (3, 224, 224).')
    if isinstance(config, MultiMixConfig):
        config = config.replace(**settings) if settings else config
    else:
        config = MultiMixConfig.from_dict({'mode': config, **settings})
    policy = partial(policy, seed=seed, mixup_fn=mixup_fn, schedule=schedule)
    return MultiMixModel(model, config, input_size, parts, policy, sampler)


def unwrap(model: nn.Module) -> nn.Module:
    """The timm model inside, from under DDP, torch.compile and timm's EMA too. A plain model comes back as it is."""
    model = unwrap_model(model)
    return model.model if isinstance(model, MultiMixModel) else model
