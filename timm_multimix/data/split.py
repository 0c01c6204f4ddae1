"""Where the parts of a folder of images are: in sub-folders of the usual names, or held out of its class folders."""
from __future__ import annotations

import csv
import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Optional, Union

from ..errors import SettingError
from ..files import whole

TRAINING = ('train', 'training')
VALIDATION = ('validation', 'val', 'valid', 'eval', 'evaluation')
TEST = ('test', 'testing')
HELD_OUT = 0.15  # of the images of each class, where a folder has no splits
FILE = 'split.csv'

# Name below the folder → its part, 'train' or 'validation', and its size in bytes.
Split = dict[str, tuple[str, int]]


def split_folder(root: Union[str, Path], split: str) -> Optional[str]:
    """The sub-folder (or tar) of a folder that a split means, or None.

    Its own name comes first, then the usual names in upper or lower case; without a folder to validate on, that of the
    test images.
    """
    root = Path(root)
    if not root.is_dir() or not split:
        return None
    if (root / split).exists():
        return split
    usual = next((names for names in (TRAINING, VALIDATION, TEST) if split.lower() in names), ())
    names = (*usual, *TEST) if usual == VALIDATION else usual
    there = {p.name.lower(): p.name for p in sorted(root.iterdir()) if p.is_dir()}
    return next((there[name] for name in names if name in there), None)


def hold_out(names: Iterable[tuple[str, int]], fraction: float) -> set[str]:
    """Draw the validation images: of each class `fraction` of them, but one at least and not all.

    What is drawn depends on the names alone: every run on a folder, whatever its seed, validates on the same images,
    and an image that is added later moves few others.

    Args:
        names: (name below the folder, class) of every image.
        fraction: above 0, below 1.
    """
    classes: dict[int, list[str]] = defaultdict(list)
    for name, target in names:
        classes[target].append(name)
    held: set[str] = set()
    for members in classes.values():
        count = min(len(members) - 1, max(1, round(fraction * len(members))))
        held.update(sorted(members, key=_draw)[:count])
    return held


def _draw(name: str) -> bytes:
    return hashlib.sha256(name.encode(errors='surrogateescape')).digest()


def divide(train: Any, val: Any, fraction: float, known: Optional[Split] = None) -> None:
    """Give each of two data sets of one folder its part.

    Args:
        train, val: timm's `ImageDataset`s of the folder; the images of the first are divided.
        fraction: of the images of each class that validate.
        known: the parts of the run that is resumed. Images that are new since then train.

    Raises:
        SettingError: nothing would be left to validate on.
    """
    samples = train.reader.samples
    names = [name_below(train.reader.root, path) for path, _ in samples]
    held = ({name for name in names if known.get(name, ('', 0))[0] == 'validation'} if known
            else hold_out(zip(names, (target for _, target in samples)), fraction))
    if not held and known:
        raise SettingError(f'None of the images that the run held out to validate on ({FILE} of the run) is left in '
                           f'{str(train.reader.root)!r}. Put them back, or start a new run.')
    if not held:
        raise SettingError(f'{str(train.reader.root)!r} has no class with two images, so none can be held out to '
                           f'validate on.')
    val.reader.class_to_idx = train.reader.class_to_idx
    train.reader.samples = [sample for sample, name in zip(samples, names) if name not in held]
    val.reader.samples = [sample for sample, name in zip(samples, names) if name in held]


def divided(train: Any, val: Any) -> bool:
    """Whether two data sets are parts of one folder of images."""
    readers = [getattr(dataset, 'reader', None) for dataset in (train, val)]
    roots = [getattr(reader, 'root', None) for reader in readers if hasattr(reader, 'samples')]
    return len(roots) == 2 and roots[0] is not None and roots[0] == roots[1] and os.path.isdir(str(roots[0]))


def copies(train: Any, val: Any) -> Optional[str]:
    """A sentence on held-out images that train as well, as exact copies under another name; None without any.

    It opens only files whose size is in both parts, and reads whole only those whose ends are the same, too.
    """
    ours, theirs = ([path for path, _ in data.reader.samples] for data in (train, val))
    try:
        for key in (_bytes, _end, _digest):
            keys, others = ({path: key(path) for path in part} for part in (ours, theirs))
            both = set(keys.values()) & set(others.values())
            ours, theirs = ([path for path in part if part_keys[path] in both]
                            for part, part_keys in ((ours, keys), (theirs, others)))
    except OSError:  # an image that cannot be opened: whoever reads it says so
        return None
    if not theirs:
        return None
    first, root = theirs[0], train.reader.root
    copy = next(path for path in ours if keys[path] == others[first])
    return (f'{len(theirs)} of {len(val.reader.samples)} held-out images are exact copies of images that train, such '
            f'as {name_below(root, first)} of {name_below(root, copy)}: the accuracy on them only shows what was '
            f'learned by heart. Remove the copies.')


def _end(path: str) -> bytes:
    """What tells nearly all photographs of one size apart."""
    with open(path, 'rb') as f:
        f.seek(max(0, os.path.getsize(path) - 64))
        return f.read()


def _digest(path: str) -> bytes:
    with open(path, 'rb') as f:
        return hashlib.sha256(f.read()).digest()


def write_parts(path: Union[str, Path], train: Any, val: Any) -> None:
    """Write down which image is in which part, as `read_parts` reads it."""
    with whole(path) as temporary, open(temporary, 'w', newline='', encoding='utf-8', errors='surrogateescape') as f:
        writer = csv.writer(f)
        writer.writerow(('image', 'split', 'bytes'))
        for split, dataset in (('train', train), ('validation', val)):
            writer.writerows((name_below(dataset.reader.root, image), split, _bytes(image))
                             for image, _ in dataset.reader.samples)


def read_parts(path: Union[str, Path]) -> Split:
    """What `write_parts` wrote; empty where there is none, or none that is whole."""
    try:
        with open(path, newline='', encoding='utf-8', errors='surrogateescape') as f:
            rows = list(csv.DictReader(f))
        return {row['image']: (row['split'], int(row['bytes'])) for row in rows}
    except (OSError, KeyError, ValueError, TypeError, csv.Error):
        return {}


def take_part(dataset: Any, parts: Mapping[str, Split], split: str) -> Optional[str]:
    """Keep of a folder without splits the images that runs have as this split. A sentence that says so, or that nobody
    knows; None for a split of another name.

    A run that was trained on other images, by their names and sizes, says nothing about these.

    Args:
        dataset: timm's `ImageDataset` of the whole folder.
        parts: of the runs, by their names; empty where there is none.
        split: a name of the training images takes those that every run trained on, one of the validation images those
            that every run held out; any other takes all.

    Raises:
        SettingError: the runs have no such image in common.
    """
    wanted = ('train' if split.lower() in TRAINING else 'validation' if split.lower() in VALIDATION else '')
    reader = dataset.reader
    here = {name_below(reader.root, path): path for path, _ in reader.samples}
    theirs = {}
    for run, images in parts.items():
        held = [name for name, (part, size) in images.items() if part == 'validation']
        if 2 * sum(name in here and _bytes(here[name]) == images[name][1] for name in held) >= max(1, len(held)):
            theirs[run] = images
    if not wanted:
        return None
    unknown = ', '.join(run for run in parts if run not in theirs)
    doubt = (f'Nothing says which images of {reader.root} {unknown} held out: if it was trained on them, its figures '
             f'are too good.') if unknown and wanted == 'validation' else ''
    if not theirs:
        return f'{reader.root} has no sub-folder {split}, so all {len(here)} images are used. {doubt}'.rstrip()
    reader.samples = [sample for sample in reader.samples if all(
        images.get(name_below(reader.root, sample[0]), ('', 0))[0] == wanted for images in theirs.values())]
    if not reader.samples:
        raise SettingError(f'{str(reader.root)!r} has no image that {" and ".join(theirs)} have all as {wanted} image: '
                           f'evaluate them one at a time.')
    did = 'trained on' if wanted == 'train' else 'held out'
    return (f'{reader.root} has no sub-folder {split}: {len(reader.samples)} of its {len(here)} images are those that '
            f'{", ".join(theirs)} {did} ({FILE} of the run). {doubt}').rstrip()


def name_below(root: Union[str, Path], path: str) -> str:
    """Path of an image below its folder, the same on every system."""
    return os.path.relpath(path, root).replace(os.sep, '/')


def _bytes(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:  # a dangling link: whoever opens it says so
        return -1
