"""Every timm model keeps the contract of `contract.check`: a dozen heads here, the smallest model of every module when
slow tests are asked for."""
from __future__ import annotations

import pytest
import timm

import timm_multimix
from tests.heads.contract import CUT, check, smallest
from timm_multimix import SettingError

# Different heads: pool → linear; → norm → linear; a convolution or an MLP behind the pool; BatchNorm inside the
# classifier; two classifiers; a class token; one that timm does not name; channels last; a convolution as classifier.
NAMES = ('test_resnet', 'test_vit', 'test_convnext', 'test_mambaout', 'test_byobnet', 'test_efficientnet', 'test_nfnet',
         'mobilenetv3_small_050', 'levit_128s', 'regnetx_002', 'repvit_m0_9', 'test_vit4', 'coat_lite_tiny')
REFUSED = {'deit_tiny_distilled_patch16_224': 'classifies its class token alone',
           'crossvit_tiny_240': 'returns list'}


# Fewer pixels than they come with, for those of a fixed size.
PIXELS = {'coat_lite_tiny': 64, 'deit_tiny_distilled_patch16_224': 64, 'crossvit_tiny_240': 120}


def cut(name: str) -> dict[str, int]:
    return {'img_size': PIXELS[name]} if name in PIXELS else {}


@pytest.mark.parametrize('mode', ['multimix', 'dense'])
@pytest.mark.parametrize('name', [n for n in NAMES if timm.is_model(n)])
def test_a_dozen_heads(name: str, mode: str) -> None:
    assert check(name, mode, **cut(name)) is None


@pytest.mark.parametrize('name', REFUSED)
def test_refused_with_the_reason(name: str) -> None:
    assert check(name, 'multimix', **cut(name)) is None
    assert REFUSED[name] in (check(name, 'dense', **cut(name)) or '')


@pytest.mark.parametrize('name', ['test_resnet', 'test_vit'])
def test_feature_extractors_are_refused(name: str) -> None:
    with pytest.raises(SettingError, match='Create the model without features_only'):
        timm_multimix.wrap(timm.create_model(name, features_only=True), 'multimix')


# The modules whose smallest model has no positions to mix at, and a word of the reason. Everything else must work, and
# so must what a new timm brings.
NO_DENSE = {'coat': 'returns list', 'crossvit': 'returns list', 'efficientvim': 'returns list',
            'pit': 'only its 1 class token', 'volo': 'use_aux_head=False'}


@pytest.mark.slow
@pytest.mark.parametrize('module', timm.list_modules())
def test_every_module(module: str) -> None:
    name = smallest(module)
    if name is None:
        pytest.skip(f'{module} registers no model')
    smaller = CUT.get(module, {})
    assert check(name, 'multimix', **smaller) is None
    why = check(name, 'dense', **smaller)
    assert NO_DENSE.get(module, '') in (why or '') and bool(why) == (module in NO_DENSE), f'{name}: {why}'
