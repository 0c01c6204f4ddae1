"""Values that cannot be, in a loop of one's own: an error that names them, never a plausible number."""
from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

from timm_multimix import (
    LamSampler,
    MultiMixConfig,
    SettingError,
    attention,
    from_pretrained,
    mixed_cross_entropy,
    sample_lam,
    wrap,
)

B, P, C = 4, 3, 5
LOGITS, TARGET = torch.randn(B, P, C, generator=torch.Generator().manual_seed(0)), torch.arange(B)
LAM = sample_lam(6, P, B, 1.0, torch.Generator().manual_seed(0))


@pytest.mark.parametrize('change, words', [
    (dict(lam=2 * LAM), 'lam has a row that sums to 1 ± 1'), (dict(lam=-LAM), 'lam holds -'),
    (dict(lam=LAM * float('nan')), 'lam holds nan'), (dict(lam=LAM[:0]), 'there must be a mixture'),
    (dict(attention=-torch.rand(B, P)), 'attention holds -'), (dict(attention=torch.full((B, P), float('inf'))), 'inf'),
    (dict(attention=torch.full((B, P), float('nan'))), 'attention holds nan'),
    (dict(label_smoothing=5.0), 'label_smoothing is 5.0'), (dict(label_smoothing=-0.1), 'label_smoothing is -0.1'),
    (dict(logits=LOGITS[:0], target=TARGET[:0], lam=LAM[:, :, :0]), 'there must be an example')])
def test_the_loss_refuses_them(change: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {'logits': LOGITS, 'target': TARGET, 'lam': LAM, 'attention': torch.rand(B, P), **change}
    with pytest.raises(SettingError, match=words):
        mixed_cross_entropy(given.pop('logits'), given.pop('target'), given.pop('lam'), given.pop('attention'), **given)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rounded_weights_are_weights(dtype: torch.dtype) -> None:
    loss = mixed_cross_entropy(LOGITS, TARGET, LAM.to(dtype), torch.rand(B, P).to(dtype))
    torch.testing.assert_close(loss, mixed_cross_entropy(LOGITS, TARGET, LAM), rtol=0.2, atol=0)


def test_a_logit_that_is_no_number_comes_out_as_none() -> None:
    logits = LOGITS.clone()
    logits[0, 0, 0] = float('nan')
    assert mixed_cross_entropy(logits, TARGET, LAM).isnan()


@pytest.mark.parametrize('engine', ['torch', 'triton'])
@pytest.mark.parametrize('settings', [{}, {'keep_norm': True}, {'normalize': 'all'}])
def test_a_class_that_is_masked_is_as_if_it_were_not_there(engine: str, settings: dict[str, Any]) -> None:
    target = torch.tensor([0, 1, 3, 4])
    kept = torch.tensor([0, 1, 3, 4])
    a = torch.rand(B, P)
    masked = LOGITS.clone()
    masked[..., 2] = -float('inf')
    masked.requires_grad_()
    fewer = LOGITS[..., kept].clone().requires_grad_()
    got = mixed_cross_entropy(masked, target, LAM, a, engine=engine, **settings)
    want = mixed_cross_entropy(fewer, torch.arange(4), LAM, a, engine='torch', **settings)
    torch.testing.assert_close(got, want)
    got.backward(), want.backward()
    torch.testing.assert_close(masked.grad[..., kept], fewer.grad, rtol=1e-4, atol=1e-6)
    assert not masked.grad[..., 2].any()
    drawn = LamSampler(50, P, B, 0.05)
    loss = mixed_cross_entropy(masked, target, drawn, a, engine=engine, **settings)
    masked.grad = None
    loss.backward()
    assert loss.isfinite() and masked.grad.isfinite().all()


def test_a_class_masked_for_one_image_is_masked_in_what_it_is_mixed_into() -> None:
    logits, lam = LOGITS.clone(), torch.eye(B).unsqueeze(1).repeat(2, P, 1)
    logits[3, :, 0] = -float('inf')
    lam[4:] = 0
    lam[4:, :, 0] = lam[4:, :, 3] = 0.5  # of the image that lacks class 0, and one that is of it
    target = torch.tensor([1, 1, 2, 3])
    x = torch.einsum('npb,bpc->npc', lam, LOGITS)
    x[3::4, :, 0] = -float('inf')
    x[4:, :, 0] = -float('inf')
    y = torch.einsum('npb,bc->npc', lam, torch.nn.functional.one_hot(target, C).float())
    want = -torch.where(y > 0, y * x.log_softmax(-1), 0).sum(-1).mean()
    torch.testing.assert_close(mixed_cross_entropy(logits, target, lam), want)


@pytest.mark.parametrize('features', [torch.rand(4, 8), torch.rand(4, 3, 8).long(), torch.rand(0, 3, 8)])
def test_attention_refuses_other_features(features: torch.Tensor) -> None:
    with pytest.raises(SettingError, match='features must be floating'):
        attention(features)


def test_settings_of_the_wrong_kind() -> None:
    model = timm.create_model('test_resnet', num_classes=5)
    for bad in (32, (3, 32), (3, 0, 32), (3, 32.5, 32)):
        with pytest.raises(SettingError, match='input_size is'):
            wrap(model, 'dense', input_size=bad)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="attention_detach .* is 'no', but it is True or False"):
        MultiMixConfig('dense', attention_detach='no')  # type: ignore[arg-type]
    for name in (None, '', 3):
        with pytest.raises(SettingError, match='name is'):
            from_pretrained(name)  # type: ignore[arg-type]
