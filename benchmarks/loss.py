"""Time and memory of the loss, forward and backward, against the literal equations: `python -m benchmarks.loss`.

Both sides take turns in one process, with the same features, classifier and attention; both include the classifier
itself. The literal side has its best form: `einsum` over all positions at once, which is faster than the loop of
`mixing/reference.py`; with --amp under autocast, as ours; with --compile also compiled, and the faster one counts.
Ratios are what to read; times depend on the machine.

Λ costs time too. Literal has it given. Ours draws it in tiles, as in training, and that is in its time and memory. Two
more ratios have both sides alike: both draw (literal by `torch.distributions.Dirichlet`), or both have it given.
"""
from __future__ import annotations

import argparse
import functools
import sys
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import Run, describe, make_room, medians, peak_mib, save
from timm_multimix import LamSampler, attention, mixed_cross_entropy, sample_lam
from timm_multimix.config import ENGINES
from timm_multimix.mixing.engines import choose
from timm_multimix.mixing.engines.stream import CHUNK
from timm_multimix.mixing.options import LossOptions

#         name              B    P    D     C     N
SHAPES = {
    'CIFAR R-18': (128, 16, 512, 100, 1000),
    'R-50, 100 classes': (128, 49, 2048, 100, 1000),
    'ImageNet R-50': (128, 49, 2048, 1000, 1000),
    'ImageNet ViT-S/16': (128, 196, 384, 1000, 1000),
    '21841 classes': (128, 16, 512, 21841, 1000),
    'fine-tuning, Lite0': (20, 9, 1280, 10, 1000),
    'tiny': (8, 4, 16, 10, 20),  # to try the benchmark itself
}


def literal(Z: Tensor, W: Tensor, beta: Tensor, y: Tensor, lam: Tensor, a: Tensor) -> Tensor:
    M = lam * a.t()[None]
    s = M.sum(-1, keepdim=True)
    M = M / s
    Z_mix = torch.einsum('npb,bpd->npd', M, Z)
    Y_mix = M @ F.one_hot(y, W.shape[0]).to(M.dtype)
    log_p = F.linear(Z_mix, W, beta).log_softmax(-1)
    loss = -(Y_mix * log_p).sum(-1) * s[..., 0]
    return (loss.sum(0) / s[..., 0].sum(0)).mean()


def ours(Z: Tensor, W: Tensor, beta: Tensor, y: Tensor, lam: Tensor | LamSampler, a: Tensor,
         engine: str = 'auto') -> Tensor:
    return mixed_cross_entropy(F.linear(Z, W, beta), y, lam, a, engine=engine)


def measure(
        shape: tuple[int, int, int, int, int], alpha: tuple[float, float], args: argparse.Namespace) -> dict[str, Any]:
    B, P, D, C, N = shape
    device = args.device
    Z, W = torch.randn(B, P, D, device=device), torch.randn(C, D, device=device) / D**0.5
    y, beta, a = torch.randint(0, C, (B,), device=device), torch.zeros(C, device=device), attention(Z)
    lam = sample_lam(N, P, B, alpha, device=device).contiguous()
    engine = choose(LossOptions(engine=args.engine), torch.device(device), torch.float32)
    leaves = [t.requires_grad_() for t in (Z, W, beta)]

    def step(loss: Callable[..., Tensor], draw: Callable[[], Any]) -> Callable[[], list[Tensor]]:
        def run() -> list[Tensor]:
            with torch.autocast(device, torch.bfloat16, enabled=args.amp):
                value = loss(*leaves, y, draw(), a)
            return [value.detach(), *torch.autograd.grad(value, leaves)]
        return run

    def dirichlet() -> Tensor:
        concentration = torch.full((B,), sum(alpha) / 2, device=device)
        return torch.distributions.Dirichlet(concentration).sample((N, P))

    def drawing() -> None:
        sampler = LamSampler(N, P, B, alpha, device=device)
        draw = sampler.draw_sticks if engine.prefers_sticks(sampler) else sampler.draw_many
        at_once = max(1, min(P, CHUNK[device] // (N * B)))  # as the loss asks for them
        for p in range(0, P, at_once):
            draw(min(at_once, P - p), N)

    forms: dict[str, Callable[..., Tensor]] = {'literal': literal}
    if args.compile:
        torch._dynamo.reset()  # or a second shape would be compiled for any, which is slower
        forms['literal compiled'] = torch.compile(literal, dynamic=False)
    runs: dict[str, Run] = {name: step(form, lambda: lam) for name, form in forms.items()}
    mine = functools.partial(ours, engine=args.engine)
    for name, lam_of in (('ours', lambda: LamSampler(N, P, B, alpha, device=device)), ('ours given', lambda: lam)):
        runs[name] = step(mine, lam_of)
    if device == 'cuda' and args.engine == 'auto':  # which takes Triton
        runs['ours by torch'] = step(functools.partial(ours, engine='torch'),
                                     lambda: LamSampler(N, P, B, alpha, device=device))
    value, want = (runs[name]()[0] for name in ('ours given', 'literal'))  # type: ignore[index]
    torch.testing.assert_close(value, want, rtol=2e-2 if args.amp else 1e-4, atol=1e-4)
    seconds = medians({**runs, 'drawing': drawing, 'dirichlet': dirichlet}, args.repeat, device)
    memory = {name: peak_mib(run, device) for name, run in runs.items()}
    best = min(forms, key=seconds.__getitem__)
    return {
        'shape': shape, 'alpha': alpha, 'seconds': seconds, 'MiB': memory, 'literal form': best,
        'faster': seconds[best] / seconds['ours'], 'less memory': memory[best] / memory['ours'],
        'faster, both draw': (seconds[best] + seconds['dirichlet']) / seconds['ours'],
        'faster, both given': seconds[best] / seconds['ours given'],
        'drawing': seconds['drawing'] / seconds['ours'],
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    lines = ['| shape (B, P, D, C, N) | literal, Λ given | ours, Λ drawn | faster | less memory | drawing in ours | '
             'faster, both draw | faster, both given |', '|---|---|---|---|---|---|---|---|']
    for name, row in rows.items():
        t, memory, form = row['seconds'], row['MiB'], row['literal form']
        lines.append(
            f'| {name} {tuple(SHAPES[name])} | {t[form]:.3g} s, {memory[form]:.0f} MiB | {t["ours"]:.3g} s, '
            f'{memory["ours"]:.0f} MiB | {row["faster"]:.1f}× | {row["less memory"]:.1f}× | {row["drawing"]:.0%} | '
            f'{row["faster, both draw"]:.1f}× | {row["faster, both given"]:.1f}× |')
    return '\n'.join(lines)


def picture(path: str, rows: dict[str, dict[str, Any]], where: str) -> None:
    import numpy as np
    from matplotlib.figure import Figure

    fig = Figure(figsize=(11, 0.9 + 0.75 * len(rows)), layout='constrained')
    axes = fig.subplots(1, 2, sharey=True)
    at = np.arange(len(rows))[::-1]
    for ax, key, unit in ((axes[0], 'seconds', 's'), (axes[1], 'MiB', 'MiB')):
        old = [row[key][row['literal form']] for row in rows.values()]
        new = [row[key]['ours'] for row in rows.values()]
        ax.barh(at + 0.19, old, 0.36, color='0.65', label='literal equations')
        ax.barh(at - 0.19, new, 0.36, color='#2e6eb3', label='timm-multimix')
        for y, a, b in zip(at, old, new):
            ax.text(b, y - 0.19, f' {a / b:.1f}× less', va='center', fontsize=9)
        ax.set_xscale('log')
        ax.set_xlim(min(new) / 2, max(old) * 3)
        ax.set_xlabel(f'{"time" if key == "seconds" else "peak memory"} of loss, forward and backward ({unit}, log)')
        ax.spines[['top', 'right']].set_visible(False)
    axes[0].set_yticks(at, [f'{name}\n{SHAPES[name]}' for name in rows], fontsize=8)
    axes[0].legend(frameon=False, loc='upper right', fontsize=9)
    fig.suptitle(f'Dense MultiMix loss with its classifier, (B, P, D, C, N); {where}', fontsize=10)
    fig.savefig(make_room(path), dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split(':')[0])
    parser.add_argument('--shapes', nargs='+', choices=SHAPES, default=[name for name in SHAPES if name != 'tiny'])
    parser.add_argument('--repeat', type=int, default=5)
    parser.add_argument('--alpha', type=float, nargs='+', default=[0.008],
                        help='concentration, or a range; 0.008 is about two effective examples of 128')
    parser.add_argument('--amp', action='store_true', help='autocast to bfloat16, both sides')
    parser.add_argument('--compile', action='store_true', help='compile the literal side as well; the faster counts')
    parser.add_argument('--engine', default='auto', choices=ENGINES)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--json', help='write the figures to this file as well')
    parser.add_argument('--picture', help='draw them into this file')
    args = parser.parse_args()
    torch.manual_seed(0)
    alpha = (args.alpha[0], args.alpha[-1])
    where = describe(args.device)
    print(f'{where}; alpha {alpha}, medians of {args.repeat}{", autocast" if args.amp else ""}', flush=True)
    rows: dict[str, dict[str, Any]] = {}
    errors: dict[str, str] = {}
    for name in args.shapes:
        try:
            rows[name] = measure(SHAPES[name], alpha, args)
            print(table({name: rows[name]}).splitlines()[-1], flush=True)
        except Exception as e:  # the others are still worth their time
            traceback.print_exc()
            errors[name] = f'{type(e).__name__}: {e}'
        save(args.json, {**where, 'amp': args.amp, 'repeat': args.repeat, 'rows': rows,
                         'errors': errors})
    print('\n' + table(rows))
    if args.picture and rows:
        picture(args.picture, rows, f'{where["device"]}, threads: {where["threads"]}')
    return int(bool(errors))


if __name__ == '__main__':
    sys.exit(main())
