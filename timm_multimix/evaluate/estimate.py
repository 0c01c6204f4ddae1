"""How long each table will take, from a few images timed and how many there are to compute."""
from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import default_collate

from ..data.placed import SampleError
from ..errors import SettingError
from ..heads.positions import evaluating
from .load import Checkpoint
from .outputs import device_of
from .tables.attention import KINDS
from .tables.hull import ALPHAS, NS
from .tables.robustness import CURVE, gradient

# What the processor does beside the model, in seconds; rough, and a small part unless the model is small.
_RESAMPLED = 1e-8  # a value of a bootstrap resample
_DISTANCE = 3e-9  # a number of an embedding, in the distance of two
_MAPPED = 4e-3  # an image on the map of t-SNE
_MAP = 1e-3  # an attention map


@dataclass(frozen=True)
class Speed:
    """Seconds that an image takes.

    Attributes:
        load: to be read and prepared, by one process.
        forward: in the model.
        gradient: in the model, forward and backward.
        width: of its embedding.
    """
    load: float
    forward: float
    gradient: float
    width: int


def measure(checkpoint: Checkpoint, images: Any, batch_size: int) -> Speed:
    """Time the first images of a data set on a checkpoint.

    Args:
        checkpoint: on its device.
        images: of (image, target), prepared as it takes them.
        batch_size: at most so many images; on the CPU eight are enough.
    """
    model = checkpoint.model
    device = device_of(model)
    count = min(len(images), batch_size, 8 if device.type == 'cpu' else batch_size)
    try:
        load, batch = _timed(lambda: default_collate([tuple(images[i])[:2] for i in range(count)]), device)
    except SampleError as e:
        raise SettingError(f'{e.words}. Mend or remove it.') from e
    x, target = batch[0].to(device), batch[1].to(device)
    with evaluating(model), torch.no_grad():
        model(x)  # the first pass prepares the device
        forward, _ = _timed(lambda: model(x), device)
        target = target.clamp(0, int(model.num_classes) - 1)  # type: ignore[arg-type]
        backward, _ = _timed(lambda: gradient(model, x, target), device)
    return Speed(load / count, forward / count, backward / count, int(getattr(model, 'num_features', 512)))


def _timed(work: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work()
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter() - started, result


def seconds(args: argparse.Namespace, speeds: Sequence[Speed], images: int, ood_sets: int,
            bank: int) -> dict[str, float]:
    """What each table of `args.on` is likely to take for all checkpoints; transfer is not estimated.

    Args:
        args: of evaluate.py.
        speeds: of each checkpoint.
        images: how many the data set has.
        ood_sets: how many sets of other images there are.
        bank: how many training images there are for KNN.
    """
    total = dict.fromkeys((name for name in args.on if name != 'transfer'), 0.0)
    for speed in speeds:
        for name, found in _one(args, speed, images, ood_sets, bank).items():
            total[name] += found
    return total


def _one(args: argparse.Namespace, speed: Speed, images: int, ood_sets: int, bank: int) -> dict[str, float]:
    count = min(images, args.num_images or images)
    read = speed.load / max(1, args.workers)
    seen = read + speed.forward  # an image

    def attack(name: str) -> float:
        steps = {'fgsm': 1, 'pgd': args.pgd_restarts * args.pgd_steps, 'autoattack': 1000}[name]
        return steps * speed.gradient + (args.pgd_restarts if name == 'pgd' else 1) * speed.forward

    curve = len(CURVE) * (attack('fgsm') + attack('pgd') + speed.forward) if args.curve else 0.0
    attacks = sum(attack(name) for name in args.attacks if not args.curve or name == 'autoattack')
    others, bank = min(args.ood_images, count), min(bank, args.bank)
    batch, width = args.hull_batch, speed.width
    found = {
        'accuracy': 3 * args.resamples * count * _RESAMPLED,
        'calibration': 0.5,
        'robustness': min(count, args.attack_images) * (seen + speed.gradient + curve + attacks),
        'ood': (ood_sets * others + bank) * seen + (count + ood_sets * others) * bank * width * _DISTANCE,
        'embedding': count ** 2 * width * _DISTANCE + min(count, args.map_images) * _MAPPED,
        'hull': 4 * ((3 * len(ALPHAS) + 3) * 1000 * batch + 3 * sum(NS) * min(1000, count)) * width * _DISTANCE,
        'attention': count * (seen + len(KINDS) * _MAP),
    }
    found = {name: found[name] for name in args.on if name in found}
    for name in found:
        if name not in ('robustness', 'attention'):  # the first of the others passes all images through the model
            found[name] += count * seen
            break
    return found


def words(total: Mapping[str, float]) -> str:
    """'3 min: accuracy < 5 s, robustness 2 min, …'."""
    return f'{duration(sum(total.values()))}: ' + ', '.join(f'{name} {duration(s)}' for name, s in total.items())


def duration(s: float) -> str:
    """'< 5 s', '40 s', '3 min', '1.5 h': as exact as an estimate is."""
    if s < 5:
        return '< 5 s'
    if s < 90:
        return f'{5 * round(s / 5)} s'
    if s < 90 * 60:
        return f'{round(s / 60)} min'
    return f'{s / 3600:.1f} h'
