"""Several ranks over gloo: real processes, started by torchrun as users start them."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from timm.data import create_loader

from tests import forked
from tests.conftest import ROOT
from timm_multimix import MultiMixConfig, SettingError
from timm_multimix.data import PlacedLoader, create_train_val
from timm_multimix.runs.summary import read_summary


def torchrun(*args: str, ranks: int = 2, timeout: int = 240, code: int = 0) -> str:
    done = forked.run('-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={ranks}', *args,
                      timeout=timeout, deep=True)
    assert done.returncode == code, done.stderr[-4000:]
    return done.stdout if code == 0 else done.stdout + done.stderr


GATHER = '''
import warnings
import timm, torch, torch.distributed as dist
from timm_multimix import MultiMixTask, sample_lam, unwrap, wrap
warnings.simplefilter('ignore')
dist.init_process_group('gloo')
rank = dist.get_rank()
g = torch.Generator().manual_seed(0)
images, target = torch.randn(8, 3, 64, 64, generator=g).double(), torch.randint(0, 5, (8,), generator=g)
own = slice(4 * rank, 4 * rank + 4)
def said(images):
    return 3 * images.flatten(1)[:, :5]
for mode, settings in (
        ('multimix', {}), ('dense', {}), ('dense', dict(normalize='all', clean_weight=0.0)),
        ('dense', dict(attention_detach=False)), ('dense', dict(attention='cam', attention_norm='softmax', m=5)),
        ('dense', dict(attention='uniform')), ('dense', dict(teacher=said, teacher_start=0)),
        ('dense', dict(attention='learned', teacher=said, teacher_start=0, teacher_reading='logits'))):
    def make(gather):
        torch.manual_seed(1)
        net = timm.create_model('test_vit2', num_classes=5, img_size=64).double()
        return wrap(net, mode, n=7, gather=gather, label_smoothing=0.1, **settings)
    one, two = make(False), make(True)
    P = one.head_info.positions if one.head_info else 1
    lam = sample_lam(7, P, 8, 0.5, torch.Generator().manual_seed(2), m=settings.get('m'), dtype=torch.float64)
    alone = one(images, target, lam=lam)
    alone.loss.backward()
    ddp = MultiMixTask(two, verbose=False).prepare_distributed().trainable_module
    out = ddp(images[own], target[own], lam=lam)
    out.loss.backward()
    assert abs(out.signal['loss_mixed'] - alone.signal['loss_mixed']) < 1e-9, (mode, settings)
    if one.multimix.learned is not None:  # all learn the same, from the images of all
        assert float(one.multimix.learned.u.detach().abs().max()) > 0
        torch.testing.assert_close(one.multimix.learned.u, two.multimix.learned.u, rtol=1e-4, atol=1e-6)
    worst = largest = 0.0
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        worst, largest = max(worst, float((a.grad - b.grad).abs().max())), max(largest, float(a.grad.abs().max()))
    assert worst < 1e-6 * largest and largest > 1e-3, (mode, settings, worst, largest)
    two.zero_grad()
    ddp(images[own], target[own]).loss.backward()  # drawn: this rank's share, with one α for all
    flat = torch.cat([p.grad.flatten() for p in two.parameters()])
    both = [torch.empty_like(flat) for _ in range(2)]
    dist.all_gather(both, flat)
    assert torch.equal(*both) and flat.isfinite().all()
print('equal', flush=True)
dist.barrier()
dist.destroy_process_group()
'''


def test_gathered_gradient_is_that_of_one_process(tmp_path: Path) -> None:
    (tmp_path / 'gather.py').write_text(GATHER)
    assert torchrun(str(tmp_path / 'gather.py')).count('equal') == 2


TWO_THEN_ONE = '''
import os, sys
import train
flags = ['--model', 'test_vit2', '--img-size', '32', '--data-dir', sys.argv[1], '--output', sys.argv[2],
         '--epochs', '2', '--warmup-epochs', '1', '--lr-base', '0.1', '--aa', 'rand-m5', '--reprob', '0.5',
         '--model-ema', '--model-ema-decay', '0.5', *sys.argv[3:]]
assert train.main([*flags, '-b', '4', '--experiment', 'two', '-j', '1']) == 0
if os.environ['RANK'] == '0':
    for name in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE'):
        del os.environ[name]
    assert train.main([*flags, '-b', '8', '--experiment', 'one', '-j', '0']) == 0
'''


def test_two_ranks_train_as_one_does(tmp_path: Path, image_folder: Path) -> None:
    """The same batches, augmentation, learning rate and validation, whoever shares them; and one voice."""
    (tmp_path / 'script.py').write_text(TWO_THEN_ONE)
    out = torchrun(str(tmp_path / 'script.py'), str(image_folder), str(tmp_path), '--multimix', 'none')
    assert 'on cpu, 2 ranks of 4 images each' in out
    assert out.count('Epoch 2/2') == 2 and out.count('Done in') == 2  # one rank speaks
    one, two = (read_summary(tmp_path / name / 'summary.csv') for name in ('one', 'two'))
    for a, b in zip(one, two, strict=True):
        for name in set(a) - {'train_images_per_second'}:
            assert float(a[name]) == pytest.approx(float(b[name]), rel=1e-4), name
    states = [torch.load(tmp_path / name / 'last.pth.tar', weights_only=True) for name in ('one', 'two')]
    for key in ('state_dict', 'state_dict_ema'):
        for name, value in states[0][key].items():
            torch.testing.assert_close(states[1][key][name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_rank_that_fails_says_so_once(tmp_path: Path) -> None:
    out = torchrun(str(ROOT / 'train.py'), '--model', 'test_resnet', '--multimix', 'multimix', '--multimix-m', '65',
                   '--output', str(tmp_path), code=1)
    assert out.count('a batch of 64 has no 65') == 1 and out.count('Settings: ') == 1


# -------------------------------------------------------------------------------------------------- in this process

def test_settings_of_the_whole_batch() -> None:
    config = MultiMixConfig('multimix', m=100, gather=True)
    config.check_batch(64, ranks=2)
    assert config.mixed_batch(64, 2) == 128 and config.replace(gather=False).mixed_batch(64, 2) == 64
    with pytest.raises(SettingError, match='a batch of 64 has no 100'):
        config.check_batch(64)
    with pytest.raises(SettingError, match='4 ranks share them out'):
        MultiMixConfig('multimix', n=3, gather=True).check_batch(64, 4)
    with pytest.raises(SettingError, match='--multimix-layer embedding alone'):
        MultiMixConfig('multimix', layer=2, gather=True)
    with pytest.raises(SettingError, match='--multimix-gather'):
        MultiMixConfig('multimix', gather='yes')  # type: ignore[arg-type]


@pytest.mark.parametrize('prefetcher', [False, True])
def test_batches_by_place(image_folder: Path, prefetcher: bool) -> None:
    """From any batch on, with any number of workers, an epoch is the same; the next is another."""
    def make(workers: int, seed: int = 3) -> PlacedLoader:
        train_set, _ = create_train_val('', str(image_folder))
        return PlacedLoader(create_loader(
            train_set, (3, 32, 32), 4, is_training=True, num_workers=workers, device=torch.device('cpu'),
            persistent_workers=workers > 0, use_prefetcher=prefetcher, auto_augment='rand-m9', re_prob=0.5,
            re_mode='pixel'), seed)

    def images(loader: PlacedLoader, epoch: int, start: int = 0) -> list[torch.Tensor]:
        return [torch.cat([input.flatten(), target.to(input.dtype)]) for input, target in loader.batches(epoch, start)]

    alone, helped = make(0), make(2)
    first, second = images(alone, 0), images(alone, 1)
    assert len(first) == len(alone) == 4 and not any(torch.equal(a, b) for a, b in zip(first, second))
    torch.manual_seed(99)  # whatever was drawn before
    for loader in (alone, helped):
        for start in (0, 1, 4):
            again = images(loader, 1, start)
            assert len(again) == 4 - start and all(torch.equal(a, b) for a, b in zip(second[start:], again))
    assert not torch.equal(images(make(0, seed=4), 0)[0], first[0])
