"""What a teacher says of a mini-batch, as a share of its targets (`extensions.taught` writes it out)."""
from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..config import READINGS
from ..errors import SettingError
from .targets import MASKED


@dataclass(frozen=True)
class TeacherTargets:
    """A teacher's predictions of the examples of a mini-batch, and how much they count beside the labels.

    A mixture's target is (1 − weight) · (its labels, mixed) + weight · (what the teacher says of it).

    Attributes:
        logits: of the teacher, (B, C), or (B, P, C) for a prediction of its own at every position. Floating.
        weight: the teacher's share of the targets, above 0 and up to 1.
        temperature: what the logits are divided by before they become probabilities, above 0.
        reading: what the teacher says of a mixture. 'targets': its probabilities of the examples, mixed. 'logits': the
            probabilities of its mixed logits; the classifier is linear, so this is its prediction of the mixture.

    Raises:
        SettingError: any of these is something else.
    """
    logits: Tensor
    weight: float = 0.5
    temperature: float = 1.0
    reading: str = 'targets'

    def __post_init__(self) -> None:
        if not isinstance(self.logits, Tensor):
            raise SettingError(f'The logits of a teacher are a {type(self.logits).__name__}, but must be a tensor.')
        if self.logits.ndim not in (2, 3) or not self.logits.is_floating_point():
            raise SettingError(f'The logits of a teacher must be floating (B, C) or (B, P, C), not {self.logits.dtype} '
                               f'{tuple(self.logits.shape)}.')
        if self.logits.requires_grad:
            raise SettingError('The logits of a teacher require grad, but targets are given, not learned: detach them.')
        if not isinstance(self.weight, (int, float)) or not 0 < self.weight <= 1:
            raise SettingError(f"weight of a teacher is {self.weight!r}, but it is a share: above 0 and up to 1.")
        if not isinstance(self.temperature, (int, float)) or not 0 < self.temperature < float('inf'):
            raise SettingError(f'temperature of a teacher is {self.temperature!r}, but it must be finite and above 0.')
        if self.reading not in READINGS:
            raise SettingError(f'reading of a teacher is {self.reading!r}, but it must be one of '
                               f'{", ".join(READINGS)}.')

    def check(self, batch: int, positions: int, classes: int) -> None:
        """Raise `SettingError` unless these are predictions of such a batch."""
        shape, fits = tuple(self.logits.shape), ((batch, classes), (batch, positions, classes))
        if shape not in fits:
            raise SettingError(f'The logits of a teacher are {shape}, but to fit the batch they must be {fits[0]} or '
                               f'{fits[1]}.')

    def sharp(self, dtype: torch.dtype) -> Tensor:
        """The logits over the temperature, in this dtype; a masked class stays masked."""
        return (self.logits.to(dtype) / self.temperature).clamp(min=MASKED)  # 0 · −∞ would be NaN

    def blend(self, y: Tensor, binary: bool) -> Tensor:
        """Labels (B, C) and the teacher's predictions in one: (B, C), or (P, B, C), position first."""
        said = probabilities(self.sharp(y.dtype), binary)
        said = said.transpose(0, 1).contiguous() if said.ndim == 3 else said
        return (1 - self.weight) * y + self.weight * said

    def of_mixtures(self, lam: Tensor, binary: bool) -> TeacherTargets:
        """What the teacher says of mixtures, as if they were examples: lam (N, B), logits (B, C) → (N, C)."""
        if self.reading == 'logits':
            return replace(self, logits=lam @ self.sharp(lam.dtype), temperature=1.0)
        said = lam @ probabilities(self.sharp(lam.dtype), binary)
        return replace(self, logits=said.logit() if binary else said.log(), temperature=1.0)


def probabilities(logits: Tensor, binary: bool) -> Tensor:
    """Of the classes (…, C): they sum to one, or each stands for itself."""
    return logits.sigmoid() if binary else logits.softmax(-1)
