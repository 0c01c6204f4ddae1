"""What a docstring says raises `SettingError` does, with a sentence."""
from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from timm.data import Mixup

from timm_multimix import (
    MultiMixConfig,
    MultiMixModel,
    MultiMixTask,
    SettingError,
    from_pretrained,
    mixed_cross_entropy,
    sample_lam,
    wrap,
)
from timm_multimix.hub import save_plain

IMAGES, TARGET = torch.randn(4, 3, 32, 32), torch.arange(4) % 3


def model(mode: str = 'multimix', **settings: Any) -> MultiMixModel:
    return wrap(timm.create_model('test_resnet', num_classes=3), mode, input_size=(3, 32, 32), n=20, **settings)


@pytest.mark.parametrize('layer', ['embedding', 'input', 1])
@pytest.mark.parametrize('prob', [0.0, 1.0])
@pytest.mark.parametrize('training', [True, False])
def test_an_empty_batch(layer: Any, prob: float, training: bool) -> None:
    wrapped = model(layer=layer, prob=prob, mixup=0, cutmix=0).train(training)
    for door in (wrapped, MultiMixTask(wrapped, verbose=False).train(training),
                 MultiMixTask(timm.create_model('test_resnet', num_classes=3), verbose=False).train(training)):
        for target in (TARGET[:0], torch.zeros(0, 3)):
            with pytest.raises(SettingError, match='but there must be an (image|example)'):
                door(IMAGES[:0], target)
    assert not wrapped.policy.counts


def test_an_empty_batch_of_the_functions() -> None:
    with pytest.raises(SettingError, match='there must be an example'):
        mixed_cross_entropy(torch.randn(0, 4, 3), TARGET[:0], torch.ones(5, 4, 0))
    with pytest.raises(SettingError, match='batch is 0'):
        sample_lam(5, 1, 0, alpha=1.0)


@pytest.mark.parametrize('size', [32, '32', (32, 32), (3, 32.0, 32), (3, 0, 32)])
def test_sizes(size: Any) -> None:
    with pytest.raises(SettingError, match=r'input_size is .* but it must be \(C, H, W\) in pixels'):
        wrap(timm.create_model('test_resnet', num_classes=3), 'dense', input_size=size)


@pytest.mark.parametrize('name', [None, '', 3, b'x'])
def test_names(name: Any) -> None:
    with pytest.raises(SettingError, match='name is'):
        from_pretrained(name)


@pytest.mark.parametrize('smoothing', [5, -0.1, 1.0, math.nan])
def test_smoothing_of_timms_mixup(smoothing: float) -> None:
    mixup = Mixup(label_smoothing=smoothing, num_classes=3)
    plain = timm.create_model('test_resnet', num_classes=3)
    for make in (lambda: model(mixup_fn=mixup), lambda: MultiMixTask(plain, mixup_fn=mixup, verbose=False),
                 lambda: MultiMixTask(model(), mixup_fn=mixup, verbose=False)):
        with pytest.raises(SettingError, match='mixup_fn has label_smoothing'):
            make()


@pytest.mark.parametrize('settings, words', [
    ({'attention_detach': 'no'}, 'attention_detach .* it is True or False'), ({'preset': ['paper']}, 'preset'),
    ({'preset': {}}, 'preset'), ({'mode': None}, 'mode'), ({'mode': ['dense']}, 'mode'), ({'layer': 3.5}, 'layer'),
    ({'layer': {}}, 'layer'), ({'layer': [[1]]}, 'layer'), ({'n': 'many'}, r'n \(--multimix-n\)'),
    ({'n': 10**400}, r'n \(--multimix-n\)'), ({'clean_weight': 10**400}, 'clean_weight'),
    ({'alpha': {'a': 1}}, 'alpha'), ({'alpha': []}, 'alpha'),
    ({'effective': [1.5, 'x']}, 'effective'), ({'prob': math.nan}, 'prob'),
    ({'class_weight': {'cat': 1}}, 'class_weight'), ({'class_weight': ['a']}, 'class_weight'),
    ({'label_smoothing': True}, 'label_smoothing'), ({'gather': 1}, 'gather'), ({3: 4}, '3 is not a setting')])
def test_settings_of_any_kind_also_of_a_stranger(settings: dict[Any, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=words):
        MultiMixConfig.from_dict(settings)
    save_plain(model(), tmp_path / 'm')
    (tmp_path / 'm' / 'multimix.yaml').write_text(yaml.safe_dump(settings))
    with pytest.raises(SettingError, match='multimix.yaml of .* cannot be used'):
        from_pretrained(tmp_path / 'm')
