"""What the policy decides: the ramp, presets, schedules, and policies of one's own."""
from __future__ import annotations

import math
import warnings
from collections import Counter
from functools import partial
from typing import Any, Optional

import numpy as np
import pytest
import timm
import torch
import torch.nn as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.data import Mixup

from tests.models import IMAGES, TARGET
from tests.models import a_resnet as model
from timm_multimix import MultiMixConfig, MultiMixTask, SettingError, unwrap, wrap
from timm_multimix.config import PRESETS
from timm_multimix.mixing import LamSampler
from timm_multimix.policy import MixingPolicy, told

# ------------------------------------------------------------------------------------------------------------ the ramp

@settings(max_examples=50, deadline=None)
@given(preset=st.sampled_from(['default', 'embeddings', 'paper', 'manifold']), epochs=st.integers(3, 50),
       batches=st.integers(1, 40), seed=st.integers(0, 10**6))
def test_who_turns_it_on_gets_it(preset: str, epochs: int, batches: int, seed: int) -> None:
    """A tenth of all steps or more is expected to mix embeddings, in any training of three epochs or more."""
    policy = MixingPolicy(MultiMixConfig('dense', preset=preset), 10, seed=seed)
    expected = policy.expected(epochs)
    assert expected['embeddings'] >= 0.1
    steps = epochs * batches
    mixed = [0.0] * 2
    for step in range(steps):
        policy.set_progress(step / batches, epochs)
        plan = policy.choose(step)
        mixed[0] += plan.embeddings
        mixed[1] += policy.config.prob * policy.share  # type: ignore[union-attr]
    assert abs(mixed[0] - mixed[1]) <= 5 * math.sqrt(steps) / 2 + 1


def test_counts_are_near_what_was_expected() -> None:
    for given_ in ({}, {'ramp_epochs': 5}, {'prob': 1.0, 'mixup': 0.5}, {'preset': 'paper'}, {'preset': 'regmixup'}):
        config = MultiMixConfig('multimix', **given_)
        policy = MixingPolicy(config, 5)
        expected = policy.expected(20)
        images, target = torch.zeros(2, 3, 4, 4), torch.tensor([0, 1])
        for step in range(2000):
            policy.set_progress(step / 100, 20)
            policy.begin(images, target)
        for what, share in expected.items():
            assert policy.counts[what] == pytest.approx(2000 * share, abs=100), (given_, what)
    assert policy.counts['embeddings'] == 2000


def test_the_ramp_of_half_of_200_epochs_is_the_one_of_100_epochs() -> None:
    """So what was measured with the one holds for the other."""
    a, b = (MixingPolicy(MultiMixConfig('dense', **ramp), 10) for ramp in ({'ramp': 0.5}, {'ramp_epochs': 100}))
    for step in range(0, 200 * 39, 7):
        for policy in (a, b):
            policy.set_progress(step / 39, 200)
        assert a.share == pytest.approx(b.share, rel=1e-12)
        assert a.choose(step) == b.choose(step)


def test_a_ramp_in_epochs_needs_epochs() -> None:
    wrapped = model(ramp_epochs=4)
    with pytest.raises(SettingError, match=r'set_progress\(epoch, epochs\)'):
        wrapped.set_progress(0.5)
    wrapped.set_progress(2, 100)
    assert wrapped.policy.share == 0.5
    MultiMixTask(wrapped).set_progress(3, 100)
    assert wrapped.policy.share == 0.75


@pytest.mark.parametrize('done, of', [
    (math.nan, None), (-0.1, None), (1.5, None), (math.inf, None), (1, 0), (1, math.nan), (1, -2), ('a', None)])
def test_progress_that_cannot_be(done: Any, of: Any) -> None:
    with pytest.raises(SettingError, match='set_progress'):
        model().set_progress(done, of)


def test_both_ramps_and_ramps_beside_schedules_are_errors() -> None:
    with pytest.raises(SettingError, match='two ways of saying one thing'):
        model(ramp=0.5, ramp_epochs=3)
    with pytest.raises(SettingError, match='schedule says on which share'):
        model(ramp=0.3, schedule=lambda progress: 1.0)
    for bad in ({'ramp': 1.5}, {'ramp': -1}, {'ramp_epochs': -1}):
        with pytest.raises(SettingError, match='--multimix-ramp'):
            model(**bad)


# ---------------------------------------------------------------------------------------------------- for researchers

def test_a_schedule_and_a_policy_of_ones_own() -> None:
    class Late(MixingPolicy):
        @property
        def share(self) -> float:
            return float((self.progress or 0) >= 0.5)

    for wrapped in (model(schedule=lambda progress: float(progress >= 0.5)), model(policy=Late)):
        for progress, kinds in ((0.4, {'nothing'}), (0.5, {'embeddings', 'mixup', 'cutmix'})):
            wrapped.set_progress(progress)
            assert {wrapped(IMAGES, TARGET).mixed for _ in range(15)} == kinds
    with pytest.raises(SettingError, match='schedule gave 2.0'):
        bad = model(schedule=lambda progress: 2.0)
        bad.set_progress(0.1)
        bad(IMAGES, TARGET)


@pytest.mark.parametrize('layer', ['embedding', 'input'])
def test_a_sampler_of_ones_own_decides_what_is_mixed(layer: str) -> None:
    """With Λ the identity the mixed loss is the plain one."""
    asked: list[tuple[int, ...]] = []

    def identity(lam: LamSampler, y: torch.Tensor, logits: Optional[torch.Tensor]) -> torch.Tensor:
        asked.append((lam.n, lam.positions, lam.batch, *y.shape))
        assert (logits is None) == (layer == 'input')
        return torch.eye(lam.batch).unsqueeze(1).expand(-1, lam.positions, -1)

    wrapped = model(preset='embeddings', n='batch', layer=layer, clean_weight=0.0, sampler=identity)
    out = wrapped(IMAGES, TARGET)
    torch.testing.assert_close(out.loss, nn.functional.cross_entropy(out.logits, TARGET))
    assert asked == [(8, 1, 8, 8, 5)]


def test_a_mixup_fn_takes_the_settings_place() -> None:
    calls = []

    def mixup(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(x)
        return x.mul_(2), nn.functional.one_hot(y, 5).float()

    for wrapped in (model(prob=0.0, ramp=0, mixup_fn=mixup), model(prob=1.0, ramp=0, mixup_fn=mixup)):
        before, calls_before = IMAGES.clone(), len(calls)
        out = wrapped(IMAGES, TARGET)
        assert len(calls) == calls_before + 1 and torch.equal(IMAGES, before)
        assert out.mixed == ('inputs' if wrapped.multimix.config.prob == 0 else 'inputs and embeddings')
    with pytest.raises(SettingError, match='mixup is 0.5, but mixup_fn'):
        model(mixup=0.5, mixup_fn=Mixup(0.2, num_classes=5))
    off = Mixup(0.2, num_classes=5)
    off.mixup_enabled = False
    assert model(prob=0.0, ramp=0, mixup_fn=off)(IMAGES, TARGET).mixed == 'nothing'


def test_seeds_and_steps_decide_and_nothing_else() -> None:
    runs = []
    for seed, global_seed in ((1, 5), (1, 6), (2, 5)):
        torch.manual_seed(global_seed), np.random.seed(global_seed)
        policy = MixingPolicy(MultiMixConfig('multimix', ramp=0), 5, seed=seed)
        done = [policy.begin(IMAGES, TARGET) for _ in range(30)]
        runs.append([(plan.mixed, float(images.sum()), float(plan.generator(torch.device('cpu')).initial_seed()))
                     for images, _, plan in done])
    assert runs[0] == runs[1] != runs[2]
    for seed in (-1, 1.5, 'a', True):
        with pytest.raises(SettingError, match='seed is'):
            model(seed=seed)


def test_state_goes_on_where_it_was() -> None:
    whole, first = (model(ramp=0) for _ in range(2))
    states = [whole(IMAGES, TARGET).mixed for _ in range(20)]
    for _ in range(7):
        first(IMAGES, TARGET)
    second = model(ramp=0)
    second.policy.load_state_dict(first.policy.state_dict())
    assert [second(IMAGES, TARGET).mixed for _ in range(13)] == states[7:]
    assert second.policy.counts == whole.policy.counts
    old = model()
    old.policy.load_state_dict({'step': 5})  # a checkpoint of a version that did not count
    assert old.policy.step == 5 and not old.policy.counts


def test_told_in_a_sentence() -> None:
    assert told(Counter(steps=1170, embeddings=290, inputs=868, mixup=430, cutmix=438, nothing=12)) == (
        'Of 1 170 steps 290 mixed embeddings, 868 inputs (430 mixup, 438 CutMix), and 12 nothing.')
    assert told({}) == 'No step was made.'


# ------------------------------------------------------------------------------------------------------------- presets

def test_presets_are_what_their_names_say() -> None:
    wrapped = model(preset='manifold', n='batch')
    seen: list[torch.Tensor] = []

    def look(lam: LamSampler, y: torch.Tensor, logits: Optional[torch.Tensor]) -> torch.Tensor:
        seen.append(lam.draw(lam.positions, lam.n).transpose(0, 1))
        return seen[-1]

    wrapped.sampler = look
    out = wrapped(IMAGES, TARGET)
    lam = seen[0][:, 0]
    assert lam.shape == (8, 8) and ((lam > 0).sum(1) == 2).all()  # a pair and a λ for each image of the batch
    y = nn.functional.one_hot(TARGET, 5).float()
    torch.testing.assert_close(out.loss, nn.functional.cross_entropy(lam @ out.logits, lam @ y))

    wrapped = wrap(timm.create_model('test_resnet', num_classes=5), 'multimix', preset='regmixup')
    saw: list[torch.Tensor] = []
    wrapped.conv1.register_forward_pre_hook(lambda module, args: saw.append(args[0]))
    out = wrapped(IMAGES, TARGET)
    assert len(saw[0]) == 16 and torch.equal(saw[0][:8], IMAGES)
    assert out.mixed == 'embeddings' and {'loss_clean', 'loss_mixed'} <= set(out.signal)
    with pytest.raises(SettingError, match='choose --multimix multimix'):
        model('dense', preset='regmixup')
    assert set(PRESETS) == {'default', 'embeddings', 'paper', 'manifold', 'regmixup'}


def test_a_presets_n_is_for_embeddings_alone() -> None:
    assert MultiMixConfig('multimix', layer='input').n == 'batch'
    assert MultiMixConfig('multimix', layer='input', n=50).n == 50
    assert MultiMixConfig('multimix').replace(layer='input').mixtures(8, 'input') == 8
    both = MultiMixConfig('multimix', layer=['input', 'embedding'], n=50)
    assert (both.mixtures(8, 'input'), both.mixtures(8, 'embedding')) == (8, 50)
    with pytest.raises(SettingError, match="n .* is 50, but with layer 'input' and clean_weight"):
        MultiMixConfig('multimix', layer='input', n=50, clean_weight=0)
    with pytest.raises(SettingError, match="or 'batch'"):
        MultiMixConfig('multimix', n='many')


# ------------------------------------------------------------------------------------------------- wrapping and tasks


def test_a_networks_own_attributes_stay_its_own() -> None:
    net = timm.create_model('test_resnet', num_classes=5)
    net.policy, net.sampler, net.config = 'mine', 'yours', 'theirs'
    wrapped = wrap(net, 'multimix')
    wrapped(IMAGES, TARGET)
    assert (net.policy, net.sampler, net.config) == ('mine', 'yours', 'theirs')
    ours = wrapped.multimix
    assert isinstance(ours.policy, MixingPolicy) and isinstance(ours.config, MultiMixConfig) and ours.policy.step == 1


def test_a_task_goes_on_with_the_models_own_policy() -> None:
    class Warm(MixingPolicy):
        def __init__(self, *args: Any, warm: float = 0.0, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.warm = warm

    wrapped = model(policy=partial(Warm, warm=0.3), ramp=0)
    wrapped(IMAGES, TARGET)
    task = MultiMixTask(wrapped, seed=np.int64(7), mixup_fn=Mixup(0.2, num_classes=5))  # type: ignore[arg-type]
    assert task.policy is wrapped.policy and task.policy.warm == 0.3 and (task.policy.step, task.policy.seed) == (1, 7)
    wrapped.policy = MixingPolicy(wrapped.multimix.config, 5)
    assert task.policy is wrapped.policy
    with pytest.raises(SettingError, match='schedule says'):
        model(schedule=lambda progress: 1.0).reconfigure(ramp=0.3)


def test_settings_of_a_file_give_way_to_a_schedule_and_a_mixup_fn() -> None:
    """A file repeats what the preset says, which nobody has chosen."""
    config = MultiMixConfig.from_dict(MultiMixConfig('multimix').to_dict())
    wrapped = wrap(timm.create_model('test_resnet', num_classes=5), config, schedule=lambda progress: 0.0)
    MultiMixTask(wrapped, mixup_fn=Mixup(0.2, num_classes=5))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        MultiMixConfig.from_dict({**config.to_dict(), 'layer': 'input'})  # older files say n there


def test_what_is_refused_is_not_counted() -> None:
    wrapped = model()
    with pytest.raises(SettingError, match='squeeze'):
        wrapped(IMAGES, TARGET[:, None])
    assert wrapped.policy.step == 0 and not wrapped.policy.counts


def test_a_plain_model_follows_a_schedule_too() -> None:
    policy = MixingPolicy(None, 5, mixup_fn=Mixup(1.0, num_classes=5), schedule=lambda progress: float(progress > 0.5))
    for progress, kind in ((0.2, 'nothing'), (0.9, 'inputs')):
        policy.set_progress(progress)
        assert {policy.begin(IMAGES, TARGET)[2].mixed for _ in range(5)} == {kind}
    with pytest.raises(SettingError, match='needs a wrapped model'):
        _ = MultiMixTask(timm.create_model('test_resnet', num_classes=5)).wrapped


def test_classes_that_change_are_followed_however_they_do() -> None:
    net = timm.create_model('test_resnet', num_classes=5)
    wrapped = wrap(net, 'dense', ramp=0)
    net.reset_classifier(9)
    for _ in range(8):  # whatever is mixed
        out = wrapped(IMAGES, torch.arange(len(IMAGES)) % 9)
        assert out.logits.shape[1] == 9 and out.loss.isfinite()
    weighted = wrap(net, 'dense', class_weight=[1.0] * 9)
    net.reset_classifier(3)
    with pytest.raises(SettingError, match='class_weight .* has 9 weights, but the model has 3 classes'):
        weighted(IMAGES, TARGET)


def test_what_is_not_floating_is_not_mixed_as_images() -> None:
    policy = MixingPolicy(MultiMixConfig('dense', prob=0, ramp=0), 5)
    with pytest.raises(SettingError, match='these inputs are torch.int64'):
        policy.begin(torch.zeros(4, 3, 8, 8).long(), torch.arange(4))


@pytest.mark.parametrize('settings', [{'attention': 'learned'}, {'mode': 'multimix', 'layer': 2}])
def test_settings_of_mixtures_where_there_are_none(settings: dict[str, Any]) -> None:
    with pytest.warns(UserWarning, match='has no effect: prob'):
        MultiMixConfig(**{'mode': 'dense', 'prob': 0, **settings})


def test_reconfiguring_is_checked_as_wrapping_is() -> None:
    wrapped = model('multimix', preset='embeddings')
    with pytest.raises(SettingError, match="preset 'regmixup' mixes elsewhere"):
        wrapped.reconfigure(preset='regmixup')
    taught = model('dense', preset='embeddings', teacher=timm.create_model('test_resnet', num_classes=5))
    with pytest.raises(SettingError, match="teacher_at 'position'"):
        taught.reconfigure(teacher_at='position')
    taught.reconfigure(teacher_weight=0.2)
    taught.reconfigure(teacher=None)
    assert taught.multimix.config == MultiMixConfig('dense', preset='embeddings', n=10)
    assert taught(IMAGES, TARGET).loss.isfinite()


def test_a_model_does_not_teach_itself() -> None:
    wrapped = model(preset='embeddings', teacher='given')
    for teacher in (wrapped, unwrap(wrapped)):
        with pytest.raises(SettingError, match='The teacher is the model itself'):
            wrapped.set_teacher(teacher)


def test_a_network_of_two_outputs_is_told_to_have_one() -> None:
    net = timm.create_model('deit_tiny_distilled_patch16_224', img_size=32, num_classes=5)
    net.set_distilled_training(True)
    wrapped = wrap(net, 'multimix', preset='embeddings')
    assert len(wrapped(IMAGES)) == 2  # as the network has it
    with pytest.raises(SettingError, match=r'set_distilled_training\(False\)'):
        wrapped(IMAGES, TARGET)


def test_a_mixup_fn_of_ones_own_mixes_what_it_likes() -> None:
    policy = MixingPolicy(MultiMixConfig('dense', prob=0, ramp=0), 5,
                          mixup_fn=lambda ids, target: (ids.flip(0), target))  # type: ignore[arg-type, return-value]
    ids, _, plan = policy.begin(torch.arange(12).view(4, 3), torch.arange(4))
    assert plan.inputs == 'inputs' and torch.equal(ids, torch.arange(12).view(4, 3).flip(0))


def test_a_share_of_ones_own_needs_no_progress() -> None:
    class Slow(MixingPolicy):
        @property
        def share(self) -> float:
            return min(1.0, self.step / 20)

    net = wrap(timm.create_model('test_resnet', num_classes=5), 'dense', policy=Slow)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        net(IMAGES, TARGET)
