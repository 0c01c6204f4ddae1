"""What the loss is told besides its tensors, in one object."""
from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Union


@dataclass(frozen=True)
class LossOptions:
    """Settings of `mixed_cross_entropy`, checked; from there to the engines as they are.

    Attributes:
        normalize, engine, over_ranks, binary, keep_norm: as there.
        masked: whether some positions do not exist; the attention there is 0 already (`masks.masked_attention`).
        teacher_weight: share of the teacher's predictions of mixtures (`TeacherTargets`, reading 'logits'); 0 for none.
        logits_grad, attention_grad: which gradients are wanted. They are computed along with the loss.
    """
    normalize: str = 'position'
    engine: str = 'auto'
    over_ranks: bool = False
    binary: bool = False
    keep_norm: bool = False
    masked: bool = False
    teacher_weight: float = 0.0
    logits_grad: bool = False
    attention_grad: bool = False

    def scalars(self) -> tuple[Union[str, bool, float], ...]:
        """The same for an operator of torch, whose schema knows plain values only. `LossOptions(*scalars)` undoes it.
        """
        return tuple(getattr(self, field.name) for field in fields(self))  # astuple copies, which breaks the graph

    @classmethod
    def schema(cls) -> str:
        """How torch's schema declares `scalars`."""
        return ', '.join(f'{field.type} {field.name}' for field in fields(cls))
