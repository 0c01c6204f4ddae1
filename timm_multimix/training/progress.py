"""Where within an epoch a run is, and what it has measured there: all of it goes into a checkpoint."""
from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

import torch
from torch import Tensor

from ..distributed import total


class Averages:
    """Means of named values over the steps that had them, kept on the device: nothing waits for it.

    Steps whose value is not finite are left out.
    """

    def __init__(self, names: Sequence[str], device: Optional[torch.device] = None) -> None:
        self.names = list(names)
        self.sums = torch.zeros(2, len(self.names), device=device)  # of values, and how many
        self.missing = torch.full((), torch.nan, device=device)

    def add(self, values: dict[str, Tensor]) -> None:
        if unknown := values.keys() - set(self.names):
            raise KeyError(f'{sorted(unknown)} are not among {self.names}')
        # All at once: on a GPU each operation takes as long for one number as for all.
        found = torch.stack([values.get(name, self.missing).to(self.sums.dtype) for name in self.names])
        finite = found.isfinite()
        self.sums += torch.stack([torch.where(finite, found, 0), finite.to(found.dtype)])

    def means(self, of_all_ranks: bool = False) -> dict[str, Optional[float]]:
        """None for what no step had."""
        sums, counts = (total(self.sums.clone()) if of_all_ranks else self.sums).tolist()
        return {name: s / n if n else None for name, s, n in zip(self.names, sums, counts)}


PLAIN = ('epoch', 'batch', 'rate', 'skipped', 'in_a_row', 'statistics_agreed')  # of `Progress`, as they are


@dataclass
class Progress:
    """What a run must know to resume within an epoch.

    Attributes:
        epoch: from 0.
        batch: how many of its batches are done; all of an update's or none.
        rate: learning rate at its start.
        averages: of the training metrics.
        skipped: updates skipped because their gradient was not finite.
        in_a_row: how many of the last updates were, of earlier epochs too.
        statistics_agreed: BatchNorm's are the same on all ranks already (`--dist-bn`).
        counted: what the policy had counted before its first step.
    """

    epoch: int
    averages: Averages
    batch: int = 0
    rate: float = 0.0
    skipped: int = 0
    in_a_row: int = 0
    statistics_agreed: bool = False
    counted: Counter[str] = field(default_factory=Counter)

    def state_dict(self) -> dict[str, Any]:
        sums = {name: self.averages.sums[:, i].tolist() for i, name in enumerate(self.averages.names)}
        return {**{name: getattr(self, name) for name in PLAIN}, 'averages': sums, 'counted': dict(self.counted)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in PLAIN:
            setattr(self, name, state[name])
        self.counted = Counter(state['counted'])
        for i, name in enumerate(self.averages.names):  # settings may have changed, and what is measured with them
            self.averages.sums[:, i] = torch.tensor(state['averages'].get(name, [0.0, 0.0]))
