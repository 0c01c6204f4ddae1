"""The one exception a user meets for bad input."""
from __future__ import annotations

import difflib
from collections.abc import Iterable


class SettingError(ValueError):
    """A setting, path or model that cannot work. The message names it, its value, and what would be right.

    `train.py` prints the message alone and exits with status 2; in your own code it is an ordinary `ValueError`.
    """


def nearest(name: str, candidates: Iterable[str], n: int = 3) -> str:
    """A suffix such as `' Did you mean x, y?'`, or an empty string where nothing comes near."""
    close = difflib.get_close_matches(name, list(candidates), n=n, cutoff=0.55)
    return f' Did you mean {", ".join(close)}?' if close else ''
