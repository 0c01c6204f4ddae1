"""What the ranks of a distributed run do together. All of it does nothing, and costs nothing, in a single process."""
from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world() -> int:
    """How many ranks there are; 1 outside of `torch.distributed`."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is; 0 outside of `torch.distributed`."""
    return dist.get_rank() if world() > 1 else 0


def share_of(n: int) -> int:
    """How many of n things are this rank's: n in all, and no two ranks differ by more than one."""
    return n // world() + (rank() < n % world())


@torch.compiler.disable
def gather(x: Tensor) -> Tensor:
    """The ranks' (B, …) one after the other, (ranks · B, …), the same on every rank. Differentiable.

    All ranks call it with tensors of one shape. The gradient of a rank's own rows is the sum of what all ranks ask of
    them, which takes as many numbers over the wire as the rows themselves.
    """
    return x if world() == 1 else _Gather.apply(x)  # type: ignore[no-any-return]


@torch.compiler.disable
def agree(x: Tensor) -> Tensor:
    """The first rank's x, on every rank."""
    if world() > 1:
        dist.broadcast(x, 0)
    return x


def total(x: Tensor) -> Tensor:
    """The sum of all ranks' x. Not differentiable."""
    if world() > 1:
        dist.all_reduce(x)
    return x


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        parts = list(grad.contiguous().chunk(world()))
        if dist.get_backend() == 'gloo':  # has no reduce_scatter in the older torch versions
            return total(grad.clone(memory_format=torch.contiguous_format)).chunk(world())[rank()]
        own = torch.empty_like(parts[0])
        dist.reduce_scatter(own, parts)
        return own
