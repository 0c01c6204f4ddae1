"""Several ranks over gloo: real processes, started by torchrun as users start them."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from .conftest import ROOT

ENV = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}


def torchrun(*args: str, ranks: int = 2, timeout: int = 240, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={ranks}', *args],
        capture_output=True, text=True, timeout=timeout, env=ENV)
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
for mode, settings in (
        ('multimix', {}), ('dense', {}), ('dense', dict(normalize='all', clean_weight=0.0)),
        ('dense', dict(attention_detach=False)), ('dense', dict(attention='cam', attention_norm='softmax', m=5)),
        ('dense', dict(attention='uniform'))):
    def make(gather):
        torch.manual_seed(1)
        net = timm.create_model('test_vit2', num_classes=5, img_size=64).double()
        return wrap(net, mode, n=7, gather=gather, label_smoothing=0.1, **settings)
    one, two = make(False), make(True)
    P = one.ending.positions if one.ending else 1
    lam = sample_lam(7, P, 8, 0.5, torch.Generator().manual_seed(2), m=settings.get('m'), dtype=torch.float64)
    alone = one(images, target, lam=lam)
    alone.loss.backward()
    ddp = MultiMixTask(two, verbose=False).prepare_distributed().trainable_module
    out = ddp(images[own], target[own], lam=lam)
    out.loss.backward()
    assert abs(out.signal['loss_mixed'] - alone.signal['loss_mixed']) < 1e-9, (mode, settings)
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
