"""The embedded data set: scikit-learn's handwritten digits, as a reader for timm's `ImageDataset`.

1 797 real 8×8 images of digits written by 43 people (UCI Optical Recognition of Handwritten Digits), which come inside
scikit-learn, so training can be tried with no data at hand.
"""
from __future__ import annotations

import functools
import io
from typing import Any, BinaryIO, NamedTuple

from PIL import Image
from timm.data.readers.reader import Reader

from ..errors import SettingError

DIGITS = 'sklearn/digits'
SPLITS = {
    'train': 'train', 'training': 'train',
    'val': 'validation', 'valid': 'validation', 'validation': 'validation', 'eval': 'validation', 'test': 'validation',
    'all': 'all',
}


class DigitsReader(Reader):
    """Digits as 32×32 RGB images, classes 0 to 9.

    The split is fixed: of each class, in scikit-learn's order, every fifth image validates (355) and the others
    train (1 442).

    Args:
        split: 'train', 'validation' (or timm's other words for them), or 'all'.
        size: side of the images in pixels, enlarged bicubically.
    """

    def __init__(self, split: str = 'train', size: int = 32) -> None:
        super().__init__()
        if split not in SPLITS:
            raise SettingError(f'split is {split!r}, but {DIGITS} has {", ".join(sorted(set(SPLITS.values())))}.')
        self.class_to_idx = {str(digit): digit for digit in range(10)}
        found = [image for image in _images(size) if SPLITS[split] in (image.part, 'all')]
        self.samples = [(image.png, image.target) for image in found]
        self._names = [image.name for image in found]

    def __getitem__(self, index: int) -> tuple[BinaryIO, int]:
        png, target = self.samples[index]
        return io.BytesIO(png), target

    def __len__(self) -> int:
        return len(self.samples)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        return self._names[index].split('/')[1] if basename else self._names[index]


class _Image(NamedTuple):
    png: bytes
    target: int
    part: str
    name: str


@functools.cache
def _images(size: int) -> tuple[_Image, ...]:
    """All of them, in scikit-learn's order. A training reads two splits, and they are drawn once."""
    from sklearn.datasets import load_digits  # slow to import, and whoever only loads a model has no use for it
    data, seen = load_digits(), [0] * 10
    found: list[_Image] = []
    for index, (pixels, target) in enumerate(zip(data.images, data.target.tolist())):
        part = 'validation' if seen[target] % 5 == 4 else 'train'
        seen[target] += 1
        png = _png((pixels * (255 / 16)).round().astype('uint8'), size)
        found.append(_Image(png, target, part, f'{target}/{index:04d}.png'))
    return tuple(found)


def _png(pixels: Any, size: int) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    image.resize((size, size), Image.Resampling.BICUBIC).convert('RGB').save(buffer, format='PNG')
    return buffer.getvalue()
