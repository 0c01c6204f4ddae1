"""Attention that is learned: a score for every position, a linear map of its features, with a loss of its own.

    a_i = softmax over the positions of z_iᵀu          u (D,), learned, 0 at first: a begins uniform
    loss = cross-entropy of the classifier, at the embedding that a averages (`extensions.learned_attention_loss`)

Features and classifier are constants to this loss, and a is a constant to all others: it looks where the class is to be
seen, and neither loss can lower itself by moving the other's weights. As the classifier is linear and a sums to one,
its logits at the averaged embedding are its logits at the positions, averaged by a.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any, Optional

import torch
import torch.nn as nn
from torch import Tensor

from ..distributed import total, world
from .attention_maps import normalize_map


class LearnedAttention:
    """The map u, and the Adam that it learns by. Neither is a part of the network.

    Args:
        width: D, features of a position.
        lr: learning rate.

    Attributes:
        u: (D,), float32.
    """

    def __init__(self, width: int, lr: float) -> None:
        self.width, self.lr = width, lr
        self._begin(torch.zeros(width))

    def _begin(self, u: Tensor) -> None:
        self.u = nn.Parameter(u)
        self.adam = torch.optim.Adam([self.u], self.lr)

    def set_lr(self, lr: float) -> None:
        """Learn at another rate from now on."""
        self.lr = self.adam.param_groups[0]['lr'] = lr

    def to(self, device: torch.device) -> None:
        """Move it to where the features are."""
        if self.u.device != device:
            state = self.state_dict()
            self._begin(self.u.detach().to(device))
            self.load_state_dict(state)

    @torch.compiler.disable
    @torch.no_grad()
    def __call__(self, features: Tensor, mask: Optional[Tensor] = None) -> Tensor:
        """a: features z (B, P, D) → (B, P), rows of sum 1, without a gradient. float32 (float64 stays).

        mask: (B, P), bool, which positions exist; the others have 0.
        """
        self.to(features.device)
        return maps(features, self.u, mask)

    @torch.compiler.disable
    @torch.enable_grad()
    def learn(self, features: Tensor, logits: Tensor, loss: Callable[[Tensor], Tensor],
              mask: Optional[Tensor] = None) -> Tensor:
        """A step of its own loss.

        Args:
            features: z, (B, P, D).
            logits: of the positions, (B, P, C).
            loss: of logits (B, C) of the images.
            mask: (B, P), bool, which positions exist.

        Returns:
            That loss, before the step: a scalar, detached. A gradient that is not finite counts as 0.
        """
        self.to(features.device)
        with torch.autocast(features.device.type, enabled=False):
            a, L = maps(features.detach(), self.u, mask), logits.detach()
            L = L if mask is None else L.masked_fill(~mask.unsqueeze(-1), 0)
            found = loss(torch.einsum('bp,bpc->bc', a, L.to(a.dtype)))
            grad, = torch.autograd.grad(found, self.u)
        grad = total(grad) / world()
        self.u.grad = torch.where(grad.isfinite().all(), grad, 0)
        self.adam.step()
        self.u.grad = None
        return found.detach()

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors to resume from."""
        return {'u': self.u.detach().cpu().clone(),
                'adam': {name: value.cpu().clone() for name, value in self.adam.state.get(self.u, {}).items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        with torch.no_grad():
            self.u.copy_(state['u'])
        self.adam.state[self.u] = {name: value.clone() if name == 'step' else value.to(self.u)
                                   for name, value in state['adam'].items()}


def maps(features: Tensor, u: Tensor, mask: Optional[Tensor] = None) -> Tensor:
    """a, (B, P), of features z (B, P, D) and u (D,); with 0 where a position does not exist."""
    z = features if features.dtype == torch.float64 else features.float()
    if mask is not None:
        z = z.masked_fill(~mask.unsqueeze(-1), 0)  # padding may hold anything
    with torch.autocast(z.device.type, enabled=False):
        return normalize_map(z @ u.to(z.dtype), 'softmax', mask)
