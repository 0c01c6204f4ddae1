"""The images that evaluate.py evaluates on, prepared as each checkpoint wants them."""
from __future__ import annotations

import copy
import os
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_images
from timm.data import ImageDataset, create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from ..data import DIGITS, DigitsReader, class_names, convert_modes
from ..data.factory import check_class_map, create_split
from ..data.folders import check_links, extensions, tidy
from ..data.placed import SampleError, load_sample
from ..data.split import TEST, TRAINING, VALIDATION, split_folder, take_part
from ..errors import SettingError, nearest, reason
from .load import Checkpoint

PHOTOGRAPHS = 'photographs'
BUILT_IN = ('uniform', 'gaussian', 'digits', PHOTOGRAPHS)


def open_split(name: str, root: Optional[str], split: str, class_map: str = '') -> Any:
    """One split of a data set, as timm names them, or a folder of class folders itself.

    Raises:
        SettingError: it is not there, or it cannot be looked up by index.
    """
    if name.lower() == DIGITS:
        return ImageDataset('', reader=DigitsReader(split))
    if not name and (not root or not os.path.isdir(root)):
        raise SettingError(f'--data-dir is {root!r}, but there is no such folder.'
                           + (nearest(Path(root).name, (p.name for p in Path(root).parent.glob('*'))) if root else ''))
    check_class_map(class_map)
    if not name:
        split = split_folder(str(root), split) or split
    dataset = create_split(name, root, split, class_map=class_map)
    if not name:
        _check_folder(dataset, str(root), split)
        where = Path(str(getattr(dataset.reader, 'root', '')))
        if where.is_dir():  # not a tar
            check_links(where)
            tidy(dataset, where, split, class_map)
    if not hasattr(dataset, '__getitem__') or not hasattr(dataset, '__len__'):
        raise SettingError(f'--dataset is {name!r}, a stream: figures need a data set of known images, such as a '
                           f'folder.')
    return dataset


def _check_folder(dataset: Any, root: str, split: str) -> None:
    """timm takes the whole folder for a split it does not find; that is right only if it holds the classes itself."""
    if os.path.realpath(str(getattr(dataset.reader, 'root', root))) != os.path.realpath(root):
        return
    inside = sorted(p.name for p in Path(root).iterdir() if p.is_dir())
    if {*TRAINING, *VALIDATION, *TEST} & set(inside):
        raise SettingError(f'--data-dir is {root!r}, but it has no {split!r} folder. It holds {", ".join(inside[:8])}.')


def take_held_out(dataset: Any, root: Optional[str], split: str, checkpoints: Sequence[Checkpoint]) -> Optional[str]:
    """Keep of a folder without splits the images that the checkpoints' runs have as `split`; a sentence that says so.

    Raises:
        SettingError: they have no image of that part in common.
    """
    own = getattr(getattr(dataset, 'reader', None), 'root', None)
    if not root or own is None or os.path.realpath(str(own)) != os.path.realpath(root):
        return None
    return take_part(dataset, {c.name: c.parts for c in checkpoints}, split)


def check_classes(checkpoint: Checkpoint, dataset: Any) -> list[str]:
    """Names of the model's classes; the model and the images must mean the same by a class number.

    Raises:
        SettingError: the images have more classes than the model, or some of the same ones at other numbers; or they
            are the embedded digits and the model is of something else.
    """
    C = int(checkpoint.model.num_classes)  # type: ignore[arg-type]
    theirs, ours = class_names(dataset), checkpoint.label_names
    if theirs is not None and len(theirs) > C:
        raise SettingError(f'{checkpoint.name} has {C} classes, but the images have {len(theirs)}: it was trained on '
                           f'other data.')
    if theirs and not ours and len(theirs) < C:
        warnings.warn(f'{checkpoint.name} has {C} classes and does not say their names. The images have {len(theirs)}, '
                      f'which are taken for its first ones: {", ".join(theirs[:3])}, …. If they are others, give '
                      f'--class-map with its {C} names in order.', stacklevel=2)
    others = [i for i, (a, b) in enumerate(zip(theirs or (), ours or ())) if a != b and not a.startswith('unused_')]
    if theirs and ours and others and set(theirs) & set(ours):
        i = others[0]
        raise SettingError(f'Class {i} is {ours[i]!r} in {checkpoint.name} but {theirs[i]!r} in the data: give '
                           f'--class-map with the order of the model.')
    if theirs and ours and not set(theirs) & set(ours):
        told = (f'The classes of {checkpoint.name} are {", ".join(ours[:3])}, …, those of the images '
                f'{", ".join(theirs[:3])}, …')
        if isinstance(getattr(dataset, 'reader', None), DigitsReader):
            raise SettingError(f'{told}: it was not trained on the embedded digits. Give --data-dir or --dataset.')
        warnings.warn(f'{told}: not one name is the same. The figures take class 0 of one for class 0 of the other, '
                      f'and so on.', stacklevel=2)
    names = theirs or ours or [str(i) for i in range(C)]
    return names + [str(i) for i in range(len(names), C)]


def transform_of(checkpoint: Checkpoint) -> Any:
    return create_transform(**checkpoint.data_config, is_training=False)


class _Named(Subset[Any]):
    """Names the image that cannot be loaded."""

    __getitems__ = None  # type: ignore[assignment]

    def __getitem__(self, index: Any) -> Any:
        return load_sample(self.dataset, self.indices[index])


class ImageLoader(DataLoader[Any]):
    """torch's, that names the image that cannot be loaded."""

    def __iter__(self) -> Any:
        try:
            yield from super().__iter__()
        except SampleError as e:
            raise SettingError(f'{e.words}. Mend or remove it.') from e


def prepared(dataset: Any, checkpoint: Checkpoint, limit: Optional[int], seed: int) -> Any:
    """The images as this checkpoint takes them, in a random order that is the same for all; at most `limit`."""
    dataset = copy.copy(dataset)
    dataset.transform = transform_of(checkpoint)
    convert_modes(dataset, checkpoint.input_img_mode)
    return _Named(dataset, _order(dataset, limit, seed))


def _order(dataset: Any, limit: Optional[int], seed: int) -> list[int]:
    return torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:limit].tolist()


def file_names(dataset: Any, limit: int, seed: int) -> Optional[list[str]]:
    """Of the images that `prepared` takes, below the folder of the split; None where images are no files."""
    if not hasattr(getattr(dataset, 'reader', None), 'samples'):
        return None
    return [str(dataset.filename(i)) for i in _order(dataset, limit, seed)]


def keep_at_random(dataset: Any, limit: int, seed: int) -> None:
    """Keep of a folder of images those alone that `prepared` takes."""
    samples = getattr(getattr(dataset, 'reader', None), 'samples', None)
    if isinstance(samples, list):  # tars have an array of places
        dataset.reader.samples = [samples[i] for i in _order(dataset, limit, seed)]


# ------------------------------------------------------------------------------------------------ out of distribution

class Noise(Dataset[Any]):
    """Images of noise in [0, 1], normalised: 'uniform', every pixel and channel alike, or 'gaussian', of mean and
    deviation one half and one, clipped (as in arXiv 1706.02690)."""

    def __init__(self, kind: str, checkpoint: Checkpoint, count: int, seed: int) -> None:
        self.kind, self.count, self.seed = kind, count, seed
        self.size = tuple(checkpoint.data_config['input_size'])
        self.mean, self.std = (torch.tensor(checkpoint.data_config[k]).view(-1, 1, 1) for k in ('mean', 'std'))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        if self.kind == 'uniform':
            pixels = torch.rand(self.size, generator=generator)
        else:
            pixels = (0.5 + torch.randn(self.size, generator=generator)).clamp(0, 1)
        return (pixels - self.mean) / self.std, 0


class PhotographCrops(Dataset[Any]):
    """Random square crops, of 64 to 400 pixels, of the two photographs that come with scikit-learn."""

    def __init__(self, checkpoint: Checkpoint, count: int, seed: int) -> None:
        self.photographs = [Image.fromarray(x) for x in load_sample_images().images]
        self.transform, self.count, self.seed = transform_of(checkpoint), count, seed
        self.mode = checkpoint.input_img_mode

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        rng = np.random.default_rng((self.seed, index))
        image = self.photographs[int(rng.integers(len(self.photographs)))]
        side = int(rng.integers(64, 401))
        x, y = (int(rng.integers(extent - side + 1)) for extent in image.size)
        return self.transform(image.crop((x, y, x + side, y + side)).convert(self.mode)), 0


def outliers(names: list[str], checkpoint: Checkpoint, count: int, seed: int) -> dict[str, Dataset[Any]]:
    """Out-of-distribution sets by name: `BUILT_IN` ones, and folders of images, in whatever sub-folders.

    Raises:
        SettingError: neither, or a folder without images.
    """
    found: dict[str, Dataset[Any]] = {}
    for name in names:
        if name in ('uniform', 'gaussian'):
            found[name] = Noise(name, checkpoint, count, seed)
        elif name == 'digits':
            found[name] = prepared(ImageDataset('', reader=DigitsReader('all')), checkpoint, count, seed)
        elif name == PHOTOGRAPHS:
            found[name] = PhotographCrops(checkpoint, count, seed)
        elif os.path.isdir(name):
            try:
                dataset = ImageDataset(name, input_key=';'.join(extensions()))  # how timm is asked for all types
            except Exception as e:
                raise SettingError(f'--ood has the folder {name!r}, but it holds no images that can be read: '
                                   f'{reason(e)}') from e
            label = Path(name).resolve().name
            found[name if label in (*found, *BUILT_IN) else label] = prepared(dataset, checkpoint, count, seed)
        else:
            raise SettingError(f'--ood has {name!r}, but it takes folders of images and {", ".join(BUILT_IN)}.'
                               f'{nearest(name, BUILT_IN)}')
    return found


# --------------------------------------------------------------------------------------------------------------- masks

class WithMasks(Dataset[Any]):
    """(image, target, mask): images of a folder data set that have a mask under the same path in another folder.

    A mask is a .png, above 0 on the object, or an .xml of boxes as PASCAL VOC has them. It is resized and cropped as
    its image is.
    """

    def __init__(self, dataset: Any, folder: str, checkpoint: Checkpoint, limit: Optional[int], seed: int) -> None:
        if not os.path.isdir(folder):
            raise SettingError(f'--masks is {folder!r}, but there is no such folder.')
        if not hasattr(dataset, 'reader'):
            raise SettingError('--masks needs a data set that is a folder of images, to find each mask by its name.')
        self.images = prepared(dataset, checkpoint, None, seed)
        plain = {**checkpoint.data_config, 'interpolation': 'nearest', 'mean': (0.0,) * 3, 'std': (1.0,) * 3}
        plain['input_size'] = (3, *plain['input_size'][1:])
        self.transform = create_transform(**plain, is_training=False)
        self.found = [(i, mask) for i, index in enumerate(self.images.indices)
                      if (mask := self._mask_of(dataset, folder, index)) is not None][:limit]
        if not self.found:
            example = Path(str(dataset.filename(self.images.indices[0])))
            raise SettingError(f'--masks is {folder!r}, but it has no mask of any image: for {str(example)!r} that '
                               f'would be {str(example.with_suffix(".png"))!r} or {str(example.with_suffix(".xml"))!r} '
                               f'in it.')

    @staticmethod
    def _mask_of(dataset: Any, folder: str, index: int) -> Optional[Path]:
        name = Path(str(dataset.filename(index)))
        for candidate in (name, Path(name.name)):
            for suffix in ('.png', '.xml'):
                path = Path(folder) / candidate.with_suffix(suffix)
                if path.is_file():
                    return path
        return None

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, index: int) -> tuple[Tensor, int, Tensor]:
        i, path = self.found[index]
        image, target = self.images[i]
        mask = boxes_as_mask(path) if path.suffix == '.xml' else _above_zero(path)
        return image, target, self.transform(mask.convert('RGB'))[0] > 0


def _above_zero(path: Path) -> Image.Image:
    with Image.open(path) as image:
        pixels = np.asarray(image)
    if pixels.ndim == 3:  # without the alpha of LA and RGBA, which is not about the object
        pixels = pixels[..., :1 if pixels.shape[2] == 2 else 3].max(2)
    return Image.fromarray((pixels > 0).astype('uint8') * 255)


def boxes_as_mask(path: Path) -> Image.Image:
    """The boxes of a PASCAL VOC annotation, filled: their pixels count from 1 and include both ends."""
    try:
        root = ET.parse(path).getroot()
        size = tuple(int(float(root.findtext(f'size/{side}') or '')) for side in ('width', 'height'))
        mask = Image.new('L', (size[0], size[1]))
        for box in root.iterfind('object/bndbox'):
            x0, y0, x1, y1 = (int(float(box.findtext(k) or '')) - 1 for k in ('xmin', 'ymin', 'xmax', 'ymax'))
            ImageDraw.Draw(mask).rectangle((x0, y0, x1, y1), fill=255)
    except (ET.ParseError, ValueError) as e:
        raise SettingError(f'{str(path)!r} is not an annotation as PASCAL VOC has them: {e}') from e
    return mask
