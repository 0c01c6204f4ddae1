"""Data sets: timm's, and the one that is always there."""
from .class_weight import class_weights
from .digits import DIGITS, DigitsReader
from .factory import class_names, convert_modes, create_train_val, drop_unreadable, image_mode, unreadable_images
from .folders import describe_images
from .placed import PlacedLoader

__all__ = [
    'DIGITS', 'DigitsReader', 'PlacedLoader', 'class_names', 'class_weights', 'convert_modes',
    'create_train_val', 'describe_images', 'drop_unreadable', 'image_mode',
    'unreadable_images',
]
