"""What a folder of images holds: how timm understands it, told before training, and where it would misunderstand it."""
from __future__ import annotations

import os
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, Optional

from PIL import ExifTags, Image
from timm.data.readers.img_extensions import get_img_extensions

from ..errors import SettingError

# Image files that Pillow reads and timm's readers leave out unless asked.
MORE_EXTENSIONS = ('.jfif', '.webp', '.bmp', '.gif', '.tif', '.tiff')
NOT_READ = ('.heic', '.heif', '.avif', '.jxl', '.jp2', '.psd', '.svg', '.dng', '.cr2', '.cr3', '.nef', '.arw', '.raf')
SAMPLE = 64  # images whose mode and size are looked at
NAMED = 10  # classes, at most, that are told one by one


def extensions() -> tuple[str, ...]:
    """Of the image files that are read: timm's, and others that Pillow knows."""
    return tuple(dict.fromkeys((*get_img_extensions(), *MORE_EXTENSIONS)))


def left_out(root: Path, split: str) -> Optional[str]:
    """A sentence on image files of other types, and on class folders without an image; None where there are none."""
    known, others, empty = extensions(), Counter[str](), []
    for folder, inside, files in os.walk(root, followlinks=True):
        inside[:] = [name for name in inside if not name.startswith('.') and not _is_run(os.path.join(folder, name))]
        types = Counter(os.path.splitext(name)[1].lower() for name in files if not name.startswith('.'))
        others.update({suffix: types[suffix] for suffix in NOT_READ if types[suffix]})
        if not inside and folder != str(root) and not any(types[suffix] for suffix in known):
            empty.append(os.path.relpath(folder, root))
    told = []
    if others:
        counts = ', '.join(f'{count} {suffix}' for suffix, count in sorted(others.items()))
        told.append(f'Files left out of {split!r}, since their type is not read: {counts}. Save them as JPEG or PNG.')
    if empty:
        told.append(f'{len(empty)} folder{"s" * (len(empty) > 1)} of {split!r} hold{"s" * (len(empty) == 1)} no image '
                    f'and {"are no classes" if len(empty) > 1 else "is no class"}: {", ".join(sorted(empty)[:3])}'
                    + (', …' if len(empty) > 3 else '') + '.')
    return ' '.join(told) or None


def _is_run(folder: str) -> bool:
    """Whether a folder is that of a training, whose pictures are no photographs."""
    return all(os.path.isfile(os.path.join(folder, name)) for name in ('args.yaml', 'summary.csv'))


def check_links(root: Path) -> None:
    """Nothing below a split may be read without an end.

    Raises:
        SettingError: a folder that is linked into itself, or an image that is a pipe, a socket or a device.
    """
    known = extensions()
    open_folders: list[tuple[str, tuple[str, ...]]] = [(str(root), ())]
    while open_folders:
        path, above = open_folders.pop()
        own = os.path.realpath(path)
        if own in above:
            raise SettingError(f'{path} is a link to {own}, a folder that it lies in: its images would be read again '
                               f'and again. Remove the link.')
        with os.scandir(path) as entries:
            for entry in entries:
                if os.path.isdir(entry.path):
                    open_folders.append((entry.path, (*above, own)))
                elif os.path.splitext(entry.name)[1].lower() in known and not os.path.isfile(entry.path):
                    if os.path.exists(entry.path):  # a dangling link is an unreadable image like others
                        raise SettingError(f'{entry.path} is no file (but a pipe, a socket or a device): reading it '
                                           f'may never end. Remove it.')


def tidy(dataset: Any, root: Path, split: str, class_map: str = '') -> Optional[str]:
    """Take hidden folders and files, and those of runs, out of a data set of timm's that is a folder; a sentence on
    them, else None.

    Args:
        dataset: timm's `ImageDataset`.
        root: of the split.
        split: its name.
        class_map: as it was given; then the classes are what it says.

    Raises:
        SettingError: images outside of class folders; one class name below several folders; images both in a folder
            and in a folder within it.
    """
    reader = dataset.reader
    places = [os.path.relpath(os.path.dirname(path), root) for path, _ in reader.samples]
    runs = {place for place in set(places) if any(
        _is_run(os.path.join(root, above)) for above in (place, *map(str, Path(place).parents)) if above != '.')}
    hidden = [place in runs or any(
        part.startswith('.') and part != '.' for part in (*place.split(os.sep), os.path.basename(path)))
        for place, (path, _) in zip(places, reader.samples)]
    told = None
    if any(hidden):
        what = f"{sum(hidden)} images of {split!r} that are hidden or a run's" if runs else (
            f'{sum(hidden)} hidden images of {split!r}')
        names = sorted({place for place, is_hidden in zip(places, hidden) if is_hidden})
        told = f'{what} are left out, in {", ".join(names[:3])}' + (', …' if len(names) > 3 else '') + '.'
        kept = [(sample, place) for sample, place, is_hidden in zip(reader.samples, places, hidden) if not is_hidden]
        if not kept:
            raise SettingError(f'{str(root)!r} holds nothing but {what}.')
        places = [place for _, place in kept]
        if class_map:
            reader.samples = [sample for sample, _ in kept]
        else:
            present = {os.path.basename(place) for place in places}
            order = sorted(present, key=reader.class_to_idx.__getitem__)
            reader.class_to_idx = {name: i for i, name in enumerate(order)}
            reader.samples = [(path, reader.class_to_idx[os.path.basename(place)]) for (path, _), place in kept]
    if class_map:
        return told
    if '.' in places:
        path = reader.samples[places.index('.')][0]
        raise SettingError(f'{path} lies in no folder of a class: move it to {split}/CLASS/…, or take it away.')
    below: dict[str, set[str]] = defaultdict(set)
    for place in places:
        below[os.path.basename(place)].add(place)
    several = next(((name, sorted(folders)) for name, folders in below.items() if len(folders) > 1), None)
    if several is not None:
        name, folders = several
        raise SettingError(f'{split!r} has {name!r} in several folders, {folders[0]} and {folders[1]}, and timm takes '
                           f'the innermost folder for the class: they would become one. Put the images right below '
                           f'their class, or name the innermost folders in a file, one a line, with --class-map.')
    found = set(places)
    for place in sorted(found):
        if (above := os.path.dirname(place)) in found:
            raise SettingError(f'{split!r} has images in {above} and in {place}, and timm would make two classes of '
                               f'them. Move the images into one folder, or name the classes in a file, one a line, '
                               f'with --class-map.')
    return told


def left_out_by(class_map: str, dataset: Any, root: Path) -> Optional[str]:
    """A sentence on images of folders that the class map does not name, which timm leaves out; None without any."""
    known = extensions()
    counts: Counter[str] = Counter()
    for folder, _, files in os.walk(root, followlinks=True):
        name = os.path.basename(folder)
        if name not in dataset.reader.class_to_idx and not name.startswith('.'):
            counts[name] += sum(os.path.splitext(f)[1].lower() in known for f in files)
    counts = +counts
    if not counts:
        return None
    listed = ', '.join(f'{name} ({n})' for name, n in counts.most_common(3))
    return (f'--class-map {class_map} lacks {len(counts)} of the folders, whose {sum(counts.values())} images are left '
            f'out: {listed}' + (', …' if len(counts) > 3 else '') + '.')


def describe_images(dataset: Any, names: Optional[list[str]]) -> Optional[str]:
    """A sentence on what a folder holds: classes, images of each, modes and sizes of a sample. None for what is no
    folder of files."""
    samples = getattr(getattr(dataset, 'reader', None), 'samples', None)
    if samples is None or not len(samples) or not isinstance(samples[0][0], str):
        return None
    counts = Counter(target for _, target in samples)
    known = [names[i] if names and i < len(names) else str(i) for i in sorted(counts)]
    if len(counts) <= NAMED:
        classes = ', '.join(f'{name} {counts[i]}' for name, i in zip(known, sorted(counts)))
    else:
        classes = f'{known[0]} to {known[-1]}, of {min(counts.values())} to {max(counts.values())} images'
    looks: Counter[str] = Counter()
    sizes: list[tuple[int, int]] = []
    turned = 0
    for path, _ in samples[::-(-len(samples) // SAMPLE)]:
        try:
            with Image.open(path) as image:  # its head only
                looks[image.mode] += 1
                sizes.append(image.size)
                turned += image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        except Exception:  # decoders raise nearly anything; those that cannot be read are told elsewhere
            continue
    text = f'Found {len(counts)} classes: {classes}.'
    if sizes:
        small, large = min(sizes, key=lambda s: s[0] * s[1]), max(sizes, key=lambda s: s[0] * s[1])
        size = f'{small[0]}×{small[1]}' + (f' to {large[0]}×{large[1]}' if large != small else '')
        text += f' Of {len(sizes)} looked at: {", ".join(mode for mode, _ in looks.most_common())}, {size} pixels.'
    if turned:
        text += (f' {turned} of them are to be turned for viewing (EXIF). They are read as they are stored, as in '
                 f'timm: if that is sideways, turn the files first.')
    if any(mode.startswith('I;16') for mode in looks):
        text += ' Grey images of 16 bits are scaled to 8 bits. Do the same when you use the model (docs/data.md).'
    return text
