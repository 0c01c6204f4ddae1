"""Files that are whole or not there."""
from __future__ import annotations


def is_repo(name: object) -> bool:
    """Whether a name is one of a repository or of a folder like one, as timm.create_model takes it."""
    return isinstance(name, str) and name.startswith(('hf-hub:', 'hf_hub:', 'local-dir:'))
