"""Accuracy against scikit-learn and scipy, on random logits."""
from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn as nn
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, log_loss, recall_score, top_k_accuracy_score
from torch import Tensor

from tests.evaluate.conftest import batches
from timm_multimix import SettingError, wrap
from timm_multimix.evaluate import Outputs, accuracy, collect
from timm_multimix.evaluate.summary import summary
from timm_multimix.evaluate.tables.accuracy import compare, interval, over_classes


def random_outputs(n: int = 500, classes: int = 12, seed: int = 0) -> Outputs:
    g = torch.Generator().manual_seed(seed)
    target = torch.randint(classes, (n,), generator=g)
    logits = torch.randn(n, classes, generator=g) + 2 * torch.eye(classes)[target]
    return Outputs(logits, target, torch.randn(n, 8, generator=g))


def test_against_scikit_learn() -> None:
    outputs = random_outputs()
    table = accuracy(nn.Identity(), outputs, class_names=[f'c{i}' for i in range(12)])
    y, z = outputs.target.numpy(), outputs.logits.double()
    p, guess = z.softmax(1).numpy(), z.argmax(1).numpy()
    assert table['top-1, %'] == pytest.approx(100 * (guess == y).mean())
    assert table['top-5, %'] == pytest.approx(100 * top_k_accuracy_score(y, z.numpy(), k=5))
    assert table['NLL'] == pytest.approx(log_loss(y, p))
    assert table['mean over classes, %'] == pytest.approx(100 * balanced_accuracy_score(y, guess))
    recalls = recall_score(y, guess, average=None)
    assert list(table.data['per_class'].values()) == pytest.approx(100 * recalls)
    assert table['worst class, %'] == pytest.approx(100 * recalls.min())
    assert np.sum(table.data['confusion']) == len(y)
    assert table.data['confusion'][3][5] == ((y == 3) & (guess == 5)).sum()


def test_interval_is_that_of_the_bootstrap() -> None:
    values = np.random.default_rng(0).exponential(size=400)
    ours = interval(values, 4000, seed=1)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=4000, method='percentile').confidence_interval
    width = theirs.high - theirs.low
    assert ours.value == pytest.approx(values.mean())
    assert abs(ours.low - theirs.low) < 0.1 * width and abs(ours.high - theirs.high) < 0.1 * width
    hits = np.r_[np.ones(70), np.zeros(30)]  # of a share: the quantiles of the binomial
    assert interval(hits, 4000)[1:] == pytest.approx(stats.binom(100, 0.7).ppf((0.025, 0.975)) / 100, abs=0.015)
    assert interval(np.ones(5)) == (1, 1, 1)


def test_differences_are_of_the_same_images() -> None:
    a, b = random_outputs(), random_outputs()
    better = Outputs(a.logits + 5 * torch.eye(12)[a.target] * (torch.arange(500) < 50)[:, None], a.target, a.embedding)
    tables = {'a': accuracy(nn.Identity(), a), 'same': accuracy(nn.Identity(), b),
              'better': accuracy(nn.Identity(), better)}
    compare(tables)
    row = 'top-1 minus that of a, points'
    assert tables['same'].rows[row] == (0, 0, 0)
    low, high = tables['better'].rows[row][1:]
    gain = tables['better']['top-1, %'] - tables['a']['top-1, %']
    # far tighter than the intervals of the two accuracies, which share the luck of the images
    assert gain > 0 and 0 < low < gain < high and high - low < 4
    assert row not in tables['a'].rows


def test_interval_of_the_mean_over_classes() -> None:
    rng = np.random.default_rng(0)
    target = np.repeat([0, 1, 2], (200, 40, 20))
    values = rng.random(260) + target
    mean, low, high = over_classes(values, target, 4000)
    assert mean == pytest.approx(np.mean([values[target == c].mean() for c in range(3)]))
    error = np.sqrt(sum(values[target == c].var() / (target == c).sum() for c in range(3))) / 3
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.1)
    assert over_classes(np.ones(3), np.array([0, 1, 1])) == (1, 1, 1)


def test_the_mean_over_classes_is_on_top_where_it_differs() -> None:
    logits = torch.eye(3)[[0, 0, 0, 1, 1, 0, 0]]
    for target, shown in (([0, 0, 0, 0, 0, 1, 2], True), ([0, 0, 0, 1, 1, 2, 2], False)):
        outputs = Outputs(logits, torch.tensor(target), torch.zeros(7, 1))
        tables = {'accuracy': {name: accuracy(nn.Identity(), outputs) for name in 'ab'}}
        compare(tables['accuracy'])
        names = [row.name for row in summary(tables)]
        assert ('mean over classes, % ↑' in names) == shown
        assert ('mean over classes minus that of a, points' in tables['accuracy']['b'].rows) == shown


def test_collect_gives_what_the_model_gives(resnet: nn.Module, loader: list[tuple[Tensor, Tensor]]) -> None:
    resnet.train()
    outputs = collect(resnet, loader)
    assert resnet.training
    resnet.eval()
    images = torch.cat([x for x, _ in loader])
    with torch.no_grad():
        torch.testing.assert_close(outputs.logits, resnet(images))
        torch.testing.assert_close(
            outputs.embedding, resnet.forward_head(resnet.forward_features(images), pre_logits=True))
    assert outputs.target.tolist() == [i % 10 for i in range(80)]
    wrapped = collect(wrap(resnet, 'multimix'), loader)
    assert torch.equal(wrapped.logits, outputs.logits) and torch.equal(wrapped.embedding, outputs.embedding)
    assert collect(resnet, outputs) is outputs


def test_any_module_that_ends_in_a_linear_layer() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 3))
    x, y = torch.randn(20, 3, 2, 2), torch.randint(3, (20,))
    outputs = collect(net, batches(x, y, 6))
    with torch.no_grad():
        torch.testing.assert_close(outputs.embedding, net[:3](x))
        torch.testing.assert_close(outputs.logits, net(x))
    assert 'top-5, %' not in accuracy(net, batches(x, y)).rows  # of three classes it would say nothing


@pytest.mark.parametrize('net, target, says', [
    (nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), torch.tensor([0, 3]), 'class 3, but the model has the 3 classes'),
    (nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), torch.tensor([0, -1]), 'class -1'),
    (nn.Sequential(nn.Linear(2, 3)), torch.tensor([0, 1]), r'returns a tensor \(2, 3, 2, 3\)'),
    (nn.Flatten(), torch.tensor([0, 1]), 'no linear layer'),
])
def test_what_cannot_be_evaluated_says_so(net: nn.Module, target: Tensor, says: str) -> None:
    with pytest.raises(SettingError, match=says):
        accuracy(net, [(torch.randn(2, 3, 2, 2), target)])


def test_nan_and_no_images() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    with pytest.raises(SettingError, match='no images'):
        accuracy(net, [])
    nn.init.constant_(net[1].weight, float('nan'))
    with pytest.raises(SettingError, match='not finite for 2 of 2'):
        accuracy(net, [(torch.randn(2, 3, 2, 2), torch.tensor([0, 1]))])
