"""What only a GPU can show."""
from __future__ import annotations

import pytest
import timm
import torch

import timm_multimix
from timm_multimix import LamSampler, MultiMixTask, mixed_cross_entropy
from timm_multimix.mixing import cross_entropy

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA GPU')


@pytest.mark.parametrize('mode', ['multimix', 'dense'])
@pytest.mark.parametrize('engine', ['torch', 'triton'])
@pytest.mark.parametrize('preset', ['default', 'embeddings', 'paper'])
def test_a_training_step_does_not_wait_for_the_gpu(mode: str, engine: str, preset: str) -> None:
    model = timm.create_model('test_resnet', num_classes=10).cuda()
    task = MultiMixTask(timm_multimix.wrap(model, mode, engine=engine, preset=preset), verbose=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    images, target = torch.randn(16, 3, 64, 64, device='cuda'), torch.arange(16, device='cuda') % 10

    def step() -> torch.Tensor:
        with torch.autocast('cuda', dtype=torch.bfloat16):
            loss = task(images, target)['loss']
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    step()  # compiles kernels, looks once at the settings
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('error')
    try:
        loss = step()
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert torch.isfinite(loss)


@pytest.mark.parametrize('engine', ['torch', 'triton'])
@pytest.mark.parametrize('soft', [False, True])
def test_targets_and_class_weights_are_not_read_back(engine: str, soft: bool) -> None:
    logits, a = torch.randn(16, 4, 10, device='cuda', requires_grad=True), torch.rand(16, 4, device='cuda')
    target = torch.arange(16, device='cuda', dtype=torch.int32) % 10
    if soft:
        target = torch.rand(16, 10, device='cuda').softmax(1)
    w = torch.rand(10, device='cuda')

    def step() -> torch.Tensor:
        lam = LamSampler(100, 4, 16, 0.1, device='cuda')
        loss = mixed_cross_entropy(logits, target, lam, a, label_smoothing=0.1, engine=engine, class_weight=w)
        loss = loss + cross_entropy(logits.mean(1), target, label_smoothing=0.1, class_weight=w)
        loss.backward()
        return loss

    step()  # compiles kernels
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('error')
    try:
        loss = step()
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()
