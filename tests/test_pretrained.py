"""Weights under other names become timm's, or it is said what does not fit."""
from __future__ import annotations

import pytest
import timm
import torch

from benchmarks.pretrained import convert
from timm_multimix import SettingError


def test_names_become_timms() -> None:
    model = timm.create_model('test_efficientnet').eval()
    theirs = {f'tensor_{i}': v for i, (k, v) in enumerate(model.state_dict().items()) if 'num_batches' not in k}
    other = timm.create_model('test_efficientnet').eval()
    other.load_state_dict(convert(theirs, 'test_efficientnet'))
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(other(images), model(images))


def test_weights_of_another_network() -> None:
    state = timm.create_model('test_efficientnet').state_dict()
    with pytest.raises(SettingError, match='but the weights are 2'):
        convert(dict(list(state.items())[:2]), 'test_efficientnet')
    with pytest.raises(SettingError, match=r'conv_stem.weight of test_efficientnet is \(.*, but conv_stem.weight is'):
        convert({**state, 'conv_stem.weight': torch.zeros(1)}, 'test_efficientnet')
