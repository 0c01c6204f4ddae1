"""Training and validation data from a name or a folder, checked before training starts."""
from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Optional

import numpy as np
from PIL import Image
from timm.data import ImageDataset, create_dataset
from torchvision.datasets import ImageFolder
from tqdm import tqdm

from ..distributed import from_all, rank, world
from ..errors import SettingError, in_words, nearest, reason
from .digits import DIGITS, DigitsReader
from .folders import check_links, extensions, left_out, left_out_by, tidy
from .split import HELD_OUT, TRAINING, VALIDATION, Split, divide, split_folder

# Kinds of data sets whose images and classes are columns, and the package that reads each.
PACKAGES = {'hfds': 'datasets', 'hfids': 'datasets', 'tfds': 'tensorflow_datasets', 'wds': 'webdataset'}
PREFIXES = ('sklearn', 'torch', *PACKAGES)


def create_train_val(
        name: str,
        root: Optional[str],
        train_split: str = 'train',
        val_split: str = 'validation',
        input_img_mode: str = 'RGB',
        repeats: float = 0,
        train_num_samples: Optional[int] = None,
        val_num_samples: Optional[int] = None,
        val_fraction: float = HELD_OUT,
        parts: Optional[Split] = None,
        **kwargs: Any,
) -> tuple[Any, Any]:
    """The two data sets, without transforms (timm's `create_loader` sets those).

    Args:
        name: as timm names them: '' for a folder of images, 'sklearn/digits', 'torch/cifar10', 'hfds/…', …
        root: the folder.
        train_split, val_split: names of the splits; for a folder, its sub-folders, also by their other usual names
            ('val', 'Training', and 'test' where there is nothing else to validate on).
        input_img_mode: PIL mode the images are converted to: 'RGB', 'L', …
        repeats: passes over a stream in one epoch of training.
        train_num_samples, val_num_samples: of streams that do not say.
        val_fraction: of the images of each class that are held out to validate on, of a folder CLASS/*.jpg without
            splits.
        parts: which ones, in place of a draw: `split.read_parts` of a run that is resumed.
        **kwargs: for `timm.data.create_dataset`.

    Raises:
        SettingError: a folder that is missing or holds no images, splits that are one folder or differ in their
            classes, a data set that cannot be made.
    """
    kind = name.partition('/')[0].lower()
    for key in ('input_key', 'target_key'):
        if kwargs.get(key) is None:
            kwargs.pop(key, None)
        elif kind not in PACKAGES:
            raise SettingError(f'--{key.replace("_", "-")} is {kwargs[key]!r}, but only '
                               f'{", ".join(p + "/" for p in PACKAGES)} have columns to choose.')
    if kind == 'sklearn':
        return _digits(name, (train_split, val_split), input_img_mode)
    check_class_map(kwargs.get('class_map'))
    if kind != 'torch':
        kwargs['input_img_mode'] = input_img_mode
    of_each = ({'is_training': True, 'repeats': repeats, 'num_samples': train_num_samples, **kwargs},
               {'is_training': False, 'num_samples': val_num_samples, **kwargs})
    if name in ('', 'folder'):
        return _folder(root, (train_split, val_split), of_each, val_fraction, parts)
    _check_name(name, kind)
    if train_split == val_split:
        raise _same_splits(train_split, val_split)
    train, val = (create_split(name, root, split, **options)
                  for split, options in zip((train_split, val_split), of_each))
    if isinstance(train, ImageFolder):
        _check_apart(train, val, str(root), train_split, val_split)
    return train, val


def _digits(name: str, splits: tuple[str, str], mode: str) -> tuple[Any, Any]:
    if name.lower() != DIGITS:
        raise SettingError(f'--dataset is {name!r}, but of scikit-learn there is only {DIGITS}.')
    train, val = (ImageDataset('', reader=DigitsReader(split), input_img_mode=mode) for split in splits)
    if train.reader.samples == val.reader.samples:
        raise _same_splits(*splits)
    return train, val


def _check_name(name: str, kind: str) -> None:
    """Raise `SettingError` for a kind of data set that timm does not know, or whose package is not installed."""
    kinds = ', '.join(p + '/' for p in PREFIXES)
    if '/' not in name:
        raise SettingError(f'--dataset is {name!r}, but a name starts with one of {kinds}. For a folder of images give '
                           f'--data-dir alone.')
    if kind not in PREFIXES:
        raise SettingError(f'--dataset is {name!r}, but {kind + "/"!r} is not a kind of data set: {kinds}.'
                           f'{nearest(kind, PREFIXES)}')
    package = PACKAGES.get(kind)
    if package and importlib.util.find_spec(package) is None:
        raise SettingError(f'--dataset is {name!r}, but {kind}/ is read with the package {package}, which is not '
                           f'installed: pip install {package.replace("_", "-")}')
    if package == 'datasets' and not sys.stderr.isatty():
        importlib.import_module(package).disable_progress_bars()


def _folder(root: Optional[str], splits: tuple[str, str], of_each: Sequence[dict[str, Any]], val_fraction: float,
            parts: Optional[Split]) -> tuple[Any, Any]:
    """Class folders in a folder for each split; or without splits, of which a part is held out."""
    _check_folder(root, *splits)
    path, class_map = str(root), str(of_each[0].get('class_map') or '')
    there = [split_folder(path, split) for split in splits]
    undivided = (there == [None, None] and splits[0] in TRAINING and splits[1] in VALIDATION and os.path.isdir(path))
    train_split, val_split = (found or split for found, split in zip(there, splits))
    train, val = (create_split('', path, split, **options) for split, options in zip((train_split, val_split), of_each))
    if undivided:
        _look_through(train, path, Path(path).name, class_map)
        divide(train, val, val_fraction, parts)
    else:
        _check_apart(train, val, path, train_split, val_split)
        _look_through(train, path, train_split, class_map)
        _look_through(val, path, val_split, class_map)
        _check_classes(train, val, path, train_split, val_split)
    return train, val


def check_class_map(path: Any) -> None:
    """Raise `SettingError` for a class map that is anything but text: timm unpickles others."""
    if path and not isinstance(path, dict) and not str(path).lower().endswith('.txt'):
        pickled = ', a pickle, which can run any code when it is opened' * str(path).lower().endswith('.pkl')
        raise SettingError(f'--class-map is {path!r}{pickled}, but it must be a .txt file with a class a line.')


def create_split(name: str, root: Optional[str], split: str, **kwargs: Any) -> Any:
    """timm's `create_dataset`, of a folder with all types of image files that are read here. Errors name the data set.
    """
    if not name and not str(split if os.path.exists(os.path.join(str(root), split)) else root).endswith('.tar'):
        kwargs['input_key'] = ';'.join(extensions())  # how timm is asked for them
    try:
        return create_dataset(name, root=root, split=split, **kwargs)
    except SettingError:
        raise
    except Exception as e:  # whatever the library behind the name raises: say which data set it was about
        why = reason(e, 5)  # one library lists all its data sets
        where = next((p for p in (Path(str(root), split), Path(str(root))) if p.is_dir()), None)
        if not name and where and 'Found 0 images' in why:  # timm does not say what is there in their place
            others = left_out(where, split)
            why = f'it holds no image of a type that is read ({", ".join(extensions())}).' + f' {others}' * bool(others)
        hint = ' Say it with --train-num-samples and --val-num-samples.' if 'num_samples' in why else ''
        raise in_words(f'The {split!r} split of {name or root!r} cannot be read: {why}{hint}', e) from e


def _same_splits(train_split: str, val_split: str) -> SettingError:
    return SettingError(f'--train-split {train_split} and --val-split {val_split} are the same images: accuracy on '
                        f'them would only show what was learned by heart.')


def _check_folder(root: Optional[str], *splits: str) -> None:
    if not root:
        raise SettingError('--data-dir is not given: a folder with one sub-folder per split, and in it one per class.')
    path = Path(root)
    if not path.exists():
        raise SettingError(f'--data-dir is {root!r}, but there is no such folder.'
                           f'{nearest(path.name, (p.name for p in path.parent.glob("*")))}')
    if path.is_dir() and not os.access(path, os.R_OK | os.X_OK):
        raise SettingError(f'--data-dir is {root!r}, but its contents may not be read (permissions).')
    tars = sorted(p.name for p in path.glob('*.tar')) if path.is_dir() else []
    if tars and not any((path / split).exists() for split in splits):
        raise SettingError(f'{root!r} holds {", ".join(tars[:8])}, but neither {" nor ".join(splits)}: name the files, '
                           f'--train-split {tars[0]} --val-split ….')


def _check_apart(train: Any, val: Any, root: str, train_split: str, val_split: str) -> None:
    # timm takes the whole folder for a split that it does not find in it
    roots = [_root(d, root) for d in (train, val)]
    if roots[0] == roots[1] or roots[0] in roots[1].parents or roots[1] in roots[0].parents:
        found = sorted(p.name for p in Path(root).iterdir() if p.is_dir()) if os.path.isdir(root) else []
        listed = ', '.join(found[:8]) + (', …' if len(found) > 8 else '')
        part = split_folder(root, train_split)
        instead = (f' Name the one to validate on, --val-split; or give --data-dir {os.path.join(root, part)}, of '
                   f'whose classes a share is then held out.' if part else '')
        for name in filter(None, (part, split_folder(root, val_split))):
            if any(p.suffix.lower() in extensions() for p in Path(root, name).glob('*')):
                instead += f' If {name!r} is a class, rename its folder.'
        raise SettingError(
            f'{root!r} has no sub-folder for both splits, --train-split {train_split} and --val-split {val_split}: '
            f'training and validation would see the same images. It holds: {listed or "no folders"}.{instead}')


def _root(dataset: Any, root: str) -> Path:
    """Of a split of a folder, timm's or torchvision's."""
    return Path(str(getattr(getattr(dataset, 'reader', dataset), 'root', root)))


def _look_through(dataset: Any, root: str, split: str, class_map: str) -> None:
    where = _root(dataset, root)
    if not where.is_dir():  # a tar
        return
    check_links(where)
    for told in (tidy(dataset, where, split, class_map), None if class_map else left_out(where, split),
                 left_out_by(class_map, dataset, where) if class_map else None):
        if told:
            warnings.warn(told, stacklevel=5)


def _check_classes(train: Any, val: Any, root: str, train_split: str, val_split: str) -> None:
    a, b = (set(_class_to_idx(d) or ()) for d in (train, val))
    if a != b:
        only = ', '.join([f'{c} (only in {train_split})' for c in sorted(a - b)][:3]
                         + [f'{c} (only in {val_split})' for c in sorted(b - a)][:3])
        raise SettingError(f'The splits of {root!r} have different classes, so their numbers would not agree: {only}. '
                           f'Make the folders the same, or fix the numbers with --class-map.')


class ConvertMode:
    """A transform in front of others: images in whatever mode they are stored become those of one mode.

    Grey images of 16 bits are scaled to 8. (PIL cuts them off, which makes nearly all of them white.)
    """

    def __init__(self, mode: str, then: Any) -> None:
        self.mode, self.then = mode, then

    def __call__(self, image: Image.Image) -> Any:
        if image.mode.startswith('I;16'):
            image = Image.fromarray((np.asarray(image) / 257 + 0.5).astype(np.uint8))
        elif image.mode in UNKNOWN_RANGE:
            raise SettingError(unknown_range(image.mode))
        return self.then(image.convert(self.mode))


# Modes of 8 bits, which timm's transforms take, and their channels.
CHANNELS = {'L': 1, 'LA': 2, 'RGB': 3, 'RGBA': 4, 'CMYK': 4, 'YCbCr': 3, 'HSV': 3, 'LAB': 3}
UNKNOWN_RANGE = ('I', 'F')


def unknown_range(mode: str) -> str:
    """Why an image of this mode is refused."""
    return (f'it is of mode {mode} ({"32-bit integers" if mode == "I" else "floats"}), and nothing says which of its '
            f'values is white: save it with 8 or 16 bits')


def image_mode(channels: int, given: Optional[str] = None) -> str:
    """The mode of Pillow's that images become for a model of so many channels: the given one, else L, LA or RGB.

    Raises:
        SettingError: it has another number of channels, or 4 of which nobody said whether they are RGBA or CMYK.
    """
    fit = [mode for mode, n in CHANNELS.items() if n == channels]
    if not fit:
        raise SettingError(f'The model takes images of {channels} channels (--in-chans), but images have 1 to 4: '
                           f'{", ".join(CHANNELS)}.')
    if given is None and channels == 4:
        raise SettingError(f'--input-img-mode is not given, but the model takes 4 channels (--in-chans), which may be '
                           f'{" or ".join(fit)}: say which.')
    if given is not None and given not in fit:
        has = f', which has {CHANNELS[given]},' if given in CHANNELS else ''
        raise SettingError(f'--input-img-mode is {given!r}{has} but the model takes images of {channels} channels '
                           f'(--in-chans): {", ".join(fit)}.')
    return given or fit[0]


def fit_channels(config: dict[str, Any]) -> None:
    """Give a data config of timm's a mean and a deviation for each channel: the mean of those that are there."""
    for name in ('mean', 'std'):  # a model's three, for another number of channels
        if len(config[name]) != config['input_size'][0]:
            config[name] = (sum(config[name]) / len(config[name]),) * config['input_size'][0]


def convert_modes(dataset: Any, mode: str) -> None:
    """Let a data set of files, or one of torchvision, give images of one mode: once its transform is set.

    Its images are to have been opened before (`drop_unreadable`): timm skips those that it cannot decode, and this does
    not.
    """
    if hasattr(dataset, 'input_img_mode'):
        dataset.input_img_mode = ''
    dataset.transform = ConvertMode(mode, dataset.transform)


def class_names(dataset: Any) -> Optional[list[str]]:
    """Names of the classes in the order of their indices, where the data set knows them.

    Raises:
        SettingError: a class map with negative indices.
    """
    known = _class_to_idx(dataset)
    if known:
        names_of = {int(index): str(name) for name, index in known.items()}
        if min(names_of) < 0:
            raise SettingError(f'--class-map gives {names_of[min(names_of)]!r} the index {min(names_of)}, but classes '
                               f'count from 0.')
        return [names_of.get(i, f'unused_{i}') for i in range(max(names_of) + 1)]
    names: Optional[Sequence[Any]] = getattr(dataset, 'classes', None)
    return [str(n) for n in names] if names else None


def _class_to_idx(dataset: Any) -> Optional[dict[Any, int]]:
    reader = getattr(dataset, 'reader', None)
    for owner, name in ((reader, 'class_to_idx'), (reader, 'class_name_to_idx'), (dataset, 'class_to_idx')):
        if getattr(owner, name, None):  # the second is that of tars
            return getattr(owner, name)  # type: ignore[no-any-return]
    return None


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


def unreadable_images(dataset: Any, workers: int = 8) -> list[tuple[int, str, str]]:
    """Open and decode every image of a folder data set: (index, path, what is wrong) of those that fail.

    Under `torch.distributed` each rank looks at its share. JPEGs are decoded at an eighth of their size, which reads
    the whole file at a fraction of the time. Data sets that are not folders of files give an empty list.
    """
    samples = getattr(getattr(dataset, 'reader', None), 'samples', None)
    if samples is None or not len(samples) or not isinstance(samples[0][0], str):  # tars have an array of places
        return []

    def look(path: str) -> Optional[str]:
        try:
            with Image.open(path) as image:
                image.draft('RGB', (image.width // 8, image.height // 8))
                image.load()
                if image.mode in UNKNOWN_RANGE:
                    return unknown_range(image.mode)
        except Exception as e:  # decoders raise nearly anything on nearly anything
            return reason(e)
        return None

    with ThreadPoolExecutor(max(1, workers)) as pool:
        paths = {i: samples[i][0] for i in range(rank(), len(samples), world())}
        found = tqdm(pool.map(look, paths.values(), chunksize=64), total=len(paths), unit='img',
                     desc='Checking images', disable=None if rank() == 0 else True, leave=False)
        return [(i, path, problem) for (i, path), problem in zip(paths.items(), found) if problem]
