"""LoRA by peft: injected before or after wrapping, and merged again."""
from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn as nn

import timm_multimix

peft = pytest.importorskip('peft', reason="needs peft: pip install '.[examples]'")

IMAGES, TARGET = torch.randn(4, 3, 64, 64, dtype=torch.float64), torch.tensor([0, 1, 2, 3])


def net() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model('test_vit', img_size=64, num_classes=5, global_pool='avg').double()


def injected(model: nn.Module, inject: Callable[..., nn.Module]) -> nn.Module:
    """With adapters that are not 0 at the start, as they are by default."""
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, target_modules=['qkv', 'proj'], modules_to_save=['head'], init_lora_weights=False)
    return (inject(model, config) if inject is peft.get_peft_model else inject(config, model)).double().train()


@pytest.mark.parametrize('mode', ['multimix', 'dense'])
@pytest.mark.parametrize('inject', [peft.get_peft_model, peft.inject_adapter_in_model])
def test_before_or_after_wrapping_is_the_same(mode: str, inject: Callable[..., nn.Module]) -> None:
    def wrap(model: nn.Module) -> timm_multimix.MultiMixModel:
        return timm_multimix.wrap(model, mode, preset='embeddings', n=30)

    plain = net()
    keys = list(plain.state_dict())
    after = injected(wrap(plain), inject)
    before = injected(net(), inject)
    wrapped = wrap(before.base_model.model if inject is peft.get_peft_model else before)
    P = 1 if wrapped.head_info is None else wrapped.head_info.positions
    lam = timm_multimix.sample_lam(30, P, 4, 0.5, dtype=torch.float64)
    one, other = (model(IMAGES, TARGET, lam=lam) for model in (after, wrapped))
    assert one.mixed == 'embeddings' and torch.equal(one.loss, other.loss)
    unchanged = timm_multimix.wrap(net(), mode, preset='embeddings')(IMAGES, TARGET, lam=lam).loss
    assert not torch.allclose(one.loss, unchanged)  # the adapters are in it

    one.loss.backward()
    trained = {name for name, p in after.named_parameters() if p.grad is not None}
    assert trained and all('lora_' in name or 'head' in name for name in trained)
    if inject is peft.get_peft_model:
        for model, either in ((after, after), (before, wrapped)):
            want = either.eval()(IMAGES)
            merged = timm_multimix.unwrap(model.merge_and_unload())
            assert type(merged) is type(plain) and list(merged.state_dict()) == keys
            torch.testing.assert_close(merged(IMAGES), want)
            net().load_state_dict(merged.state_dict())
