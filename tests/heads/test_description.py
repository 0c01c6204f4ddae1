"""describe: what a model ends in, and what mixing would do with it."""
from __future__ import annotations

import copy

import pytest
import timm
import torch

import timm_multimix
from tests import forked
from timm_multimix.heads import description
from timm_multimix.heads.positions import input_size_of


def test_a_convolutional_network() -> None:
    model = timm.create_model('resnet18', num_classes=7)
    found = description(model, (3, 64, 64))
    assert (found.name, found.classes, found.width, found.classifiers) == ('ResNet', 7, 512, ('fc',))
    assert found.parameters == sum(p.numel() for p in model.parameters()) and found.input_size == (3, 64, 64)
    assert [layer for _, layer in found.head] == ['AdaptiveAvgPool2d', 'Flatten', 'Linear']
    assert found.head_info is not None and found.head_info.positions == 4 and found.refused is None


def test_layers_in_the_head_are_named_in_order() -> None:
    found = description(timm.create_model('convnext_atto', num_classes=7), (3, 64, 64))
    assert [name for name, _ in found.head] == ['head.global_pool.pool', 'head.norm', 'head.flatten', 'head.fc']
    assert 'by the head above, to one position at a time' in str(found)
    found = description(timm.create_model('levit_128s', num_classes=7))
    assert found.classifiers == ('head.linear', 'head_dist.linear') and 'mean of 2 classifiers' in str(found)
    assert 'head.bn, head_dist.bn: running statistics' in str(found)


def test_the_model_stays_as_it_is() -> None:
    model = timm.create_model('vit_tiny_patch16_224', num_classes=7, img_size=32).train()
    before = copy.deepcopy(model.state_dict())
    found = description(model)
    assert found.timm_args == {'global_pool': 'avg', 'fc_norm': False} and model.global_pool == 'token'
    assert model.training and all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    wrapped = timm_multimix.wrap(model, 'multimix')
    assert str(description(wrapped)) == str(found)


def test_says_why_dense_cannot_be() -> None:
    found = description(timm.create_model('deit_tiny_distilled_patch16_224', num_classes=7))
    assert found.head_info is None and 'class token alone' in str(found)
    with pytest.raises(timm_multimix.SettingError, match='num_classes=0'):
        description(timm.create_model('resnet18', num_classes=0))


@pytest.mark.parametrize('name', ['tresnet_m', 'resnet18', 'test_vit', 'test_mambaout', 'test_efficientnet'])
@pytest.mark.parametrize('channels', [1, 3])
def test_the_channels_that_a_model_takes(name: str, channels: int) -> None:
    with torch.device('meta'):
        model = timm.create_model(name, in_chans=channels)
    assert input_size_of(model)[0] == channels


def test_command_line() -> None:
    strictly = ("import runpy, warnings; warnings.simplefilter('error', RuntimeWarning)\n"
                "runpy.run_module('timm_multimix.describe', run_name='__main__', alter_sys=True)")
    done = forked.run('-c', strictly, 'test_vit', 'test_resnet', '--img-size', '64', '--num-classes', '5', bare=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('5 classes') == 2 and 'images 3×64×64' in done.stdout
    code = "import timm, timm_multimix.describe; timm_multimix.describe(timm.create_model('test_resnet'))"
    imported = forked.run('-c', code)
    assert imported.returncode == 0 and 'multimix' in imported.stdout, imported.stderr
    wrong = forked.run('-m', 'timm_multimix.describe', 'resnet81')
    assert wrong.returncode == 2 and 'Did you mean resnet18' in wrong.stderr
