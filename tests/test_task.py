"""MultiMixTask in timm's machinery: alternation, mixup, EMA, DDP, compile, checkpoints."""
from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import timm
import torch
import torch.nn as nn
from timm.data import Mixup
from timm.task import TrainingTask, load_task_ema_checkpoint, resume_task_checkpoint
from timm.utils import CheckpointSaver

from timm_multimix import MultiMixTask, unwrap, wrap


def make(preset: str = 'alone', **kwargs: object) -> MultiMixTask:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        names = ('n', 'prob', 'ramp_epochs', 'clean_weight', 'alpha', 'label_smoothing', 'bce_loss', 'bce_sum',
                 'bce_target_thresh')
        settings = {k: kwargs.pop(k) for k in names if k in kwargs}
        model = wrap(timm.create_model('test_resnet', num_classes=5), 'dense', preset=preset, **{'n': 10, **settings})
    return MultiMixTask(model, **kwargs)  # type: ignore[arg-type]


IMAGES, TARGET = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 5


def test_is_a_timm_task() -> None:
    task = make()
    assert isinstance(task, TrainingTask)
    result = task(IMAGES, TARGET)
    assert result['mixed'] and result['output'].shape == (8, 5)
    assert {'loss', 'loss_mixed', 'loss_clean', 'effective', 'target_entropy'} <= set(result)
    torch.testing.assert_close(result['loss'], (result['loss_mixed'] + result['loss_clean']) / 2)
    result['loss'].backward()


def test_alternates_with_the_given_probability_and_the_same_on_every_rank() -> None:
    a, b, other = (make('paper', seed=seed) for seed in (7, 7, 8))
    choices = [a.mixes(step) for step in range(1000)]
    assert 430 < sum(choices) < 570
    assert choices == [b.mixes(step) for step in range(1000)]
    assert choices != [other.mixes(step) for step in range(1000)]


def test_mixing_begins_slowly() -> None:
    task = make('default', prob=0.5, ramp_epochs=8)
    steps = range(2000)
    whole = [task.mixes(step) for step in steps]  # no epoch said: as if the ramp were over
    for epoch, share in ((0, 0.0), (2, 0.25), (7.5, 0.9375), (8, 1.0), (50, 1.0)):
        task.set_epoch(epoch)
        assert task.share == share
        mixed = [task.mixes(step) for step in steps]
        assert sum(mixed) == pytest.approx(share * 1000, abs=100)
        assert all(w for w, m in zip(whole, mixed) if m)  # which steps is the same choice, so more are added
    assert mixed == whole and make('default', ramp_epochs=0, prob=1.0).mixes(0)


def test_inputs_begin_slowly_too() -> None:
    calls = []

    def mixup(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(1)
        return x, nn.functional.one_hot(y, 5).float()

    for prob in (0.5, 1.0):  # with 1, inputs are mixed before embeddings
        task = make('default', prob=prob, ramp_epochs=10, mixup_fn=mixup)
        for epoch, low, high in ((0, 0, 0), (5, 5, 25), (10, 30, 30)):
            calls.clear()
            task.set_epoch(epoch)
            mixed = sum(task(IMAGES, TARGET)['mixed'] for _ in range(30))
            touched = len(calls) if prob == 1 else len(calls) + mixed
            assert low <= touched <= high and (prob < 1 or mixed == touched)


def test_paper_alternates_with_input_mixup() -> None:
    task = make('paper')
    seen = []
    task.mixup_fn = lambda x, y, fn=task.mixup_fn: seen.append(task.step) or fn(x, y)  # type: ignore[assignment]
    results = [task(IMAGES, TARGET) for _ in range(20)]
    assert [i + 1 for i, r in enumerate(results) if not r['mixed']] == seen and 0 < len(seen) < 20
    assert all(('effective' in r) == r['mixed'] for r in results)


def test_default_takes_turns_with_mixup_and_cutmix() -> None:
    task = make('default', label_smoothing=0.1)
    assert isinstance(task.mixup_fn, Mixup)
    assert (task.mixup_fn.mixup_alpha, task.mixup_fn.cutmix_alpha, task.mixup_fn.label_smoothing) == (1, 1, 0.1)
    same = [torch.equal(task.mixup_fn(IMAGES.clone(), TARGET)[0][:, :, :2, :2], IMAGES[:, :, :2, :2])
            for _ in range(40)]
    assert 0 < sum(same) < 40  # CutMix leaves most corners, mixup none
    results = [task(IMAGES.clone(), TARGET) for _ in range(20)]
    assert 0 < sum(r['mixed'] for r in results) < 20
    assert all(('loss_clean' in r) == r['mixed'] for r in results)


def test_binary_cross_entropy_on_steps_of_either_kind() -> None:
    task = make('default', bce_loss=True, bce_sum=True, label_smoothing=0.1, bce_target_thresh=0.3)
    task.eval()  # no input mixing
    logits = task.get_eval_model()(IMAGES)
    smooth = torch.nn.functional.one_hot(TARGET, 5) * 0.9 + 0.02
    clean = torch.nn.functional.binary_cross_entropy_with_logits(logits, (smooth > 0.3).float()) * 5
    for task.step in range(8):
        result = task(IMAGES, TARGET)
        torch.testing.assert_close(result['loss_clean'] if result['mixed'] else result['loss'], clean)
    task.train()
    assert all(torch.isfinite(task(IMAGES.clone(), TARGET)['loss']) for _ in range(6))


def test_mixup_before_embedding_mixing_when_every_step_mixes() -> None:
    calls = []

    def mixup(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(1)
        return Mixup(mixup_alpha=1.0, num_classes=5, label_smoothing=0.1)(x.clone(), y)

    result = make(mixup_fn=mixup)(IMAGES, TARGET)
    assert calls and result['mixed'] and torch.isfinite(result['loss'])


def test_takes_dense_soft_targets() -> None:
    soft = torch.rand(8, 5).softmax(1)
    for task in (make(), make(prob=0.0)):
        assert torch.isfinite(task(IMAGES, soft)['loss'])


def test_smoothing_is_applied_once() -> None:
    task = make(prob=0.0, label_smoothing=0.1)
    task.eval()
    logits = task.get_eval_model()(IMAGES)
    torch.testing.assert_close(task(IMAGES, TARGET)['loss'],
                               nn.functional.cross_entropy(logits, TARGET, label_smoothing=0.1))
    soft = nn.functional.one_hot(TARGET, 5).float()
    torch.testing.assert_close(task(IMAGES, soft)['loss'], nn.functional.cross_entropy(logits, TARGET))


def test_plain_model_trains_plainly() -> None:
    task = MultiMixTask(timm.create_model('test_resnet', num_classes=5), label_smoothing=0.0)
    task.eval()
    result = task(IMAGES, TARGET)
    torch.testing.assert_close(result['loss'], nn.functional.cross_entropy(result['output'], TARGET))
    assert not result['mixed']


def test_says_at_the_start_when_nothing_can_be_learned() -> None:
    task = make(alpha=1.0, clean_weight=0.0)
    with pytest.warns(UserWarning, match='Nothing will be learned.*--multimix-effective 2'):
        task(IMAGES.repeat(8, 1, 1, 1), TARGET.repeat(8))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        make()(IMAGES, TARGET)


def test_checkpoints_hold_the_plain_timm_model_and_resume(tmp_path: Path) -> None:
    task = make()
    task.setup_ema(decay=0.5)
    optimizer = torch.optim.SGD(task.trainable_module.parameters(), lr=0.1)
    for step in range(3):
        task(IMAGES, TARGET)['loss'].backward()
        optimizer.step()
        task.update_ema(step=step + 1)
    saver = CheckpointSaver(task.trainable_module, optimizer, task=task, checkpoint_dir=str(tmp_path))
    saver.save_checkpoint(0, metric=1.0)
    path = str(tmp_path / 'last.pth.tar')
    saved = torch.load(path, weights_only=True)
    plain = unwrap(task.trainable_module)
    assert list(saved['state_dict']) == list(plain.state_dict()) == list(saved['state_dict_ema'])

    loaded = timm.create_model('test_resnet', num_classes=5, checkpoint_path=path).eval()  # timm takes the EMA weights
    assert torch.equal(loaded(IMAGES), task.get_eval_model(ema=True).eval()(IMAGES))

    other = make()
    other.setup_ema(decay=0.5)
    optimizer = torch.optim.SGD(other.trainable_module.parameters(), lr=0.1)
    assert resume_task_checkpoint(other, path, optimizer, log_info=False) == 1
    load_task_ema_checkpoint(other, path)
    assert other.step == 3
    for a, b in ((other, task),):
        assert torch.equal(a.get_eval_model().eval()(IMAGES), b.get_eval_model().eval()(IMAGES))
        assert torch.equal(a.get_eval_model(ema=True).eval()(IMAGES), b.get_eval_model(ema=True).eval()(IMAGES))


def test_eval_model_is_the_timm_model() -> None:
    task = make()
    assert task.get_eval_model() is unwrap(task.trainable_module)
    assert type(task.get_eval_model()).__name__ == 'ResNet'


def test_a_model_compiled_before_is_not_trained_plainly() -> None:
    task = make()
    other = MultiMixTask(torch.compile(task.trainable_module, backend='eager'))
    assert other(IMAGES, TARGET)['mixed']


def test_an_odd_last_batch_goes_without_mixup() -> None:
    task = make('paper')
    assert all(torch.isfinite(task(IMAGES[:7], TARGET[:7])['loss']) for _ in range(6))


def test_compile() -> None:
    task = make()
    task.compile(backend='aot_eager')
    result = task(IMAGES, TARGET)
    result['loss'].backward()
    assert torch.isfinite(result['loss'])
    assert task.get_checkpoint_state()['state_dict'].keys() == unwrap(task.trainable_module).state_dict().keys()


DDP_SCRIPT = '''
import os, time
import timm, torch, torch.distributed as dist
from timm_multimix import MultiMixTask, unwrap, wrap
dist.init_process_group('gloo')
rank = dist.get_rank()
torch.manual_seed(0)
task = MultiMixTask(wrap(timm.create_model('test_resnet', num_classes=5), 'dense', preset='paper', n=10), seed=3)
task.setup_ema(decay=0.5)
task.prepare_distributed()
optimizer = torch.optim.SGD(task.trainable_module.parameters(), lr=0.1)
torch.manual_seed(rank + 1)
mixed = []
for step in range(8):
    result = task(torch.randn(8, 3, 64, 64), torch.randint(0, 5, (8,)))
    mixed.append(result['mixed'])
    result['loss'].backward()
    optimizer.step(), optimizer.zero_grad()
    task.update_ema(step=step + 1)
state = task.get_checkpoint_state()
assert list(state['state_dict']) == list(timm.create_model('test_resnet', num_classes=5).state_dict())
flat = torch.cat([p.detach().flatten() for p in unwrap(task.trainable_module).parameters()])
both = [torch.zeros_like(flat) for _ in range(2)]
dist.all_gather(both, flat)
choices = [None, None]
dist.all_gather_object(choices, mixed)
assert torch.equal(*both), 'ranks differ'
assert choices[0] == choices[1] and len(set(mixed)) == 2, choices
print('agreed', flush=True)
dist.barrier()
time.sleep(0.5)
os._exit(0)  # tearing gloo down is not under test, and the rank that leaves first can abort the other
'''


def test_two_ranks_over_gloo_agree(tmp_path: Path) -> None:
    script = tmp_path / 'ranks.py'
    script.write_text(DDP_SCRIPT)
    done = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', str(script)],
        capture_output=True, text=True, timeout=240, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count('agreed') == 2
