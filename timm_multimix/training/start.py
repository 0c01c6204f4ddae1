"""Where a run starts from: weights in a file, of as many classes or of others."""
from __future__ import annotations

import os
from typing import Any, Optional

import torch.nn as nn
from timm.models import load_checkpoint

from ..errors import SettingError
from ..heads import classifier_leaves
from ..runs.weights import read_weights
from .checks import mismatch

FLAG = '--initial-checkpoint'


def start_from(path: str, model: nn.Module, name: str) -> tuple[str, bool]:
    """Load a file of `--initial-checkpoint`; of another number of classes, or of none, all but the classifier.

    Args:
        path: the file.
        model: a timm model, changed in place.
        name: of `--model`, for messages.

    Returns:
        A sentence, what was loaded and what is new; and whether the classifier was loaded, too.

    Raises:
        SettingError: there is no such file, it holds no weights, or they are of another model.
    """
    if not os.path.isfile(path):
        raise SettingError(f'{FLAG} is {path!r}, but there is no such file.')
    if path.endswith(('.npz', '.npy')):  # of JAX; the model knows its format
        try:
            load_checkpoint(model, path)
        except Exception as e:  # each model refuses in its own way
            raise SettingError(mismatch(FLAG, path, name, e)) from e
        return loaded(path, None, 0), True
    state, said = read_weights(path, f'{FLAG} is {path!r}, but that')
    own = model.state_dict()
    of_classes = _classifier(model)
    there = next((len(state[k]) for k in of_classes if k in state), 0)
    new = {k for k in of_classes if k not in state or (
        state[k].shape != own[k].shape and state[k].shape[1:] == own[k].shape[1:])}
    if new:
        new = of_classes
        state = {k: v for k, v in state.items() if k not in of_classes}
    try:
        result = model.load_state_dict(state, strict=False)
        missing = [k for k in result.missing_keys if k not in new]
        if missing or result.unexpected_keys:
            raise RuntimeError('\n'.join(
                f'{what}: {", ".join(keys[:4])}{", …" * (len(keys) > 4)}' for what, keys in (
                    ('It has no', missing), ('It has, and the model has not', result.unexpected_keys)) if keys))
    except RuntimeError as e:
        raise SettingError(mismatch(FLAG, path, name, e) + '\n  (--pretrained-path adapts weights of the same model to '
                           'another image size or number of channels.)') from e
    return loaded(path, there if new else None, int(model.num_classes), said), not new  # type: ignore[arg-type]


def loaded(source: str, there: Optional[int], here: int, said: str = '') -> str:
    """The sentence: `there` is the number of classes of a classifier that was left out, 0 where there was none."""
    if there is None:
        what = 'all of them, the classifier too'
    elif there:
        what = f'all but the classifier, which is new: {there} classes there, {here} here'
    else:
        what = f'all but the classifier of {here} classes, which is new: there is none there'
    return f'Weights: {source}, {what}' + (f' ({said})' if said else '') + '.'


def loaded_by_timm(source: str, model: nn.Module) -> tuple[str, bool]:
    """The same of weights that timm.create_model has loaded."""
    cfg: Any = model.pretrained_cfg
    there, here = int(cfg.get('num_classes') or 0), int(model.num_classes)  # type: ignore[arg-type]
    return loaded(source, None if there == here else max(there, 0), here), there == here


def _classifier(model: nn.Module) -> set[str]:
    leaves = {id(leaf) for leaf in classifier_leaves(model)}
    return {f'{name}.{p}' for name, module in model.named_modules() if id(module) in leaves
            for p, _ in module.named_parameters(recurse=False)}
