"""Images with boxes: PASCAL VOC's format and COCO's, as torchvision's detectors take them."""
from __future__ import annotations

import contextlib
import io
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from ...errors import SettingError


@dataclass(frozen=True)
class Annotated:
    """An image file and its objects.

    Attributes:
        path: of the image.
        boxes: (x0, y0, x1, y1) in pixels, the ends exclusive.
        names: class of each box.
        ignore: of each box: VOC's difficult, COCO's crowd; not trained on, and neither found nor missed when tested.
    """
    path: Path
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    ignore: list[bool] = field(default_factory=list)


class DetectionSet(Dataset[Any]):
    """(image, target): image (3, H, W) in [0, 1], target with 'boxes' (N, 4), 'labels' (N,) from 1, 'iscrowd' (N,).

    Args:
        items: images and their objects.
        classes: names; label 1 is the first. Objects of other classes are an error.
        augment: of torchvision.transforms.v2, applied to image and target; None is none. For training: objects to
            ignore, and images without any others, are left out.
    """

    def __init__(self, items: Sequence[Annotated], classes: Sequence[str], augment: Optional[Callable[..., Any]] = None,
                 training: bool = False) -> None:
        self.classes, self.augment, self.training = list(classes), augment, training
        self.items = [x for x in items if not training or not all(x.ignore)]
        self.label = {name: i for i, name in enumerate(self.classes, 1)}
        for item in self.items:
            for name in item.names:
                if name not in self.label:
                    raise SettingError(f'{str(item.path)!r} has a {name!r}, which is none of the classes that are '
                                       f'trained: {", ".join(self.classes[:20])}.')

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        item = self.items[index]
        with Image.open(item.path) as opened:
            image: Any = v2.functional.to_image(opened.convert('RGB'))
        kept = [i for i, ignored in enumerate(item.ignore) if not (self.training and ignored)]
        boxes = torch.tensor([item.boxes[i] for i in kept], dtype=torch.float32).reshape(-1, 4)
        target: dict[str, Any] = {
            'boxes': tv_tensors.BoundingBoxes(boxes, format='XYXY', canvas_size=image.shape[-2:]),  # type: ignore[call-overload]
            'labels': torch.tensor([self.label[item.names[i]] for i in kept], dtype=torch.int64),
            'iscrowd': torch.tensor([item.ignore[i] for i in kept], dtype=torch.int64)}
        if self.augment is not None:
            image, target = self.augment(image, target)
        target['boxes'] = torch.as_tensor(target['boxes']).float().reshape(-1, 4)
        return v2.functional.to_dtype(image, torch.float32, scale=True).as_subclass(torch.Tensor), target


def read(root: str, splits: Optional[Sequence[str]] = None) -> tuple[list[Annotated], list[Annotated], list[str]]:
    """Training images, test images and class names of a folder in the layout of PASCAL VOC or of COCO.

    VOC: VOC2007/, VOC2012/ … in it or in its VOCdevkit/, or one of these folders itself. COCO: annotations/
    instances_SPLIT.json and the images in SPLIT/.

    Args:
        root: the folder.
        splits: (training, test), each one name or several with commas: 'VOC2007/trainval,VOC2012/trainval',
            'VOC2007/test', or 'train2017', 'val2017'. Default: VOC's trainval and test where there is a test, else
            train and val; COCO's first train… and val….

    Raises:
        SettingError: neither layout, a split that is missing, annotations that cannot be read.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise SettingError(f'--transfer-data is {root!r}, but there is no such folder.')
    if splits is not None and len(splits) != 2:
        raise SettingError(f'--transfer-splits is {list(splits)}, but it takes two: for training and for testing.')
    years = _voc_folders(folder)
    if years:
        lists = {(name if year == '.' else f'{year}/{name}'): path for year, where in years.items()
                 for path in (where / 'ImageSets' / 'Main').glob('*.txt') for name in [path.stem] if '_' not in name}
        chosen = [s.split(',') for s in splits] if splits else _voc_splits(list(lists))
    else:
        lists = {p.stem[len('instances_'):]: p for p in folder.glob('annotations/instances_*.json')}
        if not lists:
            raise SettingError(f'--transfer-data is {root!r}, but it is laid out neither as PASCAL VOC (VOC2007/'
                               f'ImageSets/Main, Annotations, JPEGImages) nor as COCO (annotations/'
                               f'instances_train….json, train…/).')
        chosen = [s.split(',') for s in splits] if splits else [
            [n for n in sorted(lists) if n.startswith(prefix)][:1] for prefix in ('train', 'val')]
    for part, names in zip(('training', 'testing'), chosen):
        missing = [n for n in names if n not in lists]
        if missing or not names:
            raise SettingError(f'--transfer-splits: {", ".join(missing) or "none"} for {part} in {root!r}. It has '
                               f'{", ".join(sorted(lists)) or "no lists of images"}.')
    train, test = ([item for name in names for item in (
        _voc(lists[name]) if years else _coco(lists[name], folder / name))] for names in chosen)
    if {x.path for x in train} & {x.path for x in test}:
        raise SettingError(f'--transfer-splits are {chosen}, but they share images: a test on images that were trained '
                           f'on says nothing.')
    return train, test, sorted({name for item in train for name in item.names})


def _voc_folders(folder: Path) -> dict[str, Path]:
    """Year → folder; '.' for a folder that is one itself."""
    return {where.relative_to(base).as_posix(): where for base in (folder, folder / 'VOCdevkit')
            for where in (base, *sorted(p for p in base.glob('*') if p.is_dir()))
            if (where / 'ImageSets' / 'Main').is_dir() and (where / 'Annotations').is_dir()}


def _voc_splits(names: list[str]) -> list[list[str]]:
    def of(split: str) -> list[str]:
        return sorted(n for n in names if n.rpartition('/')[2] == split)
    return [of('trainval'), of('test')] if of('test') and of('trainval') else [of('train'), of('test') or of('val')]


def _voc(names: Path) -> list[Annotated]:
    folder = names.parent.parent.parent
    return [_voc_one(folder, line.split()[0]) for line in names.read_text().splitlines() if line.strip()]


def _voc_one(folder: Path, name: str) -> Annotated:
    """Pixels of VOC count from 1 and boxes include both ends: (1, 1, 2, 2) is (0, 0, 2, 2) here."""
    annotation = folder / 'Annotations' / f'{name}.xml'
    image = folder / 'JPEGImages' / f'{name}.jpg'
    if not image.is_file():
        raise SettingError(f'{str(image)!r} is listed, but it is missing.')
    try:
        item = Annotated(image)
        for one in ET.parse(annotation).getroot().iterfind('object'):
            x0, y0, x1, y1 = (float(one.findtext(f'bndbox/{k}') or '') for k in ('xmin', 'ymin', 'xmax', 'ymax'))
            item.boxes.append((x0 - 1, y0 - 1, x1, y1))
            item.names.append((one.findtext('name') or '').strip())
            item.ignore.append((one.findtext('difficult') or '0').strip() == '1')
    except (OSError, ET.ParseError, ValueError) as e:
        raise SettingError(f'{str(annotation)!r} cannot be read as an annotation of PASCAL VOC: {e}') from e
    return item


def _coco(annotations: Path, folder: Path) -> list[Annotated]:
    from pycocotools.coco import COCO
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(str(annotations))
        names = {c['id']: c['name'] for c in coco.loadCats(coco.getCatIds())}
        items = []
        for image in coco.loadImgs(sorted(coco.getImgIds())):
            item = Annotated(folder / image['file_name'])
            for one in coco.loadAnns(coco.getAnnIds(image['id'])):
                x, y, w, h = one['bbox']
                if w > 0 and h > 0:
                    item.boxes.append((x, y, x + w, y + h))
                    item.names.append(names[one['category_id']])
                    item.ignore.append(bool(one.get('iscrowd', 0)))
            items.append(item)
    except (KeyError, ValueError, AssertionError) as e:
        raise SettingError(f'{str(annotations)!r} cannot be read as annotations of COCO: {e!r}') from e
    if items and not items[0].path.is_file():
        raise SettingError(f'{str(items[0].path)!r} is listed in {str(annotations)!r}, but it is missing.')
    return items
