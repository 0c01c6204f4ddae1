"""The network of `--multimix-teacher`, where it is another than the average of this one."""
from __future__ import annotations

import argparse
from typing import Any, Optional

import torch
from timm.task import DistillationTeacher
from torch import Tensor

from ..config import EMA, GIVEN, MultiMixConfig
from ..errors import SettingError
from ..hub import trained_model
from ..teaching import Teacher


def check_teacher_flags(args: argparse.Namespace) -> None:
    """Raise `SettingError` for a teacher that could not teach."""
    if args.multimix == 'none':  # `multimix_config` says that there is nothing to teach
        return
    start = args.multimix_teacher_start_epoch
    if start is not None and start >= args.epochs:
        raise SettingError(f'--multimix-teacher-start-epoch is {start:g}, but the training has {args.epochs} epochs: '
                           f'the teacher would have no part in it.')
    if args.multimix_teacher == GIVEN:
        raise SettingError("--multimix-teacher is 'given', but that is for a loop of your own: name the network.")
    if args.multimix_teacher != EMA:
        return
    if not args.model_ema:
        raise SettingError('--multimix-teacher is ema, but no weights are averaged: add --model-ema, and '
                           '--model-ema-decay or --model-ema-warmup as the length of the training asks.')
    if args.model_ema_force_cpu:
        raise SettingError('--multimix-teacher is ema, which is asked about every batch, but --model-ema-force-cpu '
                           'keeps it away from the images: drop that.')


def build_teacher(args: argparse.Namespace, config: Optional[MultiMixConfig], data_config: dict[str, Any],
                  device: torch.device, names: Optional[list[str]] = None) -> Optional[Teacher]:
    """What gives a trained network's logits of images that are normalised for the model; None for no such teacher.

    Raises:
        SettingError: it cannot be loaded, or does not fit the data.
    """
    if config is None or config.teacher in (None, EMA):
        return None
    name, (channels, *size) = str(config.teacher), data_config['input_size']
    try:
        network = trained_model(name)
    except SettingError as e:
        raise SettingError(f'--multimix-teacher is {name!r}, but: {e}') from e
    cfg: Any = network.pretrained_cfg or {}
    if network.num_classes != args.num_classes:
        raise SettingError(f'--multimix-teacher is {name!r}, which tells {network.num_classes} classes apart, but the '
                           f'data has {args.num_classes}: train it on this data first.')
    named = cfg.get('label_names')
    if named and names and list(named) != list(names):
        i = next((i for i, (a, b) in enumerate(zip(named, names)) if a != b), 0)
        raise SettingError(f'--multimix-teacher is {name!r}, whose class {i} is {named[i]!r}, but that of the data is '
                           f'{names[i]!r}: it would teach other classes.')
    theirs = tuple(cfg.get('input_size') or (channels, *size))
    if theirs[0] != channels:
        raise SettingError(f'--multimix-teacher is {name!r}, which takes images of {theirs[0]} channels, but these '
                           f'have {channels}.')
    if hasattr(network, 'set_input_size') and theirs[1:] != tuple(size):
        network.set_input_size(img_size=tuple(size))  # type: ignore[operator]
    dtype = getattr(torch, args.model_dtype or 'float32')
    teacher = DistillationTeacher(network.to(device, dtype), device=device, dtype=dtype).requires_grad_(False)
    mean, std = (torch.tensor(data_config[key], device=device, dtype=dtype).view(1, -1, 1, 1) for key in (
        'mean', 'std'))

    def ask(images: Tensor) -> Tensor:
        return teacher(teacher.normalize_input(images, mean, std))  # type: ignore[no-any-return]

    return ask
