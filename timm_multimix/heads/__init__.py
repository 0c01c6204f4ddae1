"""How a model's head turns features into logits, position by position. The only room that knows how timm models end."""
from .describing import Description, describe, description
from .parts import Parts, TimmAdapter, adapter_of
from .positions import (
    HeadInfo,
    check_affine,
    classifier_leaves,
    inspect_head,
    look,
    position_logits,
    switch_class_token,
)

__all__ = ['Description', 'HeadInfo', 'Parts', 'TimmAdapter', 'adapter_of', 'check_affine', 'classifier_leaves',
           'describe', 'description', 'inspect_head', 'look', 'position_logits', 'switch_class_token']
