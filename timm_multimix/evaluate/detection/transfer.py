"""Transfer to detection: the backbone in torchvision's Faster R-CNN and SSD, fine-tuned on boxes."""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Optional

import torch
import torch.nn as nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2
from tqdm import tqdm

from ...errors import SettingError, nearest
from ..outputs import bar, device_of
from ..table import Table, panels, rows_of, save_figure
from .data import Annotated, DetectionSet
from .detectors import ARGUMENTS, DETECTORS

TITLE = 'Transfer to detection'
ABOUT = """\
The backbone, without its classifier and with frozen batch norms, is fine-tuned with a detector of torchvision. mAP:
the mean over classes of average precision, at 101 recall points, averaged over overlaps (IoU) from 0.5 to 0.95 as
COCO has it, by pycocotools. AP50 and AP75: at one overlap. A detection is a true positive if it overlaps by that
much an object of its class that no more confident detection took; all other detections are false positives; objects
marked difficult or crowd are neither found nor missed. All in percent. VOC's own AP50 integrates precision otherwise
and comes out somewhat different."""

NAMES = {'faster_rcnn': 'Faster R-CNN', 'ssd': 'SSD'}
SHOWN = 0.3  # confidence from which detections are drawn
PICTURES = 5  # test images that are drawn
SIZES = {'faster_rcnn': 600, 'ssd': 300}


def need_packages() -> None:
    """Raise `SettingError` unless the packages of mAP are there."""
    missing = [name for name in ('torchmetrics', 'pycocotools') if find_spec(name) is None]
    if missing:
        raise SettingError(f'transfer needs {" and ".join(missing)}, not installed here: pip install '
                           f'{" ".join(missing)}.')


def transfer(
        model: nn.Module,
        train: Sequence[Annotated],
        test: Sequence[Annotated],
        classes: Sequence[str],
        *,
        detectors: Sequence[str] = ('faster_rcnn', 'ssd'),
        epochs: int = 12,
        lr: Optional[float] = None,
        batch_size: int = 8,
        size: Optional[int] = None,
        mean: Optional[Sequence[float]] = None,
        std: Optional[Sequence[float]] = None,
        detector_kwargs: Optional[Mapping[str, Any]] = None,
        workers: int = 0,
        seed: int = 0,
        progress: bool = False,
) -> Table:
    """Fine-tune detectors on a timm backbone, and measure them.

    SGD with momentum 0.9 and weight decay 1e-4, linear warm-up over the first tenth, then cosine; images are flipped,
    for SSD also distorted, zoomed out and cropped (torchvision's transforms of its paper). Last weights are measured.

    Args:
        model: a timm model with stages, wrapped or not; it is copied, not changed.
        train, test, classes: as `detection_data.read` gives them.
        detectors: of 'faster_rcnn' and 'ssd'.
        epochs: of fine-tuning.
        lr: peak learning rate; default 0.02 for Faster R-CNN and 0.01 for SSD at 16 images a batch, scaled to it.
        batch_size: images a step.
        size: of the images, see `detectors`; default 600 for Faster R-CNN and 300 for SSD.
        mean, std: of the backbone's images; default those of the model's `pretrained_cfg`.
        detector_kwargs: further arguments of torchvision's `FasterRCNN` and `SSD`; each gets those it knows.
        workers: data loading processes.
        seed: of heads, order and augmentation.

    Returns:
        A `Table`; data holds AP per class and the loss of each epoch.

    Raises:
        SettingError: packages that are missing, settings that cannot be, a backbone without stages, a loss that is
            no number.
    """
    need_packages()
    for name in detectors:
        if name not in DETECTORS:
            raise SettingError(f'detectors has {name!r}, but there are {", ".join(DETECTORS)}.')
    for label, value in (('epochs', epochs), ('batch_size', batch_size), ('classes', len(classes)),
                         ('training images', len(train)), ('test images', len(test))):
        if value < 1:
            raise SettingError(f'transfer has {value} {label}, but needs at least 1.')
    further, known = detector_kwargs or {}, [k for name in detectors for k in ARGUMENTS[name]]
    for name in further:
        if name not in known:
            raise SettingError(f'detector_kwargs (--detector-kwargs) has {name!r}, which torchvision does not take for '
                               f'{" or ".join(detectors)}.{nearest(name, known)}')
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    mean, std = mean or cfg.get('mean'), std or cfg.get('std')
    if mean is None or std is None:
        raise SettingError('mean and std are not given, and the model has no pretrained_cfg that says how its images '
                           'are normalised.')
    rows: dict[str, float] = {'training images': len(train), 'test images': len(test)}
    data: dict[str, Any] = {'epochs': epochs, 'batch_size': batch_size, 'seed': seed, 'classes': list(classes)}
    shown: dict[str, Any] = {}
    tests = DetectionSet(test, classes)
    for name in detectors:
        torch.manual_seed(seed)
        detector = DETECTORS[name](model, len(classes), size or SIZES[name], mean, std,
                                   **{k: v for k, v in further.items() if k in ARGUMENTS[name]})
        detector.to(device_of(model))
        peak = lr or {'faster_rcnn': 0.02, 'ssd': 0.01}[name] * batch_size / 16
        losses = fine_tune(detector, DetectionSet(train, classes, _augmentation(name), training=True), epochs, peak,
                           batch_size, workers, f'{name}: training', progress)
        found, pictures = measure(detector, tests, batch_size, workers, f'{name}: testing', progress)
        per_class = found.pop('per_class')
        rows.update({f'{NAMES[name]} | {label}, %': value for label, value in found.items()})
        data[name] = {'lr': peak, 'size': size or SIZES[name], 'loss': losses,
                      'per_class': {classes[i - 1]: value for i, value in per_class.items()}}
        shown[NAMES[name]] = pictures
    return Table('transfer', rows_of(rows), data, [], {'shown': shown, 'classes': list(classes)})


def _augmentation(name: str) -> Any:
    flip = [v2.RandomHorizontalFlip(0.5)]
    if name == 'ssd':
        flip = [v2.RandomPhotometricDistort(), v2.RandomZoomOut(fill=127), v2.RandomIoUCrop(), *flip]
    return v2.Compose([*flip, v2.SanitizeBoundingBoxes()])


def _together(batch: Any) -> Any:
    return tuple(zip(*batch))


def fine_tune(detector: nn.Module, train: DetectionSet, epochs: int, lr: float, batch_size: int, workers: int,
              text: str, progress: bool) -> list[float]:
    """Train a torchvision detector; the mean loss of each epoch.

    Raises:
        SettingError: the loss is not a number any more.
    """
    device = device_of(detector)
    loader = DataLoader(train, batch_size, shuffle=True, num_workers=workers, collate_fn=_together)
    parameters = [p for p in detector.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr, momentum=0.9, weight_decay=1e-4)
    total, warmup = epochs * len(loader), max(1, epochs * len(loader) // 10)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min(
        (i + 1) / warmup, 0.5 * (1 + math.cos(math.pi * max(0, i - warmup) / max(1, total - warmup)))))
    detector.train()
    losses = []
    with tqdm(total=total, desc=text, unit='batch', leave=False, disable=None if progress else True,
              dynamic_ncols=True) as steps:
        for epoch in range(epochs):
            summed = 0.0
            for images, targets in loader:
                loss = sum(detector([x.to(device) for x in images],
                                    [{k: v.to(device) for k, v in t.items()} for t in targets]).values())
                value = float(loss.detach())  # type: ignore[union-attr]
                if not math.isfinite(value):
                    raise SettingError(f'The loss of the detector became {value} in epoch {epoch + 1}: lower lr '
                                       f'(--transfer-lr), now {lr:g}.')
                optimizer.zero_grad()
                loss.backward()  # type: ignore[union-attr]
                nn.utils.clip_grad_norm_(parameters, 10.0)
                optimizer.step()
                scheduler.step()
                summed += value / len(loader)
                steps.set_postfix(epoch=epoch + 1, loss=f'{value:.3f}', refresh=False)
                steps.update()
            losses.append(summed)
    return losses


@torch.no_grad()
def measure(detector: nn.Module, test: DetectionSet, batch_size: int, workers: int, text: str, progress: bool,
            ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Average precisions in percent ('mAP', 'AP50', 'AP75', and 'per_class': label → mAP), and some detections."""
    from torchmetrics.detection import MeanAveragePrecision
    device = device_of(detector)
    metric = MeanAveragePrecision(box_format='xyxy', iou_type='bbox', class_metrics=True)
    metric.warn_on_many_detections = False
    shown: list[dict[str, Any]] = []
    detector.eval()
    loader = DataLoader(test, batch_size, num_workers=workers, collate_fn=_together)
    for images, targets in bar(loader, text, progress):
        found = [{k: v.cpu() for k, v in x.items()} for x in detector([x.to(device) for x in images])]
        metric.update(found, list(targets))
        shown += [{'image': image, **one, 'truth': target['boxes']}
                  for image, one, target in zip(images, found, targets)][:PICTURES - len(shown)]
    result = metric.compute()

    def percent(x: Any) -> float:  # -1 is pycocotools' word for nothing to find
        return 100 * float(x) if float(x) >= 0 else math.nan

    labels, values = result['classes'].reshape(-1).tolist(), result['map_per_class'].reshape(-1).tolist()
    return {'mAP': percent(result['map']), 'AP50': percent(result['map_50']), 'AP75': percent(result['map_75']),
            'per_class': {int(c): percent(v) for c, v in zip(labels, values)}}, shown


def draw(tables: Mapping[str, Table], folder: Path) -> list[Path]:
    """Detections of some confidence on some test images, a line per checkpoint and detector; objects are dashed."""
    from matplotlib import colormaps

    lines = [(f'{name}\n{detector}', images, table.arrays['classes']) for name, table in tables.items()
             for detector, images in table.arrays['shown'].items()]
    width = max(len(images) for _, images, _ in lines)
    figure, axes = panels(len(lines), width, (2.6 * width, 2.6 * len(lines)))
    palette = colormaps['tab10']
    for line, (label, images, classes) in zip(axes, lines):
        for axis in line:
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(label)
        for axis, one in zip(line, images):
            axis.imshow(one['image'].permute(1, 2, 0).clamp(0, 1).numpy())
            for box in one['truth'].tolist():
                axis.add_patch(_box(box, ls='--', edgecolor='white', lw=1.2))
            for box, score, c in zip(one['boxes'].tolist(), one['scores'].tolist(), one['labels'].tolist()):
                if score >= SHOWN:
                    axis.add_patch(_box(box, edgecolor=palette(c % 10), lw=1.8))
                    axis.text(box[0], box[1], f'{classes[c - 1]} {score:.2f}', fontsize=7, va='bottom',
                              bbox={'facecolor': 'white', 'alpha': 0.7, 'lw': 0, 'pad': 0.6}, clip_on=True)
    return [save_figure(figure, folder / 'transfer.png')]


def _box(box: Sequence[float], **style: Any) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((box[0], box[1]), box[2] - box[0], box[3] - box[1], facecolor='none', **style)
