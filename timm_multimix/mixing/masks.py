"""Positions that do not exist for some examples: padding. They have no weight."""
from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor

from ..errors import SettingError
from .engines.stream import TINY


def check_mask(mask: Tensor, B: int, P: int, device: torch.device) -> None:
    """Raise `SettingError` for what is no mask: bool, (B, P), where the tensors are that it masks."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != (B, P):
        given = f'{mask.dtype} {tuple(mask.shape)}' if isinstance(mask, Tensor) else repr(mask)
        raise SettingError(f'mask must be bool (B, P) = ({B}, {P}), True where a position exists, not {given}.')
    if mask.device != device:
        raise SettingError(f'mask is on {mask.device}, but what it masks is on {device}: move it there.')


def uniform_map(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Over the positions that exist: 1 by their number. (B, P); an example without any has 0."""
    return mask / mask.sum(1, keepdim=True).clamp(min=1).to(dtype)


def masked_attention(attention: Optional[Tensor], mask: Tensor, dtype: torch.dtype) -> Tensor:
    """a, (B, P), with 0 where a position does not exist; None is uniform over those that do.

    Where nobody attends of those who have the position, they have uniform attention there.
    """
    uniform = uniform_map(mask, dtype)
    if attention is None:
        return uniform
    a = torch.where(mask, attention.to(dtype), 0)
    nobody = a.detach().amax(0) <= TINY  # false for NaN, which stays
    return torch.where(nobody, uniform, a)
