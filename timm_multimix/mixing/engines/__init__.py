"""The same loss by different means. `choose` picks; `stream` is what they share."""
from __future__ import annotations

import logging
from functools import cache

import torch

from ...config import ENGINES
from ...errors import SettingError, nearest
from ..options import LossOptions
from . import torch_engine
from .stream import Engine

__all__ = ['choose']

_logger = logging.getLogger(__name__)


def choose(options: LossOptions, device: torch.device, dtype: torch.dtype) -> Engine:
    """The engine that the options name; for 'auto' Triton on CUDA where it can, torch everywhere else.

    Raises:
        SettingError: no such engine, or one that was asked for by name and cannot.
    """
    name = options.engine
    if name not in ENGINES:
        raise SettingError(f'engine is {name!r}, but it must be one of {", ".join(ENGINES)}.'
                           f'{nearest(name, ENGINES)}')
    if name == 'torch' or (name == 'auto' and device.type != 'cuda'):
        return torch_engine.ENGINE
    problem = _triton_problem(options, device.type, dtype)
    if problem is None:
        from .triton_engine import ENGINE
        return ENGINE
    if name == 'triton':
        raise SettingError(f"engine 'triton' cannot be used: {problem} 'auto' uses 'torch' here.")
    _say_once(f'The mixing loss uses plain torch instead of Triton: {problem}')
    return torch_engine.ENGINE


def _triton_problem(options: LossOptions, device: str, dtype: torch.dtype) -> str | None:
    """Why Triton cannot do it, or None."""
    if dtype == torch.float64:
        return 'its kernels compute in float32, and the logits are float64.'
    if options.attention_grad:
        return 'its kernels do not differentiate the attention (attention_detach=False).'
    if options.binary:
        return 'its kernels have no binary cross-entropy.'
    try:
        from . import triton_engine
    except ImportError as error:
        return f'it does not import ({error}).'
    if device != 'cuda' and not triton_engine.INTERPRETED:
        return f'its kernels run on CUDA, and the logits are on {device}.'
    return None if triton_engine.INTERPRETED else triton_engine.why_it_does_not_start()


@cache
def _say_once(message: str) -> None:
    _logger.warning(message)
