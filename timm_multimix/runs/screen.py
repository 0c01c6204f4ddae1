"""What a program says to the person before the screen."""
from __future__ import annotations

import sys

from tqdm import tqdm

from ..distributed import speaks


def say(text: str) -> None:
    """A line above the progress bar, plain when piped, from the first rank alone."""
    if speaks():
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()
