"""A trained model as a folder that plain timm loads."""
from __future__ import annotations

import copy
import inspect
import shutil
from pathlib import Path
from typing import Any, Optional, Union

import torch
import torch.nn as nn
from timm.models import save_for_hf

from .wrapper import unwrap


def save_plain(
        model: nn.Module,
        folder: Union[str, Path],
        data_config: Optional[dict[str, Any]] = None,
        model_args: Optional[dict[str, Any]] = None,
        label_names: Optional[list[str]] = None,
) -> Path:
    """Write `config.json` and `model.safetensors`; `timm.create_model('local-dir:FOLDER', pretrained=True)` reads them.

    Written beside the folder first and renamed, so a folder of that name is always whole.

    Args:
        model: a timm model, wrapped or not.
        folder: where to; one that exists is replaced.
        data_config: input_size, mean, std, interpolation, crop_pct, crop_mode the model was trained with.
        model_args: arguments of `timm.create_model` beyond name and num_classes, such as img_size.
        label_names: names of the classes in order.

    Returns:
        The folder.
    """
    folder = Path(folder)
    # A copy: safetensors wants contiguous tensors, which channels_last weights are not, and the config is edited.
    plain = copy.deepcopy(unwrap(model)).cpu().to(memory_format=torch.contiguous_format)
    plain.pretrained_cfg = {**plain.pretrained_cfg, **(data_config or {}), 'num_classes': plain.num_classes}  # type: ignore[assignment, dict-item]
    config = {'label_names': label_names} if label_names else {}
    extra = {}
    if 'data_config' in inspect.signature(save_for_hf).parameters:  # timm ≥ 1.0.31
        extra['data_config'] = data_config
    temporary = folder.with_name(folder.name + '.tmp')
    shutil.rmtree(temporary, ignore_errors=True)
    save_for_hf(plain, str(temporary), model_config=config, model_args=model_args or {}, safe_serialization=True,
                **extra)
    old = folder.with_name(folder.name + '.old')
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder
