"""A trained model as a folder that plain timm loads."""
from __future__ import annotations

import copy
import inspect
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional, Union

import torch
import torch.nn as nn
import yaml
from safetensors.torch import save_file
from timm.models import save_for_hf
from timm.utils.model import unwrap_model

from ..config import MultiMixConfig
from ..errors import SettingError
from ..files import load_json, whole_folder
from ..policy import COUNTED
from ..version import __version__
from ..wrapper import MultiMixModel, unwrap

CONFIG, WEIGHTS, SETTINGS = 'config.json', 'model.safetensors', 'multimix.yaml'  # the first two are timm's names
MODE = 'input_img_mode'  # of config.json, beside timm's keys
COUNTS = 'mixed_steps'  # of multimix.yaml; the one key that is no setting
# A folder of its own, since timm 1.0.27 cannot read one with two safetensors files.
RAW = 'raw'
# Of pretrained_cfg: where published weights lie, what holds for these alone, and what holds for their classes.
_SOURCE = ('url', 'file', 'state_dict', 'hf_hub_id', 'hf_hub_filename', 'source')
_ORIGIN = ('tag', 'license', 'description', 'origin_url', 'paper_name', 'paper_ids', 'notes')
_LABELS = ('label_names', 'label_descriptions')
RAW_CONFIG, RAW_WEIGHTS = f'{RAW}/{CONFIG}', f'{RAW}/{WEIGHTS}'


def save_plain(
        model: nn.Module,
        folder: Union[str, Path],
        data_config: Optional[dict[str, Any]] = None,
        model_args: Optional[dict[str, Any]] = None,
        label_names: Optional[list[str]] = None,
        *,
        config: Optional[MultiMixConfig] = None,
        raw: Optional[nn.Module] = None,
        counts: Optional[Mapping[str, int]] = None,
        origin: bool = False,
) -> Path:
    """Write `config.json` and `model.safetensors`; `timm.create_model('local-dir:FOLDER', pretrained=True)` reads them.

    Beside them `multimix.yaml`, where there are any settings of the method: these, and what the training steps mixed.
    Written beside the folder first and renamed, so a folder of that name is always whole.

    Args:
        model: a timm model, wrapped or not.
        folder: where to; one that exists is replaced.
        data_config: input_size, mean, std, interpolation, crop_pct, crop_mode, input_img_mode (a mode of Pillow's) the
            model was trained with.
        model_args: arguments of `timm.create_model` beyond name and num_classes, such as img_size.
        label_names: names of the classes in order.
        config: the method's settings, where `model` is not wrapped with them.
        raw: where `model` holds averaged weights (EMA), the model they average: a folder `raw/` like this
            one.
        counts: `MixingPolicy.counts` of the training; default those of a wrapped `model`.
        origin: the training began from the weights that the model's pretrained_cfg is about, so its licence, tag and
            papers are named in config.json. Otherwise they are of other weights, and are left out.

    Returns:
        The folder.

    Raises:
        SettingError: label_names are not as many as the classes.
    """
    folder = Path(folder)
    inner = unwrap_model(model)
    data_config = dict(data_config or {})
    mode = data_config.pop('input_img_mode', None)  # of which timm's data config knows nothing
    if isinstance(inner, MultiMixModel):
        multimix = inner.multimix
        config, model_args = config or multimix.config, {**multimix.timm_args, **(model_args or {})}
        counts = multimix.policy.counts if counts is None else counts
        mode = mode or multimix.input_img_mode
    plain = plain_copy(model)  # whose config is edited
    if label_names and len(label_names) != plain.num_classes:
        raise SettingError(f'label_names has {len(label_names)} names, but the model has {plain.num_classes} classes: '
                           f'it takes one name for each, in order.')
    cfg: dict[str, Any] = {k: v for k, v in plain.pretrained_cfg.items()  # type: ignore[operator, union-attr]
                           if k not in _SOURCE and (origin or k not in _ORIGIN)}
    if label_names or cfg.get('num_classes') != plain.num_classes:  # those there are of other classes
        cfg = {k: v for k, v in cfg.items() if k not in _LABELS}
    plain.pretrained_cfg = {**cfg, **data_config, 'num_classes': plain.num_classes}  # type: ignore[assignment]
    model_config = {k: v for k, v in (('label_names', label_names), (MODE, mode)) if v}
    extra = {}
    if 'data_config' in inspect.signature(save_for_hf).parameters:  # timm ≥ 1.0.31
        extra['data_config'] = data_config or None
    else:
        model_args = {**getattr(plain, '_model_args', {}), **(model_args or {})}
    with whole_folder(folder) as new:
        save_for_hf(plain, str(new), model_config=model_config, model_args=model_args or {}, safe_serialization=True,
                    **extra)
        _name_classes_once(new / CONFIG)
        if config is not None:
            (new / SETTINGS).write_text(settings_text(config, counts))
        if raw is not None:
            (new / RAW).mkdir()
            shutil.copyfile(new / CONFIG, new / RAW_CONFIG)
            save_file(plain_copy(raw).state_dict(), new / RAW_WEIGHTS)
        for path in new.rglob('*.safetensors'):  # which safetensors makes readable by its owner alone
            shutil.copymode(new / CONFIG, path)
    return folder


def _name_classes_once(path: Path) -> None:
    """timm names `num_classes` twice, and transformers' `AutoModelForImageClassification` then fails."""
    config = load_json(path)
    config.get('model_args', {}).pop('num_classes', None)
    path.write_text(json.dumps(config, indent=2))


def settings_text(config: MultiMixConfig, counts: Optional[Mapping[str, int]] = None) -> str:
    """`multimix.yaml`: what `MultiMixConfig.from_dict` takes, but for `engine`, which is about a machine.

    Behind it under `COUNTS` what the steps of the training mixed, where they were counted.
    """
    settings = {k: without_place(v) if k == 'teacher' else v for k, v in config.to_dict().items() if k != 'engine'}
    if counts:
        settings[COUNTS] = {name: int(counts[name]) for name in COUNTED if counts.get(name)}
    return f'# How this model was trained, timm-multimix {__version__}.\n' + yaml.safe_dump(settings, sort_keys=False)


def without_place(value: Any) -> Any:
    """A path without where it lies on a machine, which is private; everything else as it is."""
    if isinstance(value, str) and (os.path.isabs(value) or value.startswith('local-dir:')):
        return Path(value.removeprefix('local-dir:')).name
    return value


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy on the CPU: safetensors wants contiguous tensors, which channels_last weights are not."""
    plain = unwrap(model)
    memo: dict[int, Any] = {}  # so that no second copy of the weights is made where the first ones are
    for p in plain.parameters():
        memo[id(p)] = nn.Parameter(p.detach().cpu().clone(memory_format=torch.contiguous_format), p.requires_grad)
    for b in plain.buffers():
        memo[id(b)] = b.detach().cpu().clone(memory_format=torch.contiguous_format)
    return copy.deepcopy(plain, memo)
