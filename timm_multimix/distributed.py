"""What the ranks of a run do together. In a single process all of it does nothing and costs nothing."""
from __future__ import annotations

import argparse
import importlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Optional

import torch
import torch.distributed as dist
from timm.utils import init_distributed_device
from timm.utils.distributed import is_distributed_env, world_info_from_env
from torch import Tensor

from .errors import SettingError, reason


def world() -> int:
    """How many ranks there are; 1 outside of `torch.distributed`."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is; 0 outside of `torch.distributed`."""
    return dist.get_rank() if world() > 1 else 0


def speaks() -> bool:
    """Whether this process talks to the person: the first rank does, under torchrun also before the group begins."""
    return rank() == 0 if world() > 1 else os.environ.get('RANK', '0') == '0'


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


def start(name: str, modules: Optional[list[str]] = None) -> torch.device:
    """The device of `--device`; under torchrun (or srun) this rank's, with its process group: NCCL on CUDA, else gloo.

    Raises:
        SettingError: a device that cannot be used, or is not there for every rank; one of the `modules` that bring it
            cannot be imported.
    """
    for module in modules or ():
        try:
            importlib.import_module(module)
        except ImportError as e:
            raise SettingError(f'--device-modules has {module!r}, but it cannot be imported: {e}') from e
    several = is_distributed_env()
    if name == 'auto':
        mps = torch.backends.mps.is_available() and not several
        name = 'cuda' if torch.cuda.is_available() else 'mps' if mps else 'cpu'
    try:
        kind = torch.device(name).type
        if several:
            if kind not in ('cuda', 'cpu'):
                raise SettingError(f'--device is {name!r}, but several ranks train on cuda or cpu.')
            if kind == 'cuda' and local_rank() >= torch.cuda.device_count() > 0:
                raise SettingError(f'There are more ranks than GPUs on this machine: --nproc_per_node of torchrun is '
                                   f'at most {torch.cuda.device_count()} here.')
            name = kind
        device = torch.device(f'{name}:{local_rank()}' if several and kind == 'cuda' else name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as e:
        raise SettingError(f'--device is {name!r}, but it cannot be used here: {reason(e, 1)}. '
                           f'--device auto takes what there is.') from e
    if several and not dist.is_initialized():
        try:
            init_distributed_device(argparse.Namespace(device=name))
        except (ValueError, RuntimeError) as e:
            raise SettingError(f'WORLD_SIZE is {os.environ.get("WORLD_SIZE")}, but the ranks do not come together: '
                               f'{reason(e, 1)} Start them with torchrun --nproc_per_node=N train.py …'
                               ) from e
    return device


def finish() -> None:
    """Part, once every rank is done."""
    if world() > 1:
        dist.barrier()
        # gloo's threads take the GIL to let go of their last tensors. Without a moment for that, destroying the group
        # can wait for them while it holds the GIL: for ever, seen with torch 2.6.
        time.sleep(0.1)
        dist.destroy_process_group()


def local_rank() -> int:
    """Which of its machine's ranks this is."""
    return int(world_info_from_env()[0])


def from_first(value: Any) -> Any:
    """The first rank's value, on every rank."""
    box = [value]
    if world() > 1:
        dist.broadcast_object_list(box, 0)
    return box[0]


def from_all(value: Any) -> list[Any]:
    """Every rank's value, on every rank. Tensors in it should be on the CPU."""
    found = [value] * world()
    if world() > 1:
        dist.all_gather_object(found, value)
    return found


def mean_of_ranks(sums: list[float], count: float, device: torch.device) -> list[float]:
    """Sums over all ranks, divided by the sum of their counts."""
    if world() > 1:
        *sums, count = total(torch.tensor([*sums, count], dtype=torch.float64, device=device)).tolist()
    return [x / count if count else float('nan') for x in sums]


@contextmanager
def one_by_one() -> Iterator[None]:
    """Each machine's first rank goes first, such as to download; the others find it done."""
    if world() > 1 and local_rank():
        dist.barrier()
    yield
    if world() > 1 and not local_rank():
        dist.barrier()


class Vote:
    """Has any rank said yes? All get the same answer, to what was asked one call before.

    The answer travels while a step is computed: no rank, and no GPU, waits for it. Alone, the answer is immediate.
    """

    def __init__(self) -> None:
        self.group: Any = dist.new_group(backend='gloo') if world() > 1 else None
        self.pending: Optional[tuple[Any, torch.Tensor]] = None

    def __call__(self, yes: bool) -> bool:
        if self.group is None:
            return yes
        answer = False
        if self.pending is not None:
            work, found = self.pending
            work.wait()
            answer = bool(found)
        flag = torch.tensor(int(yes))
        self.pending = dist.all_reduce(flag, dist.ReduceOp.MAX, self.group, async_op=True), flag
        return answer
