"""The maps that Dense MultiMix weights its loss by, over images, and whether they lie on the object."""
from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from timm.utils.model import unwrap_model
from torch import Tensor

from ...errors import SettingError
from ...heads import HeadInfo, adapter_of, classifier_leaves, inspect_head, position_logits, switch_class_token
from ...heads.positions import evaluating, probe
from ...heads.self_attention import attended, last_attention, recorded
from ...mixing import attention as attention_map
from ...mixing.learned_attention import maps as learned_maps
from ..outputs import Loader, bar, check_target, device_of
from ..table import Table, panels, rows_of, save_figure

TITLE = 'Attention maps'
ABOUT = """\
gap, cam and uniform are Dense MultiMix's attention types (`timm_multimix.attention`), cam with the row of the true
class; learned is what the training learned, where it did; self is the attention of the last block: from the class
token to the patches where it classifies, else what a patch receives on average, averaged over heads. Effective
positions: mean of 1/Σa², from 1 to the number of positions. With masks, maps are enlarged bilinearly to the image.
Pointing: share of images whose map is largest on the object (arXiv 1608.00507; of several largest pixels, the share
on the object). IoU: mean intersection over union with the mask, of maps divided by their largest value and cut at one
threshold for all images, the best of 100. AUC: area under the ROC curve of telling object from background pixels by
the map, object positive, mean over images. Rank correlation: Spearman's, over positions, of the map and the share of
the position that is object. Object area is what pointing at random would give."""

KINDS = ('gap', 'cam', 'uniform', 'self')
THRESHOLDS = np.linspace(0.01, 1, 100)


def attention(
        model: nn.Module,
        loader: Loader,
        *,
        kinds: Sequence[str] = KINDS,
        norm: str = 'l1_relu',
        learned: Optional[Tensor] = None,
        mean: Optional[Sequence[float]] = None,
        std: Optional[Sequence[float]] = None,
        pictures: int = 6,
        progress: bool = False,
) -> Table:
    """Attention maps of each type, and with masks how well they find the object.

    Args:
        model: a timm model, wrapped or not, that has positions. One that classifies its class token is looked at as
            `wrap(model, 'dense')` would have it, on a copy.
        loader: of (images, target), or (images, target, masks): masks (B, H, W) of the images' size, above 0 on the
            object.
        kinds: of 'gap', 'cam', 'uniform', 'self'.
        norm: 'l1_relu' or 'softmax', of gap and cam.
        learned: u (D,) of learned attention, which is then a type too; default a wrapped model's own.
        mean, std: that the loader normalises with, to show images; default those of the model's `pretrained_cfg`.
        pictures: how many images, the loader's first, are drawn.

    Returns:
        A `Table` with rows 'TYPE | FIGURE'. A type that the model does not have is left out, with a note.

    Raises:
        SettingError: an unknown type, a model without positions, masks of another size, a u of another width.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise SettingError(f'kinds has {kind!r}, but there are {", ".join(KINDS)}.')
    maps_of = Maps(model, kinds, norm, learned)
    found: dict[str, dict[str, list[Any]]] = {kind: {} for kind in maps_of.kinds}
    shown: list[dict[str, Any]] = []
    images_seen, areas = 0, []
    with evaluating(maps_of.model):
        for images, target, *masks in bar(loader, 'attention', progress):
            maps = maps_of(images, target)
            images_seen += len(images)
            mask = masks[0].cpu() > 0 if masks else None
            if mask is not None:
                if mask.shape != (len(images), *images.shape[2:]):
                    raise SettingError(f'masks are {tuple(mask.shape)}, but they must be (B, H, W) = '
                                       f'{(len(images), *images.shape[2:])}, as the images are.')
                areas += mask.flatten(1).float().mean(1).tolist()
            for kind, a in maps.items():
                add = found[kind]
                add.setdefault('effective', []).append(a.flatten(1).square().sum(1).reciprocal().numpy())
                if 'gap' in maps and kind not in ('gap', 'uniform'):
                    add.setdefault('with gap', []).append(rank_correlation(a, maps['gap']))
                if mask is not None:
                    for name, values in localisation(a, mask).items():
                        add.setdefault(name, []).append(values)
            for i in range(min(pictures - len(shown), len(images))):
                shown.append({'image': images[i].cpu(), 'mask': None if mask is None else mask[i],
                              'maps': {kind: a[i] for kind, a in maps.items()}})
    if not images_seen:
        raise SettingError('The loader holds no images.')
    rows = {'images': float(images_seen)}
    if areas:
        rows['object area, %'] = 100 * float(np.mean(areas))
    data: dict[str, Any] = {'norm': norm, 'positions': maps_of.head_info.positions}
    for kind, parts in found.items():
        whole = {name: np.concatenate(values) for name, values in parts.items()}
        rows.update({f'{kind} | {label}': value for label, value in _rows(whole).items()})
        if 'iou' in whole:
            curve = np.nanmean(whole['iou'], 0)
            data[kind] = {'threshold': float(THRESHOLDS[curve.argmax()]), 'iou': curve.tolist()}
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    return Table('attention', rows_of(rows), data, maps_of.notes, {
        'shown': shown, 'mean': mean or cfg.get('mean'), 'std': std or cfg.get('std')})


def _rows(whole: dict[str, np.ndarray]) -> dict[str, float]:
    rows = {'effective positions': float(whole['effective'].mean())}
    if 'with gap' in whole:
        rows['rank correlation with gap'] = _mean(whole['with gap'])
    if 'iou' in whole:
        rows['pointing, %'] = 100 * _mean(whole['pointing'])
        rows['IoU at the best threshold, %'] = 100 * float(np.nanmean(whole['iou'], 0).max())
        rows['AUC, %'] = 100 * _mean(whole['auc'])
        rows['rank correlation with the mask'] = _mean(whole['correlation'])
    return rows


def _mean(values: np.ndarray) -> float:
    """Over the images that have the figure; not a number where none has."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan


def localisation(maps: Tensor, masks: Tensor) -> dict[str, np.ndarray]:
    """How maps (B, h, w) lie on masks (B, H, W) of bools. See `ABOUT`.

    Returns:
        'pointing' (B,), 'auc' (B,), 'correlation' (B,), each nan where undefined (no object, nothing but object, a
        constant map), and 'iou' (B, 100), one for each of `THRESHOLDS`, nan without an object.
    """
    large = F.interpolate(maps[:, None].double(), masks.shape[1:], mode='bilinear', align_corners=False)[:, 0]
    large = large / large.amax((1, 2), keepdim=True).clamp(min=1e-300)
    coverage = F.adaptive_avg_pool2d(masks[:, None].double(), (maps.shape[1], maps.shape[2]))[:, 0]
    B = len(maps)
    found = {name: np.full(B, np.nan) for name in ('pointing', 'auc')}
    found['iou'] = np.full((B, len(THRESHOLDS)), np.nan)
    found['correlation'] = rank_correlation(maps, coverage)
    for i, (a, mask) in enumerate(zip(large.flatten(1).numpy(), masks.flatten(1).numpy())):
        if not mask.any():
            continue
        found['pointing'][i] = mask[a >= a.max() - 1e-12].mean()
        inside, outside = np.sort(a[mask]), np.sort(a[~mask])
        # a pixel at the threshold belongs to the cut-out; 1e-9: a map divided by its largest value may miss 1
        hit = len(inside) - np.searchsorted(inside, THRESHOLDS - 1e-9)
        false = len(outside) - np.searchsorted(outside, THRESHOLDS - 1e-9)
        found['iou'][i] = hit / (len(inside) + false)
        if not mask.all():
            found['auc'][i] = roc_auc_score(mask, a)
    return found


def rank_correlation(a: Tensor, b: Tensor) -> np.ndarray:
    """Spearman's, of each pair of maps (B, h, w); nan where one is constant. (B,)"""
    found = np.full(len(a), np.nan)
    for i, (x, y) in enumerate(zip(a.flatten(1).double().numpy(), b.flatten(1).double().numpy())):
        if np.ptp(x) > 1e-12 and np.ptp(y) > 1e-12:
            found[i] = spearmanr(x, y).statistic
    return found


class Maps:
    """Attention maps of a model, in eval mode: `maps(images, target)` → {type: (B, h, w)}, each summing to 1."""

    def __init__(self, model: nn.Module, kinds: Sequence[str], norm: str, learned: Optional[Tensor] = None) -> None:
        plain = adapter_of(model)
        own = getattr(getattr(unwrap_model(model), 'multimix', None), 'learned', None)
        self.learned = own.u.detach() if learned is None and own is not None else learned
        self.notes: list[str] = []
        self.norm = norm
        self.by_class_token = getattr(plain, 'global_pool', None) == 'token'
        if self.by_class_token:
            plain = copy.deepcopy(plain)
            if switch_class_token(plain):
                self.notes.append("It classifies its class token: gap and cam are of its patch tokens, as wrap(…, "
                                  "'dense') would have it before any training.")
        self.model, self.head_info = plain, inspect_head(plain)
        leaves = classifier_leaves(plain)
        weight = leaves[0].weight.flatten(1)  # type: ignore[operator]
        self.weight: Optional[Tensor] = weight.detach() if (
            len(leaves) == 1 and weight.shape[1] == self.head_info.width) else None
        name = None
        if 'self' in kinds:
            with evaluating(plain):
                name = last_attention(plain, probe(plain), self.head_info)
        self.layer = plain.get_submodule(name) if name else None
        self.kinds = [k for k in kinds if self._has(k)]
        if self.learned is not None:
            if self.learned.shape != (self.head_info.width,):
                raise SettingError(f'learned is {tuple(self.learned.shape)}, but the features have '
                                   f'{self.head_info.width} numbers: it is of another model.')
            self.kinds.append('learned')

    def _has(self, kind: str) -> bool:
        if kind == 'cam' and self.weight is None:
            self.notes.append('It has no single linear classifier on its embedding, so there is no cam.')
            return False
        if kind == 'self' and self.layer is None:
            self.notes.append('It has no self-attention over its positions, so there is no self.')
            return False
        return True

    @torch.no_grad()
    def __call__(self, images: Tensor, target: Tensor) -> dict[str, Tensor]:
        device = device_of(self.model)
        images, target = images.to(device), target.to(device)
        check_target(target, self.model.num_classes)
        with recorded(self.layer) as seen:
            features = self.model.forward_features(images)
        h, w = _grid(self.model, self.head_info, features)
        z, _ = position_logits(self.model, self.head_info, features)
        found = {}
        for kind in self.kinds:
            if kind == 'self':
                a = attended(seen[-1], h * w, self.by_class_token)
            elif kind == 'learned':
                a = learned_maps(z, self.learned.to(device))  # type: ignore[union-attr]
            else:
                cam = {'target': target, 'weight': self.weight} if kind == 'cam' else {}
                a = attention_map(z, kind, self.norm, **cam)  # type: ignore[arg-type]
            found[kind] = a.float().cpu().view(-1, h, w)
        return found


def _grid(model: Any, head_info: HeadInfo, features: Tensor) -> tuple[int, int]:
    if head_info.layout == 'NCHW':
        return features.shape[2], features.shape[3]
    if head_info.layout == 'NHWC':
        return features.shape[1], features.shape[2]
    positions = features.shape[1] - head_info.prefix
    side = math.isqrt(positions)
    if side * side != positions:
        grid = getattr(getattr(model, 'patch_embed', None), 'grid_size', None)
        if grid is None or grid[0] * grid[1] != positions:
            raise SettingError(f'The {positions} tokens of {type(model).__name__} are no square, and it does not say '
                               f'how they lie, so there are no maps to draw.')
        return grid[0], grid[1]
    return side, side


def draw(tables: Mapping[str, Table], folder: Path) -> list[Path]:
    """A picture per model: images, and their maps over them; object outlines where there are masks."""
    return [_draw_one(name, table, folder / f'attention_{i}.png')
            for i, (name, table) in enumerate(tables.items(), 1) if table.arrays['shown']]


def _draw_one(name: str, table: Table, path: Path) -> Path:
    shown, mean, std = (table.arrays[k] for k in ('shown', 'mean', 'std'))
    kinds = list(shown[0]['maps'])
    figure, axes = panels(1 + len(kinds), len(shown), (1.7 * len(shown) + 0.8, 1.7 * (1 + len(kinds)) + 0.4))
    for column, one in zip(axes.T, shown):
        image = one['image'].float()
        if mean is not None and std is not None and len(mean) == len(image):
            image = image * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
        else:
            image = (image - image.min()) / (image.max() - image.min()).clamp(min=1e-12)
        pixels = image.clamp(0, 1).permute(1, 2, 0).numpy()
        grey = pixels.mean(2)
        column[0].imshow(grey if pixels.shape[2] != 3 else pixels, cmap='gray', vmin=0, vmax=1)
        for axis, kind in zip(column[1:], kinds):
            a = one['maps'][kind]
            large = F.interpolate(a[None, None], grey.shape, mode='bilinear', align_corners=False)[0, 0].numpy()
            axis.imshow(grey, cmap='gray', vmin=0, vmax=1)
            axis.imshow(large, cmap='inferno', alpha=0.6, vmin=0, vmax=max(float(a.max()), 1.5 / a.numel()))
        for axis in column:
            if one['mask'] is not None:
                axis.contour(one['mask'].float().numpy(), levels=[0.5], colors='#40e0d0', linewidths=1)
            axis.set_xticks([])
            axis.set_yticks([])
    for axis, label in zip(axes[:, 0], ('image', *kinds)):
        axis.set_ylabel(label, fontsize=11)
    figure.suptitle(name, fontsize=11)
    return save_figure(figure, path)
