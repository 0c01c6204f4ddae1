"""One policy behind every door: the same steps do the same thing, whoever asks; and what is done is counted."""
from __future__ import annotations

import copy
import math
import random
import re
import warnings
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, Optional

import numpy as np
import pytest
import timm
import torch
import torch.nn as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.data import Mixup
from torch._dynamo.utils import counters

import timm_multimix
import train
from tests import recording
from tests.conftest import ROOT
from timm_multimix import MultiMixConfig, MultiMixModel, MultiMixTask, SettingError, unwrap, wrap
from timm_multimix.config import PRESETS
from timm_multimix.mixing import LamSampler
from timm_multimix.policy import InputMixing, MixingPolicy, told
from timm_multimix.runs.summary import read_summary

IMAGES, TARGET = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 5


def model(mode: str = 'multimix', **kwargs: Any) -> MultiMixModel:
    return wrap(timm.create_model('test_resnet', num_classes=5), mode, **{'n': 10, **kwargs})


# ------------------------------------------------------------------------------------------------------- three doors

@pytest.mark.parametrize('flags, config, mixup', [
    ('--multimix dense --multimix-n 7', dict(mode='dense', n=7), {}),
    ('--multimix multimix --multimix-prob 0.5 --multimix-ramp 0.2 --multimix-layer input 1 embedding --multimix-m 4 '
     '--multimix-n 7 --multimix-clean-weight 0 --multimix-alpha 0.2 0.5 --cutmix 0.7 --mixup 0.3 --mixup-prob 0.8 '
     '--mixup-switch-prob 0.3 --mixup-mode batch --seed 9',
     dict(mode='multimix', prob=0.5, ramp=0.2, layer=['input', 1, 'embedding'], m=4, n=7, clean_weight=0.0,
          alpha=(0.2, 0.5), cutmix=0.7, mixup=0.3), dict(prob=0.8, switch_prob=0.3)),
    pytest.param(
        '--multimix multimix --multimix-n 7 --multimix-prob 1 --mixup 0.4 --multimix-ramp-epochs 1.5 --smoothing 0.1 '
        '--multimix-effective 2 --seed 5',
        dict(mode='multimix', n=7, prob=1.0, mixup=0.4, cutmix=0.0, ramp_epochs=1.5, label_smoothing=0.1, effective=2),
        {}, marks=pytest.mark.slow),
    pytest.param(
        '--multimix multimix --multimix-preset manifold --multimix-prob 0.3 --cutmix 1 --mixup-mode elem --bce-loss',
        dict(mode='multimix', preset='manifold', prob=0.3, mixup=0.0, cutmix=1.0, bce_loss=True), dict(mode='elem'),
        marks=pytest.mark.slow),
])
def test_three_doors_do_the_same_on_every_step(
        tmp_path: Path, flags: str, config: dict[str, Any], mixup: dict[str, Any]) -> None:
    """train.py, MultiMixTask and a wrapped model: what is mixed, Λ and the loss, to the bit, on more than 200 steps."""
    plain = timm.create_model('test_resnet', num_classes=10)
    torch.save(plain.state_dict(), tmp_path / 'weights.pth')
    words = flags.split()
    seed = int(words[words.index('--seed') + 1]) if '--seed' in words else 42
    assert train.main([*words, '--model', 'test_resnet', '--initial-checkpoint', str(tmp_path / 'weights.pth'),
                       '--epochs', '5', '--val-interval', '5', '-b', '32', '--opt', 'sgd', '--lr', '0',
                       '--warmup-lr', '0', '--weight-decay', '0', '--multimix-task', 'tests.recording:Recording',
                       '-j', '0', '--output', str(tmp_path)]) == 0
    steps = recording.STEPS[-5 * 45:]  # before them it rehearsed
    assert steps[0]['progress'] == (0, 0)

    doors = []
    for _ in range(2):
        given = MultiMixConfig.from_dict({'preset': 'default', **config})
        fn = InputMixing(given.mixup, given.cutmix, num_classes=10, label_smoothing=given.label_smoothing, **mixup)
        wrapped = wrap(copy.deepcopy(plain), given, input_size=(3, 32, 32), seed=seed, mixup_fn=fn if mixup else None)
        drawn: list[torch.Tensor] = []
        wrapped.sampler = recording.recorder(drawn)
        doors.append((wrapped.train(), drawn))
    task = MultiMixTask(doors[1][0])
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # the global generators are not asked
    kinds: Counter[str] = Counter()
    for step in steps:
        before = step['input'].clone()
        for (wrapped, drawn), call in zip(doors, (doors[0][0], task)):
            drawn.clear()
            wrapped.set_progress(step['progress'][1], 5)
            assert wrapped.policy.progress == step['progress'][0]
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                out = call(step['input'], step['target'])
            loss, mixed = (out['loss'], out['mixed']) if isinstance(out, dict) else (out.loss, out.mixed)
            assert mixed == step['mixed']
            assert torch.equal(loss, step['loss'])
            assert (step['lam'] is None) == (not drawn)
            assert not drawn or torch.equal(drawn[0], step['lam'])
        assert torch.equal(step['input'], before)
        kinds[step['mixed']] += 1
    assert len(kinds) > 1 and any('embeddings' in kind for kind in kinds)
    assert doors[0][0].policy.counts == doors[1][0].policy.counts
    assert sum(n for kind, n in kinds.items() if 'embeddings' in kind) == doors[0][0].policy.counts['embeddings']


def test_counts_are_what_hooks_see() -> None:
    """An independent count: who calls the loss of mixtures, and whose images differ from those given."""
    wrapped = model(prob=0.3, ramp=0.5, mixup=1.0, cutmix=1.0)
    seen: Counter[str] = Counter()
    wrapped.sampler = lambda lam, y, logits: seen.update(['embeddings']) or lam
    wrapped.conv1.register_forward_pre_hook(
        lambda module, args: seen.update(['inputs' if not torch.equal(args[0], IMAGES) else 'as they are']))
    for step in range(100):
        wrapped.set_progress(step, 100)
        wrapped(IMAGES, TARGET)
    counts = wrapped.policy.counts
    assert counts['steps'] == 100 == seen['inputs'] + seen['as they are']
    assert counts['embeddings'] == seen['embeddings'] > 5
    assert counts['inputs'] == seen['inputs'] == counts['mixup'] + counts['cutmix'] > 20
    assert counts['nothing'] == 100 - counts['embeddings'] - counts['inputs'] > 5


# ------------------------------------------------------------------------------------------------------- one's own loop

def test_the_ten_lines_of_a_user() -> None:
    wrapped = model('dense')
    optimizer = torch.optim.SGD(wrapped.parameters(), 0.01)
    done = []
    for epoch in range(3):
        wrapped.set_progress(epoch, 3)
        for _ in range(40):
            out = wrapped(IMAGES, TARGET)
            out.loss.backward(), optimizer.step(), optimizer.zero_grad()
            done.append(out.mixed)
    assert set(done) == {'nothing', 'embeddings', 'mixup', 'cutmix'}
    assert set(done[:40]) == {'nothing'}  # the ramp begins at none
    assert sum('embeddings' in d for d in done) == wrapped.policy.counts['embeddings']


def test_the_logits_are_those_of_the_images_as_the_network_saw_them() -> None:
    wrapped = model(ramp=0)
    saw: list[torch.Tensor] = []
    wrapped.conv1.register_forward_pre_hook(lambda module, args: saw.append(args[0].clone()))
    kinds = set()
    for _ in range(15):
        out = wrapped(IMAGES, TARGET)
        kinds.add(out.mixed)
        twin = copy.deepcopy(unwrap(wrapped))  # BatchNorm's batch statistics are the same
        torch.testing.assert_close(out.logits, twin(saw[-1] if len(saw) else IMAGES))
        assert torch.equal(saw[-1], IMAGES) == (out.mixed in ('nothing', 'embeddings'))
        saw.clear()
    assert {'embeddings', 'mixup', 'cutmix'} <= kinds


@pytest.mark.parametrize('prob', [0.0, 0.25, 1.0])
@pytest.mark.parametrize('door', ['wrap', 'task'])
def test_the_callers_images_are_never_written_to(tmp_path: Path, prob: float, door: str) -> None:
    """A data set in memory that is sliced, a read-only memory map, an expanded batch, and one that requires grad."""
    wrapped = model(prob=prob, ramp=0)
    call = wrapped if door == 'wrap' else MultiMixTask(wrapped)
    data = torch.rand(32, 3, 64, 64)
    np.save(tmp_path / 'images.npy', data.numpy())
    mapped = np.load(tmp_path / 'images.npy', mmap_mode='r')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        memory = torch.from_numpy(mapped)
    wanted = data[:8].clone().requires_grad_()
    sources = [data, memory, data[:1].expand(32, -1, -1, -1), wanted.repeat(4, 1, 1, 1)]
    before = [source.detach().clone() for source in sources]
    for source in sources:
        for i in range(0, 32, 8):
            out = call(source[i:i + 8], TARGET)
            (out.loss if door == 'wrap' else out['loss']).backward()
    for source, was in zip(sources, before):
        assert torch.equal(source.detach(), was)
    assert wanted.grad is not None and wanted.grad.abs().sum() > 0
    leaf = data[:8].clone().requires_grad_()
    out = call(leaf, TARGET)
    (out.loss if door == 'wrap' else out['loss']).backward()
    assert leaf.grad is not None and torch.equal(leaf.detach(), data[:8])


def test_evaluation_mixes_nothing_and_draws_nothing() -> None:
    for settings_ in ({}, {'label_smoothing': 0.1}, {'class_weight': (1, 2, 3, 4, 5.0)}, {'preset': 'paper'},
                      {'layer': 'input', 'n': 'batch'}):
        wrapped = model(**settings_).eval()
        for call in (wrapped, MultiMixTask(wrapped).eval()):
            before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
            losses = []
            for _ in range(3):
                out = call(IMAGES, TARGET)
                losses.append(out['loss'] if isinstance(out, dict) else out.loss)
            plain = nn.functional.cross_entropy(unwrap(wrapped)(IMAGES), TARGET)
            assert all(torch.equal(loss, plain) for loss in losses)
            assert torch.equal(torch.get_rng_state(), before[0]) and (np.random.get_state()[1] == before[1]).all()
            assert random.getstate() == before[2]
        assert wrapped.policy.step == 0 and not wrapped.policy.counts


def test_a_loop_that_keeps_its_criterion_is_told_once_that_nothing_is_mixed() -> None:
    wrapped = model()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        for _ in range(60):
            nn.functional.cross_entropy(wrapped(IMAGES), TARGET).backward()
    told_ = [str(w.message) for w in caught if 'without targets' in str(w.message)]
    assert len(told_) == 1 and 'model(images, target).loss' in told_[0]
    quiet = model(ramp=0)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for _ in range(30):  # a look at the logits between steps is no habit
            quiet(IMAGES), quiet(IMAGES, TARGET)
        quiet.eval()
        for _ in range(60):
            quiet(IMAGES)


def test_what_is_assumed_about_the_progress_is_said_once() -> None:
    wrapped = model()
    with pytest.warns(UserWarning, match=r'set_progress\(epoch, epochs\)') as caught:
        assert [wrapped(IMAGES, TARGET).mixed for _ in range(5)]
    assert sum('set_progress' in str(w.message) for w in caught) == 1
    for quiet in (model(ramp=0), model()):
        quiet.set_progress(0.5)
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            quiet(IMAGES, TARGET)


def test_input_mixing_that_cannot_be_is_said() -> None:
    for images, target, words in ((IMAGES[:7], TARGET[:7], '7 is odd'),
                                  (IMAGES, nn.functional.one_hot(TARGET, 5).float(), 'these targets are soft')):
        wrapped = model(prob=0.0, ramp=0)
        with pytest.warns(UserWarning, match=words):
            out = [wrapped(images, target) for _ in range(3)]
        assert {o.mixed for o in out} == {'nothing'} and wrapped.policy.counts['nothing'] == 3


def test_a_last_batch_smaller_than_m_mixes_what_there_is() -> None:
    wrapped = model(preset='embeddings', m=8)
    wrapped(IMAGES, TARGET)
    assert wrapped(IMAGES[:3], TARGET[:3]).mixed == 'embeddings'
    with pytest.raises(SettingError, match='a batch of 3 has no 8 examples'):
        model(preset='embeddings', m=8)(IMAGES[:3], TARGET[:3])


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
    task = MultiMixTask(wrapped)
    task.set_epoch(3)
    assert wrapped.policy.share == 0.75
    with pytest.raises(SettingError, match='does not say of how many epochs'):
        MultiMixTask(model()).set_epoch(3)


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
    assert MultiMixConfig('dense', preset='alone') == MultiMixConfig('dense', preset='embeddings')
    assert set(PRESETS) == {'default', 'embeddings', 'paper', 'manifold', 'regmixup'}


def test_n_without_effect_is_said() -> None:
    with pytest.warns(UserWarning, match="n .* is 50, but it has no effect: with layer 'input'"):
        config = MultiMixConfig('multimix', layer='input', n=50)
    assert config.n == 'batch'
    with pytest.raises(SettingError, match="or 'batch'"):
        MultiMixConfig('multimix', n='many')


# ------------------------------------------------------------------------------------------------------------- targets

@pytest.mark.parametrize('layer', ['embedding', 1])
@pytest.mark.parametrize('prob', [0.0, 1.0])
def test_every_path_takes_the_same_targets(prob: float, layer: Any) -> None:
    def losses(target: torch.Tensor, **more: Any) -> float:
        torch.manual_seed(0)
        wrapped = model(preset='embeddings', prob=prob, layer=layer, n='batch', **more)
        return float(wrapped(IMAGES, target).loss.detach())

    want = losses(TARGET)
    one_hot = nn.functional.one_hot(TARGET, 5)
    for target in (TARGET.int(), TARGET.to(torch.uint8), TARGET.to(torch.int16), one_hot, one_hot.bool(),
                   one_hot.to(torch.uint8), one_hot.half(), one_hot.double()):
        assert losses(target) == pytest.approx(want, rel=1e-5), target.dtype
    many = one_hot.float() + one_hot.roll(1, 1)
    for target, words in ((TARGET[:, None], 'squeeze'), (TARGET.float(), 'must be integers'), (many, 'bce_loss'),
                          (torch.where(TARGET == 0, -100, TARGET), '-100'), (one_hot[:, :4].float(), '4 columns'),
                          (TARGET[:5], '5 examples'), (torch.full((8, 5), math.nan), 'nan')):
        with pytest.raises(SettingError, match=words):
            losses(target)
    assert math.isfinite(losses(many, bce_loss=True))


@pytest.mark.parametrize('layer', ['embedding', 'input'])
def test_class_weights_hold_on_steps_of_every_kind(layer: str) -> None:
    weight = torch.tensor([5.0, 1, 2, 0.5, 3])
    wrapped = model(ramp=0, prob=0.4, layer=layer, n='batch', class_weight=weight, label_smoothing=0.1)
    seen: list[torch.Tensor] = []

    def look(lam: LamSampler, y: torch.Tensor, logits: Optional[torch.Tensor]) -> torch.Tensor:
        seen.append(lam.draw(lam.positions, lam.n).transpose(0, 1))
        return seen[-1]

    wrapped.sampler = look
    logits: list[torch.Tensor] = []
    wrapped.fc.register_forward_hook(lambda module, args, out: logits.append(out))
    y = nn.functional.one_hot(TARGET, 5) * 0.9 + 0.02
    kinds = set()
    for _ in range(20):
        seen.clear(), logits.clear()
        out = wrapped(IMAGES, TARGET)
        kinds.add(out.mixed)
        if out.mixed != 'embeddings':
            continue
        clean = nn.functional.cross_entropy(out.logits, TARGET, weight=weight, label_smoothing=0.1)
        torch.testing.assert_close(out.signal['loss_clean'], clean.detach())
        lam = seen[0][:, 0]
        mixed = lam @ out.logits if layer == 'embedding' else logits[0][8:]
        want = -(weight * (lam @ y) * mixed.log_softmax(1)).sum() / (lam @ weight[TARGET]).sum()
        torch.testing.assert_close(out.signal['loss_mixed'], want.detach())
    assert {'embeddings', 'mixup', 'cutmix'} <= kinds
    with pytest.raises(SettingError, match='3 weights, but the model has 5 classes'):
        model(class_weight=(1, 2, 3))
    for bad in ((1, -1, 1, 1, 1), (0,) * 5, 'abc', (1, math.nan, 1, 1, 1)):
        with pytest.raises(SettingError, match='class_weight'):
            model(class_weight=bad)
    with pytest.raises(SettingError, match='no weighted mean'):
        model(class_weight=(1,) * 5, bce_loss=True)


def test_the_page_on_changing_the_method_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r'```python\n(.*?)```', (ROOT / 'docs' / 'changing_the_method.md').read_text(), re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, Any] = {'torch': torch, 'timm': timm, 'timm_multimix': timm_multimix}
    exec(blocks[0], names)
    sampled = names['model'].train()
    sampled.policy.configure(sampled.multimix.config.replace(preset='embeddings', ramp=0.0))
    out = sampled(torch.rand(8, 3, 64, 64), TARGET)
    assert out.mixed == 'embeddings' and 2 < float(out.signal['effective']) < 5 and torch.isfinite(out.loss)
    lam = names['half_of_one_example'](LamSampler(50, 2, 8, 0.1), torch.eye(8), torch.zeros(8, 2, 8))
    assert lam.shape == (50, 2, 8) and (lam.amax(-1) >= 0.5).all()
    torch.testing.assert_close(lam.sum(-1), torch.ones(50, 2))

    names['net'] = timm.create_model('test_resnet', num_classes=5)
    exec(blocks[1], names)
    names['model'].set_progress(0.2)
    assert {names['model'](IMAGES, TARGET).mixed for _ in range(10)} == {'nothing'}

    (tmp_path / 'my_module.py').write_text('import timm_multimix\n' + blocks[2])
    monkeypatch.chdir(tmp_path)
    command = ['--model', 'test_resnet', '--multimix', 'dense', '--multimix-task', 'my_module:Late', '-j', '0',
               '--output', str(tmp_path), '--experiment', 'x', '--warmup-epochs', '0']
    assert train.main([*command, '--epochs', '4']) == 0
    mixed = [int(row['train_unmixed']) for row in read_summary(tmp_path / 'x' / 'summary.csv')]
    assert mixed[0] > 0 and mixed[1:] == [0, 0, 0]
    assert train.main(['--resume', str(tmp_path / 'x'), '--epochs', '5']) == 0  # args.yaml says which task


@pytest.mark.parametrize('name, words', [
    ('nowhere:Late', "no module 'nowhere'"), ('timm_multimix:wrap', 'no subclass of timm_multimix.MultiMixTask'),
    ('timm_multimix', 'module:Class')])
def test_a_task_that_is_none(name: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(['--model', 'test_resnet', '--multimix-task', name, '--output', str(tmp_path)]) == 2
    assert words in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------- found by a reviewer

def test_a_wrap_that_fails_leaves_the_model_as_it_was() -> None:
    net = timm.create_model('test_vit', num_classes=5)
    with pytest.raises(SettingError, match='schedule says'):
        wrap(net, 'dense', ramp=0.3, schedule=lambda progress: 1.0)
    assert net.global_pool == 'token'


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
    assert task.policy is wrapped.policy and task.policy.warm == 0.3 and (task.step, task.policy.seed) == (1, 7)
    wrapped.policy = MixingPolicy(wrapped.multimix.config, 5)
    assert task.policy is wrapped.policy
    with pytest.raises(SettingError, match='schedule says'):
        model(schedule=lambda progress: 1.0).reconfigure(ramp=0.3)
    late = MultiMixTask(model(preset='embeddings', schedule=lambda progress: float(progress >= 0.5)))
    with pytest.raises(SettingError, match='does not say of how many epochs'):
        late.set_epoch(1)


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


@pytest.mark.parametrize('mode', ['elem', 'pair', 'batch'])
def test_images_of_half_precision_are_mixed_in_every_way(mode: str) -> None:
    mixup = Mixup(0.3, 1.0, num_classes=5, mode=mode)
    wrapped = model(prob=0.0, ramp=0, mixup_fn=mixup).to(torch.bfloat16)
    for _ in range(20):
        assert wrapped(IMAGES.bfloat16(), TARGET).loss.isfinite()


def test_evaluation_compiles_once() -> None:
    torch._dynamo.reset()
    counters.clear()
    wrapped = model(ramp=0)
    compiled = torch.compile(wrapped, backend='eager')
    graphs = []
    for _ in range(6):
        wrapped.train()
        for _ in range(4):
            compiled(IMAGES, TARGET)
        wrapped.eval()
        compiled(IMAGES, TARGET)
        graphs.append(counters['stats']['unique_graphs'])
    assert graphs[2] == graphs[-1]


@pytest.mark.parametrize('layer', ['embedding', 'input'])
@pytest.mark.parametrize('prob', [0.0, 1.0])
def test_a_class_that_the_model_masks_is_as_if_it_were_not_there(layer: str, prob: float) -> None:
    wrapped = model(preset='embeddings', prob=prob, mixup=1.0 - prob, layer=layer, n='batch')
    with torch.no_grad():
        wrapped.fc.bias[4] = -math.inf
    for _ in range(4):
        out = wrapped(IMAGES, TARGET % 4)
        out.loss.backward()
        assert out.loss.isfinite() and out.loss < 5
    assert all(p.grad.isfinite().all() for p in wrapped.parameters())
