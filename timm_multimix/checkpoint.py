"""timm's CheckpointSaver, without the moment in which there is no last checkpoint."""
from __future__ import annotations

import os
import shutil

from timm.utils import CheckpointSaver


class AtomicCheckpointSaver(CheckpointSaver):
    """`last`, `model_best` and numbered checkpoints as timm keeps them, each replaced in one step.

    timm removes a file before it puts the new one in its place; a run that is killed in between has no `last.pth.tar`
    to resume from.
    """

    def _replace(self, src: str, dst: str) -> None:
        os.replace(src, dst)

    def _duplicate(self, src: str, dst: str) -> None:
        temporary = f'{dst}.tmp'
        try:
            if os.path.exists(temporary):
                os.unlink(temporary)
            os.link(src, temporary)
        except OSError:  # a file system without hard links
            shutil.copy2(src, temporary)
        os.replace(temporary, dst)
