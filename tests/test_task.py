"""MultiMixTask in timm's machinery: alternation, mixup, EMA, DDP, compile, checkpoints."""
from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import timm
import torch
import torch.nn as nn
from timm.task import TrainingTask, load_task_ema_checkpoint, resume_task_checkpoint
from timm.utils import CheckpointSaver

from tests import forked
from timm_multimix import MultiMixTask, unwrap, wrap


def make(preset: str = 'embeddings', **kwargs: object) -> MultiMixTask:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        names = ('n', 'prob', 'ramp', 'clean_weight', 'alpha', 'label_smoothing', 'bce_loss', 'bce_sum',
                 'bce_target_thresh')
        settings = {k: kwargs.pop(k) for k in names if k in kwargs}
        model = wrap(timm.create_model('test_resnet', num_classes=5), 'dense', preset=preset, **{'n': 10, **settings})
    return MultiMixTask(model, **kwargs)  # type: ignore[arg-type]


IMAGES, TARGET = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 5


def test_is_a_timm_task() -> None:
    task = make()
    assert isinstance(task, TrainingTask)
    result = task(IMAGES, TARGET)
    assert result['mixed'] == 'embeddings' and result['output'].shape == (8, 5)
    assert {'loss', 'loss_mixed', 'loss_clean', 'effective', 'target_entropy'} <= set(result)
    torch.testing.assert_close(result['loss'], (result['loss_mixed'] + result['loss_clean']) / 2)
    result['loss'].backward()


def test_binary_cross_entropy_on_steps_of_every_kind() -> None:
    task = make('default', bce_loss=True, bce_sum=True, label_smoothing=0.1, bce_target_thresh=0.3, ramp=0)
    smooth = nn.functional.one_hot(TARGET, 5) * 0.9 + 0.02
    seen = set()
    for _ in range(12):
        result = task(IMAGES, TARGET)
        seen.add(result['mixed'])
        assert torch.isfinite(result['loss'])
        if result['mixed'] == 'embeddings':
            clean = nn.functional.binary_cross_entropy_with_logits(result['output'], (smooth > 0.3).float()) * 5
            torch.testing.assert_close(result['loss_clean'], clean)
    assert {'embeddings', 'mixup', 'cutmix'} <= seen
    task.eval()  # in evaluation the plain loss: neither smoothed nor thresholded
    plain = nn.functional.binary_cross_entropy_with_logits(
        task.get_eval_model()(IMAGES), nn.functional.one_hot(TARGET, 5).float()) * 5
    torch.testing.assert_close(task(IMAGES, TARGET)['loss'], plain)


def test_smoothing_is_applied_once() -> None:
    task = make(prob=0.0, label_smoothing=0.1)
    result = task(IMAGES, TARGET)
    torch.testing.assert_close(
        result['loss'], nn.functional.cross_entropy(result['output'], TARGET, label_smoothing=0.1))
    result = task(IMAGES, nn.functional.one_hot(TARGET, 5).float())
    torch.testing.assert_close(result['loss'], nn.functional.cross_entropy(result['output'], TARGET))


def test_plain_model_trains_plainly() -> None:
    task = MultiMixTask(timm.create_model('test_resnet', num_classes=5), label_smoothing=0.0)
    result = task(IMAGES, TARGET)
    torch.testing.assert_close(result['loss'], nn.functional.cross_entropy(result['output'], TARGET))
    assert result['mixed'] == 'nothing'


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
    assert other.policy.step == 3 and other.policy.counts == {'steps': 3, 'embeddings': 3}
    for a, b in ((other, task),):
        assert torch.equal(a.get_eval_model().eval()(IMAGES), b.get_eval_model().eval()(IMAGES))
        assert torch.equal(a.get_eval_model(ema=True).eval()(IMAGES), b.get_eval_model(ema=True).eval()(IMAGES))


def test_eval_model_is_the_timm_model() -> None:
    task = make()
    assert task.get_eval_model() is unwrap(task.trainable_module)
    assert type(task.get_eval_model()).__name__ == 'ResNet'


def test_a_model_compiled_before_is_not_trained_plainly() -> None:
    task = make()
    other = MultiMixTask(torch.compile(task.trainable_module))
    with torch.compiler.set_stance('force_eager'):  # what it is compiled to is tested elsewhere
        assert other(IMAGES, TARGET)['mixed'] == 'embeddings'


def test_an_odd_last_batch_goes_without_mixup() -> None:
    task = make('paper')
    with pytest.warns(UserWarning, match='7 is odd'):
        results = [task(IMAGES[:7], TARGET[:7]) for _ in range(6)]
    assert {r['mixed'] for r in results} == {'nothing', 'embeddings'}
    assert all(torch.isfinite(r['loss']) for r in results)


def test_compile() -> None:
    task = make()
    task.compile(backend='eager')
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
assert choices[0] == choices[1] and set(mixed) == {'mixup', 'embeddings'}, choices
print('agreed', flush=True)
dist.barrier()
time.sleep(0.5)
os._exit(0)  # tearing gloo down is not under test, and the rank that leaves first can abort the other
'''


def test_two_ranks_over_gloo_agree(tmp_path: Path) -> None:
    script = tmp_path / 'ranks.py'
    script.write_text(DDP_SCRIPT)
    done = forked.run('-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', str(script), timeout=240,
                      deep=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count('agreed') == 2
