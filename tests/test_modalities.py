"""The study beyond images: its plan and its table, on series that are made up. What it measures is not tested."""
from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn as nn

from benchmarks import languages, modalities
from benchmarks.measure import claimed
from benchmarks.modalities import METHODS, Speech, Study, masked_mean
from benchmarks.study_report import read_results
from tests.conftest import ROOT
from timm_multimix import Parts, SettingError


def toy() -> Study:
    g = torch.Generator().manual_seed(0)

    def split(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.arange(n) % 3
        x = torch.randn(n, 12, 9, generator=g) + y.view(-1, 1, 1)
        return x.masked_fill(torch.arange(9) >= torch.randint(3, 10, (n, 1, 1), generator=g), math.nan), y

    def net() -> tuple[nn.Module, dict[str, Any]]:
        return Speech(3, width=8), {'parts': Parts(
            lambda net, x: net.encode(x), lambda net, f, mask: masked_mean(f, mask), 'fc', 'NLC',
            mask=lambda net, x: ~x[:, 0].isnan(), example=torch.zeros(1, 12, 9))}

    return Study(split(30), split(30), net, labels=(4,), held_out=3, rates=(1e-3, 1e-1), steps=4, batch=8, seeds=2,
                 methods={})


def test_the_plan_is_carried_out_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(modalities.STUDIES, 'vowels', toy)
    results = tmp_path / 'toy.jsonl'
    modalities.run('vowels', None, results, limit=3)
    assert len(read_results(results)) == 3
    modalities.run('vowels', None, results)
    rows = read_results(results)
    tuning = [row for row in rows if row['judge'] == 'held out']
    final = [row for row in rows if row['judge'] == 'test']
    assert len(tuning) == len(METHODS) * 2 * modalities.TUNING_SEEDS and len(final) == len(METHODS) * 2
    assert len({tuple(row[k] for k in ('judge', 'method', 'rate', 'seed')) for row in rows}) == len(rows)
    assert {row['seed'] for row in tuning}.isdisjoint(row['seed'] for row in final)
    for row in final:
        own = {rate: sorted(r['top1'] for r in tuning if (r['method'], r['rate']) == (row['method'], rate))
               for rate in (1e-3, 1e-1)}
        assert sum(own[row['rate']]) == max(map(sum, own.values()))
    modalities.run('vowels', None, results)
    assert read_results(results) == rows

    table = modalities.report(results).splitlines()[2:]
    assert [line.split(' | ')[1] for line in table] == list(METHODS)
    mean = sum(row['top1'] for row in final if row['method'] == 'none') / 2
    assert f'| {mean:.2f} ± ' in table[0]


def test_labelled_and_held_out_examples_are_others() -> None:
    study = toy()
    train, held_out = modalities.draw(study, 4, seed=1)
    assert set(train.tolist()).isdisjoint(held_out.tolist())
    assert study.train[1][train].bincount().tolist() == [4] * 3
    assert study.train[1][held_out].bincount().tolist() == [3] * 3
    with pytest.raises(SettingError, match='8 are needed|11 are needed'):
        modalities.draw(study, 8, seed=1)


def test_padding_does_not_reach_the_speech_network() -> None:
    net, x = Speech(3).eval(), torch.randn(2, 12, 6)
    longer = torch.cat([x, torch.full((2, 12, 4), math.nan)], 2)
    torch.testing.assert_close(net(longer), net(x))


def test_the_page_shows_what_was_measured() -> None:
    page = (ROOT / 'docs' / 'modalities.md').read_text()
    for names in set(re.findall(r'benchmarks\.modalities report ([\w ]+)', page)):
        of = {name: modalities.RESULTS / f'{name}.jsonl' for name in names.split()}
        tables = [modalities.report(path) for path in of.values()] if len(of) == 1 else [
            modalities.overview(of, 'top1'), modalities.overview(of, 'scaled nll')]
        for table in tables:
            assert table in page


def test_a_run_that_another_process_has_is_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(modalities.STUDIES, 'vowels', toy)
    results = tmp_path / 'toy.jsonl'
    first, second = map(modalities.key_of, modalities.missing(toy(), [])[:2])
    with claimed(results, first, lambda: False) as free:
        assert free
        modalities.run('vowels', None, results, limit=1)
    assert [modalities.key_of(row) for row in read_results(results)] == [second]
    with claimed(results, first, lambda: True) as free:
        assert not free
    modalities.run('vowels', None, results, limit=1)
    assert [modalities.key_of(row) for row in read_results(results)] == [second, first]


def test_what_is_said_in_training_is_not_said_in_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip('transformers')
    wavfile = pytest.importorskip('scipy.io.wavfile')
    for label, language in enumerate(('en', 'fr')):
        (tmp_path / language).mkdir()
        for i in range(6):  # of which one is too short, and another is missing in the second language
            if i < 5 or label == 0:
                length = 100 if i == 4 else 8000 * (1 + i)
                tone = np.sin(np.arange(length) * (0.05 + 0.02 * i + 0.3 * label))
                wavfile.write(tmp_path / language / f'{i}.wav', 8000, (8000 * tone).astype(np.int16))
    asked: list[str] = []
    real = languages.image
    monkeypatch.setattr(languages, 'image', lambda file: (asked.append(file.stem), real(file))[1])
    (x, y), (x_test, y_test) = languages.prompts(tmp_path)
    assert x.shape == x_test.shape == (4, 1, languages.MELS, languages.FRAMES)
    assert y.tolist() == y_test.tolist() == [0, 0, 1, 1]
    assert set(asked) == {'0', '1', '2', '3'} and set(asked[:4]).isdisjoint(asked[4:])
    assert -1 <= float(x.min()) < float(x.max()) < 1
    with pytest.raises(SettingError, match='a folder for each language'):
        languages.prompts(tmp_path / 'en')
