"""What train.py finds out before the first step: values that cannot be right, and steps that fail."""
from __future__ import annotations

import argparse
import copy
import os
from typing import Any

import timm
import timm.optim
import torch
import torch._dynamo

from .cli import resume_checkpoint
from .errors import SettingError, nearest
from .task import MultiMixTask


def check_args(args: argparse.Namespace) -> None:
    """Raise `SettingError` for values that no model or data set could make right."""
    for name, least in (('epochs', 1), ('batch_size', 1), ('grad_accum_steps', 1), ('checkpoint_hist', 1),
                        ('log_interval', 1), ('workers', 0), ('warmup_epochs', 0), ('img_size', 1), ('num_classes', 1),
                        ('validation_batch_size', 1), ('in_chans', 1), ('lr_base_size', 1), ('cooldown_epochs', 0),
                        ('recovery_interval', 0), ('nonfinite_limit', 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise SettingError(f'--{name.replace("_", "-")} is {value}, but it must be at least {least}.')
    for name in ('lr', 'lr_base', 'weight_decay', 'warmup_lr', 'min_lr', 'clip_grad', 'mixup', 'cutmix',
                 'color_jitter'):
        value = getattr(args, name)
        if value is not None and not 0 <= value < float('inf'):
            raise SettingError(f'--{name.replace("_", "-")} is {value}, but it must be a number of at least 0.')
    for name in ('hflip', 'vflip', 'reprob', 'mixup_prob', 'mixup_switch_prob', 'drop', 'drop_path', 'smoothing',
                 'model_ema_decay'):
        value = getattr(args, name)
        if value is not None and not 0 <= value <= 1:
            raise SettingError(f'--{name.replace("_", "-")} is {value}, but it must be from 0 to 1.')
    for name in ('scale', 'ratio'):
        low, high = getattr(args, name)
        if not 0 < low <= high < float('inf'):
            raise SettingError(f'--{name} is {low:g} {high:g}, but it is a range: two numbers above 0, the smaller '
                               f'first.')
    if args.cutmix_minmax and not 0 <= args.cutmix_minmax[0] < args.cutmix_minmax[1] <= 1:
        raise SettingError(f'--cutmix-minmax is {args.cutmix_minmax}, but it is a range within 0 and 1, the smaller '
                           f'first.')
    channels = args.in_chans or 3
    for name in ('mean', 'std'):
        values = getattr(args, name)
        if values is not None and (len(values) not in (1, channels) or (name == 'std' and min(values) <= 0)):
            raise SettingError(f'--{name} is {values}, but it takes 1 or {channels} numbers'
                               + (' above 0.' if name == 'std' else '.'))
    if args.crop_pct is not None and not 0 < args.crop_pct <= 2:
        raise SettingError(f'--crop-pct is {args.crop_pct}, but it is the share of the image that is kept: above 0, '
                           f'usually up to 1.')
    if not 0 <= args.seed < 2**32:
        raise SettingError(f'--seed is {args.seed}, but it must be from 0 to {2**32 - 1}.')
    for name, instead in (('num_classes', 'num-classes'), ('img_size', 'img-size'), ('in_chans', 'in-chans'),
                          ('global_pool', 'gp'), ('drop_rate', 'drop'), ('drop_path_rate', 'drop-path')):
        if name in args.model_kwargs:
            raise SettingError(f'--model-kwargs has {name}={args.model_kwargs[name]!r}; use --{instead}, which the '
                               f'rest of the program sees too.')
    if args.torchcompile:
        backends = torch._dynamo.list_backends(None)  # type: ignore[arg-type]
        if args.torchcompile not in backends:
            raise SettingError(f'--torchcompile is {args.torchcompile!r}, but torch has no such backend: '
                               f'{", ".join(backends)}.')
    if args.smoothing == 1:
        raise SettingError('--smoothing is 1, but then targets hold no class: it must be below 1.')
    optimizers = [str(name) for name in timm.optim.list_optimizers()]
    if args.opt.lower() not in optimizers:
        raise SettingError(f'--opt is {args.opt!r}, but timm has no such optimizer.{nearest(args.opt, optimizers)}')
    if args.experiment and os.path.basename(args.experiment) != args.experiment:
        raise SettingError(f'--experiment is {args.experiment!r}, but it names one folder inside --output. For another '
                           f'place use --output.')
    for name in ('train_crop_pad', 'pca_lighting'):
        if not 0 <= (getattr(args, name) or 0) < float('inf'):
            raise SettingError(f'--{name.replace("_", "-")} is {getattr(args, name)}, but it must be at least 0.')
    if args.train_crop_pad is not None and (args.no_aug or args.train_crop_mode):
        other = '--no-aug' if args.no_aug else f'--train-crop-mode {args.train_crop_mode}'
        raise SettingError(f'--train-crop-pad is {args.train_crop_pad}, but {other} crops in another way: give one.')
    if args.resume and not resume_checkpoint(args.resume).is_file():
        raise SettingError(f'--resume is {args.resume!r}, but there is no checkpoint at '
                           f'{str(resume_checkpoint(args.resume))!r}.')
    if args.resume and args.resume.endswith('.safetensors'):
        raise SettingError(weights_alone(args.resume))
    if ':' not in args.model and not timm.is_model(args.model.split('.')[0]):
        raise SettingError(f'--model is {args.model!r}, but timm has no such model.'
                           f'{nearest(args.model, timm.list_models())}')
    if (args.mixup or args.cutmix > 0 or args.cutmix_minmax) and args.batch_size % 2:
        raise SettingError(f'--batch-size is {args.batch_size}, but timm pairs the images of a batch for mixup and '
                           f'cutmix: it must be even.')


def rehearse(args: argparse.Namespace, task: MultiMixTask, data_sets: list[Any], loaders: list[Any], autocast: Any,
             device: torch.device) -> None:
    """A small step and validation on a copy, with real images: what cannot work says so now, not an epoch later."""
    count = max(args.multimix_m or 0, min(4, args.batch_size))
    count = min(count, args.batch_size)  # with --multimix-gather, m may be more than a rank has
    count += count % 2 if task.mixup_fn is not None else 0
    copied = copy.deepcopy(task)
    try:
        for dataset, loader, training in zip(data_sets, loaders, (True, False)):
            if not hasattr(dataset, '__getitem__'):  # a stream: opening it twice may download twice
                continue
            collate = getattr(loader, 'loader', loader).collate_fn  # under timm's prefetcher lies the real loader
            images, target = collate([dataset[i % len(dataset)] for i in range(count)])
            images, target = images.to(device).float(), target.to(device)
            copied.train(training)
            with autocast():
                loss = copied(images, target)['loss']
            if training:
                loss.backward()
    except Exception as e:  # any library below may refuse: the user needs to know which of the settings it was about
        raise SettingError(f'A first step with these settings fails: {type(e).__name__}: {e}\n  (--model {args.model}, '
                           f'--img-size {args.img_size}, --device {device}, and the flags of data and of '
                           f'augmentation.)') from e


def ema_note(decay: float, updates: int) -> str:
    """What to say when averaged weights will still be mostly the initial ones at the end."""
    return (f'--model-ema-decay {decay:g} over {updates} updates leaves {decay ** updates:.0%} of the untrained '
            f'weights in the average, which is validated and saved. Add --model-ema-warmup, or use a decay of about '
            f'{max(0.0, 1 - 10 / updates):.3g}.')


def weights_alone(path: str) -> str:
    """What to say when `--resume` names weights."""
    return (f'--resume is {path!r}, but that holds weights alone, not a run to go on with. To start from them: '
            f'--initial-checkpoint {path}')


def mismatch(flag: str, path: str, model: str, error: Exception) -> str:
    """What to say when a checkpoint cannot be loaded into the model."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (f'{flag} is {path!r}, but its weights do not fit --model {model}: it comes from another model, image size '
            f'or number of classes, or it is damaged.\n  ' + '\n  '.join(line[:300] for line in lines[:4]))
