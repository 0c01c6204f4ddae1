"""The signal: is there still a class in the mixed targets?

Whole-batch mixing averages targets towards the batch's class distribution. When they *are* that distribution, the loss
can teach nothing but the class frequencies: it sits at log C and the gradient is gone. Two numbers tell:

    effective       the effective sample size of a mixture, 1/Σλ² (Kish): as many examples with equal weights would
                    average as well. 1 is a single example, B the mean of the whole batch.
    target_entropy  the entropy of a mixture's target, as a fraction of the entropy of the batch's targets.
"""
from __future__ import annotations

from typing import Any, Optional, Union

import torch
from torch import Tensor

from ..config import MultiMixConfig
from .dirichlet import LamSampler, sample_lam
from .engines.stream import TINY, factors, scale_attention
from .masks import check_mask, masked_attention
from .targets import soft_target

# Above this fraction of the batch's entropy the mixed targets carry practically no class signal: whole-batch
# Dirichlet mixing, which did not leave log 10 in 25 epochs of CIFAR-10, is at 0.95 to 0.98.
NO_SIGNAL = 0.9

# Mixtures looked at per step. What is logged are averages over many steps, so these suffice for two digits.
SAMPLE = 256


@torch.no_grad()
def signal(
        lam: Union[Tensor, LamSampler], y: Tensor, attention: Optional[Tensor] = None, *,
        mask: Optional[Tensor] = None, normalize: str = 'position') -> dict[str, Tensor]:
    """Diagnostics of a step's mixtures, from at most 256 of them or one a position. No wait for the device.

    Args:
        lam: Λ, (N, P, B), or what it is drawn from; then these are mixtures like the step's, not the same.
        y: targets before mixing, (B, C).
        attention: a, (B, P), if it weights the factors; the numbers are then those of the normalised factors M̂,
            weighted like the loss weights its terms.
        mask: (B, P), bool, True where a position exists, as in `mixed_cross_entropy`.
        normalize: as there.

    Returns:
        'effective' and 'target_entropy', as above, their means over the mixtures: from 1 to B, and from 0 to 1. The
        latter is 1 where the batch has only one class, as its targets then tell nothing apart. Scalars on lam's device.
    """
    N, P, B = lam.shape
    n = max(1, min(N, SAMPLE // P))
    lam = lam.draw(P, n) if isinstance(lam, LamSampler) else lam[:n].transpose(0, 1)
    if mask is not None:
        check_mask(mask, B, P, lam.device)
        attention = masked_attention(attention, mask, lam.dtype)
    if attention is None:
        w, s = lam, torch.ones_like(lam[..., 0])
    else:
        a, peak, _ = scale_attention(attention, mask is not None)
        w, s = factors(lam, a.unsqueeze(1))
        if normalize == 'all':
            s = s * peak.unsqueeze(1)
    whole_weight = s.sum() if normalize == 'all' else s.sum(1, keepdim=True)
    s = torch.where(whole_weight > TINY, s / whole_weight.clamp(min=TINY), 0)
    s = s / s.sum().clamp(min=TINY)  # the mean over the positions where anything weighs
    y = y.to(lam.dtype) / y.sum(1, keepdim=True).clamp(min=TINY).to(lam.dtype)  # binary targets need not sum to 1
    mixed = _entropy(w @ y)
    there = y.new_ones(B) if mask is None else mask.any(1).to(y.dtype)
    whole = _entropy(there @ y / there.sum().clamp(min=1))
    fraction = torch.where(whole > 1e-6, (s * mixed).sum() / whole.clamp(min=1e-6), 1.0)
    return {'effective': (s / w.square().sum(-1).clamp(min=TINY)).sum(), 'target_entropy': fraction.clamp(0, 1)}


def _entropy(y: Tensor) -> Tensor:
    return -torch.xlogy(y, y).sum(-1)


def expected_signal(config: MultiMixConfig, batch: int, num_classes: int) -> dict[str, float]:
    """What `signal` will show, before training: simulated for balanced classes, on the CPU, with its own generator.

    Returns 'effective' and 'target_entropy' as floats. Raises `SettingError` if the settings do not fit the batch.
    """
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(batch) % num_classes
    lam = torch.cat([
        sample_lam(16, 1, batch, config.alpha_range(batch), generator, m=config.tuple_size(batch), classes=target,
                   tuples=config.tuples) for _ in range(16)])
    y = soft_target(target, num_classes, torch.float32, config.label_smoothing)
    return {name: float(value) for name, value in signal(lam, y).items()}


def signal_warning(config: MultiMixConfig, batch: int, num_classes: int) -> Optional[str]:
    """A sentence for the user when the mixed term carries practically no class signal, else None.

    Args:
        config: the settings.
        batch: training batch size on this device.
        num_classes: classes of the model.
    """
    expected: dict[str, Any] = expected_signal(config, batch, num_classes)
    if expected['target_entropy'] < NO_SIGNAL or config.prob == 0 or num_classes < 2:
        return None
    what = (f'the mixed targets carry practically no class signal: {expected["effective"]:.0f} effective examples of '
            f'{batch}, and {expected["target_entropy"]:.0%} of the entropy of the batch\'s own class distribution')
    change = '--multimix-effective 2 (effective=2) mixes about two examples at a time'
    if config.clean_weight > 0:
        share = 1 / (1 + config.clean_weight)
        return (f'{share:.0%} of the loss of the steps that mix embeddings teaches nothing: {what}. To change that: '
                f'{change}; the other term, the ordinary loss, trains all the same.')
    change = (f'To change that: {change}, or --multimix-clean-weight 1 (clean_weight=1) adds the ordinary loss')
    if config.prob < 1:
        return (f'On {config.prob:.0%} of the steps {what}. The remaining steps have to do the learning, which takes '
                f'many epochs (the paper trains CIFAR for 2000). {change}.')
    return (f'Nothing will be learned: {what}, and nothing else is in the loss'
            + (f', which will stay near log({num_classes})' if not config.bce_loss else '')
            + f'. {change}; --multimix-prob 0.5 (prob=0.5) trains every other step without embedding mixing.')
