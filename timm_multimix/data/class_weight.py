"""Weights of the classes, from their frequencies or from a file."""
from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import yaml

from ..errors import SettingError, nearest
from ..files import load_yaml
from .factory import class_names

UNEVEN = 5  # times as many images in the largest class as in the smallest


def class_weights(given: Optional[str], dataset: Any, num_classes: int) -> Optional[tuple[float, ...]]:
    """What `--class-weight` says, as a number for each class; None where it is not given.

    Args:
        given: 'auto': inverse frequency in the training images, with a mean of 1 over them; or the path of a file with
            a number for each class in their order, or of YAML or JSON with a list, or a mapping from class names.
        dataset: the training images.
        num_classes: of the model.

    Raises:
        SettingError: a file that is missing or does not fit; a data set that does not list its targets.
    """
    if not given:
        return None
    if given == 'auto':
        return _inverse_frequency(dataset, num_classes)
    if not os.path.isfile(given):
        raise SettingError(f"--class-weight is {given!r}, but there is no such file. 'auto' weighs by inverse "
                           f'frequency.')
    try:
        found = load_yaml(given, yaml.BaseLoader)  # a class may be called 0, or no
    except SettingError as e:
        raise SettingError(f'--class-weight is {given!r}, which is neither numbers nor YAML: {e}') from e
    names = class_names(dataset)
    if isinstance(found, dict):
        missing = [name for name in names or () if name not in found]
        unknown = [str(name) for name in found if names is not None and name not in names]
        if names is None or missing or unknown:
            what = (f'lacks {missing[0]!r}' if missing else f'has {unknown[0]!r}, which is no class here.'
                    + nearest(unknown[0], names or ()) if unknown else 'names classes, and this data set does not')
            raise SettingError(f'--class-weight is {given!r}, but it {what}')
        found = [found[name] for name in names]
    elif not isinstance(found, list):
        found = Path(given).read_text(encoding='utf-8').replace(',', ' ').split()
    try:
        weights = tuple(float(value) for value in found)
    except (TypeError, ValueError) as e:
        raise SettingError(f'--class-weight is {given!r}, but it does not hold a number for each class: {e}.') from e
    if len(weights) != num_classes:
        raise SettingError(f'--class-weight is {given!r} with {len(weights)} numbers, but there are {num_classes} '
                           f'classes.')
    return weights


def _inverse_frequency(dataset: Any, num_classes: int) -> tuple[float, ...]:
    counts = Counter(_targets(dataset))
    present = [counts[c] for c in range(num_classes) if counts[c]]
    mean = sum(present) / len(present)
    return tuple(mean / counts[c] if counts[c] else 0.0 for c in range(num_classes))


def uneven(sizes: Sequence[float]) -> bool:
    """Whether the largest class has so many more images than the smallest that class weights were worth trying."""
    return bool(sizes) and max(sizes) >= UNEVEN * min(sizes)


def class_counts(dataset: Any) -> Optional[list[int]]:
    """How many images of each class, in their order; None of a data set that does not list its targets."""
    try:
        counts = Counter(_targets(dataset))
    except SettingError:
        return None
    return [counts[c] for c in range(max(counts, default=-1) + 1)]


def _targets(dataset: Any) -> list[int]:
    samples = getattr(getattr(dataset, 'reader', None), 'samples', None)
    if samples is not None and len(samples) and len(samples[0]) > 1 and samples[0][1] is not None:  # folders, tars
        return [int(sample[1]) for sample in samples]
    if getattr(dataset, 'targets', None) is not None:  # torchvision's
        return [int(target) for target in dataset.targets]
    raise SettingError("--class-weight is 'auto', but this data set does not list its targets: give a file with a "
                       'number for each class.')
