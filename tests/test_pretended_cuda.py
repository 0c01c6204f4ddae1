"""What a GPU would refuse or wait for, found without one: CUDA tensors that have a shape and a device, and no values.

Tensors of two devices that meet raise an error, and so does a value that is read. The backward pass needs a real
device.
"""
from __future__ import annotations

import itertools
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import timm_multimix
from timm_multimix import MultiMixTask
from timm_multimix.policy import Plan

B, SIZE = 128, 64


def to_pretended_cuda(module: nn.Module) -> None:
    for part in module.modules():
        for name, p in part.named_parameters(recurse=False):
            setattr(part, name, nn.Parameter(torch.empty(p.shape, device='cuda')))
        for name, b in part.named_buffers(recurse=False):
            part._buffers[name] = torch.empty(b.shape, dtype=b.dtype, device='cuda')


@pytest.mark.parametrize('settings', [
    {},
    {'preset': 'default'},
    {'preset': 'paper'},
    {'preset': 'manifold'},
    {'mode': 'multimix'},
    {'mode': 'multimix', 'preset': 'regmixup'},
    {'mode': 'multimix', 'layer': 'layer2'},
    {'attention': 'cam', 'class_weight': [1.0] * 9 + [2.0], 'label_smoothing': 0.1},
    {'attention': 'uniform', 'keep_norm': True},
    {'attention_detach': False, 'normalize': 'all'},
    {'balance': 1.0},
    {'tuples': 'within'},
    {'tuples': 'across', 'm': 3},
    {'bce_loss': True, 'bce_target_thresh': 0.2},
    {'effective': (40, 60)},
    {'teacher': 'ema', 'teacher_start': 0.0},
    {'teacher': 'ema', 'teacher_start': 0.0, 'teacher_reading': 'logits', 'teacher_at': 'position'},
], ids=str)
def test_a_training_step_stays_on_the_gpu_and_does_not_wait(
        settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Plan, 'generator', lambda self, device: None)  # without a GPU there are none of its generators
    settings = {'mode': 'dense', 'preset': 'embeddings', 'engine': 'torch', **settings}
    model = timm_multimix.wrap(timm.create_model('test_resnet', num_classes=10), input_size=(3, SIZE, SIZE), **settings)
    task = MultiMixTask(model, verbose=False)
    if model.multimix.config.teacher:
        task.setup_ema(decay=0.9)
    task.set_progress(0.9)
    model.multimix.needs_first_check = False  # which looks once
    mixing = (i for i in itertools.count() if task.policy.choose(i).embeddings)
    with FakeTensorMode():
        to_pretended_cuda(task)
        images, target = torch.empty(B, 3, SIZE, SIZE, device='cuda'), torch.empty(B, device='cuda', dtype=torch.long)
        task.policy.step = next(mixing)
        result = task(images, target)
    assert 'embeddings' in result['mixed']
    assert result['loss'].device.type == 'cuda' and result['loss'].requires_grad
