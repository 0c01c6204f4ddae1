"""Time and memory over the number of mixtures, n = 1 to a million: `python -m benchmarks.sweep`.

The Dense MultiMix loss with its gradient, Λ drawn as it goes (no classifier: it does not know n). The literal equations
beside it, with Λ from `torch.distributions.Dirichlet`, as far as they fit into --limit.
"""
from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.loss import SHAPES, literal
from benchmarks.measure import describe, make_room, medians, peak_mib, save
from timm_multimix import LamSampler, attention, mixed_cross_entropy
from timm_multimix.config import ENGINES


def measure(n: int, args: argparse.Namespace) -> dict[str, Any]:
    B, P, D, C, _ = SHAPES[args.shape]
    device, alpha = args.device, args.alpha
    Z, W = torch.randn(B, P, D, device=device), torch.randn(C, D, device=device) / D**0.5
    y, beta, a = torch.randint(0, C, (B,), device=device), torch.zeros(C, device=device), attention(Z)
    L = F.linear(Z, W).requires_grad_()
    Z.requires_grad_()

    def ours() -> list[Tensor]:
        loss = mixed_cross_entropy(L, y, LamSampler(n, P, B, alpha, device=device), a, engine=args.engine)
        return [loss.detach(), *torch.autograd.grad(loss, L)]

    def equations() -> list[Tensor]:
        lam = torch.distributions.Dirichlet(torch.full((B,), alpha, device=device)).sample((n, P))
        loss = literal(Z, W, beta, y, lam, a)
        return [loss.detach(), *torch.autograd.grad(loss, Z)]

    runs = {'ours': ours}
    literal_bytes = 4 * n * P * (2 * B + D + 3 * C)  # factors, mixed features, logits; each about as often
    if literal_bytes < args.limit * 2**30:
        runs['literal'] = equations
    repeat = args.repeat if n <= 1000 else 1
    return {'n': n, 'seconds': medians(dict(runs), repeat, device),
            'MiB': {name: peak_mib(run, device) for name, run in runs.items()}, 'loss': float(ours()[0])}


def picture(path: str, rows: list[dict[str, Any]], shape: str, where: str) -> None:
    from matplotlib.figure import Figure

    fig = Figure(figsize=(10, 3.6), layout='constrained')
    axes = fig.subplots(1, 2)
    for ax, key, label in zip(axes, ('seconds', 'MiB'), ('time, forward and backward (s)', 'peak memory (MiB)')):
        for name, colour, text in (('literal', '0.55', 'literal equations'), ('ours', '#2e6eb3', 'timm-multimix')):
            points = [(row['n'], row[key][name]) for row in rows if name in row[key]]
            if points:
                ax.loglog(*zip(*points), 'o-', color=colour, label=text)
        ax.set_xlabel('n, mixtures at every position')
        ax.set_ylabel(label)
        ax.grid(alpha=0.3)
        ax.spines[['top', 'right']].set_visible(False)
    axes[0].legend(frameon=False)
    fig.suptitle(f'Dense MultiMix loss over n; {shape}, (B, P, D, C) = {SHAPES[shape][:4]}; {where}', fontsize=10)
    fig.savefig(make_room(path), dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split(':')[0])
    parser.add_argument('--shape', choices=SHAPES, default='R-50, 100 classes')
    parser.add_argument('--largest', type=int, default=6, metavar='K', help='n up to 10 to the power of this')
    parser.add_argument('--alpha', type=float, default=0.008)
    parser.add_argument('--limit', type=float, default=12, metavar='GIB', help='memory the literal side may take')
    parser.add_argument('--repeat', type=int, default=5, help='rounds up to n = 1000; above, one')
    parser.add_argument('--engine', default='auto', choices=ENGINES)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--json', help='write the figures to this file as well')
    parser.add_argument('--picture', help='draw them into this file')
    args = parser.parse_args()
    torch.manual_seed(0)
    where = describe(args.device)
    print(f'{where}; {args.shape}\n\n| n | ours | literal |\n|---|---|---|')
    rows = []
    for power in range(args.largest + 1):
        rows.append(row := measure(10**power, args))
        cells = [f'{row["seconds"][name]:.3g} s, {row["MiB"][name]:.0f} MiB' if name in row['seconds'] else 'too large'
                 for name in ('ours', 'literal')]
        print(f'| {row["n"]:,} | {cells[0]} | {cells[1]} |', flush=True)
        save(args.json, {**where, 'shape': args.shape, 'B, P, D, C': SHAPES[args.shape][:4], 'rows': rows})
    if args.picture:
        picture(args.picture, rows, args.shape, f'{where["device"]}, threads: {where["threads"]}')


if __name__ == '__main__':
    main()
