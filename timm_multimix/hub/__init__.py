"""Trained models as plain timm folders and repositories of the Hugging Face Hub: save, push, find, load."""
from .background import BackgroundPush
from .errors import HubError
from .load import check_published, from_pretrained, list_checkpoints, shipped, starting_point, trained_model
from .publishing import Publication, publications, publish
from .push import export, push_to_hub
from .save import save_plain

__all__ = [
    'BackgroundPush', 'HubError', 'Publication', 'check_published', 'export', 'from_pretrained', 'list_checkpoints',
    'publications', 'publish', 'push_to_hub', 'save_plain', 'shipped', 'starting_point', 'trained_model',
]
