"""Pure tensors in, tensors out: the method without models."""
from .attention import attention
from .dirichlet import LamSampler, effective_examples, sample_lam
from .loss import mixed_cross_entropy
from .ranks import gather
from .signal import expected_signal, signal
from .targets import cross_entropy, soft_target

__all__ = [
    'LamSampler', 'attention', 'cross_entropy', 'effective_examples', 'expected_signal', 'gather',
    'mixed_cross_entropy', 'sample_lam', 'signal', 'soft_target',
]
