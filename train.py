#!/usr/bin/env python3
"""Train a timm model with MultiMix, Dense MultiMix, or neither.

    python train.py --model vit_small_patch16_224 --multimix dense            # on the embedded digits
    python train.py --data-dir cifar10 -c hparams/cifar10_resnet18.yaml      # on a folder of images
    python train.py --resume output/train/NAME                               # resume a run
    torchrun --nproc_per_node=4 train.py --model resnet50 …                   # on four GPUs

Read it from top to bottom: `run` builds everything and is the loop over the epochs, `train_epoch` and `validate` are
what an epoch does. Flags are timm's where timm has them (`timm_multimix/runs/flags.py`); the loss is
`timm_multimix.MultiMixTask`; the other parts lie in `timm_multimix/training`.
"""
from __future__ import annotations

import os
import signal
import sys

if __name__ == '__main__' and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # What follows takes seconds to import, in which Ctrl-C would show where in the libraries it struck.
    signal.signal(signal.SIGINT, lambda *_: (os.write(2, b'\nStopped before anything was done.\n'), os._exit(130)))
if __name__ == '__main__' and sys.stderr.isatty() and 'torch' not in sys.modules and os.environ.get('RANK', '0') == '0':
    print('timm-multimix: loading torch and timm …', file=sys.stderr, flush=True)

import argparse
import shlex
import time
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any, Optional

import torch
import torchvision
from timm.layers import convert_sync_batchnorm, set_fast_norm
from timm.models import model_parameters
from timm.utils import AverageMeter, accuracy, dispatch_clip_grad, random_seed
from tqdm import tqdm

from timm_multimix import SettingError, unwrap, wrap
from timm_multimix.data import PlacedLoader, class_weights
from timm_multimix.data.class_weight import uneven
from timm_multimix.distributed import finish, mean_of_ranks, rank, speaks, start, total, world
from timm_multimix.errors import shown
from timm_multimix.hub import starting_point
from timm_multimix.policy import TAUGHT, InputMixing
from timm_multimix.runs.recipes import program
from timm_multimix.runs.screen import say
from timm_multimix.runs.settings import multimix_config, parse_args
from timm_multimix.seeding import seed_place
from timm_multimix.training import build
from timm_multimix.training.checkpoint import AtomicCheckpointSaver
from timm_multimix.training.checks import settle
from timm_multimix.training.images import load_images, open_data_sets
from timm_multimix.training.interrupt import Interrupt, Stopped
from timm_multimix.training.nonfinite import finite_gradient
from timm_multimix.training.norms import bn_note, keep_statistics
from timm_multimix.training.output import RunFolder
from timm_multimix.training.rehearsal import rehearse
from timm_multimix.training.state import LEARNED, OF_WHICH_IMAGES, SIGNAL, TrainState, seen
from timm_multimix.training.teacher import build_teacher
from timm_multimix.training.words import announce, epoch_line, mixing_line, uneven_note

DIGITS_RECIPE = Path(__file__).parent / 'hparams' / 'digits_vit_small.yaml'


def run(args: argparse.Namespace, at_end: ExitStack) -> None:
    """Build everything; then one loop: train, validate, write down. at_end: lets go of the folder."""
    # All that can be wrong is found out before the first step.
    settings = settle(args)  # args.yaml keeps these: what follows resolves more for this data and batch size
    config = multimix_config(args)
    device = start(args.device, args.device_modules)
    mixed = args.batch_size  # how many images are mixed with each other: a rank's batch, or that of all
    if config is not None:
        config.check_batch(args.batch_size, world())
        mixed = config.mixed_batch(args.batch_size, world())
    if args.sync_bn and device.type != 'cuda':
        raise SettingError(f'--sync-bn is on, but torch has it for GPUs alone and --device is {device}. Leave it out; '
                           f'--dist-bn says what becomes of the statistics after each epoch.')
    random_seed(args.seed, 0)
    torch.backends.cudnn.benchmark = True  # as in timm's train.py
    if args.fast_norm:
        set_fast_norm()

    source = starting_point(args)  # a repository says which images its weights are for
    train_set, val_set, names = open_data_sets(args)
    weights = class_weights(args.class_weight, train_set, args.num_classes)
    if config is not None and weights is not None:
        config = config.replace(class_weight=weights)
    model, model_args = build.build_model(args, source)
    settings.update({name: getattr(args, name) for name in (
        'model', 'pretrained', 'initial_checkpoint', 'val_split', 'in_chans', 'input_img_mode')})
    data_config = build.data_config(args, model)
    if args.sync_bn and world() > 1:
        args.dist_bn = ''  # the ranks have the same
        model = convert_sync_batchnorm(model)
    if config is not None:
        model = wrap(model, config, input_size=data_config['input_size'])
        model.multimix.needs_position_check = False  # `announce` says it
        model_args.update(model.multimix.timm_args)
    build.place_model(args, model, device)
    teacher = build_teacher(args, config, data_config, device, names)
    if teacher is not None:
        model.set_teacher(teacher)  # type: ignore[operator]
    images = load_images(args, train_set, val_set, names, data_config, device)
    task = build.build_task(args, model, config, weights, device)
    optimizer = build.build_optimizer(args, unwrap(model))
    autocast, scaler = build.build_amp(args, device)
    rehearse(args, task, images, autocast, device)
    build.build_ema(args, task)
    updates = (len(images.train_loader) + args.grad_accum_steps - 1) // args.grad_accum_steps
    scheduler, epochs = build.build_schedule(args, optimizer, updates)

    last = args.stop_epoch or epochs
    if last > epochs:
        raise SettingError(f'--stop-epoch is {last}, but the training has {epochs} epochs.')

    folder = RunFolder(args, settings, images, model_args, task, at_end)
    saver = AtomicCheckpointSaver(
        unwrap(model), optimizer, args=argparse.Namespace(**folder.settings), amp_scaler=scaler, task=task,
        checkpoint_dir=str(folder.path), recovery_dir=str(folder.path), decreasing=args.eval_metric == 'loss',
        max_history=args.checkpoint_hist)
    shape = {'ranks': world(), 'batch_size': args.batch_size, 'batches': len(images.train_loader)}
    state = TrainState(task, optimizer, scheduler, scaler, saver, autocast, device, epochs, updates, shape,
                       seen(images))
    notes = [task.signal_warning(mixed), build.ema_note(args, epochs * updates),
             build.amp_note(args, device), bn_note(args, unwrap(model)), uneven_note(args, state.data['training']),
             *state.resume(args, images.train_loader.exact)]
    mixing = mixing_line(config, mixed, args.num_classes, args.smoothing)
    announce(args, state, images, mixing, notes, weights)
    folder.begin(state.start, last)

    started = time.time()
    go_on = shlex.join([*program('train'), '--resume', str(folder.path)])
    with progress_bar(args, state, last) as bar, Interrupt(go_on) as stop:
        for epoch in range(state.start, last):
            bar.set_description(f'epoch {epoch + 1}/{last}')
            trained = train_epoch(state, images.train_loader, args, bar, stop)
            state.agree(args.dist_bn, ema=not args.model_ema_force_cpu)
            due = (epoch + 1) % args.val_interval == 0 or epoch + 1 in (last, *args.save_epochs)
            validated = validate_all(state, images.val_loader, args, stop) if due else OrderedDict()
            if validated is None:
                state.save(within=True)
                raise stop.reason()
            metric = validated[args.eval_metric] if due else None
            row = {'epoch': epoch, **{f'train_{k}': v for k, v in trained.items()},
                   **{f'eval_{k}': v for k, v in validated.items()}, 'lr': state.progress.rate}
            folder.write(row)
            state.save(metric, within=not due, milestone=epoch + 1 in args.save_epochs)
            folder.log(row)
            if scheduler is not None:
                scheduler.step(epoch + 1, metric)
            say(epoch_line(epoch, last, state.start, trained, validated, time.time() - started,
                           balanced=bool(args.class_weight) or uneven(state.data['validation'] or ())))
            folder.refresh(epoch, last)
            state.begin_epoch(epoch + 1)
    folder.finish(mixing, device, last)


def train_epoch(state: TrainState, loader: PlacedLoader, args: argparse.Namespace, bar: tqdm, stop: Interrupt,
                ) -> OrderedDict[str, Any]:
    """The rest of an epoch, from where `state.progress` says it is; returns what it measured."""
    task, optimizer, scaler, scheduler = state.task, state.optimizer, state.scaler, state.scheduler
    progress, epoch, batches, accum = state.progress, state.progress.epoch, len(loader), args.grad_accum_steps
    dtype = getattr(torch, args.model_dtype or 'float32')
    clip = {'clip_grad': args.clip_grad, 'clip_mode': args.clip_mode}
    if not progress.batch:
        progress.rate = optimizer.param_groups[0]['lr']
    if isinstance(task.mixup_fn, InputMixing) and args.mixup_off_epoch and epoch >= args.mixup_off_epoch:
        task.mixup_fn.mixup_enabled = False
    task.train()
    if args.bn_eval:
        keep_statistics(task)
    optimizer.zero_grad()
    images, started = 0, time.time()
    for i, (input, target) in enumerate(loader.batches(epoch, progress.batch, stop.requested), progress.batch):
        task.set_progress(epoch + i / batches, state.epochs)
        seed_place(args.seed, epoch, i, rank())  # a run that goes on here draws what an unbroken one does
        input, target = input.to(state.device, dtype, non_blocking=True), target.to(state.device, non_blocking=True)
        if args.channels_last:
            input = input.contiguous(memory_format=torch.channels_last)
        update = (i + 1) % accum == 0 or i + 1 == batches
        group = accum if i < batches - batches % accum else batches % accum  # the last group may be smaller
        parameters = list(model_parameters(unwrap(task.trainable_module), exclude_head='agc' in args.clip_mode))
        with nullcontext() if update else task.no_sync():
            with state.autocast():
                result = task(input, target)
            loss = result['loss'] / group
            if scaler is not None:
                # Looked at before the rest of the step is queued: later, this would wait for the update too.
                finite = bool(torch.isfinite(loss))
                scaler(loss, optimizer, parameters=parameters, need_update=update, **clip)
            else:
                loss.backward()
        progress.averages.add(measured(result, target))  # before anything waits for the device
        if update:
            # A scaler looks for itself, and leaves out updates that are merely too large for float16 as well.
            if scaler is None and (finite := finite_gradient(task.parameters())):
                if args.clip_grad is not None:
                    dispatch_clip_grad(parameters, args.clip_grad, mode=args.clip_mode)
                optimizer.step()
            optimizer.zero_grad()
            step = state.after(epoch, i, accum)
            if not finite:
                state.statistics.put_back()
            if task.has_ema() and (finite or scaler is not None):
                task.update_ema(step=step)
            progress.skipped += not finite
            progress.in_a_row = 0 if finite else progress.in_a_row + 1
            if scheduler is not None:
                scheduler.step_update(num_updates=step)
        images += len(input)
        if i % args.log_interval == 0 or i + 1 == batches:
            show(bar, state)
            if args.save_images and rank() == 0:
                torchvision.utils.save_image(input.float(), state.folder / f'train-batch-{i}.jpg', padding=0,
                                             normalize=True)
        bar.update(len(input) * world())
        if update:
            if progress.in_a_row >= args.nonfinite_limit:
                raise state.not_finite(f'The gradient of {progress.in_a_row} updates in a row')
            progress.batch = i + 1
            state.statistics.keep()
            stopping = stop()
            if stopping or (args.recovery_interval and (i // accum + 1) % args.recovery_interval == 0):
                state.save(within=True)
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
    if task.config is not None and task.config.teacher is not None:
        metrics[TAUGHT] = (task.policy.counts - progress.counted)[TAUGHT]
    metrics.update(skipped=progress.skipped, images=batches * state.shape['batch_size'] * world(),
                   # None: a run that was stopped behind the last batch, and goes on there
                   images_per_second=world() * images / (time.time() - started) if images else None)
    if sizes := [count for count in state.data['training'] or () if count]:
        metrics.update(smallest_class=min(sizes), largest_class=max(sizes))
    return metrics


@torch.no_grad()
def measured(result: Mapping[str, Any], target: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a step says of itself, as scalars on the device."""
    top1 = 100 * (result['output'].argmax(1) == target).float().mean()
    found = {'loss': result['loss'].detach(), 'top1': top1, **{k: result[k] for k in (*SIGNAL, LEARNED) if k in result}}
    # Embeddings are mixed behind the logits, so these are of the images as they are; but for --multimix-layer
    # without a clean term, whose logits are of mixtures.
    unmixed = result['mixed'] == 'nothing' or (result['mixed'] == 'embeddings' and 'loss_clean' in result)
    return {**found, 'top1_unmixed' if unmixed else 'top1_mixed': top1}


def validate_all(state: TrainState, loader: PlacedLoader, args: argparse.Namespace, stop: Interrupt,
                 ) -> Optional[OrderedDict[str, float]]:
    """Metrics of the model that will be saved; with averaged weights those of the raw ones beside them."""
    task = state.task
    found = validate(task.get_eval_model(), loader, state, args, stop)
    if found is None or not task.has_ema() or args.model_ema_force_cpu:
        return found
    averaged = validate(task.get_eval_model(ema=True), loader, state, args, stop)
    if averaged is not None:
        averaged.update(raw_loss=found['loss'], raw_top1=found['top1'])
    return averaged


@torch.no_grad()
def validate(model: Any, loader: PlacedLoader, state: TrainState, args: argparse.Namespace, stop: Interrupt,
             ) -> Optional[OrderedDict[str, float]]:
    """Metrics over the images of all ranks, `balanced` the mean over classes; None when the run was asked to stop."""
    model.eval()
    loss, top1, top5 = AverageMeter(), AverageMeter(), AverageMeter()
    of_class = torch.zeros(2, args.num_classes, device=state.device)  # images of each, and those that are right
    # The ranks' shares are filled up to be equal; what fills them does not count.
    left = len(range(rank(), len(loader.dataset), world())) if loader.exact and world() > 1 else sys.maxsize
    for input, target in loader.batches(0, stopping=stop.requested):
        input, target = input.to(state.device, next(model.parameters()).dtype), target.to(state.device)
        if args.channels_last:
            input = input.contiguous(memory_format=torch.channels_last)
        with state.autocast():
            logits = model(input)
        logits, target = logits.float()[:left], target[:left]
        left -= len(target)
        if len(target):
            acc1, acc5 = accuracy(logits, target, topk=(1, 5))
            loss.update(float(torch.nn.functional.cross_entropy(logits, target)), len(target))
            top1.update(float(acc1), len(target))
            top5.update(float(acc5), len(target))
            of_class.index_add_(1, target, torch.stack([torch.ones_like(target), logits.argmax(1) == target]).float())
        if loader.exact and stop():  # streams may be longer on one rank than on another, and would not agree
            return None
    means = mean_of_ranks([loss.sum, top1.sum, top5.sum], loss.count, state.device)
    images, right = total(of_class)
    balanced = float(100 * (right / images)[images > 0].mean())
    return OrderedDict(zip(('loss', 'top1', 'top5', 'balanced'), (*means, balanced)))


def progress_bar(args: argparse.Namespace, state: TrainState, epochs: int) -> tqdm:
    """Of the images of so many epochs; gone at the end."""
    batch = args.batch_size * world()
    total = state.shape['batches'] * batch
    return tqdm(total=epochs * total, initial=state.start * total + state.progress.batch * batch, unit='img',
                unit_scale=True, disable=None if rank() == 0 else True, dynamic_ncols=True, leave=False)


def show(bar: tqdm, state: TrainState) -> None:
    """What the epoch has measured so far, beside the bar."""
    means = {k: v for k, v in state.progress.averages.means().items() if v is not None}
    names = OF_WHICH_IMAGES if state.task.policy.mixes_anything else ('top1',)
    bar.set_postfix(OrderedDict(
        train_loss=f'{means.get("loss", float("nan")):.3f}',
        **{f'train_{name}': f'{means[name]:.1f}' for name in names if name in means},
        lr=f'{state.optimizer.param_groups[0]["lr"]:.1e}'), refresh=False)


def main(argv: Optional[list[str]] = None) -> int:
    if speaks():  # sentences for people, without source lines, of one rank
        warnings.showwarning = lambda message, *_: say(f'Warning: {message}')
    else:
        warnings.simplefilter('ignore')
    try:
        with ExitStack() as at_end:
            run(parse_args(argv, DIGITS_RECIPE), at_end)
        finish()
    except SettingError as e:
        if not speaks():
            time.sleep(30)  # what is wrong on the first rank too is said there, and torchrun ends this one
        print(f'train.py: error: {shown(e)}', file=sys.stderr)
        return 2
    except Stopped as e:
        say(f'Stopped by {e}. Go on with: {e.go_on}')
        finish()
        return 128 + e.signal
    except KeyboardInterrupt:
        print('\nStopped at once. If an epoch was finished, the same command with --resume auto goes on.',
              file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # `main` answers from here on
    sys.exit(main())
