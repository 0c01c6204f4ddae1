"""Where autograd and torch.compile meet the engines."""
from __future__ import annotations

from typing import Any, Optional, Union

import torch
from torch import Tensor

from .dirichlet import LamSampler
from .engines import choose
from .engines.stream import run
from .options import LossOptions


class MixedCrossEntropy(torch.autograd.Function):
    """`mixed_cross_entropy` of checked arguments. The gradient is computed along with the loss."""

    @staticmethod
    def forward(  # type: ignore[override]
            ctx: Any,
            logits: Tensor,
            attention: Optional[Tensor],
            y: Tensor,
            lam: Union[Tensor, LamSampler],
            mass: Optional[Tensor],
            options: LossOptions,
    ) -> Tensor:
        need_l, need_a = ctx.needs_input_grad[:2]
        if torch.compiler.is_compiling():
            loss, grad_l, grad_a = _compiled(logits, attention, y, lam, mass, options, need_l, need_a)
        else:
            found = choose(options.engine, logits.device, y.dtype, need_a, options.binary)
            loss, grad_l, grad_a = run(found, logits, y, lam, attention, mass, options, need_l, need_a)
        ctx.save_for_backward(grad_l, grad_a)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Optional[Tensor], ...]:  # type: ignore[override]
        if torch.is_grad_enabled():  # create_graph=True: what follows would silently count as constant
            raise RuntimeError('mixed_cross_entropy takes its gradient in the forward pass and is differentiable once; '
                               'create_graph=True is not supported. mixing/reference.py is differentiable twice.')
        grads = [None if g is None else g * grad for g in ctx.saved_tensors]
        return *grads, None, None, None, None


def _compiled(
        logits: Tensor, attention: Optional[Tensor], y: Tensor, lam: Union[Tensor, LamSampler], mass: Optional[Tensor],
        options: LossOptions, need_l: bool, need_a: bool,
) -> tuple[Tensor, Optional[Tensor], Optional[Tensor]]:
    """For torch.compile one opaque operator: it would unroll the loop over tiles, hundreds of them."""
    if isinstance(lam, LamSampler):
        drawn, alpha, low, high, n, m = None, lam.alpha, lam.low, lam.high, lam.n, lam.m
    else:
        drawn, alpha, low, high, n, m = lam, None, 0.0, 0.0, 0, 0
    loss, grad_l, grad_a = _operator(
        logits, attention, y, drawn, mass, alpha, low, high, n, m, need_l, need_a, options.over_all, options.engine,
        options.over_ranks, options.binary, options.keep_norm)
    return loss, grad_l if need_l else None, grad_a if need_a else None


@torch.library.custom_op('timm_multimix::mixed_cross_entropy', mutates_args=())
def _operator(
        logits: Tensor, attention: Optional[Tensor], y: Tensor, lam: Optional[Tensor], mass: Optional[Tensor],
        alpha: Optional[Tensor], low: float, high: float, n: int, m: int, need_l: bool, need_a: bool, over_all: bool,
        engine: str, over_ranks: bool, binary: bool, keep_norm: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    B, P, _ = logits.shape
    source: Union[Tensor, LamSampler]
    if lam is None:
        source = LamSampler(n, P, B, (low, high), m=m, device=logits.device, dtype=y.dtype)
        source.alpha = alpha  # type: ignore[assignment]
    else:
        source = lam
    found = choose(engine, logits.device, y.dtype, need_a, binary)
    options = LossOptions(over_all, engine, over_ranks, binary, keep_norm)
    loss, grad_l, grad_a = run(found, logits, y, source, attention, mass, options, need_l, need_a)
    return (loss, logits.new_empty(0) if grad_l is None else grad_l,
            y.new_empty(0) if grad_a is None else grad_a.contiguous())


@_operator.register_fake
def _(
        logits: Tensor, attention: Optional[Tensor], y: Tensor, lam: Optional[Tensor], mass: Optional[Tensor],
        alpha: Optional[Tensor], low: float, high: float, n: int, m: int, need_l: bool, need_a: bool, over_all: bool,
        engine: str, over_ranks: bool, binary: bool, keep_norm: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    B, P, C = logits.shape
    return (y.new_empty(()), logits.new_empty((B, P, C) if need_l else 0),
            y.new_empty((B, P) if need_a else 0))
