"""What a program says to the person before the screen."""
from __future__ import annotations

import sys

from tqdm import tqdm

from ..distributed import rank


def say(text: str) -> None:
    """A line above the progress bar, plain when piped, from the first rank alone."""
    if rank() == 0:
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()
