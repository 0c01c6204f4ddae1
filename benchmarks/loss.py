"""Time and memory of the loss, forward and backward, against the literal equations: `python -m benchmarks.loss`.

Both sides alternate in one process and are given the same features, classifier, interpolation vectors and attention.
The literal side is `einsum` over all positions at once, which is faster than the loop of `mixing/reference.py`. Ratios
are what to read; times depend on the machine. Memory is what the allocator holds on CUDA, and on the CPU the largest
sum of live tensors that torch's profiler sees, both beyond the inputs.
"""
from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from timm_multimix import attention, mixed_cross_entropy, sample_lam

#         name              B    P    D     C     N
SHAPES = {
    'CIFAR R-18': (128, 16, 512, 100, 1000),
    'R-50, 100 classes': (128, 49, 2048, 100, 1000),
    'ImageNet R-50': (128, 49, 2048, 1000, 1000),
    'ImageNet ViT-S/16': (128, 196, 384, 1000, 1000),
}


def literal(Z: Tensor, W: Tensor, beta: Tensor, y: Tensor, lam: Tensor, a: Tensor) -> Tensor:
    M = lam * a.t()[None]
    s = M.sum(-1, keepdim=True)
    M = M / s
    Z_mix = torch.einsum('npb,bpd->npd', M, Z)
    Y_mix = M @ torch.nn.functional.one_hot(y, W.shape[0]).to(Z.dtype)
    log_p = (Z_mix @ W.t() + beta).log_softmax(-1)
    loss = -(Y_mix * log_p).sum(-1) * s[..., 0]
    return (loss.sum(0) / s[..., 0].sum(0)).mean()


def ours(Z: Tensor, W: Tensor, beta: Tensor, y: Tensor, lam: Tensor, a: Tensor) -> Tensor:
    return mixed_cross_entropy(Z @ W.t() + beta, y, lam, a)


def step(loss: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> tuple[float, list[Tensor]]:
    leaves = [t.requires_grad_() for t in inputs[:3]]
    value = loss(*leaves, *inputs[3:])
    return float(value), list(torch.autograd.grad(value, leaves))


def peak_mib(run: Callable[[], object], device: str) -> float:
    if device == 'cuda':
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


def measure(B: int, P: int, D: int, C: int, N: int, alpha: float, repeat: int, device: str) -> dict[str, dict]:
    Z, W = torch.randn(B, P, D, device=device), torch.randn(C, D, device=device) / D**0.5
    y = torch.randint(0, C, (B,), device=device)

    def sample() -> Tensor:
        return sample_lam(N, P, B, alpha, device=device)

    inputs = (Z, W, torch.zeros(C, device=device), y, sample(), attention(Z))
    torch.testing.assert_close(step(ours, inputs)[0], step(literal, inputs)[0], rtol=1e-4, atol=1e-5)
    runs: dict[str, Callable[[], object]] = {
        'literal': lambda: step(literal, inputs), 'ours': lambda: step(ours, inputs),
        'sampling': lambda: float(sample()[0, 0, 0])}
    seconds: dict[str, list[float]] = {label: [] for label in runs}
    for _ in range(repeat):
        for label, run in runs.items():
            started = time.perf_counter()
            run()
            seconds[label].append(time.perf_counter() - started)
    return {'seconds': {label: statistics.median(found) for label, found in seconds.items()},
            'MiB': {label: peak_mib(run, device) for label, run in runs.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split(':')[0])
    parser.add_argument('--shapes', nargs='+', choices=SHAPES, default=list(SHAPES))
    parser.add_argument('--repeat', type=int, default=5)
    parser.add_argument('--alpha', type=float, default=0.01)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--json', help='write the figures to this file as well')
    args = parser.parse_args()
    torch.manual_seed(0)
    rows = []
    print(f'torch {torch.__version__}, {args.device}, {torch.get_num_threads()} threads; medians of {args.repeat}')
    for name in args.shapes:
        found = measure(*SHAPES[name], args.alpha, args.repeat, args.device)
        rows.append({'shape': name, 'B, P, D, C, N': SHAPES[name], **found})
        t, memory = found['seconds'], found['MiB']
        print(f'{name:18s} {SHAPES[name]!s:28s} literal {t["literal"]:7.3f} s {memory["literal"]:6.0f} MiB   '
              f'ours {t["ours"]:7.3f} s {memory["ours"]:6.0f} MiB   {t["literal"] / t["ours"]:5.1f}× faster, '
              f'{memory["literal"] / memory["ours"]:5.1f}× less memory; sampling {t["sampling"]:.3f} s', flush=True)
    if args.json:
        with open(args.json, 'w') as f:
            json.dump({'torch': torch.__version__, 'device': args.device, 'rows': rows}, f, indent=2)


if __name__ == '__main__':
    main()
