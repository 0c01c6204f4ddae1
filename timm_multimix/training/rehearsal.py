"""A small first step on a copy: what cannot work says so before training."""
from __future__ import annotations

import argparse
import copy
from typing import Any

import torch
import torch._dynamo

from ..errors import in_words
from ..task import MultiMixTask
from .images import Images

_LOOKED_AT = 1000  # steps, for one of every kind


def rehearse(args: argparse.Namespace, task: MultiMixTask, images: Images, autocast: Any, device: torch.device) -> None:
    """A small step and validation on a copy, with real images: what cannot work says so now, not an epoch later."""
    count = max(args.multimix_m or 0, min(4, args.batch_size))
    count = min(count, args.batch_size)  # with --multimix-gather, m may be more than a rank has
    count += count % 2 if task.mixup_fn is not None else 0
    copied = copy.deepcopy(task)
    kinds: dict[Any, int] = {}  # the number of a step of every kind
    whole = max(1.0, *(getattr(copied.config, name, None) or 1.0 for name in ('ramp_epochs', 'teacher_start_epoch')))
    if copied.config is not None and copied.config.teacher is not None:  # the average is not there yet
        copied.wrapped.set_teacher(task.wrapped.multimix.teacher or copy.deepcopy(task.wrapped))
    copied.set_progress(whole, whole)  # when all that ramps up is there
    for step in range(_LOOKED_AT):
        plan = copied.policy.choose(step)
        kinds[plan.mixed, plan.layer if plan.embeddings else ''] = step
    dtype = getattr(torch, args.model_dtype or 'float32')
    try:
        for dataset, loader, training in ((images.train_set, images.train_loader, True),
                                          (images.val_set, images.val_loader, False)):
            if isinstance(dataset, torch.utils.data.IterableDataset):  # a stream: opening it twice may download twice
                continue
            input, target = loader.collate_fn([dataset[i % len(dataset)] for i in range(count)])
            input, target = input.to(device, dtype), target.to(device)
            copied.train(training)
            for step in kinds.values() if training else [0]:
                copied.policy.step = step
                with autocast():
                    loss = copied(input, target)['loss']
                if training:
                    loss.backward()
    except Exception as e:  # any library below may refuse: the user needs to know which of the settings it was about
        raise in_words(f'A first step with these settings fails: {type(e).__name__}: {e}\n  (--model {args.model}, '
                           f'--img-size {args.img_size}, --in-chans {args.in_chans or 3}, --device {device}, and '
                           f'the flags of data and of augmentation.)', e) from e
