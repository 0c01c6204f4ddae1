"""Data sets and loaders of a run."""
from __future__ import annotations

import argparse
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Optional

import torch
from timm.data import create_loader

from ..data import (
    PlacedLoader,
    class_names,
    convert_modes,
    create_train_val,
    describe_images,
    drop_unreadable,
    image_mode,
)
from ..data.augment import as_published
from ..data.split import FILE, HELD_OUT, TEST, copies, divided, read_parts, split_folder
from ..distributed import one_by_one, world
from ..errors import SettingError, in_words, reason
from ..runs.find import resume_checkpoint
from ..runs.screen import say


@dataclass
class Images:
    """What a run trains and validates on.

    Attributes:
        train_set, val_set: the data sets.
        names: of the classes in order; None where the data set does not say.
        train_loader, val_loader: their batches, the same on every pass that begins at the same place.
        config: timm's data config: input_size (C, H, W), mean, std, interpolation, crop_pct, crop_mode; and
            input_img_mode, the mode of Pillow's that images become.
    """
    train_set: Any
    val_set: Any
    names: Optional[list[str]]
    train_loader: PlacedLoader
    val_loader: PlacedLoader
    config: dict[str, Any]


def open_data_sets(args: argparse.Namespace) -> tuple[Any, Any, Optional[list[str]]]:
    """The two data sets, looked through, and the names of their classes. Sets `args.num_classes` where it is None.

    Raises:
        SettingError: they cannot be read, hold too few images, or have more classes than the model.
    """
    options = {'download': args.dataset_download, 'class_map': args.class_map, 'seed': args.seed,
               'batch_size': args.batch_size, 'input_img_mode': image_mode(args.in_chans or 3, args.input_img_mode),
               'repeats': args.epoch_repeats,
               'input_key': args.input_key, 'target_key': args.target_key,
               'trust_remote_code': args.dataset_trust_remote_code,
               'train_num_samples': args.train_num_samples, 'val_num_samples': args.val_num_samples,
               'val_fraction': args.val_fraction,
               'parts': read_parts(resume_checkpoint(args.resume).parent / FILE) if args.resume else None}
    with one_by_one() if args.dataset_download else nullcontext():
        train_set, val_set = create_train_val(
            args.dataset or '', args.data_dir, args.train_split, args.val_split, **options)
    _say_splits(args, train_set, val_set, bool(options['parts']))
    if args.bad_images != 'ignore':
        refused = []
        for split, dataset in ((args.train_split, train_set), (args.val_split, val_set)):
            try:
                left_out = drop_unreadable(dataset, split, args.bad_images == 'skip', workers=2 * max(1, args.workers))
            except SettingError as e:
                refused.append(str(e))
            else:
                if left_out:
                    say(left_out)
        if refused:  # those of both splits at once
            raise SettingError('\n'.join(refused))
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
    elif names is not None and len(names) < args.num_classes:
        warnings.warn(f'--num-classes is {args.num_classes}, but the data set has {len(names)} classes: the others are '
                      f'never trained, and the saved model has no names of classes. Leave out --num-classes.',
                      stacklevel=2)
    if args.num_classes == 1 or (names is not None and len(names) == 1):
        only = f', {names[0]!r}' if names else ''
        raise SettingError(f'There is one class only{only}: nothing can be learned from it. --data-dir holds a folder '
                           f'of each class, FOLDER/CLASS/*.jpg, or of each split, FOLDER/train/CLASS/*.jpg.')
    if hasattr(train_set, '__len__') and len(train_set) < args.batch_size * world():
        each = f' on each of {world()} ranks' if world() > 1 else ''
        raise SettingError(f'--batch-size is {args.batch_size}{each}, but there are only {len(train_set)} training '
                           f'images: at most {len(train_set) // world()}.')
    if hasattr(val_set, '__len__') and not len(val_set):
        raise SettingError(f'--val-split {args.val_split} holds no images to validate on, or is a stream that does not '
                           f'say how many: --val-num-samples.')
    return train_set, val_set, names


def _say_splits(args: argparse.Namespace, train_set: Any, val_set: Any, resumed: bool) -> None:
    """Say where the two splits come from, where they are not as they were named; `args` then has their names."""
    if divided(train_set, val_set):
        how = f'as {FILE} of the run says' if resumed else f'{args.val_fraction:g} of each class, --val-fraction'
        say(f'{args.data_dir} has no sub-folders for training and validation, so {len(val_set)} of its '
            f'{len(train_set) + len(val_set)} images are held out to validate on ({how}); {FILE} lists them.')
        if alone := _unwatched(train_set, val_set):
            warnings.warn(alone, stacklevel=3)
        if args.bad_images != 'ignore' and (same := copies(train_set, val_set)):  # else nothing reads all files here
            warnings.warn(same, stacklevel=3)
        return
    if args.val_fraction != HELD_OUT:
        warnings.warn(f'--val-fraction is {args.val_fraction:g}, but it has no effect: there is a validation split.',
                      stacklevel=3)
    found = None if args.dataset or not args.data_dir else split_folder(args.data_dir, args.val_split)
    if found is not None and found.lower() in TEST and args.val_split.lower() not in TEST:
        args.val_split = found
        say(f'{args.data_dir} has no sub-folder for validation, so the images of {found} validate.')


def _unwatched(train_set: Any, val_set: Any) -> Optional[str]:
    """A sentence on classes of one image, which trains: nothing is held out of them; None without any."""
    names = class_names(train_set) or []
    train, val = ({target for _, target in data.reader.samples} for data in (train_set, val_set))
    alone = sorted(train - val)
    if not alone:
        return None
    listed = ', '.join(names[target] for target in alone[:5]) + (', …' if len(alone) > 5 else '')
    return f'{len(alone)} of {len(names)} classes have one image each, which trains: nothing validates {listed}.'


def load_images(args: argparse.Namespace, train_set: Any, val_set: Any, names: Optional[list[str]],
                config: dict[str, Any], device: torch.device) -> Images:
    """timm's loaders, with batches by place.

    Args:
        args: the flags.
        train_set, val_set, names: of `open_data_sets`. The data sets get timm's transforms.
        config: timm's data config.
        device: where the batches go.

    Raises:
        SettingError: flags of augmentation that cannot be used.
    """
    try:
        train, val = _timm_loaders(args, train_set, val_set, config, device)
    except Exception as e:  # timm asserts its augmentation settings in many places
        raise in_words(f'--aa {args.aa} or another flag of augmentation cannot be used: {reason(e)}',
                       e) from e
    if args.train_crop_pad is not None or args.pca_lighting:
        as_published(train_set.transform, config['input_size'][1:], args.train_crop_pad, args.pca_lighting)
    of_files = not args.dataset and args.bad_images != 'ignore'
    for dataset in (train_set, val_set):
        if of_files or (args.dataset or '').lower().startswith('torch/'):
            convert_modes(dataset, image_mode(config['input_size'][0], args.input_img_mode))
    if isinstance(train_set, torch.utils.data.IterableDataset) and not len(train):
        raise SettingError(f'--dataset {args.dataset} is a stream that gives no batches of {args.batch_size} to '
                           f'--workers {args.workers}: use at least one worker and as few as it has parts.')
    if hasattr(train_set, '__len__') and args.grad_accum_steps > len(train):
        raise SettingError(f'--grad-accum-steps is {args.grad_accum_steps}, but an epoch has only {len(train)} '
                           f'batches, and every epoch ends with an update: at most {len(train)}.')
    return Images(train_set, val_set, names, PlacedLoader(train, args.seed), PlacedLoader(val, args.seed), config)


def _timm_loaders(args: argparse.Namespace, train_set: Any, val_set: Any, config: dict[str, Any],
                  device: torch.device) -> tuple[Any, Any]:
    common = {'input_size': config['input_size'], 'mean': config['mean'], 'std': config['std'],
              'num_workers': args.workers, 'pin_memory': args.pin_mem, 'device': device, 'distributed': world() > 1,
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
        interpolation=('' if args.no_aug else args.train_interpolation) or config['interpolation'],
        worker_seeding=args.worker_seeding, **common)
    val = create_loader(
        val_set, batch_size=args.validation_batch_size or args.batch_size, is_training=False,
        interpolation=config['interpolation'], crop_pct=config['crop_pct'], crop_mode=config['crop_mode'], **common)
    return train, val
