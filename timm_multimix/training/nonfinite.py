"""Updates whose gradient is not finite: skipped, with everything left as it was."""
from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn as nn
from torch import Tensor

from .norms import batch_norms


def finite_gradient(parameters: Iterable[Tensor]) -> bool:
    """Whether every gradient is finite. The same on every rank, once gradients are averaged. Waits for the device."""
    norms = torch._foreach_norm([p.grad for p in parameters if p.grad is not None])
    return bool(torch.stack([n.float() for n in norms]).isfinite().all()) if norms else True


def finite_weights(module: nn.Module) -> bool:
    """Whether every parameter and BatchNorm statistic is finite. Waits for the device."""
    statistics = (b for name, b in module.named_buffers() if name.endswith(('running_mean', 'running_var')))
    return all(bool(t.isfinite().all()) for t in (*module.parameters(), *statistics))


class Statistics:
    """What a forward pass changes beside the gradient: BatchNorm's running statistics.

    Kept after an update, put back when the next one is not made.
    """

    def __init__(self, model: nn.Module) -> None:
        self.buffers = [b for m in batch_norms(model)
                        for b in (m.running_mean, m.running_var, m.num_batches_tracked) if b is not None]
        self.kept = [b.clone() for b in self.buffers]

    def keep(self) -> None:
        self._copy(self.buffers, self.kept)

    def put_back(self) -> None:
        self._copy(self.kept, self.buffers)

    @staticmethod
    def _copy(source: list[Tensor], to: list[Tensor]) -> None:
        for floating in (True, False):  # torch copies lists of one kind at a time
            pairs = [(a, b) for a, b in zip(source, to) if a.is_floating_point() == floating]
            if pairs:
                torch._foreach_copy_([b for _, b in pairs], [a for a, _ in pairs])
