"""The rows on top of the report, how long it takes, and --quick."""
from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn as nn
from torch import Tensor

from timm_multimix.evaluate import (
    Checkpoint,
    Outputs,
    Table,
    Value,
    accuracy,
    calibration,
    embedding,
    hull,
    ood,
    robustness,
)
from timm_multimix.evaluate.estimate import Speed, duration, measure, seconds
from timm_multimix.evaluate.flags import QUICK, parse_args
from timm_multimix.evaluate.report import markdown
from timm_multimix.evaluate.summary import HEADLINES, summary
from timm_multimix.evaluate.table import rows_of


def test_the_best_is_bold() -> None:
    tables = {
        'accuracy': {'a': Table('accuracy', rows_of({'top-1, %': Value(90, 88, 92), 'NLL': 0.5})),
                     'b': Table('accuracy', rows_of({'top-1, %': Value(91, 89, 93), 'NLL': 0.7})),
                     'c': Table('accuracy', rows_of({'top-1, %': Value(91, 89, 93), 'NLL': math.nan}))},
        'ood': {'b': Table('ood', rows_of({'noise | AuROC, max softmax, %': 80, 'noise | AuROC, energy, %': 1,
                                           'photographs | AuROC, max softmax, %': 60}))}}
    assert [(row.name, row.best) for row in summary(tables)] == [
        ('top-1, % ↑', ['b', 'c']), ('NLL ↓', ['a']),
        ('out of distribution, AuROC by max softmax, mean of 2 sets, % ↑', [])]
    assert summary(tables)[2].values == {'b': Value(70)}
    report = markdown([], tables, {}, {}, {})
    assert report.index('## Summary') < report.index('## Accuracy')
    assert '| top-1, % ↑ | 90.00 [88.00, 92.00] | **91.00 [89.00, 93.00]** | **91.00 [89.00, 93.00]** |' in report
    assert '| NLL ↓ | **0.5000** | 0.7000 | – |' in report and '|  | 70.00 |  |' in report
    one = {name: {'b': columns['b']} for name, columns in tables.items()}
    assert '**' not in markdown([], one, {}, {}, {}).split('## Summary')[1].split('## Accuracy')[0]


def test_nothing_measured_nothing_summed_up() -> None:
    other = {'hull': {'a': Table('hull', rows_of({'x': 1}))}}
    assert summary({}) == summary(other) == [] and '## Summary' not in markdown([], other, {}, {}, {})


def test_the_headlines_are_rows_of_their_tables(resnet: nn.Module, loader: list[tuple[Tensor, Tensor]]) -> None:
    """Each is found in what the functions return; AutoAttack and detection need packages."""
    half = {'mean': (0.5,) * 3, 'std': (0.5,) * 3}
    pixels = [(x.clamp(-1, 1), y) for x, y in loader[:1]]
    made = {'accuracy': accuracy(resnet, loader, resamples=5), 'calibration': calibration(resnet, loader),
            'robustness': robustness(resnet, pixels, steps=1, curve=(), **half),
            'ood': ood(resnet, loader, {'others': loader}), 'embedding': embedding(resnet, loader, map_images=0)}
    rows = summary({name: {'one': found} for name, found in made.items()})
    assert len(rows) == 10 == len([h for h in HEADLINES if h.table != 'transfer' and 'AutoAttack' not in h.label
                                   and h.label != 'mean over classes, %'])  # classes are even
    found = {row.name: row.values['one'].value for row in rows}
    assert found['accuracy under PGD, ε = 4/255, % ↑'] == made['robustness']['PGD, ε = 4/255, %']


def test_estimates_follow_what_is_computed(resnet: nn.Module) -> None:
    speed = Speed(load=0.01, forward=0.1, gradient=0.3, width=64)

    def total(*flags: str, images: int = 10_000) -> dict[str, float]:
        return seconds(parse_args(['x', '-j', '0', *flags]), [speed], images, ood_sets=3, bank=5000)

    everything = total()
    assert list(everything) == ['accuracy', 'calibration', 'robustness', 'ood', 'embedding', 'hull', 'attention']
    # the first table passes all images through the model, and the others take what it saw
    assert 1 <= everything['accuracy'] / (10_000 * 0.11) < 1.1 and everything['calibration'] < 10
    assert total('--on', 'calibration')['calibration'] > 1100
    # eight ε, a step of FGSM, ten of PGD and the random control on each
    assert everything['robustness'] == pytest.approx(1000 * (0.11 + 0.3 + 8 * (11 * 0.3 + 3 * 0.1)))
    assert total('--no-curve')['robustness'] == pytest.approx(1000 * (0.11 + 0.3 + 11 * 0.3 + 2 * 0.1))
    assert total('--attack-images', '100')['robustness'] == pytest.approx(everything['robustness'] / 10)
    assert sum(total('--quick').values()) < sum(everything.values()) / 20
    twice = seconds(parse_args(['x', '-j', '0']), [speed, speed], 10_000, ood_sets=3, bank=5000)
    assert twice == pytest.approx({name: 2 * s for name, s in everything.items()})
    assert seconds(parse_args(['x', '--on', 'transfer', '--transfer-data', 'y']), [speed], 9, 0, 0) == {}


def test_a_model_is_timed_as_it_is(resnet: nn.Module, loader: list[tuple[Tensor, Tensor]]) -> None:
    resnet.train()
    before = {k: v.clone() for k, v in resnet.state_dict().items()}
    images = [(x, int(y)) for x, y in zip(*loader[0])]
    speed = measure(Checkpoint('a', 'a', resnet, {}, None), images, 16)
    assert resnet.training and all((v == before[k]).all() for k, v in resnet.state_dict().items())
    assert min(speed.load, speed.forward, speed.gradient) > 0 and speed.width == resnet.num_features
    assert all(p.grad is None for p in resnet.parameters())
    resnet.eval()


@pytest.mark.parametrize('s, words', [
    (0.2, '< 5 s'), (42, '40 s'), (89, '90 s'), (100, '2 min'), (3000, '50 min'), (9000, '2.5 h')])
def test_durations(s: float, words: str) -> None:
    assert duration(s) == words


def test_quick_says_what_it_left_out() -> None:
    args = parse_args(['x', '--quick'])
    assert all(getattr(args, name) == value for name, (value, _, _) in QUICK.items())
    assert len(args.left_out) == len(QUICK) and '50 images attacked (1000)' in args.left_out
    assert parse_args(['x']).left_out == [] and parse_args(['x']).attack_images == 1000
    # what the command gives stays, and is not said to be left out; nor is what no table would have done
    args = parse_args(['x', '--quick', '--attack-images', '400', '--curve', '--on', 'accuracy,robustness'])
    assert args.attack_images == 400 and args.curve
    assert args.left_out == ['at most 300 images (all)', '200 resamples of the bootstrap (2000)',
                             '5 steps of PGD (10), so its accuracy may come out too high']


# ------------------------------------------------------------------------------------------------------------ pictures

@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """File name → figure, of whatever is drawn."""
    import timm_multimix.evaluate.tables.calibration
    import timm_multimix.evaluate.tables.hull
    found: dict[str, Any] = {}
    for module in (timm_multimix.evaluate.tables.calibration, timm_multimix.evaluate.tables.hull):
        monkeypatch.setattr(module, 'save_figure', lambda figure, path: found.setdefault(path.name, figure) and path)
    return found


def test_no_line_lies_on_another(resnet: nn.Module, loader: list[tuple[Tensor, Tensor]], figures: dict[str, Any],
                                 tmp_path: Path) -> None:
    """The number of effective examples, for one, is the same for every model."""
    from timm_multimix.evaluate.tables.hull import draw
    few = {'batch': 16, 'n': 40, 'ns': (5, 20), 'batches': 1, 'alphas': (0.01, 1.0)}
    shifted = [(x + 0.5, y) for x, y in loader]
    names = [f'class {c}' for c in range(10)]
    draw({'a': hull(resnet, loader, class_names=names, **few), 'b': hull(resnet, shifted, **few)}, tmp_path)
    curves = [[tuple(line.get_ydata()) for line in axis.get_lines()] for axis in figures['hull.png'].axes]
    assert sum(map(len, curves)) == 2 * 3 + 2 * (2 * 3 + 3 + 1)
    assert all(len(set(lines)) == len(lines) for lines in curves)
    shown = [text.get_text() for text in figures['hull_plane.png'].legends[0].get_texts()]
    assert shown[0] == 'example of the batch' and shown[1].startswith('mixture') and shown[2:] == names


def test_bins_of_few_images_are_small(figures: dict[str, Any], tmp_path: Path) -> None:
    from timm_multimix.evaluate.tables.calibration import draw
    logits = torch.zeros(100, 2)
    logits[:, 0] = torch.tensor([3.0] * 90 + [1.0] * 9 + [0.1])
    found = calibration(torch.nn.Identity(), Outputs(logits, torch.arange(100) % 2, logits))
    draw({'a': found}, tmp_path)
    sizes = figures['reliability.png'].axes[0].collections[0].get_sizes()
    assert found.data['before']['count'] == [1, 9, 90] and list(sizes) == sorted(sizes)
    assert sizes[2] > 5 * sizes[1] > 10 * sizes[0]


def test_long_names_are_not_cut_off(tmp_path: Path, loader: list[tuple[Tensor, Tensor]], resnet: nn.Module) -> None:
    import numpy as np
    from PIL import Image

    from timm_multimix.evaluate.tables.accuracy import draw
    names = [f'class {c}, which has a name that is longer than the picture is wide: {"so " * 40}' for c in range(10)]
    found = accuracy(resnet, loader, class_names=names, resamples=5)
    for columns in ({'a': found}, {'20261129-120000-vit_small_patch16_224-multimix-ramp-seed3': found, 'b': found}):
        [path] = draw(columns, tmp_path)
        with Image.open(path) as picture:
            ink = np.asarray(picture.convert('L')) < 250
        assert ink.any() and not (ink[0].any() or ink[-1].any() or ink[:, 0].any() or ink[:, -1].any())
        assert ink.shape[0] > 0.3 * ink.shape[1]  # the matrix is no speck beside its names
