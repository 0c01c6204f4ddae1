"""From settings to model, task, optimizer and schedule."""
from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Optional

import timm
import torch
from timm.data import resolve_data_config
from timm.loss import BinaryCrossEntropy
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler_factory import scheduler_kwargs
from timm.utils import NativeScaler

from ..config import MultiMixConfig
from ..data.factory import fit_channels, image_mode
from ..distributed import world
from ..errors import SettingError, in_words, reason
from ..heads import classifier_leaves
from ..hub import check_published, starting_point
from ..policy import InputMixing
from ..runs.screen import say
from ..runs.weights import read_weights
from ..task import MultiMixTask
from .norms import batch_norms
from .start import loaded_by_timm, start_from

# Of weights of JAX, which a model loads by itself.
NOTHING_MISSING = argparse.Namespace(missing_keys=[], unexpected_keys=[])


def build_model(args: argparse.Namespace, source: Optional[tuple[Optional[str], dict[str, Any]]] = None,
                ) -> tuple[torch.nn.Module, dict[str, Any]]:
    """The timm model, and how to make it again: arguments of create_model beyond name and classes.

    Args:
        args: the flags.
        source: `hub.starting_point`'s answer, where it was asked already.

    Raises:
        SettingError: timm cannot build it, or weights that are missing or do not fit.
    """
    extra = {'img_size': args.img_size, 'in_chans': args.in_chans, 'global_pool': args.gp, **args.model_kwargs}
    if args.bn_eps is not None:
        extra['bn_eps'] = args.bn_eps
    # A repository brings its architecture and its arguments with its weights.
    repo, saved = source or starting_point(args)
    # The weights of a run that goes on are in its checkpoint, and those of a file are not published ones.
    pretrained = bool(repo) or bool(args.pretrained_path) or (args.pretrained and not args.initial_checkpoint)
    pretrained = pretrained and not args.resume
    create = partial(timm.create_model, repo or args.model, pretrained=pretrained,
                     num_classes=args.num_classes, drop_rate=args.drop, drop_path_rate=args.drop_path,
                     drop_block_rate=args.drop_block)
    overlay = dict(args.pretrained_cfg_overlay)
    if pretrained and args.pretrained_path:  # num_classes -1: whatever classifier it has is not this data set's
        overlay = {'num_classes': -1, **overlay, **_weights_of(args.pretrained_path)}
    elif pretrained and not repo:
        check_published(args.model, overlay)
    if overlay:
        create = partial(create, pretrained_cfg_overlay=overlay)
    try:
        try:
            with _noted() as loads:
                model = create(**extra)
        except TypeError as e:
            if 'img_size' not in str(e) or args.img_size is None:
                raise
            extra.pop('img_size')  # convolutional networks take any size and no such argument
            with _noted() as loads:
                model = create(**extra)
    except Exception as e:  # timm and the hub raise many kinds: the user needs the model's name and the reason
        raise in_words(f'--model {args.model} cannot be built'
                       + f' with the weights of {args.pretrained_path}' * bool(pretrained and args.pretrained_path)
                       + f': {reason(e, 5)}', e) from e
    model.pretrained_cfg.pop('state_dict', None)  # type: ignore[operator, union-attr]
    said, trained = '', False  # whether the classifier comes with the weights
    if args.initial_checkpoint and not repo and not args.resume:
        said, trained = start_from(args.initial_checkpoint, model, args.model)
    elif pretrained and args.pretrained_path and not repo:
        said = _fitting(args, model, loads[-1] if loads else NOTHING_MISSING)
    elif pretrained:
        said, trained = loaded_by_timm(args.initial_checkpoint if repo else args.model, model)
    if said:
        say(said)
    beginning = args.head_init_scale is not None or args.head_init_bias is not None
    if beginning and trained:
        say('The classifier comes with the weights, so --head-init-scale and --head-init-bias leave it as it is.')
    elif beginning:
        with torch.no_grad():
            for leaf in classifier_leaves(model):
                for p in leaf.parameters():
                    p.mul_(1.0 if args.head_init_scale is None else args.head_init_scale)
                if args.head_init_bias is not None and leaf.bias is not None:
                    leaf.bias.fill_(args.head_init_bias)  # type: ignore[operator, union-attr]
    if args.bn_momentum is not None:
        for norm in batch_norms(model):
            norm.momentum = args.bn_momentum
    return model, {**saved, **{k: v for k, v in extra.items() if v is not None}}


def _weights_of(path: str) -> dict[str, Any]:
    """`--pretrained-path` for pretrained_cfg_overlay."""
    if path.endswith(('.npz', '.npy')):  # of JAX; the model knows its format
        return {'file': path}
    return {'state_dict': read_weights(path, f'--pretrained-path is {path!r}, but that')[0], 'custom_load': False}


@contextmanager
def _noted() -> Iterator[list[Any]]:
    """The results of every `load_state_dict` meanwhile: timm translates the names of a file, and tells nobody but its
    log what was missing then."""
    found: list[Any] = []
    real = torch.nn.Module.load_state_dict

    def load(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        found.append(real(module, *args, **kwargs))
        return found[-1]

    torch.nn.Module.load_state_dict = load  # type: ignore[assignment, method-assign]
    try:
        yield found
    finally:
        torch.nn.Module.load_state_dict = real  # type: ignore[method-assign]


def _fitting(args: argparse.Namespace, model: torch.nn.Module, result: Any) -> str:
    """What `--pretrained-path` has given to a model, in a sentence; `result` is that of `load_state_dict`.

    timm leaves what a file lacks as it was drawn. Some is lacking where the model was built for another pooling, say,
    and much of it where the file is of another model.

    Raises:
        SettingError: of another model: a tenth of the tensors are in one of the two alone.
    """
    path, leaves = args.pretrained_path, {id(leaf) for leaf in classifier_leaves(model)}
    said = f'Weights: {path}, all but the classifier of {args.num_classes} classes, which is new'
    own = {f'{name}.{key}'.lstrip('.') for name, module in model.named_modules() if id(module) not in leaves
           for key, _ in module.named_parameters(recurse=False)}
    lacking = [key for key in result.missing_keys if key in own]
    for keys, which in ((lacking, f'lacks {len(lacking)} of the {len(own)} tensors of --model {args.model} beside the '
                                  f'classifier'),
                        (result.unexpected_keys, f'has {len(result.unexpected_keys)} tensors that --model {args.model} '
                                                 f'has not')):
        if 10 * len(keys) > len(own):
            raise SettingError(f'--pretrained-path is {path!r}, but it {which} ({keys[0]}, …): it is of another model.')
    return f'{said}.' + (f' It lacks {len(lacking)} of the other {len(own)} tensors ({lacking[0]}, …), which start at '
                         f'random.' if lacking else '')


def place_model(args: argparse.Namespace, model: torch.nn.Module, device: torch.device) -> None:
    """Move the model where and as it trains."""
    if args.grad_checkpointing:
        try:
            model.set_grad_checkpointing(enable=True)  # type: ignore[operator]
        except (AssertionError, AttributeError) as e:  # timm's way to say that a model has none
            raise SettingError(f'--grad-checkpointing is on, but {args.model} does not have it: leave it out.') from e
    model.to(device, getattr(torch, args.model_dtype or 'float32'))
    if args.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def data_config(args: argparse.Namespace, model: torch.nn.Module) -> dict[str, Any]:
    """timm's data config of this model and these flags, and the mode of the images.

    Raises:
        SettingError: a mode of another number of channels.
    """
    found = resolve_data_config(vars(args), model=model)
    fit_channels(found)
    return {**found, 'input_img_mode': image_mode(found['input_size'][0], args.input_img_mode)}


def build_task(args: argparse.Namespace, model: torch.nn.Module, config: Optional[MultiMixConfig],
               class_weight: Optional[tuple[float, ...]], device: torch.device) -> MultiMixTask:
    """The task of `--multimix-task` around a model that is wrapped where `config` is not None."""
    criterion = build_criterion(args) if config is None else None
    own = {} if criterion else {'label_smoothing': args.smoothing, 'class_weight': class_weight}
    return find_task(args.multimix_task)(
        model, criterion, mixup_fn=build_mixup(args, config), seed=args.seed, device=device, verbose=False, **own)


def build_optimizer(args: argparse.Namespace, model: torch.nn.Module) -> torch.optim.Optimizer:
    """timm's optimizer; sets `args.lr` where it follows from the batch size.

    Raises:
        SettingError: flags that it refuses, or an optimizer of second order.
    """
    if args.lr is None:  # as timm: by batch size
        ratio = args.batch_size * world() * args.grad_accum_steps / args.lr_base_size
        scale = args.lr_base_scale or ('sqrt' if any(o in args.opt.lower() for o in ('ada', 'lamb')) else 'linear')
        args.lr = args.lr_base * (ratio ** 0.5 if scale == 'sqrt' else ratio)
    try:
        optimizer = create_optimizer_v2(model, **optimizer_kwargs(cfg=args), **args.opt_kwargs)
    except Exception as e:  # each optimizer refuses in its own way
        raise in_words(f'--opt {args.opt} cannot be built: {reason(e)}', e) from e
    if getattr(optimizer, 'is_second_order', False):
        raise SettingError(f'--opt is {args.opt}, but training takes first derivatives only: choose an optimizer of '
                           f'first order.')
    return optimizer


def build_amp(args: argparse.Namespace, device: torch.device) -> tuple[Any, Optional[NativeScaler]]:
    """What `with autocast():` is, and the loss scaler, which only float16 needs."""
    dtype = getattr(torch, args.amp_dtype or ('bfloat16' if device.type == 'cpu' else 'float16'))
    autocast = partial(torch.autocast, device.type, dtype=dtype, enabled=args.amp)
    return autocast, NativeScaler(device=device.type) if args.amp and dtype == torch.float16 else None


def amp_note(args: argparse.Namespace, device: torch.device) -> Optional[str]:
    """A warning where --amp makes a training slower: on CPUs that have no instructions for bfloat16."""
    has: dict[str, Any] = getattr(torch.cpu, 'get_capabilities', dict)()  # torch 2.12 and later say
    if not args.amp or device.type != 'cpu' or args.amp_dtype == 'float16' or not has.get('avx2') or any(
            has.get(name) for name in ('avx512_bf16', 'amx_bf16', 'avx_ne_convert')):
        return None
    return ('--amp is on, but this CPU has no instructions for bfloat16 and computes it in software: a step may take '
            'several times as long. Leave out --amp.')


def build_schedule(args: argparse.Namespace, optimizer: torch.optim.Optimizer, updates: int) -> tuple[Any, int]:
    """timm's schedule (None for `--sched none`), and the number of epochs with those that it adds.

    Raises:
        SettingError: a schedule that timm does not have or that refuses its flags.
    """
    if args.decay_epochs is None:
        args.decay_epochs = 0.2 if args.sched in ('wsd', 'rsqrt') else 90
    try:
        scheduler, epochs = create_scheduler_v2(optimizer, **scheduler_kwargs(args), updates_per_epoch=updates)
    except (TypeError, ValueError, AssertionError) as e:
        raise SettingError(f'--sched {args.sched} cannot be built: {e}') from e
    if scheduler is None and args.sched != 'none':  # older timm takes any name
        raise SettingError(f'--sched is {args.sched!r}, but timm {timm.__version__} has no such schedule.')
    return scheduler, epochs


def build_ema(args: argparse.Namespace, task: MultiMixTask) -> None:
    """Averaged weights, where they are asked for."""
    if args.model_ema:
        task.setup_ema(decay=args.model_ema_decay, use_warmup=args.model_ema_warmup,
                       device=torch.device('cpu') if args.model_ema_force_cpu else None)


def build_mixup(args: argparse.Namespace, config: Optional[MultiMixConfig]) -> Optional[InputMixing]:
    """timm's mixup and CutMix, where either is on."""
    mixup, cutmix = (config or args).mixup or 0.0, (config or args).cutmix or 0.0
    if not (mixup or cutmix or args.cutmix_minmax):
        return None
    return InputMixing(
        mixup_alpha=mixup, cutmix_alpha=cutmix, cutmix_minmax=args.cutmix_minmax, prob=args.mixup_prob,
        switch_prob=args.mixup_switch_prob, mode=args.mixup_mode, label_smoothing=args.smoothing,
        num_classes=args.num_classes)


def build_criterion(args: argparse.Namespace) -> Optional[torch.nn.Module]:
    """Binary cross-entropy where it is asked for; None leaves cross-entropy to the task."""
    if not args.bce_loss:
        return None
    return BinaryCrossEntropy(  # smooths class indices; Mixup has smoothed its own targets
        smoothing=args.smoothing, target_threshold=args.bce_target_thresh, sum_classes=args.bce_sum,
        pos_weight=args.bce_pos_weight)


def find_task(name: Optional[str]) -> type[MultiMixTask]:
    """The class of `--multimix-task module:Class`; `MultiMixTask` where it is not given.

    Raises:
        SettingError: no such module or class, or it is no `MultiMixTask`. What fails while the module is imported
            keeps its own error.
    """
    if not name:
        return MultiMixTask
    module, _, cls = name.partition(':')
    if not module or not cls or module.startswith('.'):
        raise SettingError(f'--multimix-task is {name!r}, but it is module:Class.')
    sys.path.insert(0, os.getcwd())  # as `python -m` has it
    try:
        found = getattr(importlib.import_module(module), cls, None)
    except ModuleNotFoundError as e:
        if e.name is None or not (module == e.name or module.startswith(e.name + '.')):
            raise
        raise SettingError(f'--multimix-task is {name!r}, but there is no module {e.name!r}: it is module:Class, '
                           f'importable from here.') from e
    finally:
        sys.path.remove(os.getcwd())
    if not (isinstance(found, type) and issubclass(found, MultiMixTask)):
        raise SettingError(f'--multimix-task is {name!r}, but that is no subclass of timm_multimix.MultiMixTask: it '
                           f'is module:Class.')
    return found


def ema_note(args: argparse.Namespace, updates: int) -> Optional[str]:
    """What to say when averaged weights will still be mostly the initial ones at the end, else None."""
    decay = args.model_ema_decay
    if not args.model_ema or args.model_ema_warmup or decay ** updates <= 0.05:
        return None
    validated = '' if args.model_ema_force_cpu else 'validated and '
    return (f'--model-ema-decay {decay:g} over {updates} updates leaves {decay ** updates:.0%} of the untrained '
            f'weights in the average, which is {validated}saved. Add --model-ema-warmup, or use a decay of about '
            f'{max(0.0, 1 - 10 / updates):.3g}.')
