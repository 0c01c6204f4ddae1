"""What the benchmarks share: turns in one process, peak memory, whose run it is, and where results go."""
from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # or the profiler prints its start and stop between the figures

import torch
from filelock import FileLock, Timeout
from torch.profiler import ProfilerActivity, profile

Run = Callable[[], object]


def medians(runs: dict[str, Run], repeat: int, device: str, times: int = 1) -> dict[str, float]:
    """Seconds of each, the median of `repeat` rounds in which they take turns, after one round to warm up.

    A turn is so many `times` in a row, without waiting for the device in between, as in a training.

    On the CPU with one thread (OMP_NUM_THREADS=1) they are seconds of the processor, which others cannot disturb.
    """
    clock = time.process_time if device == 'cpu' and torch.get_num_threads() == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(repeat + 1):
        first = i % len(runs)  # nobody always goes first, or always after the same
        for name, run in [*runs.items()][first:] + [*runs.items()][:first]:
            if device == 'cuda':
                torch.cuda.synchronize()
            started = clock()
            for _ in range(times):
                run()
            if device == 'cuda':
                torch.cuda.synchronize()
            if i:
                seconds[name].append((clock() - started) / times)
    return {name: statistics.median(found) for name, found in seconds.items()}


def peak_mib(run: Run, device: str) -> float:
    """The most memory that is held at a time while it runs, beyond what was held before, in MiB.

    On CUDA by the allocator; on the CPU the largest sum of live tensors that torch's profiler sees.
    """
    if device == 'cuda':
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        run()
    live = peak = 0
    for event in sorted((e for e in prof.profiler.kineto_results.events() if e.name() == '[memory]'),
                        key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak / 2**20


def describe(device: str) -> dict[str, Any]:
    """The machine and the versions, for the record."""
    name = torch.cuda.get_device_name() if device == 'cuda' else f'{platform.machine()} CPU'
    return {'device': name, 'threads': torch.get_num_threads(), 'torch': torch.__version__,
            'python': platform.python_version()}


def machine() -> dict[str, Any]:
    """All that is known of the machine: its CUDA devices, the driver, versions, and why Triton fails, if it does."""
    devices = []
    for i in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(i)
        devices.append({'name': found.name, 'compute capability': f'{found.major}.{found.minor}',
                        'memory in MiB': found.total_memory // 2**20, 'multiprocessors': found.multi_processor_count})
    try:
        driver = subprocess.run(['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader'], check=True,
                                capture_output=True, text=True, timeout=30).stdout.split('\n')[0]
    except (OSError, subprocess.SubprocessError):
        driver = None
    versions = {name: _version(name) for name in ('timm-multimix', 'torch', 'torchvision', 'timm', 'triton', 'numpy')}
    return {
        'cuda': torch.cuda.is_available(), 'devices': devices, 'driver': driver, 'CUDA of torch': torch.version.cuda,
        'cuDNN': torch.backends.cudnn.version(), 'python': platform.python_version(), 'platform': platform.platform(),
        'cores': os.cpu_count(), **versions,
        'Triton fails': _triton_fails() if torch.cuda.is_available() else None,
    }


def _triton_fails() -> str | None:
    """Triton needs what no wheel brings: a C compiler, and Python's headers."""
    try:
        torch.compile(lambda x: x + 1)(torch.ones(8, device='cuda')).sum().item()
    except Exception as e:
        return ' '.join(f'{type(e).__name__}: {e}'.split())[:300]
    return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@contextmanager
def claimed(results: Path, key: str, done: Callable[[], bool]) -> Iterator[bool]:
    """Several processes share one study: True in the one that is to make the run `key`, False where another is at it,
    or where it is `done` by now. The system lets go of the lock of a process that died."""
    lock = FileLock(results.with_suffix('.claims') / key)
    try:
        held = lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    with held:
        yield not done()


def save(path: str | None, result: dict[str, Any]) -> None:
    """Write the figures as JSON, where a path was given."""
    if path:
        make_room(path).write_text(json.dumps(result, indent=1) + '\n')


def make_room(path: str) -> Path:
    """The path, its folder made."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return Path(path)


def main() -> None:
    parser = argparse.ArgumentParser(description='What is known of this machine: `python -m benchmarks.measure`')
    parser.add_argument('--json', help='write it to this file as well')
    args = parser.parse_args()
    found = machine()
    print(json.dumps(found, indent=1))
    save(args.json, found)


if __name__ == '__main__':
    main()
