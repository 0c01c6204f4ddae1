"""The tiles in plain torch where a mixture is a sum of a few rows: these are looked up, not multiplied.

A sum of K rows of B takes K/B of the operations of a product, and so does its transpose, the gradient, once the sticks
are sorted by where they go. X then passes through memory four times: written, 2^X in its place, summed up, and read by
the gradient. What a mixture is divided or multiplied by, also by the softmax, goes into its sticks' shares instead.
"""
from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..dirichlet import Sticks
from .stream import TINY, Batch, Sums, factors

# Elements of X at a time; and mixtures in a tile, at least: with many classes it is done in blocks of them.
TILE = {'cpu': 1 << 19, 'cuda': 1 << 25}
ROWS = 256


def add_sticks(sums: Sums, batch: Batch, sticks: Sticks) -> None:
    """See `stream.Engine`. Only cross-entropy, a constant attention, and no teacher that predicts mixtures.

    The tails are examples as well, E = B + M in all. In the end, what was added to them goes to the B that they mix.
    """
    p, N, K = sticks.share.shape
    M, B = sticks.tails.shape[1:]
    C, E = batch.logits.shape[-1], B + M
    example, share, tails = sticks
    s = torch.ones_like(share[..., 0])
    if batch.attention is not None:
        tails, attention = factors(tails, batch.attention.unsqueeze(1))
        share, s = factors(share, _of_sticks(torch.cat([batch.attention, attention], 1), example))
    weight = s * _mix_numbers(share, batch.rowsum, example, tails)
    sums.weight += (s if batch.mass is None else s * _mix_numbers(share, batch.mass, example, tails)).sum(1)
    scaled = share  # over h
    if sums.pair is not None or batch.options.keep_norm:
        w = share.new_zeros(p, N, E).scatter_add_(-1, example, share)
    if batch.options.keep_norm:
        scaled = share / torch.baddbmm(w[..., :B], w[..., B:], tails).norm(dim=-1, keepdim=True).clamp_min_(TINY)

    size = TILE.get(share.device.type, TILE['cuda'])
    n = min(N, max(ROWS, size // C))  # a tile is n mixtures of one position, or all mixtures of q positions
    q = max(1, min(p, size // (C * n))) if n == N else 1
    to = _Transposed.of(example, scaled, n, E)
    which = (example + E * torch.arange(p, device=share.device).view(-1, 1, 1)).flatten()
    everything = slice(0, p * N), slice(0, p * to.parts)
    if sums.pair is not None:
        pair = to.mix(w.view(p * N, E), s.flatten(), *everything)
        sums.pair += _fold(_fold(pair.view(p, to.parts, E, E).sum(1), tails).transpose(1, 2), tails)
    else:
        y = _extend(batch.y.expand(p, B, C), tails).view(p * E, C)
        shares, times, targets = share.flatten(), s.flatten(), share.new_zeros(p, E, C)

    rows = _extend(batch.logits, tails).view(p * E, C)
    blocks = [block.contiguous() for block in rows.split(max(64, size // (n * q)), 1)]
    doublings = scaled.flatten() * math.log2(math.e)  # 2^x takes a third of the time of e^x
    every = torch.arange(0, q * n * K, K, device=share.device)
    grad = None if sums.logits is None else rows.new_zeros(p, E, C)
    weight, lse = weight.flatten(), torch.empty_like(weight).flatten()
    for i in range(0, p, q):
        for j in range(0, N, n):
            a = i * N + j
            b = min(a + q * n, (i + q) * N, p * N)
            part = i * to.parts + j // n
            if sums.pair is None:
                mixed = _mix(y, which[a * K:b * K], shares[a * K:b * K], every[:b - a])
                into = targets[i:i + q]
                into += to.mix(mixed, times[a:b], slice(a, b), slice(part, part + q)).view_as(into)
                del mixed  # the powers take its place
            powers, total, lse[a:b] = _exponentials(
                blocks, which[a * K:b * K], doublings[a * K:b * K], every[:b - a])
            if grad is None:
                continue
            for into, block in zip(grad[i:i + q].split([len(block[0]) for block in powers], 2), powers):
                into += to.mix(block, weight[a:b] / total, slice(a, b), slice(part, part + q)).view_as(into)
    if sums.pair is None:
        sums.subtract(_fold(targets, tails), batch.logits)
    sums.loss += (weight * lse).view(p, N).sum(1)
    if sums.logits is not None and grad is not None:
        sums.logits += _fold(grad, tails)


@dataclass
class _Transposed:
    """Λᵀ in parts of n mixtures of a position: sticks sorted by part, and in it by example.

    Attributes:
        mixture: whose each stick is, counted through all positions.
        share: of each stick.
        starts: where those of an example start, (parts of all positions, E).
        parts: of a position.
        sticks: of a mixture, K.
    """
    mixture: Tensor
    share: Tensor
    starts: Tensor
    parts: int
    sticks: int

    @classmethod
    def of(cls, example: Tensor, share: Tensor, n: int, E: int) -> _Transposed:
        p, N, K = share.shape
        parts = -(-N // n)
        part = parts * torch.arange(p, device=share.device).view(-1, 1) + torch.arange(N, device=share.device) // n
        places = p * parts * E
        dtype = torch.int16 if places <= torch.iinfo(torch.int16).max else torch.int32  # sorted faster than int64
        key, order = (part.unsqueeze(-1) * E + example).to(dtype).flatten().sort()
        starts = torch.searchsorted(key, torch.arange(places, dtype=dtype, device=key.device))
        return cls(order // K, share.flatten().index_select(0, order), starts.view(-1, E), parts, K)

    def mix(self, rows: Tensor, times: Tensor, mixtures: slice, parts: slice) -> Tensor:
        """wᵀ diag(times) rows, part by part: of these mixtures, which are those of these parts."""
        sticks = slice(mixtures.start * self.sticks, mixtures.stop * self.sticks)
        mixture = self.mixture[sticks] - mixtures.start
        share = self.share[sticks] * times.index_select(0, mixture)  # of torch's ways to look numbers up, the fastest
        return _mix(rows, mixture, share, self.starts[parts].flatten() - sticks.start)


def _exponentials(
        blocks: list[Tensor], which: Tensor, share: Tensor, starts: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
    """2^X of mixtures, in blocks of classes; their sum; and the natural logarithm of what that stands for.

    The largest is subtracted only where it must be. An example's largest is 0, so X ≤ 0, and a mixture's largest is
    seldom far below.
    """
    if share.device.type == 'cpu':  # elsewhere looking at the sum would wait
        powers = [_mix(block, which, share, starts).exp2_() for block in blocks]
        total = _sum(powers)
        if float(total.min()) > torch.finfo(total.dtype).tiny**0.5:
            return powers, total, total.log()
    powers = [_mix(block, which, share, starts) for block in blocks]
    top = torch.stack([block.amax(1) for block in powers]).amax(0)
    powers = [block.sub_(top.unsqueeze(1)).exp2_() for block in powers]
    total = _sum(powers)
    return powers, total, total.log() + top * math.log(2)


def _sum(blocks: list[Tensor]) -> Tensor:
    return torch.stack([block.sum(1) for block in blocks]).sum(0)


def _mix(rows: Tensor, which: Tensor, share: Tensor, starts: Tensor) -> Tensor:
    """Σ share · rows[which] of every stretch of them that begins at one of `starts`."""
    return F.embedding_bag(which, rows, starts, mode='sum', per_sample_weights=share)


def _mix_numbers(share: Tensor, numbers: Tensor, example: Tensor, tails: Tensor) -> Tensor:
    """Of the examples, (B,) or (p, B), by sticks: (p, N)."""
    return (share * _of_sticks(_extend(numbers.expand(len(tails), -1), tails), example)).sum(-1)


def _of_sticks(numbers: Tensor, example: Tensor) -> Tensor:
    """What each stick's example has, (p, E) → (p, N, K)."""
    return numbers.gather(1, example.flatten(1)).view(example.shape)


def _extend(of_examples: Tensor, tails: Tensor) -> Tensor:
    """With what the tails mix of it behind: (p, B) or (p, B, C) → (p, E) or (p, E, C)."""
    flat = of_examples.unsqueeze(-1) if of_examples.ndim == 2 else of_examples
    mixed = (tails @ flat).view(*tails.shape[:2], *of_examples.shape[2:])
    return torch.cat([of_examples, mixed], 1)


def _fold(sums: Tensor, tails: Tensor) -> Tensor:
    """What was added to the tails goes to the examples that they mix: (p, E, …) → (p, B, …)."""
    B = tails.shape[-1]
    return torch.baddbmm(sums[:, :B], tails.transpose(1, 2), sums[:, B:])
