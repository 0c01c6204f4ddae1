"""The only room that knows how timm models end."""
from .split import Ending, classifier_leaves, inspect_ending, position_logits, switch_class_token

__all__ = ['Ending', 'classifier_leaves', 'inspect_ending', 'position_logits', 'switch_class_token']
