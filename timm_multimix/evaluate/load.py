"""A checkpoint, however it comes, as a timm model in eval mode and the way its images are prepared."""
from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import timm
import torch.nn as nn
from huggingface_hub import try_to_load_from_cache
from timm.data import resolve_data_config
from torch import Tensor

from ..data.factory import fit_channels, image_mode
from ..data.split import FILE, Split, read_parts
from ..errors import SettingError, in_words, nearest, reason
from ..heads import switch_class_token
from ..hub.load import check_files, mode_of, shipped
from ..runs.find import is_repo, load, model_folder, newest_whole
from ..runs.weights import read_weights

# Of a run's settings, how images are prepared, beside their size and mode.
_OF_IMAGES = ('mean', 'std', 'interpolation', 'crop_pct')


@dataclass(frozen=True)
class Checkpoint:
    """A model to evaluate.

    Attributes:
        name: of its column.
        source: what it was loaded from.
        model: in eval mode.
        data_config: input_size, mean, std, interpolation, crop_pct, crop_mode, for timm's `create_transform`.
        label_names: of its classes in order, where the checkpoint says them.
        input_img_mode: the mode of Pillow's that images become.
        parts: of the images of its training folder, where its run held some of them out.
    """
    name: str
    source: str
    model: nn.Module
    data_config: dict[str, Any]
    label_names: Optional[list[str]]
    input_img_mode: str = 'RGB'
    parts: Split = field(default_factory=dict)


def load_checkpoint(
        source: str,
        model: Optional[str] = None,
        *,
        num_classes: Optional[int] = None,
        model_kwargs: Optional[dict[str, Any]] = None,
        img_size: Optional[int] = None,
        usual_size: Optional[int] = None,
        input_img_mode: Optional[str] = None,
        **data: Any,
) -> Checkpoint:
    """Load a timm checkpoint; nothing of it is unpickled but tensors.

    Args:
        source: a folder that train.py wrote, or that holds config.json and weights; a file of weights (.safetensors,
            .pth, .pth.tar); 'local-dir:…'; 'hf-hub:…'; the name of a model that came along, or of a
            timm model with published weights. 'NAME=' in front of it names its column.
        model: for a file of weights: the timm model they are of.
        num_classes: for a file of weights, default what they say.
        model_kwargs: for a file of weights: further arguments of `timm.create_model`.
        img_size: of images to evaluate on, where it differs from what the checkpoint says.
        usual_size: the same for a file of weights that says none.
        input_img_mode: the mode of Pillow's that images become; default what the checkpoint says, else L, LA or RGB.
        **data: mean, std, interpolation, crop_pct, where they differ.

    Raises:
        SettingError: there is nothing there, weights that do not fit, a file without `model`, images of 4 channels
            without their mode.
    """
    name, path = split_name(source)
    kwargs = dict(model_kwargs or {})
    folder = _folder(path)
    if folder is not None:
        check_files(Path(folder), source)
        net = _create(source, f'local-dir:{folder}', img_size)
    elif os.path.isfile(path):
        said = _settings_of(path)
        if img_size is None and said.get('input_size'):  # which goes before the run's img_size, as in timm
            data['input_size'] = tuple(said['input_size'])
        img_size = img_size or said.get('img_size') or usual_size
        input_img_mode = input_img_mode or said.get('input_img_mode')
        data = {**{k: said[k] for k in _OF_IMAGES if said.get(k)}, **data}
        net = _from_file(path, model, num_classes, data['input_size'][1:] if 'input_size' in data else img_size, kwargs,
                         dense=said.get('multimix') == 'dense')
    elif is_repo(path) or ('/' not in path and timm.is_model(path.split('.')[0])):
        net = _create(source, path, img_size)
    else:
        beside = [p.name for p in Path(path).parent.glob('*')] if Path(path).parent.is_dir() else []
        raise SettingError(f'{source!r} is no checkpoint: there is no such folder or file'
                           + (f' (its folder holds {", ".join(sorted(beside)[:6])}).{nearest(Path(path).name, beside)}'
                              if beside else ', and timm has no model of that name.'))
    cfg: Any = net.pretrained_cfg or {}
    channels = kwargs.get('in_chans') or (cfg.get('input_size') or (3,))[0]
    for key in ('mean', 'std'):
        if len(data.get(key) or ()) not in (0, 1, channels):
            raise SettingError(f'--{key} has {len(data[key])} numbers, but the images of {source!r} have {channels} '
                               f'channels: give one number for each, or one for all.')
    config = resolve_data_config({'img_size': img_size, 'in_chans': channels, **data}, model=net)
    config['input_size'] = (channels, *config['input_size'][1:])
    fit_channels(config)
    labels = cfg.get('label_names')
    config_folder = _config_folder(path, folder)
    mode = image_mode(channels, input_img_mode or (mode_of(config_folder) if config_folder else None))
    return Checkpoint(name, path, net.eval(), config, [str(x) for x in labels] if labels else None, mode,
                      read_parts(_run(path) / FILE))


def _run(path: str) -> Path:
    """The folder of the run that a checkpoint is of, if it is of one: its own, or the one that model/ lies in."""
    place = Path(path.removeprefix('local-dir:')).absolute()
    place = place.parent if place.is_file() else place
    return place if place.name != 'model' or (place / FILE).exists() else place.parent


def learned_attention(path: str) -> Optional[Tensor]:
    """u, (D,), of learned attention, which is in the checkpoints of a run and not in its model; None without any."""
    folder = _run(path)
    found = newest_whole(folder)[0] if folder.is_dir() else None
    state = (load(found).get('task_state') or {}) if found is not None else {}
    u = (state.get('attention') or {}).get('u')
    return u.clone() if isinstance(u, Tensor) else None


def _config_folder(path: str, folder: Optional[str]) -> Optional[Path]:
    """Where config.json of a loaded checkpoint lies; None where there is none."""
    kind, _, rest = path.partition(':')
    if folder is not None or kind == 'local-dir':
        return Path(folder or rest)
    if kind not in ('hf-hub', 'hf_hub'):
        return None
    repo_id, _, revision = rest.partition('@')
    found = try_to_load_from_cache(repo_id, 'config.json', revision=revision or None)  # where it was just loaded to
    return Path(found).parent if isinstance(found, str) else None


def split_name(source: str) -> tuple[str, str]:
    """'NAME=SOURCE' as (NAME, SOURCE); without a name, the last part of the path that says something."""
    name, sign, rest = source.partition('=')
    if sign and name and not any(c in name for c in '/:\\') and not os.path.exists(source):
        return name, os.path.expanduser(rest)
    source = os.path.expanduser(source)
    parts = [p for p in source.replace('local-dir:', '').replace('\\', '/').rstrip('/').split('/') if p]
    generic = () if source.startswith(('hf-hub:', 'hf_hub:')) else (
        'model', 'model.safetensors', 'last.pth.tar', 'model_best.pth.tar', '.')
    while len(parts) > 1 and parts[-1] in generic:
        parts.pop()
    return (parts[-1] if parts else source).rpartition(':')[2], source


def weights_alone(source: str) -> bool:
    """Whether a checkpoint is a file of weights, which does not say its model."""
    path = split_name(source)[1]
    return os.path.isfile(path) and _folder(path) is None


def unique_names(names: list[str]) -> list[str]:
    """Columns need names that differ: a second 'run' becomes 'run (2)'."""
    found: list[str] = []
    for name in names:
        k, unique = 1, name
        while unique in found or (k > 1 and unique in names):  # 'run (2)' may be a run's own name
            k += 1
            unique = f'{name} ({k})'
        found.append(unique)
    return found


def _folder(path: str) -> Optional[str]:
    """The folder with config.json that a path means, if it means one."""
    if os.path.isfile(path) and os.path.basename(path) == 'model.safetensors':
        parent = os.path.dirname(path) or '.'
        return parent if os.path.isfile(os.path.join(parent, 'config.json')) else None
    if not os.path.isdir(path):
        came_along = shipped().get(path)
        return None if came_along is None else str(came_along)
    if folder := model_folder(path):
        return str(folder)
    found = ', '.join(sorted(os.listdir(path))[:8]) or 'nothing'
    unfinished = (' That run was not finished; name its last.pth.tar and --model to evaluate it as it is.'
                  if os.path.isfile(os.path.join(path, 'last.pth.tar')) else '')
    raise SettingError(f'{path!r} is a folder without config.json and without model/config.json, so it is no '
                       f'checkpoint. It holds {found}.{unfinished}')


def _create(source: str, name: str, img_size: Optional[int]) -> nn.Module:
    try:
        net = timm.create_model(name, pretrained=True)
        cfg: Any = net.pretrained_cfg or {}
        if img_size and cfg.get('fixed_input_size'):  # a ViT, say, which takes no other size
            net = timm.create_model(name, pretrained=True, img_size=img_size)  # with its positions resampled
        return net
    except Exception as e:  # timm and the hub raise many kinds: the user needs to know which checkpoint, and why
        raise in_words(f'The checkpoint {source!r} cannot be loaded: {reason(e)}', e) from e


def _settings_of(path: str) -> Mapping[str, Any]:
    """The settings of the run that a file is of; empty where it says none."""
    try:
        found: Any = {} if path.endswith('.safetensors') else load(path)
    except Exception:  # whoever reads the weights says what is wrong
        return {}
    args = found.get('args') if isinstance(found, Mapping) else None
    args = vars(args) if isinstance(args, argparse.Namespace) else args
    return args if isinstance(args, Mapping) else {}


def _from_file(path: str, model: Optional[str], num_classes: Optional[int], img_size: Any, kwargs: dict[str, Any],
               dense: bool) -> nn.Module:
    if model is None:
        raise SettingError(f'{path!r} is a file of weights that does not say of which model: give --model NAME (and '
                           f'--model-kwargs, if it was made with any).')
    if not timm.is_model(model.split('.')[0]):
        raise SettingError(f'--model is {model!r}, but timm has no such model.{nearest(model, timm.list_models())}')
    state, _ = read_weights(path)
    cfg = timm.models.get_pretrained_cfg(model)
    classifier = getattr(cfg, 'classifier', None)
    first = classifier if isinstance(classifier, str) else (classifier or ('',))[0]  # a distilled model has two
    if num_classes is None and f'{first}.weight' in state:
        num_classes = len(state[f'{first}.weight'])
    if num_classes is not None:
        kwargs['num_classes'] = num_classes
    try:
        try:
            net = timm.create_model(model, **{**kwargs, **({'img_size': img_size} if img_size else {})})
        except TypeError as e:
            if 'img_size' not in str(e):
                raise
            net = timm.create_model(model, **kwargs)  # convolutional networks take any size and no such argument
        net.load_state_dict(state)
        if dense:  # its patches classify, not its class token
            switch_class_token(net)
    except Exception as e:
        raise in_words(f'{path!r} does not fit --model {model}: other model, image size or number of classes?\n  '
                       + reason(e, 4), e) from e
    return net
