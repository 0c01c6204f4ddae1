"""`wrap` and `unwrap`: a timm model that also knows its MultiMix loss.

A wrapped model is a second object over the model's own `__dict__`. Its class is made on the spot, of `MultiMixModel`
and the model's class. docs/method.md, 'The form of a wrapped model', says why.
"""
from __future__ import annotations

import types
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, Optional, Union

import torch
import torch.nn as nn
from timm.utils.model import unwrap_model
from torch import Tensor
from torch.fx import Proxy

from .config import GIVEN, MultiMixConfig
from .errors import SettingError
from .heads import HeadInfo, Parts
from .policy import MixingPolicy, MixupFn, Schedule
from .stepping import MultiMix, MultiMixOutput, Sampler
from .teaching import Teacher

# Of `model.multimix`, for short; a model that has such an attribute of its own keeps it.
# `config` is not among them: frameworks that train models of several kinds write into one that they find.
SHORT = ('policy', 'sampler', 'timm_args', 'head_info')
TIMM_NAMES = ('num_classes', 'forward_features', 'forward_head', 'get_classifier')  # `Parts` answer to them


class MultiMixModel(nn.Module):
    """A timm model with the MultiMix loss. Made by `wrap`, and an instance of the model's class too.

    Without targets it *is* the timm model: the same logits to the bit, in train and eval mode. Its parameters, modules,
    state_dict keys and attributes are the timm model's own, and so is what is attached to it later.

    Attributes:
        multimix: all that is not the timm model's: settings (`multimix.config`), policy, sampler. No framework writes
            to it, and no state_dict holds it.
        policy: `multimix.policy`, which chooses what each training step mixes, and counts.
        sampler: `multimix.sampler`, which draws Λ in the settings' place, or None.
        timm_args: `multimix.timm_args`, arguments of `timm.create_model` that build the model again, where wrapping
            switched its pooling.
        head_info: `multimix.head_info`, how features become logits position by position, or None.
    """
    __slots__ = ('multimix',)  # beside the __dict__, which is the timm model's
    multimix: MultiMix
    policy: MixingPolicy
    sampler: Optional[Sampler]
    timm_args: dict[str, Any]
    head_info: Optional[HeadInfo]

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
        if isinstance(input, Proxy):  # tracing: every argument is a stand-in, and the graph is the plain one
            return self.multimix.logits(input)
        if target is None:
            self.multimix.note_without_target()
            return self.multimix.logits(input)
        return self.multimix.step(input, target, lam, generator)

    def set_progress(self, done: float, of: Optional[float] = None) -> None:
        """Say how far the training is, at least once an epoch: a fraction, or epochs `of` so many.

            model.set_progress(epoch, epochs)

        Raises:
            SettingError: see `MixingPolicy.set_progress`.
        """
        self.multimix.policy.set_progress(done, of)

    def set_teacher(self, teacher: Teacher) -> None:
        """The network whose predictions are a share of the targets: any function of images (B, 3, H, W) that gives
        logits (B, C), such as a timm model on the images' device, or timm's average of this one, which your loop goes
        on to update.

            ema = timm.utils.ModelEmaV3(model, decay=0.999)
            model.set_teacher(ema)

        It is asked without gradient, and put into eval mode. It is no part of this model: no state_dict, copy or pickle
        has it.

        Raises:
            SettingError: the settings have no teacher, or it has other classes.
        """
        self.multimix.set_teacher(teacher)

    def reconfigure(self, **settings: Any) -> None:
        """Change settings that say how the loss is computed, such as `label_smoothing` and `class_weight`.

        Raises:
            SettingError: a setting is off, or decides how the model was wrapped.
        """
        self.multimix.reconfigure(**settings)

    def reset_classifier(self, num_classes: int, *args: Any, **kwargs: Any) -> None:
        """timm's `reset_classifier`, after which the model is inspected anew.

        Raises:
            SettingError: no classes, or an ending that cannot be mixed.
        """
        self.multimix.reset_classifier(num_classes, *args, **kwargs)

    def extra_repr(self) -> str:
        return str(self.multimix.config)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in SHORT:
                return getattr(self.multimix, name)
            if name in TIMM_NAMES:
                return getattr(self.multimix.timm_adapter, name)
            raise

    def __setattr__(self, name: str, value: Any) -> None:
        ours = (name in ('policy', 'sampler') and not isinstance(value, (nn.Module, Tensor))
                and not hasattr(self.multimix.model, name))
        setattr(self.multimix, name, value) if ours else super().__setattr__(name, value)

    def __prepare_scriptable__(self) -> nn.Module:
        return self.multimix.model  # which torch.jit.script takes in this one's place

    def _replicate_for_data_parallel(self) -> nn.Module:
        raise SettingError('nn.DataParallel runs copies of the model in threads, and a wrapped model mixes a batch in '
                           'one place. Wrap it for DistributedDataParallel, or make the plain model parallel, and '
                           'compute the loss of its logits by mixed_cross_entropy (examples/data_parallel.py).')

    # Copies and pickles hold the class of the model, which can be found again, and not the one made on the spot.

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _empty, (type(self.multimix.model),), self.multimix

    def __setstate__(self, multimix: MultiMix) -> None:
        object.__setattr__(self, '__dict__', multimix.model.__dict__)
        object.__setattr__(self, 'multimix', multimix)


@lru_cache
def _class_of(plain: Any) -> type[MultiMixModel]:
    return types.new_class(f'MultiMix{plain.__name__}', (MultiMixModel, plain),  # type: ignore[return-value]
                           exec_body=lambda namespace: namespace.update(__module__=__name__))


def _empty(plain: type[nn.Module]) -> MultiMixModel:
    return object.__new__(_class_of(plain))  # type: ignore[arg-type]


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
        teacher: Union[str, Teacher, None] = None,
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
    number of the step (under torch.compile Λ comes from torch's global generator instead). The model is not copied: the
    object that was given and the wrapped one share weights, modules and attributes, and the first stays a plain model.
    A class-token transformer wrapped for 'dense' is switched to average pooling over its patches (a warning says so):
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
        teacher: the setting, 'ema' for one (see `MultiMixModel.set_teacher`); or the network that teaches itself.
        **settings: any field of `MultiMixConfig`: preset='paper', n=500, attention='cam', …

    Raises:
        SettingError: a setting is off, or the model cannot be mixed: with the reason and what to do instead.
    """
    if not isinstance(model, nn.Module):
        raise SettingError(f'model is {model!r}, but it must be a network, such as timm.create_model(…).')
    if not callable(policy):
        raise SettingError(f'policy is {policy!r}, but it must be a subclass of MixingPolicy.')
    if sampler is not None and not callable(sampler):
        raise SettingError(f'sampler is {sampler!r}, but it must be a function.')
    if isinstance(model, MultiMixModel):
        raise SettingError('This model is wrapped already. unwrap() it first to wrap it with other settings.')
    if hasattr(model, '_orig_mod') or getattr(model, '_compiled_call_impl', None) is not None:
        raise SettingError('This model is compiled already. Wrap it first, then torch.compile the wrapped model.')
    if isinstance(model, torch.jit.ScriptModule):
        raise SettingError('This model is scripted already. Wrap and train it first, then script unwrap(model).')
    if 'forward' in vars(model):
        raise SettingError(f'forward of this {type(model).__name__} was set on the object, where it would hide the '
                           f'loss. Wrap the model first, or write a subclass with that forward.')
    if input_size is not None and not (
            isinstance(input_size, (tuple, list)) and len(input_size) == 3
            and all(isinstance(n, int) and n > 0 for n in input_size)):
        raise SettingError(f'input_size is {input_size!r}, but it must be (C, H, W) in pixels, such as (3, 224, 224).')
    if teacher is not None:
        settings['teacher'] = GIVEN if callable(teacher) else teacher
    if isinstance(config, MultiMixConfig):
        config = config.replace(**settings) if settings else config
    else:
        config = MultiMixConfig.from_dict({'mode': config, **settings})
    multimix = MultiMix(model, config, input_size, parts,
                        partial(policy, seed=seed, mixup_fn=mixup_fn, schedule=schedule), sampler,
                        teacher if callable(teacher) else None)
    wrapped = _empty(type(model))
    wrapped.__setstate__(multimix)
    return wrapped


def unwrap(model: nn.Module) -> nn.Module:
    """The timm model that was wrapped, from under DDP, torch.compile and timm's EMA too.

    It shares weights, modules and attributes with the wrapped one, which goes on as it is. A plain model comes back as
    it is.
    """
    model = unwrap_model(model)
    return model.multimix.model if isinstance(model, MultiMixModel) else model
