"""What the last self-attention of a transformer looks at: one map over the positions of each image."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Optional

import torch
import torch.nn as nn
from torch import Tensor

from .positions import HeadInfo


def last_attention(model: Any, image: Tensor, head_info: HeadInfo) -> Optional[str]:
    """The name of the last attention layer over all positions whose weights can be read, or None.

    Those are layers of timm with `fused_attn`, which is switched off to read them, and `attn_drop`.

    Args:
        model: with forward_features.
        image: (1, C, H, W) to try; the model should be in eval mode.
        head_info: what `inspect_head` found with an image of that size.
    """
    found = [(name, m) for name, m in model.named_modules()
             if hasattr(m, 'fused_attn') and isinstance(getattr(m, 'attn_drop', None), nn.Module)]
    for name, layer in reversed(found):
        with recorded(layer) as seen, torch.no_grad():
            model.forward_features(image)
        if not seen or seen[-1].ndim != 4:
            continue
        images, _, rows, tokens = seen[-1].shape  # windows count as images; attention over channels has other sizes
        P, prefix = head_info.positions, head_info.prefix
        if images == 1 and tokens in (P, P + prefix) and rows in (1, tokens):
            return name
    return None


@contextmanager
def recorded(layer: Optional[nn.Module]) -> Iterator[list[Tensor]]:
    """The attention weights (B, heads, N, N) that a layer computes meanwhile; its fused form would not hold them."""
    seen: list[Tensor] = []
    if layer is None:
        yield seen
        return
    fused = layer.fused_attn
    hook = layer.attn_drop.register_forward_hook(lambda m, i, out: seen.append(i[0]))  # type: ignore[union-attr, operator]
    layer.fused_attn = False  # type: ignore[assignment]
    try:
        yield seen
    finally:
        layer.fused_attn = fused
        hook.remove()


def attended(weights: Tensor, positions: int, by_class_token: bool = False) -> Tensor:
    """How much each position is looked at, the mean over heads: (B, heads, N or 1, N) → (B, P), rows of sum 1.

    By the class token, where asked for or where it alone looks (N of 1); otherwise by a patch on average.
    """
    whole = (weights if weights.dtype == torch.float64 else weights.float()).mean(1)  # (B, N, N), rows are who looks
    prefix = whole.shape[-1] - positions
    by_class_token = whole.shape[1] == 1 or (by_class_token and prefix > 0)
    a = whole[:, 0, prefix:] if by_class_token else whole[:, prefix:, prefix:].mean(1)
    a = a / a.sum(1, keepdim=True).clamp(min=1e-30)
    return torch.where(a.isfinite().all(1, keepdim=True), a, 1 / positions)  # of features that are not finite: uniform
