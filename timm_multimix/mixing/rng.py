"""Random numbers on the CPU, on all its cores.

torch fills a tensor with gammas or exponentials on one core (about 30 and 15 ns a number, where a whole loss term's
share may be 5). NumPy's generators release the interpreter's lock, and their exponential is a ziggurat.
"""
from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Optional

import numpy as np
import torch
from torch import Tensor

# Fewer numbers than this are drawn by the calling thread: after a torch operation OpenMP's threads stay busy waiting
# for the next for some milliseconds, and others compete with them for the cores.
FEW = 1 << 18

# As many streams on every machine, so that a seed gives the same numbers whatever the number of cores.
STREAMS = 8


class CpuStreams:
    """Independent random streams, seeded from a torch generator (None: torch's global one)."""

    def __init__(self, generator: Optional[torch.Generator] = None) -> None:
        seed = int(torch.randint(2**63 - 1, (), generator=generator))
        self.streams = [np.random.Generator(np.random.SFC64(s)) for s in np.random.SeedSequence(seed).spawn(STREAMS)]
        threads = min(STREAMS, torch.get_num_threads())
        self.pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def exponential(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Standard exponentials; float32 or float64."""
        return self._fill(shape, dtype, lambda g, out: g.standard_exponential(dtype=out.dtype, out=out))

    def gamma(self, concentration: float, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Standard gammas; float32 or float64."""
        return self._fill(shape, dtype, lambda g, out: g.standard_gamma(concentration, dtype=out.dtype, out=out))

    def _fill(
            self, shape: tuple[int, ...], dtype: torch.dtype,
            draw: Callable[[np.random.Generator, Any], object]) -> Tensor:
        out = torch.empty(shape, dtype=dtype)
        parts = np.array_split(out.view(-1).numpy(), STREAMS)

        # Whoever is free takes the next part: a thread may share its core with one of OpenMP's.
        each = map if self.pool is None or out.numel() < FEW else self.pool.map
        list(each(draw, self.streams, parts))
        return out
