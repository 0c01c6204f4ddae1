"""What only a GPU can show."""
from __future__ import annotations

import itertools

import pytest
import timm
import torch

import timm_multimix
from timm_multimix import LamSampler, MultiMixTask, mixed_cross_entropy
from timm_multimix.mixing import cross_entropy

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA GPU')

B = 128  # of fewer, Λ would not be drawn as in practice


@pytest.mark.parametrize('mode', ['multimix', 'dense'])
@pytest.mark.parametrize('engine', ['torch', 'triton'])
@pytest.mark.parametrize('preset', ['default', 'embeddings', 'paper'])
def test_a_training_step_does_not_wait_for_the_gpu(mode: str, engine: str, preset: str) -> None:
    model = timm.create_model('test_resnet', num_classes=10).cuda()
    task = MultiMixTask(timm_multimix.wrap(model, mode, engine=engine, preset=preset), verbose=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    images, target = torch.randn(B, 3, 64, 64, device='cuda'), torch.arange(B, device='cuda') % 10
    task.set_progress(0.9)
    mixing = (i for i in itertools.count() if task.policy.choose(i).embeddings)

    def step() -> torch.Tensor:
        task.policy.step = next(mixing)
        with torch.autocast('cuda', dtype=torch.bfloat16):
            result = task(images, target)
        assert 'embeddings' in result['mixed']
        result['loss'].backward()
        optimizer.step()
        optimizer.zero_grad()
        return result['loss']

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


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('C', [10, 1000])
def test_sticks_are_the_vectors_they_stand_for(dtype: torch.dtype, C: int, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    draw = LamSampler.draw_sticks
    monkeypatch.setattr(LamSampler, 'draw_sticks', lambda self, p, n: drawn.append(draw(self, p, n)) or drawn[-1])
    logits = torch.randn(B, 5, C, device='cuda', dtype=dtype, requires_grad=True)
    target, a = torch.arange(B, device='cuda') % C, torch.rand(B, 5, device='cuda')

    def value_and_grad(lam: LamSampler | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        loss = mixed_cross_entropy(logits, target, lam, a, engine='torch')
        return loss, torch.autograd.grad(loss, logits)[0]

    found = value_and_grad(LamSampler(2000, 5, B, 1 / B, device='cuda'))  # for fewer, there may be no sticks
    assert drawn
    rounding = 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps
    for got, want in zip(found, value_and_grad(torch.cat([sticks.dense() for sticks in drawn]).transpose(0, 1))):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=rounding * float(want.abs().max()))
