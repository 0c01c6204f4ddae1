"""The paper's data sets as folders of images: split/class/image, which timm, torchvision and train.py read alike.

Each function fills a folder beside the wanted one and renames it when all is there and counted, so that a folder of
that name is always whole; where it is there already and whole, nothing is done.
"""
from __future__ import annotations

import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Optional

from PIL import Image
from timm.data.readers.img_extensions import is_img_extension
from torchvision import datasets
from torchvision.datasets import imagenet as archives
from tqdm import tqdm

from ..errors import SettingError
from ..files import Paths, whole_folder

# split: (classes, images in all); every class of CIFAR and TinyImageNet has as many
CIFAR10 = {'train': (10, 50_000), 'validation': (10, 10_000)}
CIFAR100 = {'train': (100, 50_000), 'validation': (100, 10_000)}
TINY_IMAGENET = {'train': (200, 100_000), 'validation': (200, 10_000)}
IMAGENET = {'train': (1000, 1_281_167), 'val': (1000, 50_000)}
Counts = dict[str, tuple[int, int]]


def is_image(file: str) -> bool:
    return is_img_extension(Path(file).suffix.lower())


def count(folder: Path) -> dict[str, int]:
    """Images of each class in split/class/image. Only files directly in a class's folder count."""
    found = {}
    for entry in sorted(os.scandir(folder), key=lambda e: e.name) if folder.is_dir() else []:
        if entry.is_dir():
            with os.scandir(entry.path) as files:
                found[entry.name] = sum(is_image(f.name) for f in files)
    return found


def check(folder: Path, counts: Counts, even: bool = True, origin: Optional[Paths] = None) -> None:
    """Raise `SettingError` unless each split has its classes and images, and, if `even`, all classes equally many.

    `origin`, what the folder was made of, is what the message is about.
    """
    problems = []
    for split, (classes, images) in counts.items():
        found = count(folder / split)
        if not found:
            problems.append(f'{split}/ is missing or empty')
        elif len(found) != classes or sum(found.values()) != images:
            problems.append(f'{split}/ has {len(found)} classes and {sum(found.values())} images, not {classes} and '
                            f'{images}')
        elif even:
            problems += [f'{split}/{name} has {n} images, not {images // classes}' for name, n in found.items()
                         if n != images // classes]
    if problems:
        more = f' and {len(problems) - 3} more' if len(problems) > 3 else ''
        raise SettingError(f'{origin or folder} is not whole: {"; ".join(problems[:3])}{more}.')


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder`, which takes its name if nothing goes wrong and is removed otherwise."""
    try:
        with whole_folder(folder, flushed=False) as temporary:
            yield temporary
    except OSError as e:
        raise SettingError(f'{folder} cannot be written: {e.strerror or e}.') from e


def ready(folder: Path, counts: Counts) -> bool:
    """Whether the folder is there and whole.

    Raises:
        SettingError: it is there and not whole.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        check(folder, counts)
    except SettingError as e:
        raise SettingError(f'{e} It was not made by this command, or was changed since: name another folder, or remove '
                           f'it and run this again.') from e
    return True


def cifar(name: str, folder: Paths, source: Paths = 'data', download: bool = False) -> bool:
    """CIFAR-10 or CIFAR-100 as PNG files, pixel for pixel, from what torchvision downloads and verifies.

    Args:
        name: 'cifar10' or 'cifar100'.
        folder: where to.
        source: torchvision's `root`, which holds cifar-10-batches-py or cifar-100-python, or the archive of it.
        download: let torchvision download it into `source`.

    Returns:
        Whether there was anything to do.

    Raises:
        SettingError: nothing whole at `source`, or something else at `folder`.
    """
    folder, kind = Path(folder), datasets.CIFAR10 if name == 'cifar10' else datasets.CIFAR100
    counts = CIFAR10 if name == 'cifar10' else CIFAR100
    if ready(folder, counts):
        return False
    if not download and not (Path(source) / kind.base_folder).is_dir() and (Path(source) / kind.filename).is_file():
        download = True  # unpacks the archive that is there, after verifying it
    try:
        splits = {split: kind(str(source), train=split == 'train', download=download) for split in counts}
    except Exception as e:  # missing, damaged or no connection: torchvision says it in as many ways
        raise SettingError(f'{name} cannot be read from --source {str(source)!r}: {e}. torchvision wants '
                           f'{kind.base_folder}/ or {kind.filename} there; with --download it fetches that.') from e
    with filling(folder) as new:
        for split, dataset in splits.items():
            for c in dataset.classes:
                (new / split / c).mkdir(parents=True)
            pairs = tqdm(zip(dataset.data, dataset.targets), total=len(dataset.data), unit='img', desc=split,
                         disable=None, leave=False)
            for i, (pixels, target) in enumerate(pairs):
                png = new / split / dataset.classes[target] / f'{i:05d}.png'
                Image.fromarray(pixels).save(png, compress_level=1)
        check(new, counts, origin=source)
    return True


def tiny_imagenet(folder: Paths, source: Paths = 'tiny-imagenet-200') -> bool:
    """TinyImageNet with every image in its class's folder, training and validation alike.

    As it is published, the images of train/CLASS lie in a folder `images`, which timm would take for their class, and
    those of val/ lie in one heap, with val_annotations.txt beside it. Files are hard links to the published ones where
    the file system can, so they take no space, and `source` stays as it is.

    Args:
        folder: where to: train/CLASS/*.JPEG and validation/CLASS/*.JPEG.
        source: tiny-imagenet-200, unpacked, or tiny-imagenet-200.zip.

    Returns:
        Whether there was anything to do.

    Raises:
        SettingError: nothing whole at `source`, or something else at `folder`.
    """
    folder, source = Path(folder), Path(source)
    if ready(folder, TINY_IMAGENET):
        return False
    if zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive, filling(folder) as new:
            names = [n for n in archive.namelist() if not n.endswith('/')]
            root = names[0].split('/')[0] if names else ''
            inner = {n[len(root) + 1:]: n for n in names if n.startswith(root + '/')}
            places = _tiny_places(inner, lambda name: archive.read(inner[name]).decode(), source)
            for name, place in tqdm(places.items(), unit='img', disable=None, leave=False):
                (new / place).parent.mkdir(parents=True, exist_ok=True)
                with archive.open(inner[name]) as a, open(new / place, 'wb') as b:
                    shutil.copyfileobj(a, b)
            check(new, TINY_IMAGENET, origin=source)
        return True
    if not source.is_dir():
        raise SettingError(f'--source is {str(source)!r}, but there is no such folder or zip file. It is '
                           f'tiny-imagenet-200 as published, with train/, val/ and wnids.txt, or its zip file.')
    if folder.resolve() == source.resolve():
        raise SettingError(f'--source and the folder to make are both {str(source)!r}: name another to make.')
    names = [p.relative_to(source).as_posix() for split in ('train', 'val') for p in (source / split).rglob('*')]
    with filling(folder) as new:
        places = _tiny_places(names, lambda name: (source / name).read_text(), source)
        for name, place in tqdm(places.items(), unit='img', disable=None, leave=False):
            (new / place).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source / name, new / place)
            except OSError:  # another file system, or one without hard links
                shutil.copyfile(source / name, new / place)
        check(new, TINY_IMAGENET, origin=source)
    return True


def _tiny_places(names: Iterable[str], read: Callable[[str], str], source: Path) -> dict[str, str]:
    """Where each published image goes: 'val/images/val_0.JPEG' → 'validation/n03444034/val_0.JPEG'."""
    names, annotations = set(names), 'val/val_annotations.txt'
    if annotations not in names:
        raise SettingError(f'--source {str(source)!r} has no {annotations}, which says the classes of the validation '
                           f'images: it is not tiny-imagenet-200 as published.')
    places = {}
    for name in names:
        found = re.fullmatch(r'train/(n\d+)/images/([^/]+)', name)
        if found and is_image(name):
            places[name] = 'train/{}/{}'.format(*found.groups())
    for number, line in enumerate(read(annotations).splitlines(), start=1):
        file, wnid, *_ = [*line.split(), '', '']  # then four numbers: a box
        if f'val/images/{file}' not in names or '/' in file or not re.fullmatch(r'n\d+', wnid):
            raise SettingError(f'Line {number} of {annotations} in {str(source)!r} is {line!r}, not an image of '
                               f'val/images/ and its class.')
        places[f'val/images/{file}'] = f'validation/{wnid}/{file}'
    return places


def imagenet(folder: Paths) -> bool:
    """ImageNet-1k as train/CLASS/*.JPEG and val/CLASS/*.JPEG, unpacked by torchvision from its three archives.

    Args:
        folder: holds ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz, or what they
            unpack to. The archives may be removed afterwards.

    Returns:
        Whether there was anything to do.

    Raises:
        SettingError: archives that are missing or damaged, or folders that are not whole.
    """
    folder = Path(folder)
    missing = [split for split in IMAGENET if not (folder / split).exists()]
    parts = {'train': ('train',), 'val': ('devkit', 'val')}
    for split in missing:
        files = [archives.ARCHIVE_META[part][0] for part in parts[split]]
        lacking = [f for f in files if not (folder / f).is_file()]
        if lacking:
            raise SettingError(f'{folder} has no {split}/, and {" and ".join(lacking)} to make it from is not there '
                               f'either. image-net.org gives the archives to those who accept its terms.')
    for split in missing:
        with filling(folder / split) as new:
            try:
                if split == 'train':
                    archives.parse_train_archive(folder, folder=new.name)
                else:
                    archives.parse_devkit_archive(folder)
                    archives.parse_val_archive(folder, folder=new.name)
            except (RuntimeError, ImportError) as e:  # damaged; no scipy for the devkit
                raise SettingError(f'{folder / split} cannot be unpacked: {e}') from e
    check(folder, IMAGENET, even=False)
    return bool(missing)


def described(counts: Counts) -> str:
    return ', '.join(f'{images:,} images of {classes} classes in {split}/'.replace(',', ' ')
                     for split, (classes, images) in counts.items())
