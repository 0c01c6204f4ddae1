"""Variants of the method that were tried and are not in the product: tasks for a study's runs with `variant:`.

    python train.py --multimix-task benchmarks.variants:Dominant --multimix dense --data-dir cifar10 …

    dominant     An anisotropic Dirichlet: one example, drawn at random, has half or more of each mixture and the
                 symmetric Dirichlet of the settings divides the rest.
    same-class   Each mixture is of one class. Its target stays one-hot.
    neighbours   Each mixture is of one example, drawn at random, and of the seven whose mean logits are nearest.
    mix-late     Embeddings are mixed in the last three quarters of the training only.
    mix-early    In the first three quarters only.
    frozen       Only the classifier learns; the network below it stays as it came, batch norms included.
    memorised    The share of the steps that mix follows memorisation: it is the fraction by which the running loss of
                 unmixed training batches has fallen since the start. It needs no length of the training.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any, Optional

import torch
from torch import Tensor

from timm_multimix import MultiMixTask
from timm_multimix.heads import classifier_leaves
from timm_multimix.mixing import LamSampler

NEIGHBOURS = 8
MOMENTUM = 0.98  # of the running loss: about an epoch of the studies' 39 batches
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


def dominant(sampler: LamSampler, y: Tensor, logits: Tensor) -> Tensor:
    lam = sampler.draw(sampler.positions, sampler.n)
    share = torch.empty(lam.shape[:2] + (1,)).uniform_(0.5, 1)
    return (lam * (1 - share)).scatter_add_(-1, anchors(sampler).unsqueeze(-1), share)


def same_class(sampler: LamSampler, y: Tensor, logits: Tensor) -> Tensor:
    alike = y.argmax(1).unsqueeze(0) == y.argmax(1).unsqueeze(1)
    return among(sampler, alike[anchors(sampler)])


def neighbours(sampler: LamSampler, y: Tensor, logits: Tensor) -> Tensor:
    mean = logits.float().mean(1)
    nearest = torch.cdist(mean, mean).topk(min(NEIGHBOURS, sampler.batch), largest=False).indices
    allowed = torch.zeros(sampler.batch, sampler.batch, dtype=torch.bool).scatter_(1, nearest, True)
    return among(sampler, allowed[anchors(sampler)])


class Drawn(MultiMixTask):
    """`draw` chooses the mixtures of every step, (P, N, B)."""
    draw: Draw

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        draw = type(self).draw
        self.wrapped.sampler = lambda sampler, y, logits: draw(sampler, y, logits).transpose(0, 1)


class Dominant(Drawn):
    draw = staticmethod(dominant)


class SameClass(Drawn):
    draw = staticmethod(same_class)


class Neighbours(Drawn):
    draw = staticmethod(neighbours)


class MixLate(MultiMixTask):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.policy.schedule = lambda progress: float(progress >= 0.25)


class MixEarly(MultiMixTask):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.policy.schedule = lambda progress: float(progress < 0.75)


class Memorised(MultiMixTask):
    """Attributes: start and running, the loss of unmixed training batches at the start and lately."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.start: Optional[float] = None
        self.running = 0.0
        self.policy.schedule = self.fallen

    def fallen(self, progress: float) -> float:
        return 0.0 if self.start is None else min(1.0, max(0.0, 1 - self.running / self.start))

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Any]:
        result = super().forward(input, target)
        if self.training and 'loss_clean' in result and result['mixed'] in ('nothing', 'embeddings'):
            loss = float(result['loss_clean'])
            if self.start is None:
                self.start = self.running = loss
            self.running += (1 - MOMENTUM) * (loss - self.running)
        return result


class Frozen(MultiMixTask):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.requires_grad_(False)
        for leaf in classifier_leaves(self.get_eval_model()):
            leaf.requires_grad_(True)

    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        self.get_eval_model().eval().training = mode  # in eval mode the model itself would not mix
        return self


VARIANTS = {
    'dominant': Dominant, 'same-class': SameClass, 'neighbours': Neighbours, 'mix-late': MixLate,
    'mix-early': MixEarly, 'memorised': Memorised, 'frozen': Frozen,
}
