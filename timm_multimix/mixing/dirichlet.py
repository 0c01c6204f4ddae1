"""Interpolation vectors: how much of each example goes into each mixture, λ ~ Dir(α).

Three exact ways to draw them, the cheapest that fits:

    α = 1       normalised exponentials.
    any α       normalised Gamma(α); below 1/2, where it may underflow, as Gamma(1+α) · U^(1/α) in logarithms.
    small Bα    Sethuraman's sticks (Statistica Sinica 4, 1994): break off a Beta(1, Bα) share of what is left, give it
                to an example drawn uniformly, with replacement, repeat. Shares that meet in one example add up, and
                their sum over all sticks *is* Dir(α). In logarithms what is left after k sticks is −(E₁ + … + E_k)/Bα,
                so a stick costs one exponential and one integer. It shrinks by Bα/(1 + Bα) a stick: with an effective
                sample size of 2 of 128, 25 sticks leave 2⁻²⁴, float32's rounding, and replace 128 gammas.
"""
from __future__ import annotations

import math
from typing import NamedTuple, Optional, Union

import torch
from torch import Tensor

from ..config import TUPLES
from ..errors import SettingError
from .rng import CpuStreams
from .targets import reads_values

# Sticks are drawn until what is left of the unit is expected to be below the rounding of the dtype.
_BITS = {torch.float32: 24, torch.float64: 53}

# Or until the square of what is left is expected to be 2⁻¹², and the rest is one of so many vectors.
_SHORT_BITS, TAILS = 12, 16

# Mixtures of a position that have the same weights, in another order of the examples; and of how many at least.
SAME, MANY = 4, 64


class Sticks(NamedTuple):
    """Λ as the sticks it is the sum of: K sticks for every one of k vectors at p positions.

    A stick goes to one of the B examples, or to one of M further vectors, the tails, as if they were examples B to
    B + M − 1.

    Attributes:
        example: where a stick goes, (p, k, K), int64; one may get several.
        share: how much of λ it is, (p, k, K), ≥ 0, summing to 1 along the last axis.
        tails: (p, M, B), rows of sum 1; M may be 0.
    """
    example: Tensor
    share: Tensor
    tails: Tensor

    def dense(self) -> Tensor:
        """Λ, (p, k, B)."""
        M, B = self.tails.shape[1:]
        lam = self.share.new_zeros((*self.share.shape[:2], B + M)).scatter_add_(-1, self.example, self.share)
        return lam[..., :B] + lam[..., B:] @ self.tails if M else lam


class LamSampler:
    """Interpolation vectors that are drawn when, and as many as, they are asked for.

    `mixed_cross_entropy` takes one in place of Λ and then never holds more of Λ than a tile: n may be a million. How it
    draws depends on what the loss needs, so the same seed may give other mixtures where the attention requires grad.

    Args:
        n: N, vectors per position.
        positions: P, positions, each with vectors of its own (1 for MultiMix).
        batch: B, examples in the mini-batch.
        alpha: concentration of the symmetric Dirichlet, > 0; or a range, from which one α is drawn, here.
        generator: for reproducible draws; its device is the default for `device`.
        m: examples per vector; each vector mixes m of the B chosen at random, the rest get weight 0. None is all.
        shares: how examples share the concentration mα, (B,), ≥ 0, floating, on `device`; only their ratios count. Of
            all B an example has E[λ_b] = its share of the sum; of m, its share among those. None is equal shares.
        classes: the class of each example, (B,), int64, on `device`; `tuples` needs it, and nothing else does.
        tuples: what a vector mixes: 'any' examples; those 'within' one class, the class of an example drawn by the
            shares; or one example of each class, 'across' them. Where there are fewer than m such, all of them.
        device: where to sample; nothing is moved, and on an accelerator nothing waits for the host.
        dtype: float32 or float64 to sample in; a lower precision samples in float32.

    Raises:
        SettingError: n, positions or batch below 1, α not above 0, m not in 1..batch, shares or classes of another
            shape, tuples without classes.
    """

    def __init__(
            self,
            n: int,
            positions: int,
            batch: int,
            alpha: Union[float, tuple[float, float]] = (0.5, 2.0),
            generator: Optional[torch.Generator] = None,
            *,
            m: Optional[int] = None,
            shares: Optional[Tensor] = None,
            classes: Optional[Tensor] = None,
            tuples: str = 'any',
            device: Union[torch.device, str, None] = None,
            dtype: torch.dtype = torch.float32,
    ) -> None:
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
        self.n, self.positions, self.batch, self.m = n, positions, batch, m
        self.low, self.high = float(low), float(high)
        self.generator = generator
        self.dtype = torch.float64 if dtype == torch.float64 else torch.float32
        if low == high:
            self.alpha = torch.full((), self.low, device=device, dtype=self.dtype)
        else:
            u = torch.rand((), generator=generator, device=device, dtype=self.dtype)
            self.alpha = self.low + (self.high - self.low) * u
        self.device = self.alpha.device  # 'cuda' means one of them
        self._cpu: Optional[CpuStreams] = None
        self.shares: Optional[Tensor] = None
        if shares is not None:
            if shares.shape != (batch,) or not shares.is_floating_point():
                raise SettingError(f'shares are {shares.dtype} {tuple(shares.shape)}, but they must be floating '
                                   f'({batch},), one for each example.')
            if reads_values(shares) and not (float(shares.min()) >= 0 and 0 < float(shares.sum()) < float('inf')):
                raise SettingError('shares must be finite and at least 0, and some above 0.')
            self.shares = shares.to(self.dtype) / shares.to(self.dtype).sum()
        if tuples not in TUPLES:
            raise SettingError(f'tuples is {tuples!r}, but it must be one of {", ".join(TUPLES)}.')
        self.tuples, self.classes = tuples, None
        if tuples == 'any':
            return
        if classes is None or classes.shape != (batch,) or classes.dtype != torch.int64:
            found = 'missing' if classes is None else f'{classes.dtype} {tuple(classes.shape)}'
            raise SettingError(f'classes are {found}, but tuples {tuples!r} need the class of each example: int64 '
                               f'({batch},).')
        number = torch.arange(batch, device=self.device)  # a class goes by the number of its first example
        self.classes = torch.where(classes == classes.unsqueeze(1), number, batch).min(1).values

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, P, B), as of the tensor it stands for."""
        return self.n, self.positions, self.batch

    @property
    def dirichlet(self) -> bool:
        """Whether `draw` is the one here. That of a subclass may give anything, so nothing may stand in for it."""
        return type(self).draw is LamSampler.draw

    @property
    def sticks(self) -> int:
        """Sticks per vector, K, or 0 where gammas are cheaper (or exponentials suffice)."""
        if self.classes is not None or (self.shares is not None and self.m < self.batch):
            return 0  # whose shares they are has to be drawn before
        if self.low == self.high == 1 and self.shares is None:
            return 0
        need = self._until(_BITS[self.dtype], 1)
        return need if need <= 2 * self.m else 0

    @property
    def short_sticks(self) -> int:
        """Sticks per vector that `draw_sticks` draws; of all B examples only."""
        return self._until(_SHORT_BITS, 2) + 1

    def _until(self, bits: int, power: int) -> int:
        """How many sticks until what is left, to that power, is expected to be 2^−bits: each leaves θ/(θ + power)."""
        known = self.device.type == 'cpu' and not torch.compiler.is_compiling()  # elsewhere reading α would wait
        theta = self.m * (float(self.alpha) if known else self.high)
        return max(1, math.ceil(bits * math.log(2) / math.log1p(power / theta)))

    def draw(self, positions: int, n: int) -> Tensor:
        """Fresh vectors, (positions, n, B), position first. Each row ≥ 0 and sums to 1."""
        if self.sticks:
            none = torch.empty((positions, 0, self.m), device=self.device, dtype=self.dtype)
            lam = self._break(n, self.sticks, none).dense()
        elif self.shares is not None or self.classes is not None:
            return self._draw_shares((positions, n, self.batch))
        elif self.low == self.high == 1:
            lam = self._exponential((positions, n, self.m))
            lam /= lam.sum(-1, keepdim=True)
        elif self.low >= 0.5:
            lam = self._gamma((positions, n, self.m), self.alpha)
            lam /= lam.sum(-1, keepdim=True)
        else:
            shape = (positions, n, self.m)
            lam = self._gamma(shape, 1 + self.alpha).log_()
            lam -= self._exponential(shape).div_(self.alpha)
            lam = lam.softmax(-1)
        if self.m < self.batch:
            shape = (positions, n, self.batch)
            chosen = torch.rand(shape, generator=self.generator, device=self.device).topk(self.m).indices
            lam = lam.new_zeros(shape).scatter_(-1, chosen, lam)
        return lam

    def draw_many(self, positions: int, n: int) -> Tensor:
        """As `draw`, for a mean over the vectors; where examples share the concentration equally, in less time.

        The distribution is then the same in any order of the examples. So each vector is used `SAME` times, moved on by
        part of the batch. Each is an exact draw, and those of the same weights depend on each other.
        """
        alike = self.shares is None and self.classes is None and self.dirichlet
        same = min(SAME, self.batch, n // MANY) if alike else 0
        if same < 2:
            return self.draw(positions, n)
        drawn = self.draw(positions, -(-n // same))
        return torch.cat([drawn.roll(i * self.batch // same, -1) for i in range(same)], 1)[:, :n]

    def draw_sticks(self, positions: int, n: int) -> Sticks:
        """Fresh vectors as a few sticks each; of all B examples only.

        What is left when a stick is broken off a Dirichlet is, over its sum, the same Dirichlet anew, whatever was
        broken off. So the last stick goes to a vector of that distribution, and none is cut short. There are M of them
        at a position, drawn first. Vectors that share one depend on each other, in their small rests.
        """
        return self._break(n, self.short_sticks, self.draw(positions, min(TAILS, n)))

    def _break(self, n: int, K: int, tails: Tensor) -> Sticks:
        """n vectors a position of K sticks; the last takes all that is left, and goes to a tail if there are any."""
        left = self._exponential((len(tails), n, K)).cumsum(-1).div_(-math.log(2) * self.m * self.alpha).exp2_()
        left[..., -1] = 0
        share = torch.empty_like(left)
        torch.sub(1, left[..., 0], out=share[..., 0])
        torch.sub(left[..., :-1], left[..., 1:], out=share[..., 1:])
        if self.shares is None:
            example = torch.randint(0, self.m, share.shape, generator=self.generator, device=self.device)
        else:
            example = torch.multinomial(self.shares, share.numel(), replacement=True, generator=self.generator)
            example = example.view(share.shape)
        if M := tails.shape[1]:
            rest = torch.randint(0, M, (len(tails), n), generator=self.generator, device=self.device)
            example[..., -1] = self.m + rest
        return Sticks(example, share, tails)

    def _draw_shares(self, shape: tuple[int, int, int]) -> Tensor:
        """λ ~ Dir(mα · shares), through the logarithms of its gammas; an example without a share has none of λ."""
        shares = self.alpha.new_ones(self.batch) if self.shares is None else self.shares
        if self.m < self.batch or self.classes is not None:
            shares = shares * self._tuples(shape, shares)
        shares = shares / shares.sum(-1, keepdim=True)
        alpha = (self.m * self.alpha * shares).expand(shape)
        drawn = torch._standard_gamma((1 + alpha).contiguous(), generator=self.generator).log_()
        drawn -= self._exponential(shape).div_(alpha)
        return drawn.masked_fill_(alpha == 0, -torch.inf).softmax(-1)

    def _tuples(self, shape: tuple[int, int, int], shares: Tensor) -> Tensor:
        """Which examples each vector mixes, (p, k, B), bool: of those that have a share."""
        order = self._order(shape, shares)
        if self.classes is not None and self.tuples == 'within':
            of = torch.multinomial(shares, shape[0] * shape[1], replacement=True, generator=self.generator)
            order = order.masked_fill(self.classes != self.classes[of].view(*shape[:2], 1), -1)
        elif self.classes is not None:  # of each class the first in order
            classes = self.classes.expand(shape)
            first = torch.full_like(order, -1).scatter_reduce(-1, classes, order, 'amax')
            others = order < first.gather(-1, classes)
            if self.m < self.batch:  # which classes are among m is drawn anew: large ones have the highest orders
                order = self._order(shape, shares)
            order = order.masked_fill(others, -1)
        if self.m < self.batch:
            order = order.masked_fill(order < order.topk(self.m).values[..., -1:], -1)
        return order >= 0

    def _order(self, shape: tuple[int, int, int], shares: Tensor) -> Tensor:
        order = torch.rand(shape, generator=self.generator, device=self.device)
        return order.masked_fill(shares == 0, -1)

    def _exponential(self, shape: tuple[int, ...]) -> Tensor:
        cpu = self._streams()
        if cpu is not None:
            return cpu.exponential(shape, self.dtype)
        return torch.empty(shape, device=self.device, dtype=self.dtype).exponential_(generator=self.generator)

    def _gamma(self, shape: tuple[int, ...], concentration: Tensor) -> Tensor:
        cpu = self._streams()
        if cpu is not None:
            return cpu.gamma(float(concentration), shape, self.dtype)
        concentration = concentration.expand(shape).contiguous()
        try:  # what torch.distributions.Gamma calls; in the torch versions we support, that class takes no generator
            return torch._standard_gamma(concentration, generator=self.generator)
        except NotImplementedError:  # MPS in older torch: sample on the CPU, seeded from the device
            seed = int(torch.randint(2**31, (), generator=self.generator, device=self.device))
            cpu_generator = torch.Generator().manual_seed(seed)
            return torch._standard_gamma(concentration.cpu(), generator=cpu_generator).to(self.device)

    def _streams(self) -> Optional[CpuStreams]:
        if self.device.type != 'cpu' or torch.compiler.is_compiling():
            return None
        if self._cpu is None:
            self._cpu = CpuStreams(self.generator)
        return self._cpu


def sample_lam(
        n: int,
        positions: int,
        batch: int,
        alpha: Union[float, tuple[float, float]] = (0.5, 2.0),
        generator: Optional[torch.Generator] = None,
        *,
        m: Optional[int] = None,
        shares: Optional[Tensor] = None,
        classes: Optional[Tensor] = None,
        tuples: str = 'any',
        device: Union[torch.device, str, None] = None,
        dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw Λ: n interpolation vectors for every position, λ ~ Dir(α) on the simplex (arXiv 2311.05538, eq. for Λ).

    Arguments and errors are `LamSampler`'s; sampling is in float32 or, if asked for, float64.

    Returns:
        (n, positions, batch), of `dtype`; entries ≥ 0, each row along the last axis sums to 1.
    """
    sampler = LamSampler(n, positions, batch, alpha, generator, m=m, shares=shares, classes=classes, tuples=tuples,
                         device=device, dtype=dtype)
    return sampler.draw(positions, n).transpose(0, 1).to(dtype)


def balanced_shares(y: Tensor, balance: float) -> Tensor:
    """How examples share the concentration so that frequent classes of the batch do not rule its mixtures.

    An example has Σ_c y_c n_c^−balance over Σ_c y_c, where n_c = Σ_b y_bc counts its class in the batch. With balance 1
    and one class to an example, every class of the batch has the same share, however many examples it has; with 0
    every example has. Examples without a label are a class of their own.

    Args:
        y: targets (B, C), ≥ 0, floating.
        balance: from 0 to 1.

    Returns:
        (B,), of y's dtype, sum 1.
    """
    tiny = torch.finfo(y.dtype).tiny
    labels = y.sum(1)
    counts = y.sum(0)
    weight = y @ torch.where(counts > 0, counts.clamp(min=tiny), 1).pow(-balance) / labels.clamp(min=tiny)
    without = (labels <= 0).sum().clamp(min=1).to(y.dtype).pow(-balance)
    weight = torch.where(labels > 0, weight, without)
    return weight / weight.sum()


def effective_examples(lam: Tensor) -> Tensor:
    """The effective sample size 1/Σλ² along the last axis (`diagnostics.py`). (…, B) → (…)."""
    return lam.square().sum(-1).reciprocal()
