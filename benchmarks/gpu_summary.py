"""summary.md of `benchmarks.gpu`: what ran, and the figures with their targets beside."""
from __future__ import annotations

from pathlib import Path
from typing import Any

FASTER, LESS_MEMORY = 5.0, 20.0  # than the compiled literal equations
MULTIMIX, DENSE, DENSE_VIT, MEMORY = 1.01, 1.05, 1.10, 1.05  # of plain cross-entropy
STEPS = ('step', 'step-compiled-resnet', 'step-compiled-vit')
Records = dict[str, dict[str, Any]]


def figures(records: Records, part: str) -> dict[str, Any]:
    return records.get(part, {}).get('figures') or {}


def verdict(good: bool) -> str:
    return 'yes' if good else '**no**'


def at_least(value: float, target: float) -> str:
    return f'{value:.1f}× (≥ {target:g}×: {verdict(value >= target)})'


def at_most(value: float, target: float) -> str:
    return f'{value:.3f}× (≤ {target:.2f}×: {verdict(value <= target)})'


def failures(records: Records, *parts: str) -> list[str]:
    lines = [f'- {part}, {what}: {" ".join(error.split())[:300]}'
             for part in parts for what, error in figures(records, part).get('errors', {}).items()]
    return lines and ['', 'Not measured:', '', *lines]


def section(title: str, lines: list[str], errors: list[str]) -> list[str]:
    return ['', f'## {title}', '', *lines, *errors] if lines or errors else []


def parts(records: Records) -> list[str]:
    lines = ['| part | state | seconds | error |', '|---|---|---|---|']
    for name, record in records.items():
        error = ' '.join(str(record.get('error', '')).split()).replace('|', '\\|')
        lines.append(f'| {name} | {record.get("state", "not run")} | {record.get("seconds", 0):.0f} | {error} |')
    return lines


def tests(records: Records) -> list[str]:
    lines = []
    for part in ('cuda-tests', 'triton-tests'):
        if found := figures(records, part):
            counts = ', '.join(f'{n} {word}' for word, n in found.items() if isinstance(n, int))
            lines += ['', f'**{part}**: {counts}.', *(f'- `{failure}`' for failure in found.get('failures', ()))]
    return lines


def loss(records: Records) -> list[str]:
    lines = []
    for part in ('loss', 'loss-amp'):
        for name, row in figures(records, part).get('rows', {}).items():
            t, memory = row['seconds'], row['MiB']
            form = row['literal form']
            by_torch = f'{t["ours by torch"]:.3g} s' if 'ours by torch' in t else '–'
            amp = ', bfloat16' if part == 'loss-amp' else ''
            lines.append(
                f'| {name} {tuple(row["shape"])}{amp} | {form}: {t[form]:.3g} s, {memory[form]:.0f} MiB | '
                f'{t["ours"]:.3g} s, {memory["ours"]:.0f} MiB | '
                f'{at_least(t[form] / t["ours"], FASTER)} | {at_least(memory[form] / memory["ours"], LESS_MEMORY)} | '
                f'{by_torch} |')
    if lines:
        lines = ['| shape (B, P, D, C, N) | literal | ours | faster | less memory | ours by torch |',
                 '|---|---|---|---|---|---|', *lines]
    return section('The loss, forward and backward', lines, failures(records, 'loss', 'loss-amp'))


def step(records: Records) -> list[str]:
    lines = []
    for part in STEPS:
        for row in figures(records, part).get('rows', ()):
            dense = DENSE_VIT if 'vit' in row['model'] else DENSE
            time, memory, seconds = row['time ratio'], row['memory ratio'], row['seconds']
            lines.append(
                f'| {row["model"]} {tuple(row["input"])}, {row["amp"]}, {row["form"]} | {seconds["plain"]:.3g} s, '
                f'{row["MiB"]["plain"]:.0f} MiB | {at_most(time["multimix"], MULTIMIX)} | '
                f'{at_most(time["dense"], dense)} | {at_most(memory["multimix"], MEMORY)} | '
                f'{at_most(memory["dense"], MEMORY)} |')
    if lines:
        lines = ['| model | plain | MultiMix, time | Dense, time | MultiMix, memory | Dense, memory |',
                 '|---|---|---|---|---|---|', *lines]
    return section('A training step, plain cross-entropy = 1', lines, failures(records, *STEPS))


def sweep(records: Records) -> list[str]:
    lines = []
    for row in figures(records, 'sweep').get('rows', ()):
        cells = [f'{row["seconds"][name]:.3g} s, {row["MiB"][name]:.0f} MiB' if name in row['seconds'] else 'too large'
                 for name in ('ours', 'literal')]
        lines.append(f'| {row["n"]:,} | {cells[0]} | {cells[1]} |')
    return lines and ['', '## Any number of mixtures', '', '| n | ours | literal |', '|---|---|---|', *lines]


def ranks(records: Records) -> list[str]:
    found = figures(records, 'nccl')
    lines = [f'| {row["mode"]} | {" | ".join(f"{n:.0f}" for n in row["images per second"].values())} | '
             f'{row["ratio"]:.2f}× |' for row in found.get('rows', ())]
    return lines and ['', '## Two ranks over NCCL', '', '| | images/s, 1 rank | 2 ranks | ratio |', '|---|---|---|---|',
                      *lines]


def train(records: Records) -> list[str]:
    found = figures(records, 'train')
    return found and ['', '## Handwritten digits, by train.py', '',
                      f'{found["epochs"]} epochs, stopped and resumed in between: {found["top-1"]:.1f} % top-1, '
                      f'{found["images per second"]:.0f} images/s.']


def cifar(records: Records) -> list[str]:
    lines = [f'| {name} | {row["epochs"]} of {row["of"]} | {row["top-1"]:.2f} % | {row["images per second"]:.0f} | '
             f'{row["seconds"]:.0f} |' for name, row in figures(records, 'cifar').items()]
    return lines and ['', '## CIFAR-10, ResNet-18 at 32 pixels', '', '| | epochs | last top-1 | images/s | seconds |',
                      '|---|---|---|---|---|', *lines]


def write_summary(path: Path, machine: dict[str, Any], records: Records) -> None:
    """Write the file. Parts that did not run are named as such."""
    devices = ', '.join(f'{d["name"]} ({d["memory in MiB"] // 1024} GiB, sm_{d["compute capability"].replace(".", "")})'
                        for d in machine['devices']) or f'no GPU, {machine["cores"]} cores'
    lines = ['# What this machine measured', '',
             f'{devices}; driver {machine["driver"]}, CUDA {machine["CUDA of torch"]}, cuDNN {machine["cuDNN"]}, torch '
             f'{machine["torch"]}, triton {machine["triton"]}, timm {machine["timm"]}, Python {machine["python"]}.', '']
    if any(record.get('tiny') for record in records.values()):
        lines += ['Tiny shapes: this was a trial of the command, and its figures say nothing.', '']
    for part in (parts, tests, loss, step, train, sweep, ranks, cifar):
        lines += part(records)
    path.write_text('\n'.join(lines) + '\n')
