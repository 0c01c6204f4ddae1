"""Training and validation data from a name or a folder, checked before training starts."""
from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Optional

from PIL import Image
from timm.data import ImageDataset, create_dataset
from tqdm import tqdm

from ..distributed import from_all, rank, world
from ..errors import SettingError, nearest
from .digits import DIGITS, DigitsReader

PREFIXES = ('sklearn', 'torch', 'hfds', 'hfids', 'tfds', 'wds')


def create_train_val(
        name: str,
        root: Optional[str],
        train_split: str = 'train',
        val_split: str = 'validation',
        input_img_mode: str = 'RGB',
        **kwargs: Any,
) -> tuple[Any, Any]:
    """The two data sets, without transforms (timm's `create_loader` sets those).

    Args:
        name: as timm names them: '' for a folder of images, 'sklearn/digits', 'torch/cifar10', 'hfds/…', …
        root: the folder.
        train_split, val_split: names of the splits; for a folder, its sub-folders.
        input_img_mode: PIL mode the images are converted to: 'RGB', 'L', …
        **kwargs: for `timm.data.create_dataset`.

    Raises:
        SettingError: a folder that is missing or holds no images, splits that are one folder or differ in their
            classes, a data set that cannot be made.
    """
    if name.partition('/')[0].lower() == 'sklearn':
        if name.lower() != DIGITS:
            raise SettingError(f'--dataset is {name!r}, but of scikit-learn there is only {DIGITS}.')
        train, val = (ImageDataset('', reader=DigitsReader(split), input_img_mode=input_img_mode)
                      for split in (train_split, val_split))
        if train.reader.samples == val.reader.samples:
            raise _same_splits(train_split, val_split)
        return train, val
    prefix = name.partition('/')[0].lower()
    folder = name in ('', 'folder') or '/' not in name
    if folder and name not in ('', 'folder'):
        raise SettingError(f'--dataset is {name!r}, but a name starts with one of '
                           f'{", ".join(p + "/" for p in PREFIXES)}. For a folder of images give --data-dir alone.')
    if not folder and prefix not in PREFIXES:
        raise SettingError(f'--dataset is {name!r}, but {prefix + "/"!r} is not a kind of data set: '
                           f'{", ".join(p + "/" for p in PREFIXES)}.{nearest(prefix, PREFIXES)}')
    if folder:
        _check_folder(root)
    elif train_split == val_split:
        raise _same_splits(train_split, val_split)
    if prefix != 'torch':
        kwargs['input_img_mode'] = input_img_mode
    train = _create(name if not folder else '', root, train_split, is_training=True, **kwargs)
    val = _create(name if not folder else '', root, val_split, is_training=False, **kwargs)
    if folder:
        _check_splits(train, val, str(root), train_split, val_split)
    return train, val


def _create(name: str, root: Optional[str], split: str, **kwargs: Any) -> Any:
    try:
        return create_dataset(name, root=root, split=split, **kwargs)
    except SettingError:
        raise
    except Exception as e:  # whatever the library behind the name raises: say which data set it was about
        raise SettingError(f'The {split!r} split of {name or root!r} cannot be read: {e or type(e).__name__}') from e


def _same_splits(train_split: str, val_split: str) -> SettingError:
    return SettingError(f'--train-split {train_split} and --val-split {val_split} are the same images: accuracy on '
                        f'them would only show what was learned by heart.')


def _check_folder(root: Optional[str]) -> None:
    if not root:
        raise SettingError('--data-dir is not given: a folder with one sub-folder per split, and in it one per class.')
    path = Path(root)
    if not path.exists():
        raise SettingError(f'--data-dir is {root!r}, but there is no such folder.'
                           f'{nearest(path.name, (p.name for p in path.parent.glob("*")))}')
    if path.is_dir() and not os.access(path, os.R_OK | os.X_OK):
        raise SettingError(f'--data-dir is {root!r}, but its contents may not be read (permissions).')


def _check_splits(train: Any, val: Any, root: str, train_split: str, val_split: str) -> None:
    # timm takes the whole folder for a split that it does not find in it
    roots = [Path(str(getattr(d.reader, 'root', root))) for d in (train, val)]
    if roots[0] == roots[1] or roots[0] in roots[1].parents or roots[1] in roots[0].parents:
        found = sorted(p.name for p in Path(root).iterdir() if p.is_dir()) if os.path.isdir(root) else []
        listed = ', '.join(found[:8]) + (', …' if len(found) > 8 else '')
        raise SettingError(
            f'{root!r} has no sub-folder for both splits, --train-split {train_split} and --val-split {val_split}: '
            f'training and validation would see the same images. It holds: {listed or "no folders"}.')
    a, b = (set(getattr(d.reader, 'class_to_idx', {})) for d in (train, val))
    if a != b:
        only = ', '.join([f'{c} (only in {train_split})' for c in sorted(a - b)][:3]
                         + [f'{c} (only in {val_split})' for c in sorted(b - a)][:3])
        raise SettingError(f'The splits of {root!r} have different classes, so their numbers would not agree: {only}. '
                           f'Make the folders the same, or fix the numbers with --class-map.')


class ConvertMode:
    """A transform in front of others: torchvision's data sets give images in whatever mode they store."""

    def __init__(self, mode: str, then: Any) -> None:
        self.mode, self.then = mode, then

    def __call__(self, image: Image.Image) -> Any:
        return self.then(image.convert(self.mode))


def class_names(dataset: Any) -> Optional[list[str]]:
    """Names of the classes in the order of their indices, where the data set knows them.

    Raises:
        SettingError: a class map with negative indices.
    """
    known = getattr(getattr(dataset, 'reader', None), 'class_to_idx', None) or getattr(dataset, 'class_to_idx', None)
    if known:
        names_of = {int(index): str(name) for name, index in known.items()}
        if min(names_of) < 0:
            raise SettingError(f'--class-map gives {names_of[min(names_of)]!r} the index {min(names_of)}, but classes '
                               f'count from 0.')
        return [names_of.get(i, f'unused_{i}') for i in range(max(names_of) + 1)]
    names: Optional[Sequence[Any]] = getattr(dataset, 'classes', None)
    return [str(n) for n in names] if names else None


def drop_unreadable(dataset: Any, split: str, skip: bool, workers: int = 8) -> Optional[str]:
    """Leave unreadable images out of a folder data set; returns a sentence naming and counting them, None without any.

    Raises:
        SettingError: with the same sentence, unless `skip`.
    """
    bad = sorted(image for part in from_all(unreadable_images(dataset, workers)) for image in part)
    if not bad:
        return None
    listed = ''.join(f'\n  {path}: {problem}' for _, path, problem in bad[:20])
    more = f'\n  … and {len(bad) - 20} more' if len(bad) > 20 else ''
    count = f'{len(bad)} of {len(dataset)} images in {split!r} cannot be read'
    if not skip:
        raise SettingError(f'{count}:{listed}{more}\nMend or remove them, or leave them out with --bad-images skip.')
    indices = {index for index, _, _ in bad}
    dataset.reader.samples = [s for i, s in enumerate(dataset.reader.samples) if i not in indices]
    return f'{count} and are left out:{listed}{more}'


def unreadable_images(dataset: Any, workers: int = 8, progress: bool = True) -> list[tuple[int, str, str]]:
    """Open and decode every image of a folder data set: (index, path, what is wrong) of those that fail.

    Under `torch.distributed` each rank looks at its share. JPEGs are decoded at an eighth of their size, which reads
    the whole file at a fraction of the time. Data sets that are not folders of files give an empty list.
    """
    samples = getattr(getattr(dataset, 'reader', None), 'samples', None)
    if not samples or not isinstance(samples[0][0], str):
        return []

    def look(path: str) -> Optional[str]:
        try:
            with Image.open(path) as image:
                image.draft('RGB', (image.width // 8, image.height // 8))
                image.load()
        except Exception as e:  # decoders raise nearly anything on nearly anything
            return str(e) or type(e).__name__
        return None

    with ThreadPoolExecutor(max(1, workers)) as pool:
        paths = {i: samples[i][0] for i in range(rank(), len(samples), world())}
        found = tqdm(pool.map(look, paths.values(), chunksize=64), total=len(paths), unit='img',
                     desc='Checking images', disable=None if progress and rank() == 0 else True, leave=False)
        return [(i, path, problem) for (i, path), problem in zip(paths.items(), found) if problem]
