"""The only room that knows how timm models end."""
from .description import Description, describe, description
from .split import Ending, classifier_leaves, inspect_ending, position_logits, switch_class_token

__all__ = ['Description', 'Ending', 'classifier_leaves', 'describe', 'description', 'inspect_ending', 'position_logits',
           'switch_class_token']
