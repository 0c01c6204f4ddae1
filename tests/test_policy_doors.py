"""One policy behind every door: the same steps do the same thing, whoever asks; and what is done is counted."""
from __future__ import annotations

import copy
import random
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn as nn

import train
from tests import recording
from tests.conftest import write_images
from tests.models import IMAGES, TARGET
from tests.models import a_resnet as model
from timm_multimix import MultiMixConfig, MultiMixTask, SettingError, unwrap, wrap
from timm_multimix.policy import InputMixing

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
        dict(mode='multimix', n=7, prob=1.0, mixup=0.4, ramp_epochs=1.5, label_smoothing=0.1, effective=2),
        {}, marks=pytest.mark.slow),
    pytest.param(
        '--multimix multimix --multimix-preset manifold --multimix-prob 0.3 --cutmix 1 --mixup-mode elem --bce-loss',
        dict(mode='multimix', preset='manifold', prob=0.3, cutmix=1.0, bce_loss=True), dict(mode='elem'),
        marks=pytest.mark.slow),
])
def test_three_doors_do_the_same_on_every_step(
        tmp_path: Path, flags: str, config: dict[str, Any], mixup: dict[str, Any]) -> None:
    """train.py, MultiMixTask and a wrapped model: what is mixed, Λ and the loss, to the bit, on each of 55 steps."""
    plain = timm.create_model('test_resnet', num_classes=10)
    torch.save(plain.state_dict(), tmp_path / 'weights.pth')
    words = flags.split()
    seed = int(words[words.index('--seed') + 1]) if '--seed' in words else 42
    images = write_images(tmp_path / 'images', classes=10, per_class=9)
    assert train.main([*words, '--model', 'test_resnet', '--initial-checkpoint', str(tmp_path / 'weights.pth'),
                       '--data-dir', str(images), '--img-size', '32', '--epochs', '5', '--val-interval', '5', '-b', '8',
                       '--opt', 'sgd', '--lr', '0', '--warmup-epochs', '0', '--weight-decay', '0', '--multimix-task',
                       'tests.recording:Recording', '-j', '0', '--output', str(tmp_path)]) == 0
    steps = recording.STEPS[-5 * 11:]  # before them it rehearsed
    assert len(steps) == 55 and steps[0]['progress'] == (0, 0)

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
        for _ in range(25):
            out = wrapped(IMAGES, TARGET)
            out.loss.backward(), optimizer.step(), optimizer.zero_grad()
            done.append(out.mixed)
    assert set(done) == {'nothing', 'embeddings', 'mixup', 'cutmix'}
    assert set(done[:25]) == {'nothing'}  # the ramp begins at none
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


def test_a_loop_in_eval_mode_is_told_once_that_nothing_is_mixed() -> None:
    wrapped = model(ramp=0).eval()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        for _ in range(60):
            wrapped(IMAGES, TARGET).loss.backward()
    told_ = [str(w.message) for w in caught]
    assert len(told_) == 1 and 'in eval mode nothing is mixed' in told_[0] and 'model.train()' in told_[0]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        quiet = model(ramp=0).eval()
        for _ in range(60):  # validation, also where gradients were left on
            quiet(IMAGES, TARGET)
        quiet = model(ramp=0, prob=1)
        for module in quiet.train().children():  # all layers frozen, and the training step mixes
            module.eval()
        for _ in range(30):
            quiet(IMAGES, TARGET).loss.backward()
        assert quiet.policy.counts['embeddings'] == 30


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
    with pytest.raises(SettingError, match=r'm \(--multimix-m\) is 8, but a batch of 3 has no 8 examples'):
        model(preset='embeddings', m=8)(IMAGES[:3], TARGET[:3])
