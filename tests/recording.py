"""A task that writes down what train.py's steps saw and did, for `--multimix-task tests.recording:Recording`."""
from __future__ import annotations

from typing import Any

from torch import Tensor

from timm_multimix import MultiMixTask
from timm_multimix.mixing import LamSampler

STEPS: list[dict[str, Any]] = []


def recorder(drawn: list[Tensor]) -> Any:
    """A sampler that draws what the settings say, and keeps it."""
    def sampler(lam: LamSampler, y: Tensor, logits: Tensor) -> Tensor:
        drawn.append(lam.draw(lam.positions, lam.n).transpose(0, 1).contiguous())
        return drawn[-1]
    return sampler


class Recording(MultiMixTask):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.drawn: list[Tensor] = []
        if self.is_wrapped:
            self.wrapped.sampler = recorder(self.drawn)
        STEPS.clear()

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Any]:
        self.drawn.clear()
        images, progress = input.clone(), (self.policy.progress, self.policy.epoch)
        result = super().forward(input, target)
        STEPS.append({'input': images, 'target': target.clone(), 'progress': progress, 'mixed': result['mixed'],
                      'loss': result['loss'].detach().clone(), 'lam': self.drawn[0].clone() if self.drawn else None})
        return result
