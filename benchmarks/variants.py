"""train.py with a variant of the method that was tried and is not in the product, for a study's runs with `variant:`.

    python -m benchmarks.variants dominant --multimix dense --data-dir cifar10 …     # the rest are train.py's flags

    dominant     An anisotropic Dirichlet: one example, drawn at random, has half or more of each mixture and the
                 symmetric Dirichlet of the settings divides the rest.
    same-class   Each mixture is of one class. Its target stays one-hot.
    neighbours   Each mixture is of one example, drawn at random, and of the seven whose mean logits are nearest.
    mix-late     Embeddings are mixed in the last three quarters of the training only.
    mix-early    In the first three quarters only.
"""
from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Optional

import torch
from torch import Tensor

import timm_multimix.wrapper as wrapper
import train
from timm_multimix.mixing import LamSampler, mixed_cross_entropy
from timm_multimix.task import MultiMixTask

NEIGHBOURS = 8
Draw = Callable[[LamSampler, Tensor, Tensor], Tensor]


def among(sampler: LamSampler, allowed: Tensor) -> Tensor:
    """Λ of a symmetric Dirichlet over the `allowed` examples only, (P, N, B); its α is raised so that the whole has the
    concentration Bα of the settings, which is what the effective number of examples follows."""
    alpha = sampler.alpha * sampler.batch / allowed.sum(-1, keepdim=True)
    alpha = alpha.expand(allowed.shape).contiguous()
    log = torch._standard_gamma(1 + alpha).log() - torch.empty_like(alpha).exponential_() / alpha
    return log.masked_fill(~allowed, -torch.inf).softmax(-1)


def anchors(sampler: LamSampler) -> Tensor:
    """An example of the batch for each mixture, (P, N)."""
    return torch.randint(sampler.batch, (sampler.positions, sampler.n))


def dominant(sampler: LamSampler, logits: Tensor, y: Tensor) -> Tensor:
    lam = sampler.draw(sampler.positions, sampler.n)
    share = torch.empty(lam.shape[:2] + (1,)).uniform_(0.5, 1)
    return (lam * (1 - share)).scatter_add_(-1, anchors(sampler).unsqueeze(-1), share)


def same_class(sampler: LamSampler, logits: Tensor, y: Tensor) -> Tensor:
    alike = y.argmax(1).unsqueeze(0) == y.argmax(1).unsqueeze(1)
    return among(sampler, alike[anchors(sampler)])


def neighbours(sampler: LamSampler, logits: Tensor, y: Tensor) -> Tensor:
    mean = logits.detach().float().flatten(1, -2).mean(1) if logits.ndim == 3 else logits.detach().float()
    nearest = torch.cdist(mean, mean).topk(min(NEIGHBOURS, sampler.batch), largest=False).indices
    allowed = torch.zeros(sampler.batch, sampler.batch, dtype=torch.bool).scatter_(1, nearest, True)
    return among(sampler, allowed[anchors(sampler)])


def with_mixtures(draw: Draw) -> None:
    """Let `draw` choose the mixtures of every step."""
    def loss(logits: Tensor, target: Tensor, lam: LamSampler, attention: Optional[Tensor] = None, **kw: Any) -> Tensor:
        return mixed_cross_entropy(logits, target, draw(lam, logits, target).transpose(0, 1), attention, **kw)

    wrapper.mixed_cross_entropy = loss  # type: ignore[attr-defined]


def with_schedule(begin: float, end: float) -> None:
    """Mix on the steps from `begin` to `end` only, shares of the training."""
    mixes, build = MultiMixTask.mixes, train.create_scheduler_v2
    total: list[int] = []

    def create(*args: Any, **kwargs: Any) -> Any:
        scheduler, epochs = build(*args, **kwargs)
        total.append(epochs * kwargs['updates_per_epoch'])
        return scheduler, epochs

    train.create_scheduler_v2 = create  # type: ignore[attr-defined]
    MultiMixTask.mixes = lambda self, step: (  # type: ignore[method-assign]
        not total or begin <= step / total[0] < end) and mixes(self, step)


VARIANTS: dict[str, Callable[[], None]] = {
    'dominant': lambda: with_mixtures(dominant),
    'same-class': lambda: with_mixtures(same_class),
    'neighbours': lambda: with_mixtures(neighbours),
    'mix-late': lambda: with_schedule(0.25, 1),
    'mix-early': lambda: with_schedule(0, 0.75),
}


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] not in VARIANTS:
        sys.exit(__doc__)
    VARIANTS[sys.argv[1]]()
    return train.main(sys.argv[2:])


if __name__ == '__main__':
    sys.exit(main())
