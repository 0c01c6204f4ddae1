"""No picture that benchmarks, tools and train.py draw has text that is cut off or lies on other text."""
from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
from matplotlib.figure import Figure

from benchmarks import accuracy, loss, step, study_report, sweep
from tests.conftest import ROOT
from tests.pictures import faults, watched
from tests.test_report import rows
from timm_multimix.training.curves import draw_curves

sys.path.insert(0, str(ROOT / 'tools'))
import pictures  # noqa: E402

pytestmark = pytest.mark.filterwarnings('error')  # matplotlib warns where there is no room
WHERE = 'x86_64 CPU of a long name, 2 threads'


def test_faults_are_found() -> None:
    figure = Figure(figsize=(3, 2))
    assert faults(_written(figure, (0.1, 0.1, 'here'), (0.6, 0.8, 'there'))) == []
    [cut] = faults(_written(Figure(figsize=(3, 2)), (0.8, 0.5, 'too long to fit')))
    assert cut.startswith("'too long to fit' is cut off")
    assert faults(_written(Figure(figsize=(3, 2)), (0.8, 0.5, 'too long to fit')), tight=True) == []
    assert faults(_written(Figure(figsize=(3, 2)), (0.1, 0.5, 'one'), (0.15, 0.5, 'other'))) == [
        "'one' lies on 'other'"]
    figure = Figure(figsize=(1, 1))
    axis = figure.add_axes((0.3, 0.3, 0.6, 0.6))
    axis.set_xticks([0, 0.1, 1, 7], ['crowded', 'labels', 'far', 'outside of the axis'])
    axis.set_xlim(0, 1)
    assert any('crowded' in fault and 'labels' in fault for fault in faults(figure))
    assert not any('outside' in fault for fault in faults(figure))  # which is not drawn


def _written(figure: Figure, *texts: tuple[float, float, str]) -> Figure:
    for text in texts:
        figure.text(*text)
    return figure


@pytest.mark.parametrize('picture', [pictures.mixing, pictures.tensors], ids=['mixing', 'tensors'])
def test_pictures_of_the_documents(picture: Any) -> None:
    figure = picture()
    assert faults(figure) == []
    plt.close(figure)


@pytest.mark.parametrize('title', ['', 'vit_small_patch16_224, dense (default): embeddings mixed on 219 of 1 170 '
                                       'steps, and a name that is longer than any picture is wide' * 2])
@pytest.mark.parametrize('kind', ['plain', 'dense', 'none'])
@pytest.mark.parametrize('epochs', [1, 12, 2000])
def test_curves_of_a_run(kind: str, epochs: int, title: str) -> None:
    some = rows(kind)
    assert faults(draw_curves([{**some[i % len(some)], 'epoch': i} for i in range(epochs)], title)) == []


def study_of(folder: Path, names: list[str], seeds: int) -> tuple[Path, dict[str, Any]]:
    """A study's finished runs: of the first name `seeds` of them, of the others one less, and so on down to one."""
    study: dict[str, Any] = {'data': {'train': 10, 'test': 10}, 'base': {}, 'seeds': [1], 'judge': 'test',
                             'runs': {name: {'smoothing': i / 100} for i, name in enumerate(names)}}
    path = folder / 'study.jsonl'
    path.write_text(''.join(
        json.dumps({'key': accuracy.key_of(study, name, seed), 'seed': seed, 'top1': 70 + i / 7 + seed / 3,
                    'nll': 1.2345 - i / 50 + seed / 40, 'ece': 0.012 + i / 300 + seed / 1000}) + '\n'
        for i, name in enumerate(names) for seed in range(1, 1 + max(1, seeds - i))))
    return path, study


@pytest.mark.parametrize('names', [
    ['none'], ['none', 'dense'], ['none', 'a name that says everything about a run, and then some more of it'],
    [f'run {i} of very many in this study' for i in range(25)]], ids=['one', 'two', 'long', 'many'])
@pytest.mark.parametrize('seeds', [1, 3])
def test_results_of_a_study(names: list[str], seeds: int, tmp_path: Path) -> None:
    path, study = study_of(tmp_path, names, seeds)
    with watched() as found:
        accuracy.plot(path, tmp_path / 'figure.png', study)
    assert list(found.values()) == [[]]


def test_one_seed_looks_less_certain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Figure] = []
    monkeypatch.setattr(Figure, 'savefig', lambda figure, *_, **__: kept.append(figure))
    for names, seeds, labels in ((['none', 'dense', 'multimix'], 3, 3), (['none', 'dense'], 9, 2), (['none'], 1, 1)):
        path, study = study_of(tmp_path, names, seeds)
        accuracy.plot(path, tmp_path / 'figure.png', study)
        found, axis = study_report.by_name(path, study), kept[-1].axes[0]
        means = {round(line.get_ydata()[0]): line for line in axis.get_lines()
                 if line.get_marker() == 'o' and len(line.get_ydata())}
        for y, name in enumerate(list(found)[::-1]):
            assert (means[y].get_markerfacecolor() == 'white') == (len(found[name]) == 1)
        assert len(kept[-1].legends[0].get_texts()) == labels


@pytest.mark.parametrize('count', [1, 6])
def test_speed(count: int, tmp_path: Path) -> None:
    modes = {mode: 1.0 + 0.133 * i for i, mode in enumerate(step.MODES)}
    row = {'model': 'vit_small_patch16_224', 'input': [128, 3, 224, 224], 'amp': 'bfloat16', 'form': 'compiled',
           'time ratio': modes, 'memory ratio': modes}
    shapes = dict(list(loss.SHAPES.items())[:count])
    sides = {'seconds': {'ours': 0.01, 'a': 0.2}, 'MiB': {'ours': 10.0, 'a': 1000.0}, 'literal form': 'a'}
    n = [{'n': 10**k, **{key: {'ours': 0.01 * 10**k, **({'literal': 0.1 * 10**k} if k < 4 else {})}
                         for key in ('seconds', 'MiB')}} for k in range(7)]
    with watched() as found:
        step.picture(str(tmp_path / 'step.png'), [row] * count, WHERE)
        loss.picture(str(tmp_path / 'loss.png'), dict.fromkeys(shapes, sides), WHERE)
        sweep.picture(str(tmp_path / 'sweep.png'), n[:count + 1], next(iter(loss.SHAPES)), WHERE)
    assert list(found.values()) == [[], [], []]
