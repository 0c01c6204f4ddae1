"""Values that cannot be, in a loop of one's own: an error that names them, never a plausible number."""
from __future__ import annotations

import math
from typing import Any, Optional

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.mixing.test_loss import values_and_grads
from timm_multimix import (
    LamSampler,
    SettingError,
    attention,
    mixed_cross_entropy,
    sample_lam,
)
from timm_multimix.mixing import cross_entropy

try:
    from timm_multimix.mixing.engines.triton_engine import INTERPRETED
except ImportError:
    INTERPRETED = False
ENGINES = ['torch', 'triton'] if INTERPRETED else ['torch']  # on the CPU

B, P, C = 4, 3, 5
LOGITS, TARGET = torch.randn(B, P, C, generator=torch.Generator().manual_seed(0)), torch.arange(B)
LAM = sample_lam(6, P, B, 1.0, torch.Generator().manual_seed(0))


@pytest.mark.parametrize('change, words', [
    (dict(lam=2 * LAM), 'lam has a row that sums to 1 ± 1'), (dict(lam=-LAM), 'lam holds -'),
    (dict(lam=LAM * float('nan')), 'lam holds nan'), (dict(lam=LAM[:0]), 'there must be a mixture'),
    (dict(attention=-torch.rand(B, P)), 'attention holds -'), (dict(attention=torch.full((B, P), float('inf'))), 'inf'),
    (dict(attention=torch.full((B, P), float('nan'))), 'attention holds nan'),
    (dict(lam=LAM.long()), 'lam is torch.int64, but weights must be floating'),
    (dict(attention=torch.ones(B, P).bool()), 'attention is torch.bool'),
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


WRONG = {
    'lam': (dict(lam=2 * LAM), 'lam has a row'),
    'attention': (dict(attention=torch.full((B, P), -1.0)), 'attention holds -1'),
    'class indices': (dict(target=TARGET + 100), 'class 103'),
    'soft targets': (dict(target=2 * F.one_hot(TARGET, C)), 'sums to 2'),
    'class weights': (dict(class_weight=-torch.ones(C)), 'class_weight holds -1')}


def loss_of(logits: Tensor, target: Tensor = TARGET, lam: Tensor = LAM, **settings: Any) -> Tensor:
    return mixed_cross_entropy(logits, target, lam, **settings)


@pytest.mark.parametrize('what', WRONG)
def test_values_are_looked_at_when_asked(what: str) -> None:
    change, words = WRONG[what]
    for validate in (None, True):
        with pytest.raises(SettingError, match=words):
            loss_of(LOGITS, **change, validate=validate)
    if what != 'class indices':  # which are an index, too
        loss_of(LOGITS, **change, validate=False)


@pytest.mark.parametrize('what', ['lam', 'class weights'])
def test_compiled_as_on_a_device_values_are_looked_at_only_when_asked(what: str) -> None:
    change, words = WRONG[what]
    torch._dynamo.reset()
    compiled = torch.compile(loss_of, backend='eager')
    compiled(LOGITS, **change)
    compiled(LOGITS, **change, validate=False)
    with pytest.raises(SettingError, match=words):
        compiled(LOGITS, **change, validate=True)
    assert compiled(LOGITS, validate=True).isfinite()


@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
@pytest.mark.parametrize('binary', [False, True])
@pytest.mark.parametrize('engine', ENGINES)
@pytest.mark.parametrize('attending', [False, True])
def test_a_logit_that_is_no_number_makes_loss_and_gradient_nan(
        bad: float, binary: bool, engine: str, attending: bool) -> None:
    """Even that of an example which none of the few mixtures has."""
    if engine == 'triton' and binary:
        pytest.skip('no binary cross-entropy')
    batch = 64
    logits, target = torch.randn(batch, 1, C), torch.arange(batch) % C
    a = torch.rand(batch, 1) if attending else None
    for example in (0, batch - 1):
        spoiled = logits.clone()
        spoiled[example, 0, 1] = bad
        for lam in (LamSampler(1, 1, batch, 1e-3), torch.eye(batch)[5:6].unsqueeze(1)):
            loss, grad = values_and_grads(
                lambda L: mixed_cross_entropy(L, target, lam, a, engine=engine, binary=binary), spoiled)  # noqa: B023
            assert loss.isnan() and grad.isnan().all()


@pytest.mark.parametrize('engine', ENGINES)
def test_attention_that_is_no_number_and_is_not_looked_at_makes_loss_and_gradient_nan(engine: str) -> None:
    a = torch.rand(B, P)
    a[1, 2] = float('nan')
    found = values_and_grads(lambda L: loss_of(L, attention=a, engine=engine, validate=False), LOGITS)
    assert all(t.isnan().all() for t in found)


HOW = {
    'plain': {}, 'keep_norm': {'keep_norm': True}, 'all': {'normalize': 'all'}, 'binary': {'binary': True},
    'binary, keep_norm': {'binary': True, 'keep_norm': True}, 'class_weight': {'class_weight': True},
    'class_weight, keep_norm': {'class_weight': True, 'keep_norm': True}}


DRAWN = {'given': None, 'drawn': 1.0, 'drawn as sticks': 1 / 64}  # α


@pytest.mark.parametrize('lam', DRAWN)
@pytest.mark.parametrize('engine, classes, how, attending', [
    (engine, classes, how, attending) for how in HOW for attending in ('uniform', 'attention', 'learned attention')
    for engine, classes in (('torch', 5), ('torch', 100), ('triton', 100))  # fewer and more than examples
    if engine in ENGINES and not (attending == 'learned attention' and (engine == 'triton' or 'keep_norm' in HOW[how]))
    and not (engine == 'triton' and 'binary' in HOW[how])])
def test_a_class_that_is_masked_is_as_if_it_were_not_there(
        engine: str, classes: int, how: str, attending: str, lam: str) -> None:
    batch, P, N, masked, g = 64, 2, 30, [2, classes - 1], torch.Generator().manual_seed(0)
    kept = [c for c in range(classes) if c not in masked]
    settings, learned = dict(HOW[how]), attending == 'learned attention'
    weight = torch.rand(classes, generator=g) if settings.pop('class_weight', False) else None
    logits = torch.randn(batch, P, classes, generator=g)
    if lam == 'given':
        logits = logits.half()
    a = torch.rand(batch, P, generator=g)
    target = torch.arange(batch) % len(kept)  # of those that are kept

    def mixtures() -> Any:
        again, alpha = torch.Generator().manual_seed(1), DRAWN[lam]
        if alpha is None:
            return sample_lam(N, P, batch, 0.1, again)
        sampler = LamSampler(N, P, batch, alpha, again)
        assert bool(sampler.sticks) == (lam == 'drawn as sticks')
        return sampler

    def both(engine: str, L: Tensor, target: Tensor, weight: Optional[Tensor]) -> list[Tensor]:
        def loss(L: Tensor, a: Tensor) -> Tensor:
            return mixed_cross_entropy(
                L, target, mixtures(), {'uniform': None, 'attention': a.detach(), 'learned attention': a}[attending],
                engine=engine, class_weight=weight, **settings)
        return values_and_grads(loss, L, a)

    gone = logits.clone()
    gone[..., masked] = -float('inf')
    got = both(engine, gone, torch.tensor(kept)[target], weight)
    same = engine if lam == 'drawn as sticks' else 'torch'  # which alone draws a few sticks and shares the rests
    want = both(same, logits[..., kept], target, None if weight is None else weight[kept])
    if settings.get('binary'):  # its mean is over all classes
        want = [t * (len(kept) / classes) for t in want]
    assert not got[1][..., masked].any() and got[2].any() == learned
    got[1] = got[1][..., kept]
    tf32 = engine == 'triton' and lam == 'given'  # in which it multiplies halves
    for x, t in zip(got, want):
        torch.testing.assert_close(x, t, rtol=2e-3 if x.dtype == torch.float16 else 5e-4 if tf32 else 1e-4, atol=2e-6)


@pytest.mark.parametrize('how', HOW)
@pytest.mark.parametrize('engine', ENGINES)
@pytest.mark.parametrize('attending', [False, True])
@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_a_target_on_a_masked_class_is_a_huge_loss_and_never_nan(
        how: str, engine: str, attending: bool, smoothing: float) -> None:
    settings = dict(HOW[how])
    if engine == 'triton' and 'binary' in settings:
        pytest.skip('refused')
    if settings.pop('class_weight', False):
        settings['class_weight'] = torch.rand(C) + 0.1
    masked = LOGITS.clone()
    masked[..., 2] = -float('inf')
    learned = attending and engine == 'torch' and 'keep_norm' not in settings
    leaves = (torch.rand(B, P),) if attending else ()
    target = TARGET if not smoothing else torch.tensor([0, 1, 3, 4])  # smoothing has a target on every class
    found = values_and_grads(
        lambda L, *a: mixed_cross_entropy(
            L, target, LAM, *(a if learned else [x.detach() for x in a]), engine=engine, label_smoothing=smoothing,
            **settings), masked, *leaves)
    assert found[0] > 1e20 and math.isinf(float(F.cross_entropy(masked[:, 0], target, label_smoothing=smoothing)))
    assert not any(t.isnan().any() for t in found) and found[1].isfinite().all()


def test_a_masked_class_where_nothing_is_mixed() -> None:
    masked = LOGITS[:, 0].clone()
    masked[:, 4] = -float('inf')
    for target in (TARGET, F.one_hot(TARGET, C).float()):
        got = values_and_grads(lambda L: cross_entropy(L, target), masked)  # noqa: B023
        want = values_and_grads(lambda L: F.cross_entropy(L, TARGET), masked[:, :4])
        torch.testing.assert_close(got[0], want[0])
        torch.testing.assert_close(got[1][:, :4], want[1])
        assert not got[1][:, 4].any()
    masked[:, 1] = -float('inf')  # a target has this
    for loss in (lambda L: cross_entropy(L, TARGET), lambda L: loss_of(L, lam=torch.eye(B).unsqueeze(1))):
        value, grad = values_and_grads(loss, masked)
        assert value > 1e20 and grad.isfinite().all()


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


@pytest.mark.parametrize('change, words', [
    (dict(weight=None), 'needs target=… and weight=…'),
    (dict(weight=torch.rand(5, 7)), r'weight must be the classifier.s \(C, 8\), not \(5, 7\)'),
    (dict(weight=torch.rand(5, 8, 1, 1)), r'weight must be'),
    (dict(target=torch.tensor([0, 1, 2, 5])), 'class 5, but the model has the 5 classes'),
    (dict(target=torch.rand(4, 6)), '6 columns'), (dict(target=torch.tensor([0, 1])), 'of 2 examples')])
def test_attention_of_a_class_needs_targets_and_weights_that_fit(change: dict[str, Any], words: str) -> None:
    given = {'target': torch.arange(4), 'weight': torch.rand(5, 8), **change}
    with pytest.raises(SettingError, match=words):
        attention(torch.rand(4, 3, 8), 'cam', **given)


@pytest.mark.parametrize('features', [
    torch.rand(4, 8), torch.rand(4, 3, 8).long(), torch.rand(0, 3, 8), torch.rand(4, 0, 8)])
def test_attention_refuses_other_features(features: torch.Tensor) -> None:
    with pytest.raises(SettingError, match=r'features must be floating \(B, P, D\)'):
        attention(features)


