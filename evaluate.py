#!/usr/bin/env python3
"""Evaluate checkpoints: accuracy, calibration, robustness, out-of-distribution detection, embeddings, attention, …

    python evaluate.py output/train/NAME                                      # on the embedded digits
    python evaluate.py plain=output/train/A dense=output/train/B --data-dir cifar10 --on accuracy,robustness,ood
    python evaluate.py weights.safetensors --model resnet50 --data-dir imagenet --quick

Writes report.md (a summary, then a table each, with a column per checkpoint), results.json and pictures. Each table is
a function of `timm_multimix.evaluate` too, for any nn.Module and loader.
"""
from __future__ import annotations

import os
import signal
import sys

if __name__ == '__main__' and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # What follows takes seconds to import, in which Ctrl-C would show where in the libraries it struck.
    signal.signal(signal.SIGINT, lambda *_: (os.write(2, b'\nStopped before anything was done.\n'), os._exit(130)))
if __name__ == '__main__' and sys.stderr.isatty() and 'torch' not in sys.modules:
    print('timm-multimix: loading torch and timm …', file=sys.stderr, flush=True)

import argparse
import shlex
import time
import warnings
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Optional

from tqdm import tqdm

from timm_multimix import SettingError, evaluate
from timm_multimix.data import DIGITS, drop_unreadable
from timm_multimix.data.split import split_folder
from timm_multimix.distributed import start
from timm_multimix.errors import shown
from timm_multimix.evaluate import Checkpoint, Outputs, Table, estimate, images, load_checkpoint, report
from timm_multimix.evaluate.detection import data as detection_data
from timm_multimix.evaluate.detection.transfer import need_packages
from timm_multimix.evaluate.flags import QUICK, parse_args
from timm_multimix.evaluate.load import learned_attention, unique_names, weights_alone
from timm_multimix.files import check_writable
from timm_multimix.runs.recipes import program
from timm_multimix.runs.screen import say


def run(args: argparse.Namespace, command: str) -> int:
    """Load everything; then table by table: measure each checkpoint, draw, and write the report anew."""
    evaluation = Evaluation(args)
    folder = open_output(args)
    about = {'command': f'`{command}`', 'device': str(evaluation.device)}
    if evaluation.dataset is not None:
        count = min(len(evaluation.dataset), args.num_images or len(evaluation.dataset))
        about['images'] = f'{count} of {args.dataset or args.data_dir}, split {args.split}'
    if evaluation.notes:
        about['note'] = ' '.join(evaluation.notes)
    if args.left_out:
        about['--quick (in brackets: without it)'] = '; '.join(args.left_out)
    say(f'{len(evaluation.checkpoints)} checkpoint{"s" * (len(evaluation.checkpoints) > 1)}: {", ".join(args.on)}; '
        f'report in {folder}.')
    if args.left_out:
        say(f'--quick (in brackets: without it): {"; ".join(args.left_out)}.')
    expected = evaluation.expected()
    tables: dict[str, dict[str, Table]] = {}
    pictures: dict[str, list[Path]] = {}
    missing: dict[str, dict[str, str]] = {}
    with tqdm(total=len(args.on) * len(evaluation.checkpoints), unit='table', disable=None, dynamic_ncols=True,
              leave=False) as bar:
        for name in args.on:
            for checkpoint in evaluation.checkpoints:
                share = expected.get(name, 0) / len(evaluation.checkpoints)
                bar.set_description(f'{name}, {checkpoint.name}' + (f' ({estimate.duration(share)})' if share else ''))
                started = time.time()
                try:
                    table = getattr(evaluation, name)(checkpoint)
                except SettingError as e:  # the other tables are still wanted
                    missing.setdefault(name, {})[checkpoint.name] = str(e)
                    say(f'{checkpoint.name}: {name} is not measured. {shown(e)}')
                else:
                    tables.setdefault(name, {})[checkpoint.name] = table
                    figures = [f'{label} {value.text(label.endswith("%"))}' for label, value in table.rows.items()
                               if label != 'images'][:4]
                    say(f'{checkpoint.name}: {name}: {"; ".join(figures)} ({time.time() - started:.0f} s)')
                bar.update()
            if name in tables:
                pictures[name] = report.finish(name, tables[name], folder)
            report.write(folder, evaluation.checkpoints, tables, pictures, missing, about)
    say(f'\n{folder}/report.md\n{folder}/results.json')
    return 1 if missing and (args.on_given or not tables) else 0


class Evaluation:
    """The checkpoints, the images, and every table: a method each. One pass over the images serves several tables."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.device = start(args.device)
        if 'transfer' in args.on:
            need_packages()
            self.boxes = detection_data.read(args.transfer_data, args.transfer_splits)
        self.dataset: Any = None if args.on == ['transfer'] else images.open_split(
            args.dataset, args.data_dir, args.split, args.class_map)
        if args.data_dir and not args.dataset:
            args.split = split_folder(args.data_dir, args.split) or args.split
        if self.dataset is not None and not len(self.dataset):
            raise SettingError(f'--split {args.split} holds no images.')
        self.checkpoints = self._load()
        self.notes: list[str] = []
        self._take_held_out(self.dataset, args.split)
        self._drop_unreadable(self.dataset, args.split)
        self.names = {c.name: images.check_classes(c, self.dataset) for c in self.checkpoints
                      if self.dataset is not None}
        self.outputs: dict[str, Outputs] = {}
        self.train_set: Any = None
        on_digits = args.dataset.lower() == DIGITS
        self.ood_sets = args.ood or [s for s in images.BUILT_IN if not (s == 'digits' and on_digits)]
        # Building them opens their folders: what is missing says so now, not after an hour of attacks.
        for c in self.checkpoints:
            if 'ood' in args.on:
                images.outliers(self.ood_sets, c, 1, args.seed)
            if args.masks:
                images.WithMasks(self.dataset, args.masks, c, 1, args.seed)
        if 'ood' in args.on and args.bank:
            try:
                self.train_set = images.open_split(args.dataset, args.data_dir, args.train_split, args.class_map)
                self._take_held_out(self.train_set, args.train_split)
                images.keep_at_random(self.train_set, args.bank, args.seed)  # no others need be read
                self._drop_unreadable(self.train_set, args.train_split)
            except SettingError as e:
                say(f'No training images, so no KNN score: {e}')

    def _load(self) -> list[Checkpoint]:
        args = self.args
        of_files = {'--model': args.model, '--num-classes': args.num_classes, '--model-kwargs': args.model_kwargs}
        given = next((flag for flag, value in of_files.items() if value), None)
        if given and not any(map(weights_alone, args.checkpoints)):
            raise SettingError(f'{given} is {of_files[given]!r}, but it is for files of weights, and each checkpoint '
                               f'here says its model: drop it.')
        data = {k: getattr(args, k) for k in ('mean', 'std', 'interpolation', 'crop_pct') if getattr(args, k)}
        loaded = [load_checkpoint(source, args.model, num_classes=args.num_classes, model_kwargs=args.model_kwargs,
                                  img_size=args.img_size,
                                  usual_size=32 if args.dataset.lower() == DIGITS else None,
                                  input_img_mode=args.input_img_mode, **data) for source in args.checkpoints]
        names = unique_names([c.name for c in loaded])
        return [replace(c, name=name, model=c.model.to(self.device)) for name, c in zip(names, loaded)]

    def _take_held_out(self, dataset: Any, split: str) -> None:
        self._note(images.take_held_out(dataset, self.args.data_dir, split, self.checkpoints))

    def _drop_unreadable(self, dataset: Any, split: str) -> None:
        self._note(drop_unreadable(dataset, split, skip=True, workers=2 * max(1, self.args.workers)))

    def _note(self, told: Optional[str]) -> None:
        if told:
            say(told)
            self.notes.append(told)

    def expected(self) -> dict[str, float]:
        """Seconds that each table is likely to take, and a line that says so."""
        args = self.args
        if self.dataset is None:
            return {}
        speeds = [estimate.measure(c, images.prepared(self.dataset, c, args.batch_size, args.seed), args.batch_size)
                  for c in self.checkpoints]
        bank = 0 if self.train_set is None else len(self.train_set)

        def seconds(args: argparse.Namespace) -> dict[str, float]:
            return estimate.seconds(args, speeds, len(self.dataset), len(self.ood_sets), bank)

        total = seconds(args)
        text = f'Expected to take {estimate.words(total)}'
        if 'transfer' in args.on:
            text += '; and transfer, whose own bar tells'
        if 'autoattack' in args.attacks and 'robustness' in args.on:
            text += '; AutoAttack may take less or more, as it drops images that are fooled'
        if not args.quick and sum(total.values()) > 120:
            quick = argparse.Namespace(**{**vars(args), **{name: value for name, (value, _, _) in QUICK.items()}})
            text += f'. With --quick: {estimate.duration(sum(seconds(quick).values()))}, for a first look'
        say(f'{text}.')
        return total

    def loader(self, dataset: Any) -> Any:
        return images.ImageLoader(dataset, self.args.batch_size, num_workers=self.args.workers)

    def images(self, c: Checkpoint, limit: Optional[int] = None) -> Any:
        limit = min(limit or len(self.dataset), self.args.num_images or len(self.dataset))
        return self.loader(images.prepared(self.dataset, c, limit, self.args.seed))

    def seen(self, c: Checkpoint) -> Outputs:
        if c.name not in self.outputs:
            self.outputs[c.name] = evaluate.collect(c.model, self.images(c), progress=True, text=c.name)
        return self.outputs[c.name]

    def accuracy(self, c: Checkpoint) -> Table:
        seen, a = self.seen(c), self.args
        return evaluate.accuracy(c.model, seen, class_names=self.names[c.name], resamples=a.resamples, seed=a.seed,
                                 files=images.file_names(self.dataset, len(seen), a.seed))

    def calibration(self, c: Checkpoint) -> Table:
        return evaluate.calibration(c.model, self.seen(c), bins=self.args.bins, seed=self.args.seed)

    def robustness(self, c: Checkpoint) -> Table:
        a = self.args
        curve = {} if a.curve else {'curve': ()}
        return evaluate.robustness(
            c.model, self.images(c, a.attack_images), attacks=a.attacks, fgsm_eps=a.fgsm_eps, pgd_eps=a.pgd_eps,
            step=a.pgd_step, steps=a.pgd_steps, restarts=a.pgd_restarts, mean=c.data_config['mean'],
            std=c.data_config['std'], seed=a.seed, progress=True, **curve)

    def ood(self, c: Checkpoint) -> Table:
        a = self.args
        others = images.outliers(self.ood_sets, c, min(a.ood_images, len(self.seen(c))), a.seed)
        bank = None if self.train_set is None else self.loader(images.prepared(self.train_set, c, a.bank, a.seed))
        return evaluate.ood(c.model, self.seen(c), {name: self.loader(x) for name, x in others.items()}, bank=bank,
                            k=a.knn_k, progress=True)

    def embedding(self, c: Checkpoint) -> Table:
        return evaluate.embedding(c.model, self.seen(c), class_names=self.names[c.name],
                                  map_images=self.args.map_images, seed=self.args.seed)

    def hull(self, c: Checkpoint) -> Table:
        return evaluate.hull(c.model, self.seen(c), class_names=self.names[c.name], batch=self.args.hull_batch,
                             seed=self.args.seed)

    def attention(self, c: Checkpoint) -> Table:
        a = self.args
        loader = self.images(c) if not a.masks else self.loader(
            images.WithMasks(self.dataset, a.masks, c, a.num_images, a.seed))
        return evaluate.attention(c.model, loader, norm=a.attention_norm, learned=learned_attention(c.source),
                                  mean=c.data_config['mean'], std=c.data_config['std'], progress=True)

    def transfer(self, c: Checkpoint) -> Table:
        a = self.args
        return evaluate.transfer(
            c.model, *self.boxes, detectors=a.detectors, epochs=a.transfer_epochs, lr=a.transfer_lr,
            batch_size=a.transfer_batch_size, size=a.transfer_size, mean=c.data_config['mean'],
            std=c.data_config['std'], detector_kwargs=a.detector_kwargs, workers=a.workers, seed=a.seed, progress=True)


def open_output(args: argparse.Namespace) -> Path:
    folder = Path(args.output or Path('output') / 'evaluate' / datetime.now().strftime('%Y%m%d-%H%M%S'))
    try:
        check_writable(folder)
    except OSError as e:
        raise SettingError(f'--output is {str(folder)!r}, but it cannot be written: {e.strerror or e}.') from e
    return folder


def main(argv: Optional[list[str]] = None) -> int:
    warnings.showwarning = lambda message, *_: say(f'Warning: {message}')
    try:
        command = shlex.join([*program('evaluate'), *(sys.argv[1:] if argv is None else argv)])
        return run(parse_args(argv), command)
    except SettingError as e:
        print(f'evaluate.py: error: {shown(e)}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('\nStopped. The report holds the tables that were finished.', file=sys.stderr)
        return 130


if __name__ == '__main__':
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # `main` answers from here on
    sys.exit(main())
