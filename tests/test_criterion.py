"""A criterion handed to the task: it holds on every step, mixed or not, or it is refused."""
from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
import torch.nn as nn
from timm.data import Mixup
from timm.loss import BinaryCrossEntropy, JsdCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

from timm_multimix import MultiMixTask, SettingError, unwrap, wrap

IMAGES, TARGET = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 5
WEIGHT = (1.0, 2.0, 3.0, 4.0, 5.0)


def make(**settings: Any) -> MultiMixTask:
    return MultiMixTask(wrap(timm.create_model('test_resnet', num_classes=5), 'multimix', n=10, ramp=0, **settings))


@pytest.mark.parametrize('criterion, settings', [
    (nn.CrossEntropyLoss(label_smoothing=0.1), {'label_smoothing': 0.1}),
    (nn.CrossEntropyLoss(weight=torch.tensor(WEIGHT)), {'class_weight': WEIGHT}),
    (LabelSmoothingCrossEntropy(0.2), {'label_smoothing': 0.2}),
    (SoftTargetCrossEntropy(), {}),
    (BinaryCrossEntropy(0.1, target_threshold=0.2, sum_classes=True),
     {'bce_loss': True, 'bce_sum': True, 'bce_target_thresh': 0.2, 'label_smoothing': 0.1}),
    (nn.BCEWithLogitsLoss(), {'bce_loss': True}),
    (nn.functional.cross_entropy, {})])
def test_in_timms_place_it_is_what_every_step_trains_on(criterion: Any, settings: dict[str, Any]) -> None:
    """As the settings that mean the same, whether it is given to the task or set on it."""
    want = make(**settings)
    given, later = (wrap(copy.deepcopy(unwrap(want.trainable_module)), 'multimix', n=10, ramp=0) for _ in range(2))
    tasks = [want, MultiMixTask(given, criterion), MultiMixTask(later)]
    tasks[2].criterion = criterion
    seen = set()
    for _ in range(12):
        results = [task(IMAGES, TARGET) for task in tasks]
        assert results[0]['loss'] == results[1]['loss'] == results[2]['loss']
        seen.add(results[0]['mixed'])
    assert {'embeddings', 'mixup', 'cutmix'} <= seen
    assert given.multimix.config == later.multimix.config == want.config


@pytest.mark.parametrize('criterion, words', [
    (JsdCrossEntropy(), 'JsdCrossEntropy, but embeddings are mixed with cross-entropy'),
    (nn.CrossEntropyLoss(reduction='sum'), "reduction='sum', which mixing has not"),
    (nn.CrossEntropyLoss(ignore_index=3), 'ignore_index=3'),
    (nn.BCEWithLogitsLoss(pos_weight=torch.ones(5)), 'pos_weight'),
    (BinaryCrossEntropy(weight=torch.ones(5)), 'weight=.*class_weight weighs classes on every step'),
    (nn.CrossEntropyLoss(weight=torch.ones(4)), 'has 4 weights, but the model has 5 classes'),
    (lambda x, y: x.sum(), 'criterion is <lambda>'),
    (Mixup(num_classes=5), 'mixup_fn=… takes it')])
def test_one_that_mixing_cannot_keep_is_refused(criterion: Any, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        MultiMixTask(make().trainable_module, criterion)
    if not isinstance(criterion, Mixup):
        task = make()
        with pytest.raises(SettingError, match=words):
            task.criterion = criterion


def test_settings_that_contradict_it() -> None:
    with pytest.raises(SettingError, match='bce_loss False, but the settings of the model have True'):
        make(bce_loss=True).criterion = nn.CrossEntropyLoss()
    with pytest.raises(SettingError, match='class_weight None, but'):
        make(class_weight=WEIGHT).criterion = nn.CrossEntropyLoss()
    with pytest.raises(SettingError, match='label_smoothing 0.1, but the settings of the model have 0.2'):
        make(label_smoothing=0.2).criterion = LabelSmoothingCrossEntropy(0.1)
    with pytest.raises(SettingError, match='give only one'):
        MultiMixTask(timm.create_model('test_resnet', num_classes=5), nn.CrossEntropyLoss(), label_smoothing=0.1)


def test_a_plain_model_takes_any_criterion_and_class_weights() -> None:
    model = timm.create_model('test_resnet', num_classes=5)
    result = MultiMixTask(model, lambda logits, target: logits.sum())(IMAGES, TARGET)
    assert result['loss'] == result['output'].sum()
    result = MultiMixTask(model, class_weight=WEIGHT, label_smoothing=0.1)(IMAGES, TARGET.int())
    torch.testing.assert_close(result['loss'], nn.functional.cross_entropy(
        result['output'], TARGET, weight=torch.tensor(WEIGHT), label_smoothing=0.1))
