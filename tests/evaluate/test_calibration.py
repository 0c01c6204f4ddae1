"""Calibration errors against torchmetrics and by hand; temperatures that are known."""
from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn as nn

from tests.evaluate.test_accuracy import random_outputs
from timm_multimix import SettingError
from timm_multimix.evaluate import Outputs, calibration
from timm_multimix.evaluate.tables.calibration import confidence_and_right, ece, reliability, temperature


@pytest.mark.parametrize('bins', [1, 10, 15])
def test_ece_against_torchmetrics(bins: int) -> None:
    classification = pytest.importorskip('torchmetrics.functional.classification')
    outputs = random_outputs()
    expected = classification.multiclass_calibration_error(
        outputs.logits.softmax(1), outputs.target, num_classes=12, n_bins=bins, norm='l1')
    assert ece(*confidence_and_right(outputs.logits, outputs.target), bins) == pytest.approx(float(expected), abs=1e-6)


def test_ece_by_hand() -> None:
    confidence = np.array([0.55, 0.59, 0.95, 0.99])
    right = np.array([1.0, 0.0, 1.0, 1.0])
    # of ten bins two have images: |0.5 − 0.57| and |1 − 0.97|, half of the images each
    assert ece(confidence, right, 10) == pytest.approx(0.5 * 0.07 + 0.5 * 0.03)
    # two bins of two images: the same here; three: {0.55, 0.59}, {0.95}, {0.99}
    assert ece(confidence, right, 2, adaptive=True) == pytest.approx(0.5 * 0.07 + 0.5 * 0.03)
    assert ece(confidence, right, 3, adaptive=True) == pytest.approx(0.5 * 0.07 + 0.25 * 0.05 + 0.25 * 0.01)
    # the edges: bin k is ((k − 1)/bins, k/bins]
    assert ece(np.array([0.5, 0.51]), np.array([0.0, 1.0]), 2) == pytest.approx(0.5 * 0.5 + 0.5 * 0.49)
    assert ece(np.array([0.0, 1.0]), np.array([0.0, 1.0]), 2) == 0


def test_adaptive_bins_hold_equally_many() -> None:
    rng = np.random.default_rng(0)
    confidence = 1 - rng.random(101) ** 8 / 2  # most above 0.99
    right = (rng.random(101) < 0.8).astype(float)
    order = np.argsort(confidence)
    expected = sum(abs((confidence[part] - right[part]).mean()) * len(part) / 101
                   for part in (order[:21], order[21:41], order[41:61], order[61:81], order[81:]))
    assert ece(confidence, right, 5, adaptive=True) == pytest.approx(expected)
    assert ece(confidence, right, 200, adaptive=True) == pytest.approx(np.abs(confidence - right).mean())  # one each


def test_reliability_adds_up_to_the_error() -> None:
    confidence, right = confidence_and_right(random_outputs().logits, random_outputs().target)
    found = reliability(confidence, right, 15)
    assert sum(found['count']) == 500
    gaps = np.abs(np.array(found['accuracy']) - np.array(found['confidence'])) * found['count']
    assert gaps.sum() / 500 == pytest.approx(ece(confidence, right, 15))
    assert all(b / 15 < c <= (b + 1) / 15 for b, c in zip(found['bin'], found['confidence']))


@pytest.mark.parametrize('true', [0.5, 1.0, 3.0])
def test_temperature_is_found(true: float) -> None:
    g = torch.Generator().manual_seed(0)
    honest = 2 * torch.randn(20000, 5, generator=g)
    target = honest.softmax(1).multinomial(1, generator=g)[:, 0]  # so that these logits are calibrated at T = 1
    assert temperature(honest * true, target) == pytest.approx(true, rel=0.05)
    table = calibration(nn.Identity(), Outputs(honest * true, target, honest))
    assert table['temperature'] == pytest.approx(true, rel=0.05)
    assert table['ECE, after temperature scaling, %'] < 1.5
    if true != 1:
        assert table['ECE, %'] > 5
        assert np.sign(table['overconfidence, %']) == np.sign(true - 1)
    assert table['NLL, after temperature scaling'] <= table['NLL'] + 1e-3


def test_temperature_never_sees_what_it_is_measured_on() -> None:
    """Of two images one fits and one is measured. A right first image wants T → 0, a wrong second one T → ∞."""
    logits, target = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1])
    table = calibration(nn.Identity(), Outputs(logits, target, logits))
    # each has the other's temperature: the right one nearly none of its confidence, the wrong one all of it
    cold, hot = sorted(table.data['temperatures'])
    assert cold < 0.1 and hot == pytest.approx(20, rel=1e-3)
    nll = [np.log1p(np.exp(-1 / hot)), np.log1p(np.exp(1 / cold))]
    assert table['NLL, after temperature scaling'] == pytest.approx(np.mean(nll), rel=1e-3)
    assert 'ran to its limit' in table.notes[0]


def test_settings() -> None:
    with pytest.raises(SettingError, match='bins is 0'):
        calibration(nn.Identity(), random_outputs(), bins=0)
    with pytest.raises(SettingError, match='two images'):
        calibration(nn.Identity(), random_outputs(n=1))
