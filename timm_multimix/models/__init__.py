"""The networks of the paper that timm lacks. Importing this room registers them with timm."""
from . import preact_resnet, wide_resnet

__all__ = ['preact_resnet', 'wide_resnet']
