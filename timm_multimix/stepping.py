"""`MultiMix`: what a wrapped model mixes with, and its training step."""
from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, Optional, Union

import torch
import torch.nn as nn
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
    look,
    switch_class_token,
)
from .heads.layers import check_layer, check_not_again, layer_name, output_of
from .heads.positions import evaluating, probe
from .heads.self_attention import attended, last_attention, recorded
from .mixing import (
    LamSampler,
    LearnedAttention,
    TeacherTargets,
    attention,
    signal,
)
from .mixing.diagnostics import signal_warning
from .mixing.loss import check_lam, check_values
from .mixing.losses import Losses
from .mixing.targets import reads_values, smooth
from .policy import MixingPolicy, Plan
from .teaching import Teacher, check_teacher, check_there, taught

Sampler = Callable[[LamSampler, Tensor, Optional[Tensor]], Union[Tensor, LamSampler]]
Lessons = tuple[Optional[TeacherTargets], Optional[TeacherTargets]]

# So many training steps in a row without targets are a habit, not a look at the logits. As many backward passes in eval
# mode are one, too.
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
            `mixing.diagnostics`; of the labels' targets), 'loss_mixed', 'loss_clean', with learned attention
            'loss_attention'; where nothing was, 'loss_clean'.
        mixed: what was done: 'nothing', 'embeddings', 'mixup', 'cutmix', or 'mixup and embeddings'; 'inputs' in place
            of 'mixup' for a `mixup_fn` that does not say which way it goes.
    """
    loss: Tensor
    logits: Tensor
    signal: dict[str, Tensor]
    mixed: str = 'nothing'


class MultiMix:
    """The loss of one wrapped model: its settings, what is known about the model, and the training step.

    It is `model.multimix` of what `wrap` gives. It calls the model as its own class has it.

    Attributes:
        model: the timm model, as it came.
        config: the settings; `reconfigure` changes them.
        policy: chooses what each training step mixes, and counts.
        sampler: draws Λ in the settings' place, or None.
        teacher: the network that teaches, or None; copies and pickles are without it. `set_teacher` sets it.
        learned: the map of 'learned' attention, or None.
        parts: how a network that is not timm's ends, or None.
        timm_args: arguments of `timm.create_model` that build the model again, where wrapping switched its pooling.
        head_info: how features become logits position by position; None where 'multimix' mixes.
        input_size: (C, H, W) as it was given, or None.
        input_img_mode: the mode of Pillow's that a checkpoint says its images have, or None.
    """

    def __init__(
            self, model: nn.Module, config: MultiMixConfig, input_size: Optional[tuple[int, ...]] = None,
            parts: Optional[Parts] = None, policy: Callable[..., MixingPolicy] = MixingPolicy,
            sampler: Optional[Sampler] = None, teacher: Optional[Teacher] = None) -> None:
        self.model, self.config, self.input_size, self.parts, self.sampler = model, config, input_size, parts, sampler
        classifier_leaves(self.timm_adapter)
        check_affine(self.timm_adapter, input_size)
        self.timm_args: dict[str, Any] = {}
        self.input_img_mode: Optional[str] = None
        self.head_info: Optional[HeadInfo] = None
        self.attending: Optional[str] = None  # the layer whose attention is 'self'
        self.needs_first_check = self.needs_position_check = True
        self.layers = {layer: layer_name(model, layer) for layer in config.layers if layer != 'embedding'}
        if any(self.layers.values()) and parts is not None and parts.mask is not None:
            raise SettingError(f'layer is {next(iter(self.layers))!r}, but {type(model).__name__} has a mask: what '
                               f'follows would mask a mixture as if it were a single example. Mix at the embedding.')
        for layer, name in self.layers.items():
            if name:
                check_layer(self.timm_adapter, layer, name, self.logits, input_size)
        self.policy = policy(config, int(self.timm_adapter.num_classes))
        self._without_target = self._in_eval = 0
        self.teacher: Optional[Teacher] = None
        if teacher is not None:
            self.set_teacher(teacher)
        self.learned: Optional[LearnedAttention] = None
        self.losses = Losses(config)
        self._check_class_weight()
        self._check_input_mixing()
        if config.dense:
            self._make_dense()

    def reconfigure(self, **settings: Any) -> None:
        """See `MultiMixModel.reconfigure`."""
        for name in ('mode', 'layer', 'attention'):
            if name in settings:
                raise SettingError(f'{name} decides how a model is wrapped: unwrap() it and wrap it anew.')
        config = self.config.replace(**settings)
        if (config.mode, config.layers, config.attention) != (self.config.mode, self.config.layers,
                                                              self.config.attention):
            raise SettingError(f'preset {config.preset!r} mixes elsewhere, and that decides how a model is wrapped: '
                               f'unwrap() it and wrap it anew.')
        self._check_class_weight(config)
        if self.teacher is not None and config.teacher is not None:
            check_teacher(self.teacher, config, self.policy.num_classes, self.model)
        self.policy.configure(config)
        self.config, self.losses = config, Losses(config)
        if self.learned is not None:
            self.learned.set_lr(config.attention_lr)

    def set_teacher(self, teacher: Teacher) -> None:
        """See `MultiMixModel.set_teacher`."""
        check_teacher(teacher, self.config, self.policy.num_classes, self.model)
        self.teacher = teacher

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors to resume from: what the policy counts, and what attention has learned."""
        state = self.policy.state_dict()
        return state if self.learned is None else {**state, 'attention': self.learned.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.policy.load_state_dict(state)
        if self.learned is not None and 'attention' in state:
            self.learned.load_state_dict(state['attention'])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, 'teacher': None}  # another network is no part of this one

    def _check_class_weight(self, config: Optional[MultiMixConfig] = None, classes: Optional[int] = None) -> None:
        weights, classes = (config or self.config).class_weight, classes or self.policy.num_classes
        if weights is not None and len(weights) != classes:
            raise SettingError(f'class_weight (--class-weight) has {len(weights)} weights, but the model has '
                               f'{classes} classes.')

    def _check_input_mixing(self) -> None:
        example = None if self.parts is None else self.parts.example
        if example is None or self.policy.mixup_fn is None or self.policy.given_mixup_fn is not None:
            return
        if example.ndim != 4 or not example.is_floating_point():
            raise SettingError(f'mixup ({self.config.mixup:g}) and cutmix ({self.config.cutmix:g}) mix images, and '
                               f'what {type(self.model).__name__} takes is {example.dtype} of '
                               f"{tuple(example.shape)}: give preset='embeddings', which mixes no inputs, or a "
                               f'mixup_fn.')

    @property
    def timm_adapter(self) -> Any:
        """What answers to `forward_features`, `forward_head` and `get_classifier`: the model, or its `Parts`."""
        return self.model if self.parts is None else TimmAdapter(self.model, self.parts)

    def logits(self, input: Tensor) -> Tensor:
        """The model's own, (B, C). By its class, since a `forward` that is set on the object may be what called us."""
        return type(self.model).forward(self.model, input)  # type: ignore[no-any-return]

    def _logits(self, input: Tensor) -> Tensor:
        """The same, checked: a model that is distilled may give two."""
        logits = self.logits(input)
        if isinstance(logits, (tuple, list)):
            raise SettingError(f'{type(self.model).__name__} gives a {type(logits).__name__}, not logits (B, C): '
                               f'switch it to a single output, as set_distilled_training(False) does.')
        return logits

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
            if self.config.attention == 'learned' and (
                    self.learned is None or self.learned.width != self.head_info.width):
                self.learned = LearnedAttention(self.head_info.width, self.config.attention_lr)
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
                f'{", ".join(f"{k}={v!r}" for k, v in args.items())}): same keys, same weights.', stacklevel=4)

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
        """See `MultiMixModel.reset_classifier`."""
        if self.parts is not None:
            raise SettingError(f'{type(self.model).__name__} is not of timm and cannot reset its classifier: unwrap() '
                               f'it, replace its layer {self.parts.classifier!r}, and wrap it again.')
        if num_classes < 1:
            raise SettingError(f'reset_classifier({num_classes}) would leave no classifier to mix for: unwrap() the '
                               f'model first.')
        self._check_class_weight(classes=num_classes)
        self.model.reset_classifier(num_classes, *args, **kwargs)  # type: ignore[operator]
        self._follow(num_classes)

    def _follow(self, num_classes: int) -> None:
        """Go on with another number of classes, which the model has by now, whoever gave it to it."""
        self._check_class_weight(classes=num_classes)
        self.policy.configure(self.config, num_classes)
        if self.config.dense:
            self._make_dense()

    def step(self, input: Tensor, target: Tensor, lam: Optional[Tensor] = None,
             generator: Optional[torch.Generator] = None) -> MultiMixOutput:
        """Logits and loss; arguments as in `MultiMixModel.forward`."""
        if not len(input):
            raise SettingError(f'input is {tuple(input.shape)}, but there must be an image.')
        asked = True if lam is not None or generator is not None else None
        transformed = not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()
        if self.parts is None and int(self.model.num_classes) != self.policy.num_classes:  # type: ignore[arg-type]
            self._follow(int(self.model.num_classes))  # type: ignore[arg-type]
        if self.model.training:
            self._without_target = 0
            check_there(self.teacher, self.config)
            if not transformed:
                self.first_check(len(input))
            input, target, plan = self.policy.begin(input, target, asked)
        else:
            plan = Plan(0, bool(asked), '', self.config.layers[0], 0)
        if not plan.embeddings:
            return self._unmixed(input, target, plan, self._taught(plan, input)[0])
        if transformed:
            raise SettingError('The gradient of a mixed loss is computed along with it, where torch.func.grad and vmap '
                               'cannot look. torch.func.functional_call can be used, with torch.autograd.grad: '
                               'torch.autograd.grad(functional_call(model, params, (images, target)).loss, …).')
        if generator is None and lam is None and not torch.compiler.is_compiling():
            generator = plan.generator(input.device)
        if plan.layer != 'embedding':
            return self._mix_inside(plan, input, target, self._vectors(plan, input, target, lam, generator))
        return self._mix_embeddings(plan, input, target, lam, generator)

    def _taught(self, plan: Plan, input: Tensor) -> Lessons:
        """What the teacher says of the images as the network sees them: for the clean and for the mixed term."""
        return (None, None) if not plan.teaches or self.teacher is None else taught(self.teacher, self.config, input)

    def _unmixed(self, input: Tensor, target: Tensor, plan: Plan, teacher: Optional[TeacherTargets],
                 ) -> MultiMixOutput:
        """The loss of the images as they are: of a step without embedding mixing, and in eval mode."""
        logits = self._logits(input)
        loss = self.losses(logits, target, self.model.training, teacher, plan.smoothed)
        self._note_eval_mode(loss)
        return MultiMixOutput(loss, logits, {} if plan.inputs else {'loss_clean': loss.detach()}, plan.mixed)

    def _mix_embeddings(self, plan: Plan, input: Tensor, target: Tensor, lam: Optional[Tensor],
                        generator: Optional[torch.Generator]) -> MultiMixOutput:
        """Mix what the classifier sees, once for the image or at every position."""
        config, ranks = self.config, world() if self.config.gather else 1
        z = mask = a = loss_attention = None
        if self.head_info is None:
            logits = self._logits(input)
            dense = logits.unsqueeze(1)
        else:
            with recorded(self._attending_layer()) as maps:
                logits, z, dense, mask = look(self.timm_adapter, self.head_info, input)
            a = self._attention(z, target, mask, maps, tuple(input.shape[1:]))
        B, P, C = dense.shape
        self._note_one_position(P)
        y, smoothing = self.losses.targets(target, C, logits, smoothed=plan.smoothed)
        if z is not None and self.learned is not None and self.model.training and torch.is_grad_enabled():
            loss_attention = self.learned.learn(z, dense, lambda pooled: self.losses(
                pooled, target, smoothed=plan.smoothed), mask)
        clean, teacher = self._taught(plan, input)
        loss_clean = self.losses(logits, target, teacher=clean, smoothed=plan.smoothed)
        n = config.mixtures(B * ranks)
        if ranks > 1:
            dense, y, a = gather(dense), gather(y), None if a is None else gather(a)
            mask = None if mask is None else gather(mask.to(y.dtype)) > 0
            teacher = None if teacher is None else replace(teacher, logits=gather(teacher.logits))
            n, lam = share_of(n), None if lam is None else lam[rank()::ranks]
        mixtures = self._mixtures(lam, n, P, y, generator, input.device)
        if ranks > 1 and isinstance(mixtures, LamSampler) and mixtures.low < mixtures.high:
            agree(mixtures.alpha)
        if self.sampler is not None and lam is None:
            assert isinstance(mixtures, LamSampler)
            mixtures = self.sampler(mixtures, smooth(y, smoothing), dense.detach())
        loss_mixed = self.losses.mixed(dense, y, mixtures, a, mask=mask, label_smoothing=smoothing,
                                       over_ranks=ranks > 1, teacher=teacher)
        report = signal(mixtures, smooth(y, smoothing), None if a is None else a.detach().to(y.dtype), mask=mask,
                        normalize=config.normalize or 'position')
        if loss_attention is not None:
            report['loss_attention'] = loss_attention
        return self._output(plan, loss_mixed, loss_clean, logits, report)

    def _mix_inside(self, plan: Plan, input: Tensor, target: Tensor, lam: Tensor) -> MultiMixOutput:
        """Mix what a module gives, or the images, by Λ (N, B), and let the rest of the network classify that."""
        B, config, name = len(input), self.config, self.layers[plan.layer]
        if name:
            check_not_again(self.model, plan.layer, name)
        beside = config.clean_weight > 0

        def mix(x: Tensor) -> Tensor:
            if not x.is_floating_point():
                raise SettingError(f"layer {plan.layer!r} mixes numbers, and these are {x.dtype}: give floating ones, "
                                   f"or layer='embedding'.")
            with torch.autocast(input.device.type, enabled=False):
                mixed = (lam.to(x.dtype) @ x.flatten(1)).view(len(lam), *x.shape[1:])
            return torch.cat([x, mixed]) if beside else mixed

        if name:
            with output_of(self.model, name, mix):
                logits = self._logits(input)
        else:
            logits = self._logits(mix(input))
        clean, mixed = (logits[:B], logits[B:]) if beside else (logits, logits)
        y, smoothing = self.losses.targets(target, logits.shape[1], clean, smoothed=plan.smoothed)
        teacher, _ = self._taught(plan, input)
        of_mixtures: Optional[TeacherTargets] = None
        with torch.autocast(input.device.type, enabled=False):
            whole = smooth(y, smoothing, self.losses.class_weight(clean))
            plain, whole = (lam.to(y.dtype) @ labels for labels in (y, whole))
            if teacher is not None:
                of_mixtures = teacher.of_mixtures(lam.to(y.dtype), config.bce_loss)
        loss_mixed = self.losses.soft(mixed, plain, whole, of_mixtures)
        loss_clean = self.losses(clean, target, teacher=teacher, smoothed=plan.smoothed) if beside else None
        report = signal(lam.unsqueeze(1), smooth(y, smoothing))
        return self._output(plan, loss_mixed, loss_clean, clean, report)

    @torch.compiler.disable  # whose shapes, of a batch of another size, cannot be drawn
    def _vectors(self, plan: Plan, input: Tensor, target: Tensor, lam: Optional[Tensor],
                 generator: Optional[torch.Generator]) -> Tensor:
        """Λ of a single position, (N, B), for what is mixed within the network."""
        B, config = len(input), self.config
        y, smoothing = self.losses.targets(target, self.policy.num_classes, input, smoothed=plan.smoothed)
        mixtures = self._mixtures(lam, config.mixtures(B, plan.layer), 1, y, generator, input.device)
        if self.sampler is not None and lam is None:
            assert isinstance(mixtures, LamSampler)
            mixtures = self.sampler(mixtures, smooth(y, smoothing), None)
        if isinstance(mixtures, LamSampler):
            return mixtures.draw(1, mixtures.n)[0].to(y.dtype)
        check_lam(mixtures, 1, B)
        if reads_values(mixtures):
            check_values(mixtures)
        if not config.clean_weight and len(mixtures) != B:
            raise SettingError(f'lam has {len(mixtures)} mixtures, but with layer {plan.layer!r} and clean_weight 0 '
                               f'there is one for each of the {B} images.')
        return mixtures[:, 0].to(y.dtype)

    def _mixtures(self, lam: Optional[Tensor], n: int, positions: int, y: Tensor,
                  generator: Optional[torch.Generator], device: torch.device) -> Union[Tensor, LamSampler]:
        """Λ for targets Y (B, C), as it was given, or what draws it."""
        if lam is not None:
            return lam.to(device)
        if self.sampler is not None and generator is not None and generator.device != device:
            generator = None  # a sampler of the user's draws where the logits are
        return self.losses.lam(n, positions, y, generator, device)

    def _output(self, plan: Plan, loss_mixed: Tensor, loss_clean: Optional[Tensor], logits: Tensor,
                report: dict[str, Tensor]) -> MultiMixOutput:
        report['loss_mixed'] = loss_mixed.detach()
        if loss_clean is not None and not plan.inputs:
            report['loss_clean'] = loss_clean.detach()
        return MultiMixOutput(self.losses.mean(loss_mixed, loss_clean), logits, report, plan.mixed)

    def _attending_layer(self) -> Optional[nn.Module]:
        """Whose maps are 'self' attention, if that is asked for."""
        if self.attending is None:
            return None
        if getattr(self.model, 'grad_checkpointing', False):
            raise SettingError("attention 'self' (--multimix-attention) reads what a block computes, which "
                               "gradient checkpointing (--grad-checkpointing) does not keep. Use 'gap'.")
        return self.model.get_submodule(self.attending)

    def _attention(self, z: Tensor, target: Tensor, mask: Optional[Tensor], maps: list[Tensor],
                   size: tuple[int, ...]) -> Optional[Tensor]:
        """(B, P), of embeddings z (B, P, D) of images of this size, or of the maps of a layer; None is uniform."""
        config, (B, P, _) = self.config, z.shape
        if self.attending is not None:
            a = attended(maps[-1].detach() if config.attention_detach else maps[-1], P)
            if a.shape != (B, P):
                raise SettingError(f"attention 'self' (--multimix-attention) of images of {size} is not over their {P} "
                                   f'positions: wrap the model with input_size={size}.')
            return a
        if self.learned is not None:
            return self.learned(z, mask)
        if config.attention == 'uniform':
            return None
        cam: dict[str, Any] = {}
        if config.attention == 'cam':
            cam = {'target': target, 'weight': self._cam_weight()}
        with torch.set_grad_enabled(torch.is_grad_enabled() and not config.attention_detach):
            return attention(z, config.attention, config.attention_norm, mask=mask, **cam)

    def _cam_weight(self) -> Tensor:
        return classifier_leaves(self.timm_adapter)[0].weight.flatten(1)  # type: ignore[operator, no-any-return]

    def first_check(self, batch: int) -> None:
        """Tell the user, once and on the first training step, when the settings cannot do what they are for.

        Not under torch.compile, which has no place for warnings; `MultiMixTask` tells there too.
        """
        if not batch or not self.needs_first_check or torch.compiler.is_compiling():
            return
        self.needs_first_check = False
        batch = self.config.mixed_batch(batch, world())
        self.config.tuple_size(batch)  # later batches may be smaller
        if message := signal_warning(self.config, batch, self.policy.num_classes):
            warnings.warn(message, stacklevel=6)

    def _note_one_position(self, positions: int) -> None:
        if self.needs_position_check and self.model.training and not torch.compiler.is_compiling():
            self.needs_position_check = False
            if note := one_position_note(self.config, positions):
                warnings.warn(note, stacklevel=7)

    def _note_eval_mode(self, loss: Tensor) -> None:
        """A loop that calls `model.eval()` to freeze layers trains without mixing: say so, once, when it does train."""
        if self.model.training or self._in_eval >= HABIT or not loss.requires_grad or torch.compiler.is_compiling():
            return
        if torch._C._are_functorch_transforms_active():  # where no hook can be
            return

        def count(gradient: Tensor) -> None:
            self._in_eval += 1
            if self._in_eval == HABIT:
                warnings.warn(f'{HABIT} losses of the model in eval mode were differentiated, and in eval mode nothing '
                              f'is mixed. To train: call model.train(), and then eval() of what is to stay frozen.',
                              stacklevel=2)

        loss.register_hook(count)

    def note_without_target(self) -> None:
        """A loop that keeps its own criterion trains without mixing: say so, once."""
        if not self.model.training or torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        self._without_target += 1
        if self._without_target == HABIT:
            warnings.warn(f'{HABIT} training steps called model(images) without targets, and such a call mixes '
                          f'nothing. To train with MultiMix: loss = model(images, target).loss', stacklevel=5)


def one_position_note(config: MultiMixConfig, positions: int) -> Optional[str]:
    """A sentence for a dense model whose feature map has a single position, else None."""
    if not config.dense or positions > 1:
        return None
    return ('The last feature map has one position at this image size, so Dense MultiMix is the same as MultiMix. '
            'Larger images give it more (--img-size), and so does a smaller stride (--model-kwargs output_stride=8, '
            'where the model takes it).')
