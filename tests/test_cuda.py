"""What only a GPU can show."""
from __future__ import annotations

import pytest
import timm
import torch

import timm_multimix
from timm_multimix import MultiMixTask

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
