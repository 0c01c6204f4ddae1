#!/usr/bin/env python3
"""Train a timm model with MultiMix, Dense MultiMix, or neither.

    python train.py --model vit_small_patch16_224 --multimix dense            # on the embedded digits
    python train.py --data-dir cifar10 -c hparams/cifar10_resnet18.yaml      # on a folder of images
    python train.py --resume output/train/NAME                               # go on with a run
    torchrun --nproc_per_node=4 train.py --model resnet50 …                   # on four GPUs

Read it from `run` downwards: data, model, optimizer, task, then the loop. Flags are timm's where timm has them
(`timm_multimix/runs/flags.py`); the loss is `timm_multimix.MultiMixTask`.
"""
from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections import OrderedDict
from contextlib import nullcontext
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Optional

import timm
import torch
import torchvision
import yaml
from safetensors import SafetensorError
from timm.data import create_loader, resolve_data_config
from timm.layers import convert_sync_batchnorm, set_fast_norm
from timm.loss import BinaryCrossEntropy
from timm.models import load_checkpoint, model_parameters
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler_factory import scheduler_kwargs
from timm.utils import (
    AverageMeter,
    NativeScaler,
    accuracy,
    dispatch_clip_grad,
    distribute_bn,
    get_outdir,
    random_seed,
)
from tqdm import tqdm

from timm_multimix import MultiMixConfig, MultiMixTask, SettingError, unwrap, wrap
from timm_multimix.data import (
    DIGITS,
    PlacedLoader,
    class_names,
    class_weights,
    convert_modes,
    create_train_val,
    describe_images,
    drop_unreadable,
)
from timm_multimix.data.augment import as_published
from timm_multimix.distributed import finish, from_first, local_rank, mean_of_ranks, one_by_one, rank, start, world
from timm_multimix.heads import classifier_leaves
from timm_multimix.hub import BackgroundPush, save_plain, starting_point
from timm_multimix.policy import InputMixing, told
from timm_multimix.runs.find import candidates, is_repo, resume_checkpoint
from timm_multimix.runs.screen import say
from timm_multimix.runs.settings import multimix_config, parse_args, smoothing
from timm_multimix.runs.summary import append_summary, trim_summary
from timm_multimix.seeding import seed_place
from timm_multimix.stepping import one_position_note
from timm_multimix.training.build import ema_note, find_task
from timm_multimix.training.checkpoint import AtomicCheckpointSaver, drop_unfinished, load_own_state
from timm_multimix.training.checks import check_args, mismatch
from timm_multimix.training.curves import plot_curves
from timm_multimix.training.interrupt import Interrupt, Stopped
from timm_multimix.training.loggers import open_loggers
from timm_multimix.training.nonfinite import Statistics, finite_gradient
from timm_multimix.training.progress import Averages, Progress
from timm_multimix.training.rehearsal import rehearse
from timm_multimix.training.report import write_report
from timm_multimix.training.state import Save, not_finite, place_of, resume, seen
from timm_multimix.training.words import describe, epoch_line, expected_line, few_warning, headline, in_plain_timm

DIGITS_RECIPE = Path(__file__).parent / 'hparams' / 'digits_vit_small.yaml'
SIGNAL = ('loss_mixed', 'loss_clean', 'effective', 'target_entropy')
OF_WHICH_IMAGES = ('top1_unmixed', 'top1_mixed')


# ---------------------------------------------------------------------------------------------------------- building

def image_mode(args: argparse.Namespace) -> str:
    return args.input_img_mode or ('L' if args.in_chans == 1 else 'RGB')


def build_data(args: argparse.Namespace) -> tuple[Any, Any]:
    options = {'download': args.dataset_download, 'class_map': args.class_map, 'seed': args.seed,
               'batch_size': args.batch_size, 'input_img_mode': image_mode(args), 'repeats': args.epoch_repeats,
               'input_key': args.input_key, 'target_key': args.target_key,
               'trust_remote_code': args.dataset_trust_remote_code,
               'train_num_samples': args.train_num_samples, 'val_num_samples': args.val_num_samples}
    with one_by_one() if args.dataset_download else nullcontext():
        train_set, val_set = create_train_val(
            args.dataset or '', args.data_dir, args.train_split, args.val_split, **options)
    if args.bad_images != 'ignore':
        for split, dataset in ((args.train_split, train_set), (args.val_split, val_set)):
            left_out = drop_unreadable(dataset, split, args.bad_images == 'skip', workers=2 * max(1, args.workers))
            if left_out:
                say(left_out)
    names = class_names(train_set)
    if told := describe_images(train_set, names):
        say(told)
    if args.num_classes is None:
        if names is None:
            raise SettingError('--num-classes is not given, and this data set does not say how many classes it has.')
        args.num_classes = len(names)
    elif names is not None and len(names) > args.num_classes:
        raise SettingError(f'--num-classes is {args.num_classes}, but the data set has {len(names)} classes: targets '
                           f'up to {len(names) - 1} would be outside the model.')
    if args.num_classes == 1 or (names is not None and len(names) == 1):
        warnings.warn('there is one class only: nothing can be learned from it. Is --data-dir the folder above the '
                      'splits (train/CLASS/…)?', stacklevel=2)
    if hasattr(train_set, '__len__') and len(train_set) < args.batch_size * world():
        each = f' on each of {world()} ranks' if world() > 1 else ''
        raise SettingError(f'--batch-size is {args.batch_size}{each}, but there are only {len(train_set)} training '
                           f'images.')
    if hasattr(val_set, '__len__') and not len(val_set):
        raise SettingError(f'--val-split {args.val_split} holds no images to validate on, or is a stream that does not '
                           f'say how many: --val-num-samples.')
    return train_set, val_set


def build_model(args: argparse.Namespace) -> tuple[torch.nn.Module, dict[str, Any]]:
    """The timm model, and how to make it again: arguments of create_model beyond name and classes."""
    extra = {'img_size': args.img_size, 'in_chans': args.in_chans, 'global_pool': args.gp, **args.model_kwargs}
    if args.bn_eps is not None:
        extra['bn_eps'] = args.bn_eps
    repo, saved = starting_point(args)  # a repository brings its architecture and its arguments with its weights
    create = partial(timm.create_model, repo or args.model,
                     pretrained=bool(repo) or args.pretrained or bool(args.pretrained_path),
                     num_classes=args.num_classes, drop_rate=args.drop, drop_path_rate=args.drop_path,
                     drop_block_rate=args.drop_block)
    if args.pretrained_path:  # num_classes -1: whatever classifier it has is not this data set's
        create = partial(create, pretrained_cfg_overlay={'file': args.pretrained_path, 'num_classes': -1})
    try:
        try:
            model = create(**extra)
        except TypeError as e:
            if 'img_size' not in str(e) or args.img_size is None:
                raise
            extra.pop('img_size')  # convolutional networks take any size and no such argument
            model = create(**extra)
    except Exception as e:  # timm and the hub raise many kinds: the user needs the model's name and the reason
        raise SettingError(f'--model {args.model} cannot be built: {e or type(e).__name__}') from e
    if args.initial_checkpoint and not repo:
        path = args.initial_checkpoint
        if not os.path.isfile(path):
            raise SettingError(f'--initial-checkpoint is {path!r}, but there is no such file.')
        try:
            load_checkpoint(model, path)
        except Exception as e:
            raise SettingError(mismatch('--initial-checkpoint', path, args.model, e)) from e
    if args.head_init_scale is not None or args.head_init_bias is not None:
        with torch.no_grad():
            for leaf in classifier_leaves(model):
                for p in leaf.parameters():
                    p.mul_(1.0 if args.head_init_scale is None else args.head_init_scale)
                if args.head_init_bias is not None and leaf.bias is not None:
                    leaf.bias.fill_(args.head_init_bias)  # type: ignore[operator, union-attr]
    for module in model.modules():
        if args.bn_momentum is not None and isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = args.bn_momentum
    return model, {**saved, **{k: v for k, v in extra.items() if v is not None}}


def build_loaders(
        args: argparse.Namespace, train_set: Any, val_set: Any, data: dict[str, Any], device: torch.device,
) -> tuple[Any, Any]:
    common = {'input_size': data['input_size'], 'mean': data['mean'], 'std': data['std'], 'num_workers': args.workers,
              'pin_memory': args.pin_mem, 'device': device, 'distributed': world() > 1,
              # Without it images are erased one by one, and --resplit has no half of a batch to spare.
              'use_prefetcher': (device.type == 'cuda' or args.resplit) and not args.no_prefetcher,
              'persistent_workers': args.persistent_workers and args.workers > 0,
              'img_dtype': getattr(torch, args.model_dtype or 'float32')}
    train = create_loader(
        train_set, batch_size=args.batch_size, is_training=True, no_aug=args.no_aug, re_prob=args.reprob,
        re_mode=args.remode, re_count=args.recount, re_split=args.resplit, train_crop_mode=args.train_crop_mode,
        scale=args.scale, ratio=args.ratio, hflip=args.hflip, vflip=args.vflip, color_jitter=args.color_jitter,
        color_jitter_prob=args.color_jitter_prob, grayscale_prob=args.grayscale_prob or 0.0,
        gaussian_blur_prob=args.gaussian_blur_prob or 0.0, auto_augment=args.aa,
        num_aug_repeats=args.aug_repeats,  # type: ignore[arg-type]
        interpolation=('' if args.no_aug else args.train_interpolation) or data['interpolation'],
        worker_seeding=args.worker_seeding, **common)
    val = create_loader(
        val_set, batch_size=args.validation_batch_size or args.batch_size, is_training=False,
        interpolation=data['interpolation'], crop_pct=data['crop_pct'], crop_mode=data['crop_mode'], **common)
    if args.train_crop_pad is not None or args.pca_lighting:
        as_published(train_set.transform, data['input_size'][1:], args.train_crop_pad, args.pca_lighting)
    of_files = not args.dataset and args.bad_images != 'ignore'
    for dataset in (train_set, val_set):
        if of_files or (args.dataset or '').lower().startswith('torch/'):
            convert_modes(dataset, image_mode(args))
    if isinstance(train_set, torch.utils.data.IterableDataset) and not len(train):
        raise SettingError(f'--dataset {args.dataset} is a stream that gives no batches of {args.batch_size} to '
                           f'--workers {args.workers}: use at least one worker and as few as it has parts.')
    return train, val


def build_optimizer(args: argparse.Namespace, model: torch.nn.Module) -> torch.optim.Optimizer:
    if args.lr is None:  # as timm: by batch size
        ratio = args.batch_size * world() * args.grad_accum_steps / args.lr_base_size
        scale = args.lr_base_scale or ('sqrt' if any(o in args.opt.lower() for o in ('ada', 'lamb')) else 'linear')
        args.lr = args.lr_base * (ratio ** 0.5 if scale == 'sqrt' else ratio)
    try:
        optimizer = create_optimizer_v2(model, **optimizer_kwargs(cfg=args), **args.opt_kwargs)
    except Exception as e:  # each optimizer refuses in its own way
        raise SettingError(f'--opt {args.opt} cannot be built: {e or type(e).__name__}') from e
    if getattr(optimizer, 'is_second_order', False):
        raise SettingError(f'--opt is {args.opt}, but training takes first derivatives only: choose an optimizer of '
                           f'first order.')
    return optimizer


def build_mixup(args: argparse.Namespace, config: Optional[MultiMixConfig]) -> Optional[InputMixing]:
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


def open_output(args: argparse.Namespace, size: int) -> Path:
    root = args.output or './output/train'
    name = args.experiment or '-'.join(
        [datetime.now().strftime('%Y%m%d-%H%M%S'), args.model.replace('/', '_').replace(':', '_'), str(size)])
    try:
        if args.resume:
            folder = resume_checkpoint(args.resume).parent
        else:
            folder = Path(root) / name
            if args.experiment and (candidates(folder) or (folder / 'last.pth.tar').exists()):
                raise SettingError(f'{folder} holds a run already. Go on with it by --resume {folder}, or choose '
                                   f'another --experiment.')
            folder = Path(get_outdir(root, name, inc=not args.experiment))
        probe = folder / '.writable'
        probe.touch()
        probe.unlink()
    except OSError as e:
        raise SettingError(f'--output is {root!r}, but {name!r} cannot be written there: {e.strerror or e}.') from e
    return folder


# ---------------------------------------------------------------------------------------------------------- training

def train_epoch(
        progress: Progress, args: argparse.Namespace, task: MultiMixTask, loader: PlacedLoader,
        optimizer: torch.optim.Optimizer, scheduler: Any, autocast: Any, scaler: Optional[NativeScaler],
        device: torch.device, bar: tqdm, statistics: Statistics, stop: Interrupt, save: Any, epochs: int,
) -> OrderedDict[str, Any]:
    """The rest of an epoch, from where `progress` says it is."""
    task.train()
    epoch, first = progress.epoch, progress.batch
    if isinstance(task.mixup_fn, InputMixing) and args.mixup_off_epoch and epoch >= args.mixup_off_epoch:
        task.mixup_fn.mixup_enabled = False
    dtype = getattr(torch, args.model_dtype or 'float32')
    batches, accum = len(loader), args.grad_accum_steps
    updates = (batches + accum - 1) // accum
    images = 0
    started = time.time()
    optimizer.zero_grad()
    for i, (input, target) in enumerate(loader.batches(epoch, first, stop.requested), first):
        task.set_progress(epoch + i / batches, epochs)
        seed_place(args.seed, epoch, i, rank())  # a run that goes on here draws what an unbroken one does
        input, target = input.to(device, dtype, non_blocking=True), target.to(device, non_blocking=True)
        if args.channels_last:
            input = input.contiguous(memory_format=torch.channels_last)
        update = (i + 1) % accum == 0 or i + 1 == batches
        group = accum if i < batches - batches % accum else batches % accum  # the last group may be smaller
        clip = {'clip_grad': args.clip_grad, 'clip_mode': args.clip_mode}
        parameters = list(model_parameters(unwrap(task.trainable_module), exclude_head='agc' in args.clip_mode))
        with nullcontext() if update else task.no_sync():
            with autocast():
                result = task(input, target)
            loss = result['loss'] / group
            if scaler is not None:
                scaler(loss, optimizer, parameters=parameters, need_update=update, **clip)
            else:
                loss.backward()
        if update:
            # A scaler looks for itself, and leaves out updates that are merely too large for float16 as well.
            finite = finite_gradient(task.parameters()) if scaler is None else bool(torch.isfinite(loss))
            if scaler is None and finite:
                if args.clip_grad is not None:
                    dispatch_clip_grad(parameters, args.clip_grad, mode=args.clip_mode)
                optimizer.step()
            optimizer.zero_grad()
            step = epoch * updates + i // accum + 1
            if not finite:
                statistics.put_back()
            if task.has_ema() and (finite or scaler is not None):
                task.update_ema(step=step)
            progress.skipped += not finite
            progress.in_a_row = 0 if finite else progress.in_a_row + 1
            if scheduler is not None:
                scheduler.step_update(num_updates=step)

        with torch.no_grad():
            top1 = 100 * (result['output'].argmax(1) == target).float().mean()
            found = {'loss': result['loss'].detach(), 'top1': top1, **{k: result[k] for k in SIGNAL if k in result}}
            # Embeddings are mixed behind the logits, so these are of the images as they are; but for --multimix-layer
            # without a clean term, whose logits are of mixtures.
            unmixed = result['mixed'] == 'nothing' or (result['mixed'] == 'embeddings' and 'loss_clean' in result)
            found['top1_unmixed' if unmixed else 'top1_mixed'] = top1
            progress.averages.add(found)
        images += len(input)
        if i % args.log_interval == 0 or i + 1 == batches:
            average = {name: float('nan') if v is None else v for name, v in progress.averages.means().items()}
            shown = OF_WHICH_IMAGES if task.policy.mixes_anything else ('top1',)
            bar.set_postfix(OrderedDict(
                epoch=f'{epoch + 1}', train_loss=f'{average["loss"]:.3f}',
                **{f'train_{name}': f'{average[name]:.1f}' for name in shown if average[name] == average[name]},
                lr=f'{optimizer.param_groups[0]["lr"]:.1e}'), refresh=False)
            if args.save_images and rank() == 0:
                torchvision.utils.save_image(input.float(), save.folder / f'train-batch-{i}.jpg', padding=0,
                                             normalize=True)
        bar.update(len(input) * world())
        if update:
            if progress.in_a_row >= args.nonfinite_limit:
                raise not_finite(f'The gradient of {progress.in_a_row} updates in a row', epoch, optimizer, save.folder)
            progress.batch = i + 1
            statistics.keep()
            stopping = stop()
            if stopping or (args.recovery_interval and (i // accum + 1) % args.recovery_interval == 0):
                save(progress, within=True)
            if stopping:
                raise stop.reason()
    if hasattr(optimizer, 'sync_lookahead'):
        optimizer.sync_lookahead()
    metrics: OrderedDict[str, Any] = OrderedDict(progress.averages.means(of_all_ranks=True))
    if task.policy.mixes_anything:
        done = task.policy.counts - progress.counted
        metrics.update(steps=done['steps'], mixed_embeddings=done['embeddings'], mixed_inputs=done['inputs'],
                       unmixed=done['nothing'])
    else:
        for name in OF_WHICH_IMAGES:
            del metrics[name]
    metrics['skipped'] = progress.skipped
    metrics['images_per_second'] = world() * images / (time.time() - started)
    return metrics


@torch.no_grad()
def validate(model: Any, loader: PlacedLoader, autocast: Any, device: torch.device, channels_last: bool,
             stop: Interrupt) -> Optional[OrderedDict[str, float]]:
    """Metrics over the images of all ranks; None when the run was asked to stop."""
    model.eval()
    loss, top1, top5 = AverageMeter(), AverageMeter(), AverageMeter()
    # The ranks' shares are filled up to be equal; what fills them does not count.
    left = len(range(rank(), len(loader.dataset), world())) if loader.exact and world() > 1 else sys.maxsize
    for input, target in loader.batches(0, stopping=stop.requested):
        input, target = input.to(device, next(model.parameters()).dtype), target.to(device)
        if channels_last:
            input = input.contiguous(memory_format=torch.channels_last)
        with autocast():
            logits = model(input)
        logits, target = logits.float()[:left], target[:left]
        left -= len(target)
        if len(target):
            acc1, acc5 = accuracy(logits, target, topk=(1, 5))
            loss.update(float(torch.nn.functional.cross_entropy(logits, target)), len(target))
            top1.update(float(acc1), len(target))
            top5.update(float(acc5), len(target))
        if loader.exact and stop():  # streams may be longer on one rank than on another, and would not agree
            return None
    means = mean_of_ranks([loss.sum, top1.sum, top5.sum], loss.count, device)
    return OrderedDict(zip(('loss', 'top1', 'top5'), means))


def run(args: argparse.Namespace) -> None:
    unsmoothed = args.smoothing is None and args.multimix != 'none'
    args.smoothing = smoothing(args)
    asked = dict(vars(args))  # args.yaml keeps this: what follows resolves more of it for this data and batch size
    # Everything that can be wrong is found out here, before the first step.
    check_args(args)
    if args.input_size is not None:
        args.in_chans, *size = args.input_size
        args.img_size = size[0] if size[0] == size[1] else tuple(size)
    args.img_size = args.img_size or args.model_kwargs.get('img_size')
    config = multimix_config(args)
    device = start(args.device, args.device_modules)
    mixed = args.batch_size
    if config is not None:
        config.check_batch(args.batch_size, world())
        mixed = config.mixed_batch(args.batch_size, world())
    if args.sync_bn and device.type != 'cuda':
        raise SettingError(f'--sync-bn is on, but torch has it for GPUs alone and --device is {device}. Leave it out; '
                           f'--dist-bn says what becomes of the statistics after each epoch.')
    random_seed(args.seed, 0)
    on_digits = (args.dataset or '').lower() == DIGITS
    if on_digits:
        args.img_size = args.img_size or 32
        say(f"Data: {DIGITS}, 1 797 handwritten digits that come with scikit-learn. For your own images: --data-dir.")
    if args.recipe:
        say(f'Settings: {args.recipe}, then your flags.')
    if args.fast_norm:
        set_fast_norm()
    train_set, val_set = build_data(args)
    weights = class_weights(args.class_weight, train_set, args.num_classes)
    if config is not None and weights is not None:
        config = config.replace(class_weight=weights)
    model, model_args = build_model(args)
    for name in ('model', 'pretrained', 'initial_checkpoint'):  # a repository was looked into for these
        asked[name] = getattr(args, name)
    data = resolve_data_config(vars(args), model=model)
    for name in ('mean', 'std'):  # the model's three, for another number of channels
        if len(data[name]) != data['input_size'][0]:
            data[name] = (sum(data[name]) / len(data[name]),) * data['input_size'][0]
    if args.sync_bn and world() > 1:
        args.dist_bn = ''  # the ranks have the same
        model = convert_sync_batchnorm(model)
    if config is not None:
        wrapped = wrap(model, config, input_size=data['input_size'])
        model_args.update(wrapped.multimix.timm_args)
    if args.grad_checkpointing:
        model.set_grad_checkpointing(enable=True)  # type: ignore[operator]
    model.to(device, getattr(torch, args.model_dtype or 'float32'))
    if args.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        train_loader, val_loader = build_loaders(args, train_set, val_set, data, device)
    except SettingError:
        raise
    except Exception as e:  # timm asserts its augmentation settings in many places
        raise SettingError(f'--aa {args.aa} or another flag of augmentation cannot be used: '
                           f'{e or type(e).__name__}') from e
    criterion = build_criterion(args) if config is None else None
    task = find_task(args.multimix_task)(
        model if config is None else wrapped, criterion, mixup_fn=build_mixup(args, config),
        label_smoothing=None if criterion else args.smoothing, class_weight=None if criterion else weights,
        seed=args.seed, device=device, verbose=False)
    policy = task.policy
    messages = [task.signal_warning(mixed)] if config is not None else []
    if config is not None:
        wrapped.multimix.needs_position_check = False  # it is said below
    optimizer = build_optimizer(args, model)
    amp_dtype = getattr(torch, args.amp_dtype or ('bfloat16' if device.type == 'cpu' else 'float16'))
    autocast = partial(torch.autocast, device.type, dtype=amp_dtype, enabled=args.amp)
    scaler = NativeScaler(device=device.type) if args.amp and amp_dtype == torch.float16 else None
    rehearse(args, task, [train_set, val_set], [train_loader, val_loader], autocast, device)
    if args.model_ema:
        task.setup_ema(decay=args.model_ema_decay, use_warmup=args.model_ema_warmup,
                       device=torch.device('cpu') if args.model_ema_force_cpu else None)
    if args.decay_epochs is None:
        args.decay_epochs = 0.2 if args.sched in ('wsd', 'rsqrt') else 90
    if hasattr(train_set, '__len__') and args.grad_accum_steps > len(train_loader):
        raise SettingError(f'--grad-accum-steps is {args.grad_accum_steps}, but an epoch has only {len(train_loader)} '
                           f'batches, and every epoch ends with an update: at most {len(train_loader)}.')
    updates = (len(train_loader) + args.grad_accum_steps - 1) // args.grad_accum_steps
    try:
        scheduler, epochs = create_scheduler_v2(optimizer, **scheduler_kwargs(args), updates_per_epoch=updates)
    except (TypeError, ValueError, AssertionError) as e:
        raise SettingError(f'--sched {args.sched} cannot be built: {e}') from e
    if scheduler is None and args.sched != 'none':  # older timm takes any name
        raise SettingError(f'--sched is {args.sched!r}, but timm {timm.__version__} has no such schedule.')
    if args.model_ema and not args.model_ema_warmup and args.model_ema_decay ** (epochs * updates) > 0.05:
        messages.append(ema_note(args.model_ema_decay, epochs * updates))
    folder = from_first(open_output(args, data['input_size'][-1]) if rank() == 0 else None)
    pusher = None
    if args.push_to_hub and rank() == 0:
        pusher = BackgroundPush(args.push_to_hub, folder, args.push_private, say)
    saved = {k: v for k, v in asked.items() if k not in ('config', 'resume', 'resume_auto', 'wandb_resume_id',
                                                         'start_epoch')}
    # To mean the same anywhere.
    for name in ('data_dir', 'initial_checkpoint', 'pretrained_path', 'output', 'class_weight'):
        if saved[name] and not is_repo(saved[name]) and saved[name] != 'auto':
            saved[name] = os.path.abspath(saved[name])
    saver = AtomicCheckpointSaver(
        model, optimizer, args=argparse.Namespace(**saved), amp_scaler=scaler, task=task, checkpoint_dir=str(folder),
        recovery_dir=str(folder), decreasing=args.eval_metric == 'loss', max_history=args.checkpoint_hist)
    train_loader, val_loader = PlacedLoader(train_loader, args.seed), PlacedLoader(val_loader, args.seed)
    shape = {'ranks': world(), 'batch_size': args.batch_size, 'batches': len(train_loader)}
    measured = ('loss', 'top1', *OF_WHICH_IMAGES, *(SIGNAL if config is not None else ()))
    progress = Progress(0, Averages(measured, device))
    data_seen = seen(train_set, val_set, class_names(train_set))
    found = resume(args, task, optimizer, scaler, saver, data_seen) if args.resume else {}
    if found:
        messages += [place_of(found, progress, shape, train_loader.exact), found['changed']]
    elif args.resume_auto:
        say('--resume auto: there is no run to go on with; this one starts afresh.')
    if args.start_epoch is not None:
        progress = Progress(args.start_epoch, Averages(measured, device))
    if not progress.batch:
        progress.counted = policy.counts.copy()
    start_epoch = progress.epoch
    if args.torchcompile:
        task.compile(backend=args.torchcompile, mode=args.torchcompile_mode)
    if world() > 1:
        ddp = {'broadcast_buffers': False} if args.no_ddp_bb else {}
        task.prepare_distributed(device_ids=[local_rank()] if device.type == 'cuda' else None, **ddp)
    if found.get('shape') == shape:
        load_own_state(task, found['ranks'][rank()])
    if scheduler is not None and (start_epoch or progress.batch):
        if 'plateau' in found and hasattr(scheduler, 'lr_scheduler'):
            scheduler.lr_scheduler.load_state_dict(found['plateau'][0])
            scheduler.restore_lr = found['plateau'][1]
        scheduler.step_update(start_epoch * updates + progress.batch // args.grad_accum_steps)
        if start_epoch:
            scheduler.step(start_epoch, found.get('metric'))
    save = Save(saver, task, scheduler, shape, data_seen)
    statistics = Statistics(unwrap(task.trainable_module))
    statistics.keep()

    summary, curves = folder / 'summary.csv', folder / 'curves.png'
    if rank() == 0:
        trim_summary(summary, start_epoch)
    if start_epoch < epochs and rank() == 0:  # a finished run keeps the settings that made it
        try:
            (folder / 'args.yaml.tmp').write_text(yaml.safe_dump(saved, default_flow_style=False))
            os.replace(folder / 'args.yaml.tmp', folder / 'args.yaml')
        except OSError as e:
            raise SettingError(f'{folder}/args.yaml cannot be written: {e.strerror or e}.') from e
    head_info = None if config is None else wrapped.multimix.head_info
    say(f'Model: {args.model}, {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, images '
        f'{data["input_size"][1]}×{data["input_size"][2]}'
        + (f', {head_info.positions} positions of {head_info.width} features' if head_info else '')
        + f', on {device.type if world() > 1 else device}'
        + (f', {world()} ranks of {args.batch_size} images each.' if world() > 1 else '.'))
    say(describe(config, mixed, args.num_classes))
    plan = policy, epochs * len(train_loader), epochs, args.mixup_off_epoch or None
    if expected := expected_line(*plan):
        say(expected)
    messages.append(few_warning(*plan))
    if unsmoothed:
        say('Labels are not smoothed, since --smoothing is not given: smoothing beside mixing worsens calibration '
            "(timm's default is 0.1).")
    if config is not None:
        messages.append(one_position_note(config, head_info.positions if head_info else 1))
    for message in filter(None, messages):
        say(f'Warning: {message}')
    say(f'{len(train_set)} training and {len(val_set)} validation images, {args.num_classes} classes; '
        f'{epochs} epochs of {len(train_loader)} batches; output in {folder}'
        + (f'; resuming at epoch {start_epoch + 1}' if start_epoch or progress.batch else '')
        + (f', after batch {progress.batch}' if progress.batch else '') + '.')

    def save_model() -> Path:
        names = class_names(train_set)
        return save_plain(
            task.get_eval_model(ema=task.has_ema()), folder / 'model',  # type: ignore[arg-type]
            {k: data[k] for k in ('input_size', 'mean', 'std', 'interpolation', 'crop_pct', 'crop_mode')},
            model_args, names if names and len(names) == args.num_classes else None, config=config,
            counts=policy.counts,
            raw=task.get_eval_model() if task.has_ema() else None)

    loggers = [] if rank() else open_loggers(
        args.log, folder, saved, args.wandb_project, args.wandb_tags, args.wandb_resume_id, start_epoch)
    for logger in loggers:
        say(f'Metrics also go to {logger.where}.')

    # Then one loop: train, validate, write down.
    started = plotted = time.time()
    best = saver.best_metric, saver.best_epoch
    metric: Optional[float] = None
    unwritten: list[dict[str, Any]] = []
    total = len(train_loader) * args.batch_size * world()
    bar = tqdm(total=epochs * total, initial=start_epoch * total + progress.batch * args.batch_size * world(),
               unit='img', unit_scale=True, disable=None if rank() == 0 else True, dynamic_ncols=True)
    with bar, Interrupt() as stop:
        for epoch in range(start_epoch, epochs):
            if not progress.batch:
                progress.rate = optimizer.param_groups[0]['lr']
            train_metrics = train_epoch(progress, args, task, train_loader, optimizer, scheduler, autocast, scaler,
                                        device, bar, statistics, stop, save, epochs)
            if world() > 1 and args.dist_bn and not progress.statistics_agreed:
                average = None if args.model_ema_force_cpu else task.get_eval_model(ema=True)
                for module in filter(None, (task.get_eval_model(), average)):
                    distribute_bn(module, world(), args.dist_bn == 'reduce')
                progress.statistics_agreed = True
            due = (epoch + 1) % args.val_interval == 0 or epoch + 1 == epochs
            evaluated: Optional[OrderedDict[str, float]] = OrderedDict()
            if due:
                evaluated = validate(task.get_eval_model(), val_loader, autocast, device, args.channels_last, stop)
                if task.has_ema() and not args.model_ema_force_cpu and evaluated is not None:
                    raw = evaluated
                    evaluated = validate(
                        task.get_eval_model(ema=True), val_loader, autocast, device, args.channels_last, stop)
                    if evaluated is not None:
                        evaluated.update(raw_loss=raw['loss'], raw_top1=raw['top1'])
            if evaluated is None:
                save(progress, within=True)
                raise stop.reason()
            metric = evaluated[args.eval_metric] if due else None
            row = {'epoch': epoch, **{f'train_{k}': v for k, v in train_metrics.items()},
                   **{f'eval_{k}': v for k, v in evaluated.items()}, 'lr': progress.rate}
            unwritten.append(row)
            if rank() == 0:
                write_down(summary, unwritten)
            save(progress, metric, within=not due)
            for logger in loggers:
                logger.log(epoch, row)
            best = saver.best_metric, saver.best_epoch
            if scheduler is not None:
                scheduler.step(epoch + 1, metric)
            say(epoch_line(epoch, epochs, start_epoch, train_metrics, evaluated, time.time() - started))
            if time.time() - plotted > 60 and rank() == 0:
                draw(summary, curves)
                plotted = time.time()
            if pusher and args.push_every and (epoch + 1) % args.push_every == 0 and epoch + 1 < epochs:
                try:
                    save_model()
                    draw(summary, curves)
                    pusher.push(f'epoch {epoch + 1}')
                except (OSError, SafetensorError) as e:
                    drop_unfinished(folder)
                    say(f'Warning: nothing is pushed after epoch {epoch + 1}: {e}. Training goes on.')
            elif pusher:
                pusher.poll()
            progress = Progress(epoch + 1, Averages(measured, device), in_a_row=progress.in_a_row,
                                counted=policy.counts.copy())
    if rank():
        return
    draw(summary, curves, headline(args.model, args.multimix, config.preset if config else '', policy.counts))
    for logger in loggers:
        logger.finish()
    seconds = time.time() - started
    data_line = f'{len(train_set)} training and {len(val_set)} validation images of {args.num_classes} classes'
    try:
        final = save_model()
        write_report(folder, saved, data_line, describe(config, mixed, args.num_classes), in_plain_timm(
            folder, args.model, args.num_classes, model_args), device, seconds, epochs - start_epoch,
            counts=policy.counts if policy.mixes_anything else None)
    except (OSError, SafetensorError) as e:
        drop_unfinished(folder)
        good = next(iter(candidates(folder)), None)
        raise SettingError(f'{folder}/model could not be written: {e}. Make room and go on: --resume {folder} '
                           + (f'({good} is whole).' if good else '')) from e
    if policy.mixes_anything:
        say('\n' + told(policy.counts))
    report(args, folder, final, best, metric, seconds, model_args)
    if pusher:
        pusher.finish()


def write_down(summary: Path, rows: list[dict[str, Any]]) -> None:
    """Move rows into the CSV; those that a full disk does not take are kept for the next time."""
    try:
        while rows:
            append_summary(summary, rows[0])
            del rows[0]
    except OSError as e:
        drop_unfinished(summary.parent)
        say(f'Warning: {summary} could not be written ({e.strerror or e}).')


def draw(summary: Path, curves: Path, title: str = '') -> None:
    try:
        plot_curves(summary, curves, title)
    except OSError as e:
        drop_unfinished(summary.parent)
        say(f'Warning: {curves} could not be written ({e.strerror or e}).')


def report(args: argparse.Namespace, folder: Path, final: Path, best: Any, metric: Optional[float], seconds: float,
           model_args: dict[str, Any]) -> None:
    last = f'{args.eval_metric} {metric:.2f}' if metric is not None else 'nothing left to train'
    say(f'\nDone in {seconds:.0f} s. Last epoch: {last}'
        + (f'; best: {best[0]:.2f} in epoch {best[1] + 1}.' if best[0] is not None else '.'))
    whole, weights = in_plain_timm(folder, args.model, args.num_classes, model_args)
    say(f'  {final}/             the trained model{" (averaged weights)" if args.model_ema else ""}, for plain timm:\n'
        f'      {whole}\n'
        f'  {final}/model.safetensors, or its weights alone:\n'
        f'      {weights}\n'
        f'  {folder}/report.md   curves, settings, versions, what to do next\n'
        f'  {folder}/curves.png, summary.csv, args.yaml\n'
        f'  {folder}/last.pth.tar, model_best.pth.tar   checkpoints, for --resume')


def main(argv: Optional[list[str]] = None) -> int:
    if not int(os.environ.get('RANK', '0')):  # sentences for people, without source lines, of one rank
        warnings.showwarning = lambda message, *_: say(f'Warning: {message}')
    else:
        warnings.simplefilter('ignore')
    try:
        args = parse_args(argv, DIGITS_RECIPE)
        run(args)
        finish()
    except SettingError as e:
        if int(os.environ.get('RANK', '0')):
            time.sleep(30)  # what is wrong on the first rank too is said there, and torchrun ends this one
        print(f'train.py: error: {e}', file=sys.stderr)
        return 2
    except Stopped as e:
        say(f'Stopped by {e}. Go on with: --resume FOLDER (the output folder named above), or the same command with '
            f'--resume auto.')
        finish()
        return 128 + e.signal
    except KeyboardInterrupt:
        print('\nStopped at once. Go on with: python train.py --resume FOLDER (the output folder named above), if an '
              'epoch was finished.', file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
