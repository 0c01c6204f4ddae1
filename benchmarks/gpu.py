"""All that waits for a GPU, in one command and within a time: `python -m benchmarks.gpu --minutes 8`.

Every part is a process of its own, so one that fails or takes too long costs only itself. The folder (--output) gets
PART.json (figures, seconds, error), PART.log, and summary.md, which has the targets beside the figures. Run again, the
command leaves out the parts that are there and whole. Time that a part does not use goes to those after it.
"""
from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu_summary import write_summary

ROOT = Path(__file__).resolve().parent.parent
Figures = dict[str, Any]
RESULT = re.compile(r'^(?:\[gw\d+\] \[ *\d+%\] |tests/.*? )(PASSED|FAILED|ERROR|SKIPPED|XFAIL)\b', re.M)


class Failed(Exception):
    """A part's error. `figures` are those that it left behind."""

    def __init__(self, message: str, figures: Figures) -> None:
        super().__init__(message)
        self.figures = figures


class Place(NamedTuple):
    """Where and how parts run.

    Attributes:
        output: the folder.
        machine: as `benchmarks.measure.machine` knows it.
        args: the flags.
    """
    output: Path
    machine: dict[str, Any]
    args: argparse.Namespace

    @property
    def engine(self) -> str:
        """Where Triton does not work, torch can be measured."""
        return 'torch' if self.args.device == 'cuda' and self.machine['Triton fails'] else 'auto'

    def execute(self, part: str, command: list[str], seconds: float) -> int | None:
        """Run it, its output into PART.log. The exit status; None if it took longer, and was killed."""
        environment = {**os.environ, 'HF_HUB_OFFLINE': '1', 'PYTHONUNBUFFERED': '1'}
        if self.args.device == 'cuda':
            environment['TRITON_INTERPRET'] = '0'
            environment.setdefault('OMP_NUM_THREADS', '2')  # of each of the tests' processes
        with open(self.output / f'{part}.log', 'a') as log:
            log.write(f'$ {" ".join(command)}\n')
            log.flush()
            process = subprocess.Popen([sys.executable, *command], stdout=log, stderr=subprocess.STDOUT, cwd=ROOT,
                                       env=environment, start_new_session=True)
            try:
                return process.wait(max(1.0, seconds))
            except subprocess.TimeoutExpired:
                return None
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)  # its workers too
                    process.wait()

    def check(self, part: str, code: int | None, seconds: float, figures: Figures) -> Figures:
        """The figures, if the process went well.

        Raises:
            Failed: it did not.
        """
        if code is None:
            raise Failed(f'It took more than {seconds:.0f} s.', figures)
        if code:
            raise Failed(f'Exit status {code}. {last_words(self.output / f"{part}.log")}', figures)
        return figures


def last_words(log: Path) -> str:
    """The last line of a log that is not empty."""
    lines = [line.strip() for line in log.read_text(errors='replace').splitlines() if line.strip()]
    return lines[-1] if lines else ''


Run = Callable[[Place, str, float], Figures]


class Part(NamedTuple):
    """What is run.

    Attributes:
        weight: its share of the time, in seconds of eight minutes.
        run: takes the place, the part's name and seconds; returns figures. Raises Failed.
        skip: why it cannot run here, or None.
    """
    weight: int
    run: Run
    skip: Callable[[Place], str | None] = lambda place: None


def needs_cuda(place: Place) -> str | None:
    return None if place.args.device == 'cuda' else 'It needs CUDA.'


def needs_triton(place: Place) -> str | None:
    if place.engine == 'torch':
        return f'Triton does not work here. {place.machine["Triton fails"]}'
    return needs_cuda(place)


def needs_compiler(place: Place) -> str | None:
    return None if place.args.device == 'cpu' else needs_triton(place)


def needs_two(place: Place) -> str | None:
    found = len(place.machine['devices'])
    return needs_cuda(place) or (None if found > 1 else f'It needs two CUDA devices. There is {found}.')


def needs_data(place: Place) -> str | None:
    return None if place.args.data_dir else 'It needs images: --data-dir.'


def tests(path: str) -> Run:
    def run(place: Place, part: str, seconds: float) -> Figures:
        command = ['-m', 'pytest', path, '-v', '--tb=short', '-p', 'no:cacheprovider']
        if find_spec('xdist'):
            command += ['-n', str(min(8, os.cpu_count() or 1))]  # each is a process on the GPU
        code = place.execute(part, command, seconds)
        log = (place.output / f'{part}.log').read_text(errors='replace')
        found = RESULT.findall(log)
        figures: Figures = {word.lower(): found.count(word) for word in dict.fromkeys(found)}
        figures['failures'] = re.findall(r'^(?:FAILED|ERROR) (.+)$', log, re.M)
        place.check(part, code, seconds, figures)
        if not figures.get('passed'):
            raise Failed('No test ran.', figures)
        return figures
    return run


def benchmark(module: str, usual: list[str], tiny: list[str], engine: bool = True) -> Run:
    def run(place: Place, part: str, seconds: float) -> Figures:
        left = place.output / f'{part}.figures.json'
        left.unlink(missing_ok=True)
        command = ['-m', f'benchmarks.{module}', *(tiny if place.args.tiny else usual), '--device', place.args.device,
                   '--json', str(left)]
        if engine:
            command += ['--engine', place.engine]
        if place.engine == 'torch':
            command = [word for word in command if word != '--compile']
        code = place.execute(part, command, seconds)
        figures: Figures = {}
        if left.exists():
            figures = read(left)
            left.unlink(missing_ok=True)
        return place.check(part, code, seconds, figures)
    return run


def train(place: Place, part: str, seconds: float) -> Figures:
    """The embedded digits, by train.py as people call it: stopped after half of the epochs, and gone on with."""
    deadline = time.monotonic() + seconds
    folder, epochs = place.output / part, 2 if place.args.tiny else 6
    shutil.rmtree(folder, ignore_errors=True)
    small = ['--model', 'test_resnet', '--img-size', '32', '--workers', '0'] if place.args.tiny else []
    command = ['train.py', '--multimix', 'dense', '--device', place.args.device, '--amp', '--channels-last', '--epochs',
               str(epochs), '--warmup-epochs', '0', '--stop-epoch', str(epochs // 2), '--output', str(folder),
               '--experiment', 'run', *small]
    figures: Figures = {}
    for words in (command, ['train.py', '--resume', str(folder / 'run'), '--stop-epoch', str(epochs)]):
        left = deadline - time.monotonic()
        place.check(part, place.execute(part, words, left), seconds, figures)
        rows = summary_rows(folder / 'run' / 'summary.csv')
        figures.update({'epochs': len(rows), 'top-1': float(rows[-1]['eval_top1']),
                        'images per second': float(rows[-1]['train_images_per_second'])})
    if figures['epochs'] != epochs or not (place.args.tiny or figures['top-1'] > 50):
        raise Failed(f'{figures["epochs"]} of {epochs} epochs, and {figures["top-1"]:.1f} % of the digits.', figures)
    return figures


def cifar(place: Place, part: str, seconds: float) -> Figures:
    """ResNet-18 on CIFAR-10, plain and dense, each for as many epochs as fit. An epoch of dense tells how many."""
    deadline = time.monotonic() + seconds
    folder, args = place.output / part, place.args
    shutil.rmtree(folder, ignore_errors=True)
    common = ['train.py', '-c', 'hparams/cifar10_resnet18.yaml', '--data-dir', str(args.data_dir), '--output',
              str(folder), '--device', args.device]
    common += ['--model', 'test_resnet', '-b', '4', '--workers', '0'] if args.tiny else [
        '--amp', '--workers', str(min(16, os.cpu_count() or 1))]
    figures: Figures = {}

    def train(name: str, epochs: int, *flags: str) -> Figures:
        left, started = deadline - time.monotonic(), time.monotonic()
        code = place.execute(part, [*common, '--experiment', name, '--epochs', str(epochs), '--warmup-epochs',
                                    str(epochs // 5), *flags], left)
        rows = summary_rows(folder / name / 'summary.csv')
        if rows:
            speeds = sorted(float(row['train_images_per_second']) for row in rows)
            figures[name] = {'epochs': len(rows), 'of': epochs, 'top-1': float(rows[-1]['eval_top1']),
                             'images per second': speeds[len(speeds) // 2], 'seconds': time.monotonic() - started}
        place.check(part, code, left, figures)
        return figures[name]

    first = train('first', 1, '--multimix', 'dense')
    images = sum(len(files) for _, _, files in os.walk(args.data_dir))
    epoch = images / first['images per second']  # as if an image to validate on took as long
    start = max(0.0, first['seconds'] - epoch)
    fit = int(((deadline - time.monotonic()) * 0.45 - start) / epoch)
    if args.tiny:
        fit = 1
    if fit < 1:
        raise Failed(f'No epoch fits: one takes {epoch:.0f} s, and {deadline - time.monotonic():.0f} s are left for '
                     f'two trainings.', figures)
    train('none', fit, '--multimix', 'none')
    train('dense', fit, '--multimix', 'dense')
    return figures


def summary_rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with open(path, newline='', encoding='utf-8') as f:
        return [row for row in csv.DictReader(f) if row.get('eval_top1') and row.get('train_images_per_second')]


BATCH = ['--batch-size', '128', '--channels-last']
MODELS = ['--models', 'resnet50', 'vit_small_patch16_224']
TINY_STEP = ['--models', 'test_resnet', '--img-size', '64', '--batch-size', '4', '--num-classes', '5', '--repeat', '1',
             '--channels-last']
TINY_LOSS = ['--shapes', 'tiny', '--repeat', '1']
TINY_SWEEP = ['--shape', 'tiny', '--largest', '2', '--repeat', '1']
AMP = ['--amp', 'bfloat16', 'float16']


def compiled(model: str) -> Run:
    how = ['--amp', 'bfloat16', '--forms', 'compiled']
    return benchmark('step', ['--models', model, *BATCH, *how], [*TINY_STEP, *how, '--backend', 'aot_eager'])


# In this order: what matters most is first, and time that is not used goes to what follows.
PARTS = {
    'cuda-tests': Part(70, tests('tests/test_cuda.py'), needs_cuda),
    'loss': Part(80, benchmark('loss', ['--repeat', '10', '--compile'], TINY_LOSS)),
    'step': Part(80, benchmark('step', [*MODELS, *BATCH, *AMP], [*TINY_STEP, *AMP])),
    'train': Part(60, train),
    'sweep': Part(40, benchmark('sweep', [], TINY_SWEEP)),
    'triton-tests': Part(90, tests('tests/mixing/test_triton.py'), needs_triton),
    'loss-amp': Part(60, benchmark('loss', ['--repeat', '10', '--amp', '--compile', '--shapes', 'CIFAR R-18',
                                            'ImageNet R-50'], [*TINY_LOSS, '--amp'])),
    # Three networks each, and a network takes its compiler half a minute. A part that is stopped has no figures.
    'step-compiled-resnet': Part(150, compiled('resnet50'), needs_compiler),
    'step-compiled-vit': Part(150, compiled('vit_small_patch16_224'), needs_compiler),
    'nccl': Part(40, benchmark('distributed', ['--ranks', '2', '--repeat', '2', '--batch-size', '32'], [
        '--ranks', '2', '--repeat', '1', '--model', 'test_resnet', '--img-size', '64', '--batch-size', '4'],
        engine=False), needs_two),
    'cifar': Part(120, cifar, needs_data),
}


def read(path: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing if there is none, or it was torn."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def write(path: Path, found: dict[str, Any]) -> None:
    """All of it or nothing."""
    new = path.with_suffix('.new')
    new.write_text(json.dumps(found, indent=1) + '\n')
    os.replace(new, path)


def run_part(place: Place, name: str, seconds: float) -> dict[str, Any]:
    """Its record: state ('passed', 'failed', 'skipped'), figures, seconds and error."""
    (place.output / f'{name}.log').unlink(missing_ok=True)
    record = {'part': name, **setting(place)}
    started = time.monotonic()
    try:
        figures = PARTS[name].run(place, name, seconds)
        record.update(state='passed', figures=figures)
    except Failed as e:
        record.update(state='failed', error=str(e), figures=e.figures)
    except Exception as e:  # of this file: the other parts still have their time
        record.update(state='failed', error=f'{type(e).__name__}: {e}', figures={})
    return {**record, 'seconds': time.monotonic() - started}


def setting(place: Place) -> dict[str, Any]:
    """What must be the same for a part that is there to count."""
    devices = place.machine['devices'] if place.args.device == 'cuda' else []
    return {'device': place.args.device, 'tiny': place.args.tiny, 'torch': place.machine['torch'],
            'on': devices[0]['name'] if devices else 'CPU'}


def main() -> int:
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.split(':')[0])
    parser.add_argument('--minutes', type=float, default=8, help='for everything')
    parser.add_argument('--only', nargs='+', choices=PARTS, help='these parts')
    parser.add_argument('--again', action='store_true', help='run parts that are there and whole once more')
    parser.add_argument('--output', type=Path, metavar='DIR',
                        help='default: output/gpu, or output/gpu-tiny')
    parser.add_argument('--data-dir', type=Path, metavar='DIR', help='CIFAR-10 as a folder of images, for part cifar')
    parser.add_argument('--device', choices=['cuda', 'cpu'], default='cuda')
    parser.add_argument('--tiny', action='store_true', help='tiny shapes, to try the command itself')
    args = parser.parse_args()
    if args.data_dir and not args.data_dir.is_dir():
        parser.error(f'--data-dir is {args.data_dir}, but there is no such folder')
    args.output = (args.output or Path('output', 'gpu-tiny' if args.tiny else 'gpu')).resolve()
    args.data_dir = args.data_dir and args.data_dir.resolve()
    args.output.mkdir(parents=True, exist_ok=True)
    place = Place(args.output, {}, args)

    (args.output / 'machine.log').unlink(missing_ok=True)
    found = args.output / 'machine.json'
    code = place.execute('machine', ['-m', 'benchmarks.measure', '--json', str(found)], 120)
    if code != 0:
        parser.exit(1, f'torch does not start here; {args.output / "machine.log"} says why.\n')
    place = place._replace(machine=read(found))
    if args.device == 'cuda' and not place.machine['cuda']:
        parser.exit(1, f'torch {place.machine["torch"]} (CUDA {place.machine["CUDA of torch"]}, driver '
                       f'{place.machine["driver"]}) finds no CUDA device. --device cpu --tiny tries the command '
                       f'without one.\n')

    names = [name for name in PARTS if name in (args.only or PARTS)]
    records = {name: read(args.output / f'{name}.json') for name in PARTS}
    todo = []
    for name in names:
        record = records[name]
        if not args.again and record.get('state') == 'passed' and record.items() >= setting(place).items():
            print(f'{name}: there already', flush=True)
        elif why := PARTS[name].skip(place):
            records[name] = {'part': name, **setting(place), 'state': 'skipped', 'error': why, 'seconds': 0.0,
                             'figures': {}}
            write(args.output / f'{name}.json', records[name])
            print(f'{name}: skipped. {why}', flush=True)
        else:
            todo.append(name)
    for i, name in enumerate(todo):
        left = 60 * args.minutes - (time.monotonic() - started) - 3  # to finish
        share = PARTS[name].weight / sum(PARTS[other].weight for other in todo[i:])
        seconds = min(left, 1.5 * share * left)
        if seconds < 5:
            print(f'{name}: no time left', flush=True)
            continue
        print(f'{name}: at most {seconds:.0f} s', flush=True)
        records[name] = run_part(place, name, seconds)
        write(args.output / f'{name}.json', records[name])
        print(f'{name}: {records[name]["state"]} in {records[name]["seconds"]:.0f} s. '
              f'{records[name].get("error", "")}', flush=True)
        write_summary(args.output / 'summary.md', place.machine, records)
    write_summary(args.output / 'summary.md', place.machine, records)
    print(f'\n{args.output / "summary.md"}\n')
    print((args.output / 'summary.md').read_text())
    return int(any(records[name].get('state', 'not run') not in ('passed', 'skipped') for name in names))


if __name__ == '__main__':
    sys.exit(main())
