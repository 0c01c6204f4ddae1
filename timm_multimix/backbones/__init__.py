"""The only room that knows how timm models end."""
from .description import Description, describe, description
from .parts import InTimmsWords, Parts
from .split import Ending, classifier_leaves, inspect_ending, position_logits, switch_class_token

__all__ = ['Description', 'Ending', 'InTimmsWords', 'Parts', 'classifier_leaves', 'describe', 'description',
           'inspect_ending', 'position_logits', 'switch_class_token']
