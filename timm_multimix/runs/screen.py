"""What a program says to the person before the screen."""
from __future__ import annotations

import sys

from tqdm import tqdm

from ..distributed import speaks


def say(text: str) -> None:
    """A line above the progress bar, plain when piped, from the first rank alone."""
    if speaks():
        # The name of a file or folder need not be text, and a screen in UTF-8 cannot show what stands for the rest.
        tqdm.write(text.encode(errors='replace').decode(), file=sys.stdout)
        sys.stdout.flush()
