"""Batches by place: what the i-th batch of an epoch is depends on the seed, the epoch and i alone.

Not on how often the run was stopped, how many workers load, or, for the batches of all ranks together, on how many
ranks share them. So a run goes on in the middle of an epoch, and loads nothing twice.
"""
from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Optional

import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, get_worker_info
from torch.utils.data.distributed import DistributedSampler

from ..distributed import rank, world
from ..errors import SettingError, reason
from ..seeding import seed_place

Place = tuple[int, int, int]  # seed, epoch, position in the epoch over all ranks


class SampleError(RuntimeError):
    """An image that could not be loaded: the message names it and says why."""

    @property
    def words(self) -> str:
        """The message alone: from a worker it comes with a traceback in its text."""
        return f'An image cannot be loaded: {str(self).rsplit("SampleError: ", 1)[-1].strip()}'


class PlacedLoader:
    """timm's loader, with batches by place, that can start within an epoch and names the image that broke it.

    A stream (`IterableDataset`) has no places: `exact` is False, and it always starts at the beginning.

    Args:
        loader: what `timm.data.create_loader` returns.
        seed: of the order and of the augmentation.
    """

    def __init__(self, loader: Any, seed: int) -> None:
        self.loader = loader
        inner = getattr(loader, 'loader', loader)  # under timm's prefetcher lies the real loader
        self.dataset, self.collate_fn = inner.dataset, inner.collate_fn
        self.exact = not isinstance(self.dataset, IterableDataset)
        if not self.exact:
            return
        self.order = _Order(inner, seed)
        # Which process loads which image now, for when one is killed and cannot tell.
        self.loading = torch.full((max(1, inner.num_workers), 2), -1, dtype=torch.int64).share_memory_()
        self._use(_like(inner, _Placed(self.dataset, self.loading), self.order, inner.num_workers))

    def _use(self, inner: DataLoader[Any]) -> None:
        self.inner = inner
        if hasattr(self.loader, 'loader'):
            self.loader.loader = inner
        else:
            self.loader = inner

    def __len__(self) -> int:
        return len(self.loader)

    def batches(self, epoch: int, start: int = 0, stopping: Callable[[], bool] = lambda: False) -> Iterator[Any]:
        """The epoch's batches from the `start`-th on.

        Args:
            epoch, start: where.
            stopping: whether the run is about to stop. A signal to stop may have ended the workers too; the few
                batches until then are loaded here.

        Raises:
            SettingError: an image cannot be loaded, or the worker that loaded it was killed.
        """
        if not self.exact:
            if hasattr(self.dataset, 'set_epoch'):
                self.dataset.set_epoch(epoch)
            yield from self.loader
            return
        if start >= len(self):  # timm 1.0.27's loader fails on nothing
            return
        self.order.epoch, self.order.start = epoch, start
        done = start
        try:
            found = iter(self.loader)
            if threading.current_thread() is threading.main_thread() and hasattr(signal, 'SIGCHLD'):
                # torch's handler raises wherever the program happens to be, such as within an optimizer's step. Without
                # it a dead worker is noticed, some seconds later, where its batch is waited for.
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            while True:
                try:
                    batch = next(found)
                except StopIteration:
                    return
                yield batch
                done += 1
        except SampleError as e:
            raise SettingError(e.words) from e
        except (RuntimeError, OSError, EOFError) as e:  # a dead worker may also be a broken pipe
            time.sleep(0.5)  # a signal to all comes to each in its own time
            alive = {os.getpid(), *(child.pid for child in multiprocessing.active_children())}
            dead = [index for pid, index in self.loading.tolist() if pid >= 0 and pid not in alive]
            if not dead and 'DataLoader worker' not in str(e):
                raise
            if not stopping():
                names = ', '.join(sample_name(self.dataset, index) for index in dead if index >= 0)
                raise SettingError(
                    f'A process that loads images was killed{f" while it loaded {names}" if names else ""} '
                    f'({reason(e, 1)}). If memory ran out, use fewer --workers.') from e
        self.order.start = done
        self._use(_like(self.inner, self.inner.dataset, self.order, 0))
        yield from self.loader


class _Order:
    """A batch sampler whose batches are (index, place) pairs."""

    def __init__(self, loader: DataLoader[Any], seed: int) -> None:
        self.seed, self.epoch, self.start = seed, 0, 0
        self.batches: Any = loader.batch_sampler
        if isinstance(loader.sampler, RandomSampler):  # one rank of one: what several ranks share out
            whole: Any = DistributedSampler(loader.dataset, 1, 0, seed=seed)
            self.batches = BatchSampler(whole, loader.batch_size or 1, loader.drop_last)
        elif isinstance(loader.sampler, DistributedSampler):
            loader.sampler.seed = seed

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[Any, Place]]]:
        samplers: list[Any] = [self.batches, getattr(self.batches, 'sampler', None)]
        for sampler in samplers:
            if hasattr(sampler, 'set_epoch'):
                sampler.set_epoch(self.epoch)
        at = rank()
        for i, batch in enumerate(self.batches):
            if i >= self.start:
                yield [(index, (self.seed, self.epoch, at + world() * k)) for k, index in enumerate(batch)]
            at += world() * len(batch)


class _Placed(Dataset[Any]):
    def __init__(self, dataset: Any, loading: torch.Tensor) -> None:
        self.dataset, self.loading = dataset, loading

    def __getitem__(self, key: tuple[Any, Place]) -> Any:
        index, place = key
        seed_place(*place, cpu_only=True)
        worker = get_worker_info()
        here = self.loading.numpy()[worker.id if worker else 0]  # written to in a tenth of a tensor's time
        here[0], here[1] = os.getpid(), index if isinstance(index, int) else -1
        try:
            return load_sample(self.dataset, index)
        finally:
            here[1] = -1

    def __len__(self) -> int:
        return len(self.dataset)


class _Seeded(DataLoader[Any]):
    """Under timm's prefetcher, which erases parts of images after this, in this process."""

    def __iter__(self) -> Any:
        order: Any = self.batch_sampler
        for i, batch in enumerate(super().__iter__(), order.start):
            seed_place(order.seed, order.epoch, i, rank(), 1)
            yield batch


class _Apart:
    """Starts a worker in a process group of its own: Ctrl-C is for the program, which still needs its data."""

    def __init__(self, then: Optional[Callable[[int], None]]) -> None:
        self.then = then

    def __call__(self, worker: int) -> None:
        if hasattr(os, 'setpgid'):
            os.setpgid(0, 0)
        if self.then is not None:
            self.then(worker)


def _like(loader: DataLoader[Any], dataset: Dataset[Any], order: Any, workers: int) -> DataLoader[Any]:
    init = loader.worker_init_fn
    return _Seeded(
        dataset, batch_sampler=order, num_workers=workers, collate_fn=loader.collate_fn, pin_memory=loader.pin_memory,
        worker_init_fn=init if isinstance(init, _Apart) else _Apart(init),
        multiprocessing_context=loader.multiprocessing_context if workers else None,
        prefetch_factor=loader.prefetch_factor if workers else None,
        persistent_workers=loader.persistent_workers and workers > 0)


def load_sample(dataset: Any, index: Any) -> Any:
    """What a data set has at an index. Raises `SampleError` where that cannot be loaded."""
    try:
        return dataset[index]
    except Exception as e:  # decoders and transforms raise nearly anything
        raise SampleError(f'{sample_name(dataset, index)}: {type(e).__name__}: {e}') from e


def sample_name(dataset: Any, index: Any) -> str:
    """What a person finds the image by: its path where the data set knows it, and its index."""
    try:
        return f'{dataset.filename(index, absolute=True)} (image {index})'
    except Exception:  # a data set without names
        return f'image {index}'
