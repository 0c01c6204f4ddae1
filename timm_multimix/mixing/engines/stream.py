"""What all engines share: Λ passes by once, in tiles, and both the loss and its gradient come out of that one pass.

Notation, for one position: L (B, C) logits, Y (B, C) targets, w (N, B) mixing factors with rows of sum 1, X = wL the
mixed logits, s (N) the weights of the loss terms, S = Σ_k s_k. Since the mixed target is wY,

    loss = 1/S Σ_k s_k τ_k logsumexp(X_k) − ⟨V, L Yᵀ⟩ / S     τ_k = Σ_c (wY)_kc  (1 for proper targets)
    ∂/∂L = 1/S (wᵀ diag(sτ) softmax(X) − V Y)                  V = wᵀ diag(s) w, (B, B)

and for binary cross-entropy, each class for itself, the same with Σ_c softplus(X_kc) in place of τ_k logsumexp(X_k) and
the logistic function in place of τ softmax. With X_k divided by h_k = ‖w_k‖ (`keep_norm`), s_k / h_k stands for s_k in
V and in the gradient. With class weights Y is Y∘(weights) already, and S = Σ_k s_k v_k, where v = w mass mixes what
the examples weigh. So neither mixed embeddings nor mixed targets exist, and of X and w only a tile does. An engine
adds tiles to the sums (`Sums`); what is here draws or cuts the tiles, and divides in the end.

A teacher's predictions of the examples are a part of Y, which then may be one for each position, (P, B, C). Its
predictions of the mixtures, Q = softmax(wT/h) with its logits T, are not linear in w. So Q exists where X does, in a
tile: with its weight t, t Q is added to wY, tΣ_c Q_c to τ, and with class weights the same to v.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Optional, Union

import torch
from torch import Tensor

from ...distributed import total, world
from ..dirichlet import LamSampler, Sticks
from ..options import LossOptions
from ..targets import MASKED

# Below this a column sum of factors counts as nothing: 0/0 is not far, and float32 division is about to lose digits.
TINY = 1e-30

# Elements of Λ drawn or cut, or of the logits, at a time; and how many of them the sticks of a mixture count as, each.
CHUNK = {'cpu': 1 << 19, 'cuda': 1 << 24}
STICK = 6
# Positions at a time: on CUDA they are the second or third side of a grid of blocks, which ends here.
MOST = 65535
# Multiplications of a product, below which sticks cost more than they save.
FEW = 1 << 22


class Targets(NamedTuple):
    """What the mixtures are compared with.

    Attributes:
        y: Y, (B, C), or (P, B, C) where it is another at every position; times the weights of the classes, if any.
        mass: what each example weighs, (B,) or (P, B), with class weights; None is 1.
        teacher: T, (B, C) or (P, B, C), over the temperature, where the teacher predicts mixtures; Y is then the
            labels' share alone.
        class_weight: (C,), for the teacher's part; None is 1.
    """
    y: Tensor
    mass: Optional[Tensor] = None
    teacher: Optional[Tensor] = None
    class_weight: Optional[Tensor] = None


@dataclass
class Batch:
    """The mini-batch at some of its positions, p of them.

    Attributes:
        logits: L, (p, B, C); an example's largest is 0, so that confident ones do not cancel in the loss.
        y: Y, (B, C) or (p, B, C).
        rowsum: Σ_c Y, (B,) or (p, B).
        attention: (p, B), each position's largest entry 1; None is uniform.
        mass: what each example weighs, (B,) or (p, B), with class weights; None is 1.
        teacher: T, (B, C) or (p, B, C); None where no teacher predicts mixtures.
        class_weight: (C,), of the teacher's predictions; None is 1.
        came: dtype of the logits as they came: half precision is not worth float32's products.
        options: of which `binary` leaves the logits as they came, and `keep_norm` has X_k = wL / ‖w_k‖.
    """
    logits: Tensor
    y: Tensor
    rowsum: Tensor
    attention: Optional[Tensor]
    mass: Optional[Tensor]
    teacher: Optional[Tensor]
    class_weight: Optional[Tensor]
    came: torch.dtype
    options: LossOptions


@dataclass
class Sums:
    """Sums over the mixtures of some positions, p of them; see the module's equations.

    The target's part of loss and gradient comes from `pair`. Where that is None, the engine puts it into `loss` and
    `logits` itself.

    Attributes:
        loss: Σ_k s_k τ_k lse_k, or Σ_k s_k Σ_c softplus(X_kc), (p,).
        weight: S, (p,).
        logits: their gradient times S, (p, B, C). None where it is not wanted.
        pair: V, (p, B, B); None where there are no more classes than examples, and mixing targets is cheaper.
        attention: its gradient times S, of losses relative to `reference`, (p, B). None, as the next two, where it is
            not wanted.
        lam: Σ_k λ_k of the terms that count, (p, B).
        reference: weighted mean loss of a position's first tile, (p,), NaN before. Near the mean of all: what is
            divided by a weight next to nothing must be a sum of small differences, not a difference of large sums.
    """
    loss: Tensor
    weight: Tensor
    logits: Optional[Tensor]
    pair: Optional[Tensor]
    attention: Optional[Tensor]
    lam: Optional[Tensor]
    reference: Optional[Tensor]

    def subtract(self, targets: Tensor, logits: Tensor) -> None:
        """The target's part, Σ_k wᵀ_k s_k (wY)_k; both (p, B, C). It is linear in L, so the loss has it too."""
        self.loss -= (targets * logits).sum((1, 2))
        if self.logits is not None:
            self.logits -= targets


@dataclass(frozen=True)
class Engine:
    """A way to add mixtures to the sums.

    Attributes:
        add: of one chunk of Λ, (p, k, B). Overwrites nothing but the sums.
        sticks: up to how many sticks for each example of the batch it prefers a vector as `Sticks`.
        mixes_targets: it can do without V, the pairs of examples.
    """
    add: Callable[[Sums, Batch, Union[Tensor, Sticks]], None]
    sticks: float = 0
    mixes_targets: bool = False

    def prefers_sticks(self, lam: LamSampler) -> bool:
        """Of a loss that is cross-entropy with a constant attention and no teacher of mixtures."""
        few = lam.short_sticks <= self.sticks * lam.batch
        return few and lam.dirichlet and lam.m == lam.batch and lam.classes is None


def run(
        engine: Engine,
        logits: Tensor,
        targets: Targets,
        lam: Union[Tensor, LamSampler],
        attention: Optional[Tensor],
        options: LossOptions,
) -> tuple[Tensor, Optional[Tensor], Optional[Tensor]]:
    """Loss and gradients of logits (B, P, C) and attention (B, P), where wanted; no autograd.

    Logits may be of any dtype, and their gradient is of `gradient_dtype`; all else is of y's, that of the computation.
    """
    N, P, B = lam.shape
    y, mass, teacher, class_weight = targets
    C = y.shape[-1]
    rowsum = y.sum(-1)
    highest = logits.amax(-1, keepdim=True).to(y.dtype)
    if options.binary:
        moved = logits.to(y.dtype, copy=True)
        highest.clamp_(min=MASKED)  # every class may be masked
    else:  # shifting an example's logits changes nothing; from half precision, the subtraction promotes to y's dtype
        moved = logits - highest
    moved.clamp_(min=MASKED)  # 0 · −∞ would be NaN, where a masked class is to be as if it were not there
    spoiled = (0 * highest).sum()  # NaN if a logit is NaN or +∞, also of an example that no mixture has; 0 otherwise
    if attention is not None:  # which would be taken for that of a position nobody attends to
        spoiled = spoiled + (0 * attention).sum()
    if teacher is not None:
        spoiled = spoiled + (0 * teacher).sum()
    L = moved.permute(1, 0, 2)  # position first: (P, B, C)
    a, peak, seen = (None, L.new_ones(P), None) if attention is None else scale_attention(
        attention, options.masked)
    loss, weight = L.new_zeros(P), L.new_zeros(P)
    grad_a, count, reference = None, None, None
    if options.attention_grad:
        grad_a, count, reference = L.new_zeros(P, B), L.new_zeros(P, B), L.new_full((P,), torch.nan)

    as_sticks = (isinstance(lam, LamSampler) and engine.prefers_sticks(lam) and N * P * B * C >= FEW
                 and not (options.attention_grad or options.binary or teacher is not None))
    pairs = C > B or options.attention_grad or not engine.mixes_targets
    chunk = CHUNK.get(logits.device.type, CHUNK['cuda'])
    held = min(B, STICK * lam.short_sticks) if as_sticks and not pairs and not options.keep_norm else B  # type: ignore[union-attr]
    k_size = max(1, min(N, chunk // held))
    p_size = max(1, min(P, MOST, chunk // max(held * k_size, B * C)))
    for p in _slices(P, p_size):
        part = Batch(L[p].contiguous(), at(y, p, 3), at(rowsum, p, 2), None if a is None else a[p],  # type: ignore[arg-type]
                     at(mass, p, 2), at(teacher, p, 3), class_weight, logits.dtype, options)
        size = part.logits.shape[0]
        sums = Sums(
            loss[p], weight[p], L.new_zeros(size, B, C) if options.logits_grad else None,
            L.new_zeros(size, B, B) if pairs else None,
            *(None if t is None else t[p] for t in (grad_a, count, reference)))
        for k in _slices(N, k_size):
            if isinstance(lam, LamSampler):
                draw = lam.draw_sticks if as_sticks else lam.draw_many
                engine.add(sums, part, draw(size, k.stop - k.start))
            else:
                engine.add(sums, part, lam[k, p].transpose(0, 1))
        if sums.pair is not None:
            sums.subtract(sums.pair @ part.y, part.logits)
        if sums.logits is not None:
            L[p] = sums.logits  # this position's logits are needed no more

    ranks = 1
    if options.over_ranks:  # the terms of all, over the weights of all
        loss, weight = total(torch.stack([loss, weight]))
        ranks = world()

    # A position that no mixture weighs has no part in the mean: every example that attends to it was missed, or is of
    # a class that weighs nothing.
    some, over_all = weight > TINY, options.normalize == 'all'
    if over_all:
        whole = (peak * weight).sum()
        share = peak * some.any() / whole.clamp(min=torch.finfo(whole.dtype).tiny)
    else:
        share = torch.where(some, 1 / torch.where(some, weight, 1), 0) / some.sum().clamp(min=1)
    share = share + spoiled
    value, classes = (share * loss).sum(), C if options.binary else 1  # binary: the mean over the classes
    share = share * (ranks / classes)  # of the gradient; who averages gradients over the ranks divides by them
    if grad_a is not None and reference is not None and seen is not None:
        mean = value if over_all else loss / torch.where(some, weight, 1)
        weighed = count if mass is None else count * mass  # type: ignore[operator]
        grad_a -= (mean - reference).unsqueeze(1) * weighed  # type: ignore[operator]
        grad_a = (grad_a * torch.where(seen, share / peak, 0).unsqueeze(1)).t()
    grad_l = moved.mul_(share.view(1, P, 1)).to(gradient_dtype(logits)) if options.logits_grad else None
    return value / classes, grad_l, grad_a


def scale_attention(attention: Tensor, masked: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Attention with the largest of each position 1, (P, B); that largest, (P,); and where there is any, (P,).

    Factors are normalised over the examples, so the scale matters only between positions. A position nobody attends
    to gets uniform attention, as a map without a positive score does: 1/P. Of masked attention it is one that nobody
    has, and stays 0.
    """
    a = attention.t()
    peak = a.amax(1)
    seen = peak > TINY
    peak = torch.where(seen, peak, 1 / len(a))
    return torch.where(seen.unsqueeze(1), a / peak.unsqueeze(1), 0 if masked else 1), peak, seen


def factors(lam: Tensor, attention: Tensor) -> tuple[Tensor, Tensor]:
    """M̂, λa over its column sum, and that column sum s: (p, k, B) and (p, k), for attention (p, 1, B); or of sticks.

    A mixture of examples that do not attend here has s = 0, and factors 0: it counts for nothing.
    """
    w = lam * attention
    s = w.sum(-1)
    some = s > TINY
    w *= torch.where(some, 1 / torch.where(some, s, 1), 0).unsqueeze(-1)
    return w, torch.where(some, s, 0)


def at(of_positions: Optional[Tensor], p: slice, dims: int) -> Optional[Tensor]:
    """The part of positions p, of what has one for each if it has so many dimensions."""
    return of_positions[p] if of_positions is not None and of_positions.ndim == dims else of_positions


def gradient_dtype(logits: Tensor) -> torch.dtype:
    """Of the gradient until backward: theirs. But that of a position is small, and a gradient scaler multiplies only in
    backward: before, float16 has no room for it."""
    return torch.float32 if logits.dtype == torch.float16 else logits.dtype


def _slices(length: int, size: int) -> list[slice]:
    return [slice(i, min(i + size, length)) for i in range(0, length, size)]
