"""Random numbers by place: what is drawn depends on the seed and on where in the run it is, and on nothing before it.

A run that was stopped therefore draws what an unbroken one would have drawn, without a generator's state being saved
for every process that draws.
"""
from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_place(*place: int, cpu_only: bool = False) -> None:
    """Seed Python's, NumPy's and torch's global generators for a place, such as (seed, epoch, batch, rank).

    Args:
        *place: integers of at least 0; places that differ in value or number draw independently.
        cpu_only: leave accelerators' generators alone, for processes that only load data.
    """
    a, b, c = (int(word) for word in np.random.SeedSequence(place).generate_state(3))
    random.seed(a)
    np.random.seed(b)
    (torch.default_generator.manual_seed if cpu_only else torch.manual_seed)(c)


@contextmanager
def seeded_place(*place: int) -> Iterator[None]:
    """While inside, Python's, NumPy's and torch's CPU generators draw by the place. After it they go on as before."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        seed_place(*place, cpu_only=True)
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
