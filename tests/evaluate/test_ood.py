"""Detection figures by hand, by their definitions, and against torchmetrics."""
from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn as nn
from torch import Tensor

from tests.evaluate.test_accuracy import random_outputs
from timm_multimix import SettingError
from timm_multimix.evaluate import Outputs, ood
from timm_multimix.evaluate.tables.ood import detection, scores


def test_by_hand() -> None:
    """Scores 6 5 4 | 3.5 | 3 | 2 1, with the in-distribution ones 6 5 4 3 and the others 3.5 2 1."""
    found = detection(np.array([3.0, 4, 5, 6]), np.array([1.0, 2, 3.5]))
    assert found['AuROC'] == pytest.approx(11 / 12)  # all pairs but (3, 3.5)
    assert found['detection accuracy'] == pytest.approx((3 / 4 + 1) / 2)  # at 4, or (1 + 2/3)/2 at 3, which is less
    assert found['AuPR-in'] == pytest.approx((1 + 1 + 1 + 4 / 5) / 4)
    assert found['AuPR-out'] == pytest.approx((1 + 1 + 3 / 4) / 3)
    # all four in are accepted from 3 on, and with them 3.5 of the three others
    assert found['FPR95, in positive'] == pytest.approx(1 / 3)
    # all three others are rejected up to 3.5, and with them 3 of the four
    assert found['FPR95, out positive'] == pytest.approx(1 / 4)


def test_perfect_hopeless_and_tied() -> None:
    a, b = np.arange(10.0), np.arange(10.0) + 100
    assert list(detection(b, a).values()) == pytest.approx([1, 1, 1, 1, 0, 0])
    assert detection(a, b)['AuROC'] == 0 and detection(a, b)['FPR95, out positive'] == 1
    tied = detection(np.ones(30), np.ones(10))
    assert tied['AuROC'] == tied['detection accuracy'] == 0.5
    assert (tied['AuPR-in'], tied['AuPR-out']) == (0.75, 0.25)


def test_against_torchmetrics_and_definitions() -> None:
    classification = pytest.importorskip('torchmetrics.functional.classification')
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(1, 1, 300).round(2), rng.normal(0, 1, 200).round(2)  # rounded: with ties
    found = detection(inside, outside)
    score, label = np.r_[inside, outside], np.r_[np.ones(300, int), np.zeros(200, int)]
    # torchmetrics takes scores in [0, 1] as they are, and would push others through a sigmoid
    squeezed = torch.tensor((score - score.min()) / np.ptp(score))
    assert found['AuROC'] == pytest.approx(float(classification.binary_auroc(squeezed, torch.tensor(label))))
    assert found['AuPR-in'] == pytest.approx(
        float(classification.binary_average_precision(squeezed, torch.tensor(label))))
    assert found['AuPR-out'] == pytest.approx(
        float(classification.binary_average_precision(1 - squeezed, torch.tensor(1 - label))))
    thresholds = np.unique(score)
    accepted = np.array([[(inside >= t).mean(), (outside >= t).mean()] for t in thresholds])
    assert found['FPR95, in positive'] == pytest.approx(accepted[accepted[:, 0] >= 0.95, 1].min())
    rejected = np.array([[(inside <= t).mean(), (outside <= t).mean()] for t in thresholds])
    assert found['FPR95, out positive'] == pytest.approx(rejected[rejected[:, 1] >= 0.95, 0].min())
    assert found['detection accuracy'] == pytest.approx(((accepted[:, 0] + 1 - accepted[:, 1]) / 2).max())


def test_scores() -> None:
    outputs, bank = random_outputs(60), random_outputs(200, seed=1)
    found = scores(outputs, bank, k=7)
    z = outputs.logits.double()
    np.testing.assert_allclose(np.exp(found['softmax']), z.softmax(1).max(1).values)
    np.testing.assert_allclose(found['energy'], z.exp().sum(1).log())
    unit = [x.embedding.double() / x.embedding.double().norm(dim=1, keepdim=True) for x in (outputs, bank)]
    by_hand = (unit[0][:, None] - unit[1][None]).norm(dim=2).sort(1).values[:, 6]
    np.testing.assert_allclose(found['knn'], -by_hand, atol=1e-6)
    assert 'knn' not in scores(outputs)
    sure = Outputs(torch.tensor([[200.0, 0, 0], [300.0, 0, 0]]), torch.tensor([0, 0]), torch.zeros(2, 2))
    assert scores(sure)['softmax'][0] <= 0 and len(set(scores(sure)['energy'])) == 2


def test_a_model_that_knows(resnet: nn.Module, loader: list[tuple[Tensor, Tensor]]) -> None:
    """Embeddings of far larger images are elsewhere; classes of other sets are not looked at; all rows are there."""
    far = [(40 * torch.randn(16, 3, 32, 32), torch.full((16,), 99))]
    table = ood(resnet, loader, {'far': far, 'same': loader}, bank=loader, k=3)
    assert table['far | AuROC, KNN, %'] > 90
    for score in ('max softmax', 'energy', 'KNN'):
        assert table[f'same | AuROC, {score}, %'] == pytest.approx(50)
        for metric in ('detection accuracy', 'AuPR-in', 'AuPR-out', 'FPR95, in positive', 'FPR95, out positive'):
            assert 0 <= table[f'far | {metric}, {score}, %'] <= 100
    assert (table['in-distribution images'], table['far | images']) == (80, 16)
    unseen = [(x, y + 5) for x, y in loader]  # the folder of training images may have more classes than the model
    assert ood(resnet, loader, {'far': far}, bank=unseen, k=3)['far | AuROC, KNN, %'] == table['far | AuROC, KNN, %']
    without = ood(resnet, loader, {'far': far})
    assert not any('KNN' in row for row in without.rows) and 'no KNN' in without.notes[0]
    with pytest.raises(SettingError, match='others is empty'):
        ood(resnet, loader, {})
    with pytest.raises(SettingError, match='k is 0'):
        ood(resnet, loader, {'far': far}, k=0)
