"""Data sets: timm's, and the one that is always there."""
from .class_weight import class_weights
from .digits import DIGITS, DigitsReader
from .factory import ConvertMode, class_names, create_train_val, drop_unreadable, unreadable_images
from .folders import describe_images
from .placed import PlacedLoader, SampleError

__all__ = [
    'DIGITS',
    'ConvertMode',
    'DigitsReader',
    'PlacedLoader',
    'SampleError',
    'class_names',
    'class_weights',
    'create_train_val',
    'describe_images',
    'drop_unreadable',
    'unreadable_images',
]
