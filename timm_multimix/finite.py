"""Updates whose gradient is no number: leave them out, and everything as it was."""
from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor


def finite_gradient(parameters: Iterable[Tensor]) -> bool:
    """Whether every gradient is finite. The same on every rank, once gradients are averaged. Waits for the device."""
    norms = torch._foreach_norm([p.grad for p in parameters if p.grad is not None])
    return bool(torch.stack([n.float() for n in norms]).isfinite().all()) if norms else True


def finite_weights(module: nn.Module) -> bool:
    """Whether every parameter and BatchNorm statistic is finite. Waits for the device."""
    statistics = (b for name, b in module.named_buffers() if name.endswith(('running_mean', 'running_var')))
    return all(bool(t.isfinite().all()) for t in (*module.parameters(), *statistics))


class Statistics:
    """What a forward pass changes beside the gradient: BatchNorm's running statistics, and the task's count of steps.

    Kept after an update, put back when the next one is not made.
    """

    def __init__(self, task: Any, model: nn.Module) -> None:
        self.task = task
        self.buffers = [b for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)
                        for b in (m.running_mean, m.running_var, m.num_batches_tracked) if b is not None]
        self.kept = [b.clone() for b in self.buffers]
        self.step = 0

    def keep(self) -> None:
        self.step = self.task.step
        for kept, buffer in zip(self._by_dtype(self.kept), self._by_dtype(self.buffers)):
            torch._foreach_copy_(kept, buffer)

    def put_back(self, steps: bool = False) -> None:
        for kept, buffer in zip(self._by_dtype(self.kept), self._by_dtype(self.buffers)):
            torch._foreach_copy_(buffer, kept)
        if steps:
            self.task.step = self.step

    @staticmethod
    def _by_dtype(tensors: list[Tensor]) -> list[list[Tensor]]:
        parts = ([t for t in tensors if t.is_floating_point()], [t for t in tensors if not t.is_floating_point()])
        return [part for part in parts if part]
