"""Pure tensors in, tensors out: the method without models."""
from .attention_maps import attention
from .diagnostics import expected_signal, signal
from .dirichlet import LamSampler, balanced_shares, effective_examples, sample_lam
from .learned_attention import LearnedAttention
from .loss import mixed_cross_entropy
from .targets import cross_entropy, soft_target
from .teacher import TeacherTargets

__all__ = [
    'LamSampler', 'LearnedAttention', 'TeacherTargets', 'attention', 'balanced_shares', 'cross_entropy',
    'effective_examples', 'expected_signal', 'mixed_cross_entropy', 'sample_lam', 'signal', 'soft_target',
]
