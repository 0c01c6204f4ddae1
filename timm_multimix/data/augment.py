"""Two training augmentations of the published recipes that timm has not: crops of padded images, and PCA lighting."""
from __future__ import annotations

from typing import Any, Optional

import torch
from PIL import Image
from timm.data.transforms import MaybePILToTensor, MaybeToTensor, RandomResizedCropAndInterpolation
from torchvision import transforms

from ..errors import SettingError

# Principal components of ImageNet's colours, RGB in [0, 1]: eigenvalues of their covariance and, in columns,
# eigenvectors; the figures that public code has long used for this augmentation (Krizhevsky et al., 2012, section 4.1).
_EIGENVALUES = torch.tensor([0.2175, 0.0188, 0.0045])
_COMPONENTS = torch.tensor([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


class PCALighting:
    """Adds one colour to all pixels of an RGB image: ImageNet's principal components, each by its
    eigenvalue times a normal amount.

    Pixels are rounded and clipped to 8 bits, since timm normalises afterwards, on the GPU.

    Args:
        std: standard deviation of the amounts.
    """

    def __init__(self, std: float) -> None:
        self.std = std

    def __call__(self, image: Image.Image) -> Image.Image:
        if image.mode != 'RGB':
            raise SettingError(f'--pca-lighting is {self.std:g}, which shifts RGB images, but these are {image.mode}.')
        shift = 255 * _COMPONENTS @ (_EIGENVALUES * self.std * torch.randn(3))
        table = torch.arange(256.0) + shift[:, None]
        return image.point(table.round().clamp(0, 255).byte().flatten().tolist())

    def __repr__(self) -> str:
        return f'{type(self).__name__}(std={self.std})'


def as_published(
        transform: Any, size: tuple[int, int], crop_pad: Optional[int] = None, pca_lighting: float = 0.0) -> None:
    """Change timm's training transform, in place.

    Args:
        transform: what `timm.data.create_loader` set as `dataset.transform`.
        size: (H, W) of the images that training sees.
        crop_pad: pixels of black around the whole image, of which a random part of `size` is cut, in place of random
            resized crops. Images of another size are resized to `size` first.
        pca_lighting: `std` of `PCALighting`, the last of the augmentations.

    Raises:
        SettingError: the transform has no random resized crop, or is not one list (`--aug-splits`).
    """
    steps: list[Any] = getattr(transform, 'transforms', [])
    if crop_pad is not None:
        places = [i for i, t in enumerate(steps) if isinstance(t, RandomResizedCropAndInterpolation)]
        if not places:
            raise SettingError(f'--train-crop-pad is {crop_pad} and stands in for random resized crops, but these '
                               f'settings (--no-aug, --train-crop-mode or the kind of data) have none.')
        resize = transforms.Resize(size, transforms.InterpolationMode.BICUBIC)
        steps[places[0]:places[0] + 1] = [resize, transforms.RandomCrop(size, padding=crop_pad)]
    if pca_lighting:
        places = [i for i, t in enumerate(steps) if isinstance(t, (MaybeToTensor, MaybePILToTensor))]
        if not places:
            raise SettingError(f'--pca-lighting is {pca_lighting:g}, but with these settings (--aug-splits or the '
                               f'kind of data) there is no place for it.')
        steps.insert(places[0], PCALighting(pca_lighting))
