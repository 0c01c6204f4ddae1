"""The only room that knows how timm models end, and the two networks of the paper that timm lacks."""
from . import preact_resnet, wide_resnet  # noqa: F401  # registers them with timm
from .description import Description, describe, description
from .parts import InTimmsWords, Parts
from .split import Ending, check_affine, classifier_leaves, inspect_ending, position_logits, switch_class_token

__all__ = ['Description', 'Ending', 'InTimmsWords', 'Parts', 'check_affine', 'classifier_leaves', 'describe',
           'description', 'inspect_ending', 'position_logits', 'switch_class_token']
