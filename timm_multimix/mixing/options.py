"""What the loss is told besides its tensors, in one piece."""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LossOptions:
    """Settings of `mixed_cross_entropy`, checked.

    Attributes:
        over_all: normalize='all'.
        engine, over_ranks, binary, keep_norm: as there.
    """
    over_all: bool
    engine: str
    over_ranks: bool
    binary: bool
    keep_norm: bool
