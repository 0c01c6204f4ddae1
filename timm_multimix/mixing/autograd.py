"""Where autograd and torch.compile meet the engines."""
from __future__ import annotations

from typing import Any, Optional, Union

import torch
from torch import Tensor

from .dirichlet import LamSampler
from .engines import choose
from .engines.stream import Targets, gradient_dtype, run
from .options import LossOptions

Result = tuple[Tensor, Optional[Tensor], Optional[Tensor]]  # the loss, and its gradients that are wanted


class MixedCrossEntropy(torch.autograd.Function):
    """`mixed_cross_entropy` of checked arguments. The gradient is computed along with the loss."""

    @staticmethod
    def forward(  # type: ignore[override]
            ctx: Any,
            logits: Tensor,
            attention: Optional[Tensor],
            targets: Targets,
            lam: Union[Tensor, LamSampler],
            options: LossOptions,
    ) -> Tensor:
        compute = _compiled if torch.compiler.is_compiling() else _compute
        loss, grad_l, grad_a = compute(logits, attention, targets, lam, options)
        ctx.save_for_backward(grad_l, grad_a)
        ctx.dtype = logits.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Optional[Tensor], ...]:  # type: ignore[override]
        if torch.is_grad_enabled():  # create_graph=True: what follows would silently count as constant
            raise RuntimeError('mixed_cross_entropy takes its gradient in the forward pass and is differentiable once; '
                               'create_graph=True is not supported. mixing/reference.py is differentiable twice.')
        grad_l, grad_a = (None if g is None else g * grad for g in ctx.saved_tensors)
        return None if grad_l is None else grad_l.to(ctx.dtype), grad_a, None, None, None


def _compute(
        logits: Tensor, attention: Optional[Tensor], targets: Targets, lam: Union[Tensor, LamSampler],
        options: LossOptions,
) -> Result:
    return run(choose(options, logits.device, targets.y.dtype), logits, targets, lam, attention, options)


def _compiled(
        logits: Tensor, attention: Optional[Tensor], targets: Targets, lam: Union[Tensor, LamSampler],
        options: LossOptions,
) -> Result:
    """For torch.compile one opaque operator: it would unroll the loop over tiles, hundreds of them."""
    if isinstance(lam, LamSampler) and not lam.dirichlet:
        lam = lam.draw(lam.positions, lam.n).transpose(0, 1)
    if isinstance(lam, LamSampler):
        drawn = (None, lam.alpha, lam.shares, lam.classes, lam.tuples, lam.low, lam.high, lam.n, lam.m)
    else:
        drawn = (lam, None, None, None, 'any', 0.0, 0.0, 0, 0)  # type: ignore[assignment]
    loss, grad_l, grad_a = _operator(logits, attention, *targets, *drawn, *options.scalars())
    return loss, grad_l if options.logits_grad else None, grad_a if options.attention_grad else None


_SCHEMA = ('(Tensor logits, Tensor? attention, Tensor y, Tensor? mass, Tensor? teacher, Tensor? class_weight, '
           'Tensor? lam, Tensor? alpha, Tensor? shares, Tensor? classes, str tuples, float low, '
           f'float high, int n, int m, {LossOptions.schema()}) -> (Tensor, Tensor, Tensor)')


@torch.library.custom_op('timm_multimix::mixed_cross_entropy', mutates_args=(), schema=_SCHEMA)
def _operator(
        logits: Tensor, attention: Optional[Tensor], y: Tensor, mass: Optional[Tensor], teacher: Optional[Tensor],
        class_weight: Optional[Tensor], lam: Optional[Tensor], alpha: Optional[Tensor], shares: Optional[Tensor],
        classes: Optional[Tensor], tuples: str, low: float, high: float, n: int, m: int, *scalars: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    B, P, _ = logits.shape
    source: Union[Tensor, LamSampler]
    if lam is None:
        source = LamSampler(n, P, B, (low, high), m=m, device=logits.device, dtype=y.dtype, shares=shares,
                            classes=classes, tuples=tuples)
        source.alpha = alpha  # type: ignore[assignment]
    else:
        source = lam
    loss, grad_l, grad_a = _compute(
        logits, attention, Targets(y, mass, teacher, class_weight), source, LossOptions(*scalars))
    return (loss, logits.new_empty(0) if grad_l is None else grad_l.contiguous(),
            y.new_empty(0) if grad_a is None else grad_a.contiguous())


@_operator.register_fake
def _(
        logits: Tensor, attention: Optional[Tensor], y: Tensor, mass: Optional[Tensor], teacher: Optional[Tensor],
        class_weight: Optional[Tensor], lam: Optional[Tensor], alpha: Optional[Tensor], shares: Optional[Tensor],
        classes: Optional[Tensor], tuples: str, low: float, high: float, n: int, m: int, *scalars: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    options, (B, P, C) = LossOptions(*scalars), logits.shape
    return (y.new_empty(()),
            logits.new_empty((B, P, C), dtype=gradient_dtype(logits)) if options.logits_grad else logits.new_empty(0),
            y.new_empty((B, P) if options.attention_grad else 0))
