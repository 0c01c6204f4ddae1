"""Settings that do not fit each other or this machine, found before anything is built.

What a flag takes by itself is said beside it, in `timm_multimix.runs.flags`.
"""
from __future__ import annotations

import argparse
import inspect
import os
import warnings
from typing import Any, Optional

import timm
import timm.optim
import torch
import torch._dynamo

from ..data import DIGITS
from ..data.factory import image_mode
from ..errors import SettingError, nearest, reason
from ..runs.find import resume_checkpoint
from ..runs.flags import SIDE
from ..runs.screen import say
from ..runs.settings import smoothing, starts_pretrained
from .loggers import check_loggers
from .teacher import check_teacher_flags


def check_args(args: argparse.Namespace) -> None:
    """Raise `SettingError` for settings that no model or data set could make right."""
    _check_model(args)
    _check_images(args)
    _check_schedule(args)
    _check_optimizer(args)
    _check_mixing(args)
    _check_device(args)
    _check_folder(args)


def _check_model(args: argparse.Namespace) -> None:
    if ':' not in args.model and not timm.is_model(args.model.split('.')[0]):
        raise SettingError(f'--model is {args.model!r}, but timm has no such model.'
                           f'{nearest(args.model, timm.list_models())}')
    for name, instead in (('num_classes', 'num-classes'), ('in_chans', 'in-chans'), ('global_pool', 'gp'),
                          ('drop_rate', 'drop'), ('drop_path_rate', 'drop-path')):
        if name in args.model_kwargs:
            raise SettingError(f'--model-kwargs has {name}={args.model_kwargs[name]!r}; use --{instead}, which the '
                               f'rest of the program sees too.')
    if 'file' in args.pretrained_cfg_overlay:
        raise SettingError(f'--pretrained-cfg-overlay has file={args.pretrained_cfg_overlay["file"]!r}: that is '
                           f'--pretrained-path.')
    if args.pretrained_path and not args.resume and not os.path.isfile(args.pretrained_path):
        raise SettingError(f'--pretrained-path is {args.pretrained_path!r}, but there is no such file.')
    if args.bn_eval and args.bn_momentum is not None:
        raise SettingError(f'--bn-momentum is {args.bn_momentum:g}, but with --bn-eval the statistics of batch norms '
                           f'stay as they are: drop one of the two.')


def _check_images(args: argparse.Namespace) -> None:
    for name in ('scale', 'ratio'):
        low, high = getattr(args, name)
        if low > high:
            raise SettingError(f'--{name} is {low:g} {high:g}, but it is a range: the smaller number first.')
    if args.input_size is not None and args.in_chans not in (None, args.input_size[0]):
        raise SettingError(f'--in-chans is {args.in_chans} and --input-size begins with {args.input_size[0]}: they '
                           f'are the same.')
    channels = args.input_size[0] if args.input_size else args.in_chans or 3
    for name in ('mean', 'std'):
        values = getattr(args, name)
        if values is not None and len(values) not in (1, channels):
            raise SettingError(f'--{name} is {values}, but it takes 1 or {channels} numbers.')
    if args.in_chans or args.input_size:
        image_mode(channels, args.input_img_mode)
    inner = inner_size(args)
    if inner is not None and args.img_size is not None and inner != (args.img_size, args.img_size):
        raise SettingError(f'--img-size is {args.img_size} and --model-kwargs has '
                           f'img_size={args.model_kwargs["img_size"]!r}: they are the same.')
    if inner is not None and args.input_size is not None and inner != tuple(args.input_size[1:]):
        raise SettingError(f'--input-size is {args.input_size} and --model-kwargs has '
                           f'img_size={args.model_kwargs["img_size"]!r}: they are the same.')
    if not args.val_split:
        raise SettingError('--val-split is empty, but every run is validated: name the split, or with a folder the '
                           'sub-folder.')
    if args.aug_repeats and int(os.environ.get('WORLD_SIZE', '1')) == 1:
        raise SettingError(f'--aug-repeats is {args.aug_repeats:g}, but it gives every process another augmentation of '
                           f'the same image, and there is one process: start several with torchrun, or drop it.')
    if args.resplit and args.no_prefetcher:
        warnings.warn('--resplit has no effect with --no-prefetcher: the prefetcher erases.', stacklevel=3)
    if args.train_crop_pad is not None and (args.no_aug or args.train_crop_mode):
        other = '--no-aug' if args.no_aug else f'--train-crop-mode {args.train_crop_mode}'
        raise SettingError(f'--train-crop-pad is {args.train_crop_pad}, but {other} crops in another way: give one.')


def inner_size(args: argparse.Namespace) -> Optional[tuple[int, int]]:
    """Height and width of an image that `--model-kwargs img_size=…` says, by one number or two; None if it is not said.

    Raises:
        SettingError: it is neither.
    """
    given = args.model_kwargs.get('img_size')
    if given is None:
        return None
    both = given if isinstance(given, (list, tuple)) else (given, given)
    if len(both) != 2 or any(SIDE.wrong(n) for n in both):
        raise SettingError(f'--model-kwargs has img_size={given!r}, but it is one whole number of pixels, or height '
                           f'and width: "img_size=(32,64)", in YAML [32, 64].')
    return both[0], both[1]


def _check_schedule(args: argparse.Namespace) -> None:
    if args.start_epoch is not None and args.start_epoch >= args.epochs:
        raise SettingError(f'--start-epoch is {args.start_epoch} and --epochs is {args.epochs}, so nothing would be '
                           f'trained: the first epoch is 0, and the last one {args.epochs - 1}.')
    if args.start_epoch is not None and args.stop_epoch is not None and args.start_epoch >= args.stop_epoch:
        raise SettingError(f'--start-epoch is {args.start_epoch} and --stop-epoch is {args.stop_epoch}, so nothing '
                           f'would be trained: the first epoch is 0.')
    if 2 * args.warmup_epochs >= args.epochs and args.warmup_epochs and not args.warmup_prefix and (
            args.sched != 'none'):
        what = (f'warm-up takes {args.warmup_epochs} of them' if args.warmup_epochs < args.epochs else
                'all of the training is warm-up, and the learning rate never gets to where it was set')
        warnings.warn(f'--warmup-epochs is {args.warmup_epochs} and --epochs is {args.epochs}, so {what}. Try '
                      f'--warmup-epochs {args.epochs // 10}.', stacklevel=3)
    milestones = args.decay_milestones
    if milestones != sorted(set(milestones)):
        raise SettingError(f'--decay-milestones is {milestones}, but they are epochs, each later than the one before.')
    noise = args.lr_noise
    if noise is not None and (len(noise) > 2 or sorted(noise) != noise):
        raise SettingError(f'--lr-noise is {noise}, but it is where in the run the noise begins, and perhaps ends: one '
                           f'or two shares, the smaller first.')


def _check_optimizer(args: argparse.Namespace) -> None:
    optimizers = [str(name) for name in timm.optim.list_optimizers()]
    name = args.opt.lower().removeprefix('lookahead_')
    if name not in optimizers:
        raise SettingError(f'--opt is {args.opt!r}, but timm has no such optimizer.{nearest(name, optimizers)}')
    if args.opt_betas is None:
        return
    known = inspect.signature(timm.optim.get_optimizer_class(name, bind_defaults=False)).parameters.get('betas')
    if known is not None and isinstance(known.default, tuple) and len(known.default) != len(args.opt_betas):
        raise SettingError(f'--opt-betas is {args.opt_betas}, but --opt {args.opt} has {len(known.default)} of them '
                           f'({" ".join(map(str, known.default))}).')


def _check_mixing(args: argparse.Namespace) -> None:
    if args.cutmix_minmax and not args.cutmix_minmax[0] < args.cutmix_minmax[1]:
        raise SettingError(f'--cutmix-minmax is {args.cutmix_minmax}, but it is a range: the smaller number first.')
    if (args.mixup or args.cutmix or args.cutmix_minmax) and args.batch_size % 2:
        raise SettingError(f'--batch-size is {args.batch_size}, but timm pairs the images of a batch for mixup and '
                           f'cutmix: it must be even.')
    if args.multimix_m == 1:
        warnings.warn('--multimix-m is 1, but a mixture of one example is that example: nothing is mixed.',
                      stacklevel=3)
    _check_bce(args)
    check_teacher_flags(args)


def _check_bce(args: argparse.Namespace) -> None:
    if args.bce_loss and args.class_weight:
        raise SettingError(f'--class-weight is {args.class_weight!r} and --bce-loss is on, which compares every class '
                           f'for itself and has no weighted mean: give one of the two.')
    if args.bce_loss and args.bce_pos_weight is not None and args.multimix != 'none':
        raise SettingError(
            f'--bce-pos-weight is {args.bce_pos_weight} and --multimix is {args.multimix}, whose loss has no such '
            f'weight: drop it, or choose --multimix none.')
    for name in ('bce_sum', 'bce_target_thresh', 'bce_pos_weight'):
        value = getattr(args, name)
        if not args.bce_loss and value not in (None, False):
            warnings.warn(f'--{name.replace("_", "-")} is {value}, but it has no effect without --bce-loss.',
                          stacklevel=3)


def _check_device(args: argparse.Namespace) -> None:
    if args.torchcompile:
        backends = torch._dynamo.list_backends(None)  # type: ignore[arg-type]
        if args.torchcompile not in backends:
            raise SettingError(f'--torchcompile is {args.torchcompile!r}, but torch has no such backend: '
                               f'{", ".join(backends)}.')
    if args.torchcompile_mode and not args.torchcompile:
        raise SettingError(f'--torchcompile-mode is {args.torchcompile_mode!r}, but nothing is compiled: add '
                           f'--torchcompile.')
    if args.amp and args.model_dtype not in (None, 'float32'):
        raise SettingError(f'--model-dtype is {args.model_dtype} and --amp is on, but mixed precision keeps the '
                           f'weights in float32: give only one.')
    if args.model_dtype == 'float16':
        warnings.warn('--model-dtype float16 has no loss scaling: gradients vanish. Prefer bfloat16.', stacklevel=3)
    if args.workers > (most := 16 * (os.cpu_count() or 1)):
        warnings.warn(f'--workers is {args.workers}, and each is a process, but this machine has {os.cpu_count()} '
                      f'cores: more than {most} only cost memory.', stacklevel=3)


def _check_folder(args: argparse.Namespace) -> None:
    """What is resumed, written, logged and published."""
    if args.resume and not resume_checkpoint(args.resume).is_file():
        raise SettingError(f'--resume is {args.resume!r}, but there is no checkpoint at '
                           f'{str(resume_checkpoint(args.resume))!r}.')
    if args.resume and args.resume.endswith('.safetensors'):
        raise SettingError(weights_alone(args.resume))
    if args.experiment in ('.', '..') or os.path.basename(args.experiment) != args.experiment:
        raise SettingError(f'--experiment is {args.experiment!r}, but it names one folder inside --output. For another '
                           f'place use --output.')
    if args.push_every is not None and not args.push_to_hub:
        raise SettingError(f'--push-every is {args.push_every}, but there is no --push-to-hub user/name to push to.')
    check_loggers(args.log)
    if args.wandb_resume_id and not (args.resume and 'wandb' in (args.log or ())):
        raise SettingError(f'--wandb-resume-id is {args.wandb_resume_id!r}, but that goes with --resume and --log '
                           f'wandb.')


def weights_alone(path: str) -> str:
    """What to say when `--resume` names weights."""
    return (f'--resume is {path!r}, but that holds weights alone, not a run to resume. To start from them: '
            f'--initial-checkpoint {path}')


def mismatch(flag: str, path: str, model: str, error: Exception) -> str:
    """What to say when a checkpoint cannot be loaded into the model."""
    return (f'{flag} is {path!r}, but its weights do not fit --model {model}: it comes from another model, image size '
            f'or number of classes, or it is damaged.\n  ' + reason(error, 4))


def settle(args: argparse.Namespace) -> dict[str, Any]:
    """Check the flags and resolve what needs no data, in `args`; returns the settings that args.yaml keeps.

    Raises:
        SettingError: values that cannot be right.
    """
    unsmoothed = args.smoothing is None and args.multimix != 'none'
    args.smoothing = smoothing(args)
    settings = dict(vars(args))
    check_args(args)
    if args.input_size is not None:
        args.in_chans, *size = args.input_size
        args.img_size = size[0] if size[0] == size[1] else tuple(size)
    if (inner := inner_size(args)) is not None:  # a rectangle is --input-size to the rest of the program
        height, width = inner
        args.img_size = height if height == width else inner
        args.model_kwargs = {**args.model_kwargs, 'img_size': args.img_size}
        if height != width:
            args.input_size = [args.in_chans or 3, height, width]
    if (args.dataset or '').lower() == DIGITS:
        args.img_size = args.img_size or 32
        say(f'Data: {DIGITS}, 1 797 handwritten digits that come with scikit-learn. For your own images: --data-dir.')
    if args.recipe:
        say(f'Settings: {args.recipe}, then your flags.')
    if unsmoothed and args.class_weight and starts_pretrained(settings):
        say('Labels are not smoothed, since --smoothing is not given. In fine-tuning with --class-weight, --smoothing '
            '0.1 beside mixing did better (docs/finetuning.md, Uneven classes).')
    elif unsmoothed:
        say('Labels are not smoothed, since --smoothing is not given: smoothing beside mixing worsens calibration '
            "(timm's default is 0.1).")
    return settings
