"""Interpolation vectors: how much of each example goes into each mixed one."""
from __future__ import annotations

from typing import Optional, Union

import torch
from torch import Tensor

from ..errors import SettingError


def sample_lam(
        n: int,
        positions: int,
        batch: int,
        alpha: Union[float, tuple[float, float]] = (0.5, 2.0),
        generator: Optional[torch.Generator] = None,
        *,
        m: Optional[int] = None,
        device: Union[torch.device, str, None] = None,
        dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw Λ: n interpolation vectors for every position, λ ~ Dir(α) on the simplex (arXiv 2311.05538, eq. for Λ).

    Args:
        n: vectors per position.
        positions: positions, each with vectors of its own (1 for MultiMix).
        batch: B, examples in the mini-batch.
        alpha: concentration of the symmetric Dirichlet, > 0; or a range, from which one α is drawn per call.
        generator: for reproducible draws; its device is the default for `device`.
        m: examples per vector; each vector mixes m of the B chosen at random, the rest get weight 0. None is all.
        device: where to sample; nothing is moved and nothing waits for the host.
        dtype: floating dtype of the result. Sampling itself is in float32 or, if asked for, float64.

    Returns:
        (n, positions, batch); entries ≥ 0, each row along the last axis sums to 1.

    Raises:
        SettingError: n, positions or batch below 1, α not above 0, m not in 1..batch.
    """
    m = batch if m is None else m
    for name, value in (('n', n), ('positions', positions), ('batch', batch), ('m', m)):
        if not isinstance(value, int) or value < 1:
            raise SettingError(f'{name} is {value!r}, but it must be a whole number of at least 1.')
    if m > batch:
        raise SettingError(f'm is {m}, but a batch of {batch} has no {m} examples to mix: at most {batch}.')
    ends = tuple(alpha) if isinstance(alpha, (tuple, list)) else (alpha, alpha)
    low, high = ends if len(ends) == 2 else (ends * 2 if len(ends) == 1 else (0, 0))
    if not all(isinstance(end, (int, float)) for end in ends) or not 0 < low <= high < float('inf'):
        raise SettingError(f'alpha is {alpha!r}, but a Dirichlet concentration must be finite and above 0, and a '
                           f'range must start with its smaller end.')
    if device is None:
        device = generator.device if generator is not None else 'cpu'
    work = torch.float64 if dtype == torch.float64 else torch.float32

    lam = _dirichlet((n, positions, m), low, high, generator, device, work)
    if m < batch:
        chosen = torch.rand((n, positions, batch), generator=generator, device=device).topk(m).indices
        lam = lam.new_zeros((n, positions, batch)).scatter_(-1, chosen, lam)
    return lam.to(dtype)


def _dirichlet(
        shape: tuple[int, ...],
        low: float,
        high: float,
        generator: Optional[torch.Generator],
        device: Union[torch.device, str],
        dtype: torch.dtype,
) -> Tensor:
    if low == high == 1:  # Dir(1): normalised exponentials
        g = torch.empty(shape, device=device, dtype=dtype).exponential_(generator=generator)
        return g / g.sum(-1, keepdim=True)
    if low == high:
        a = torch.full((), low, device=device, dtype=dtype)
    else:
        a = low + (high - low) * torch.rand((), generator=generator, device=device, dtype=dtype)
    # Gamma(α) underflows to all zeros for small α, and 0/0 is no point of a simplex. In logarithms it does not:
    # Gamma(α) = Gamma(α+1) · U^(1/α), and -log U is exponential.
    log_g = _standard_gamma((a + 1).expand(shape).contiguous(), generator).log()
    log_g -= torch.empty(shape, device=device, dtype=dtype).exponential_(generator=generator) / a
    return log_g.softmax(-1)


def _standard_gamma(concentration: Tensor, generator: Optional[torch.Generator]) -> Tensor:
    """What torch.distributions.Gamma calls; in the torch versions we support, that class takes no generator."""
    try:
        return torch._standard_gamma(concentration, generator=generator)
    except NotImplementedError:  # MPS in older torch: sample on the CPU, seeded from the device
        device = concentration.device
        seed = int(torch.randint(2**31, (), generator=generator, device=device))
        cpu = torch.Generator().manual_seed(seed)
        return torch._standard_gamma(concentration.cpu(), generator=cpu).to(device)


def effective_examples(lam: Tensor) -> Tensor:
    """1/Σλ² along the last axis: B for equal weights, 1 when one example has all. (…, B) → (…)."""
    return lam.square().sum(-1).reciprocal()
