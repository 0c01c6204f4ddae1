"""What a setting is: its meaning and the values that it takes, said once beside its default.

Flags, checks, help texts and tables are made from it.
"""
from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Optional, Union


@dataclass(frozen=True)
class Number:
    """A number within bounds. As argparse's `type=` it reads a flag's text; `wrong` says what is right.

    Args:
        whole: an `int`, not a `float`.
        least, above: the lowest value, or the one that it must exceed.
        most, below: the highest value, or the one that it must not reach.
        word: a word that may stand in place of the number.
        read: the number of a text, in place of `int` or `float`.
    """
    whole: bool = False
    least: Optional[float] = None
    above: Optional[float] = None
    most: Optional[float] = None
    below: Optional[float] = None
    word: Optional[str] = None
    read: Optional[Callable[[str], float]] = None

    @property
    def __name__(self) -> str:
        """How argparse calls it when a text is no number."""
        return ('int' if self.whole else 'float') + (f' or {self.word!r}' if self.word else '')

    def __call__(self, text: str) -> Union[float, str]:
        if text == self.word:
            return text
        return self.read(text) if self.read else int(text) if self.whole else float(text)

    @property
    def words(self) -> str:
        """The bounds: 'at least 1', 'above 0', 'from 0 to 1', …; an empty string without any."""
        low = '' if self.least is None else f'from {self.least:g} to '
        if self.above is not None:
            text = f'above {self.above:g}' + (f' and up to {self.most:g}' if self.most is not None else
                                              f' and below {self.below:g}' if self.below is not None else '')
        elif self.most is not None:
            text = f'{low or "up to "}{self.most:.10g}'
        elif self.below is not None:
            text = f'{low}below {self.below:g}'
        else:
            text = '' if self.least is None else f'at least {self.least:g}'
        return text + (f', or {self.word!r}' if self.word else '')

    def wrong(self, value: Any, each: bool = False) -> str:
        """What would be right, as a sentence, or an empty string where `value` is. each: it is one of several."""
        if self.word is not None and value == self.word:
            return ''
        it = 'each' if each else 'it'
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)) or not (
                abs(value) <= sys.float_info.max):
            return (f'{it} must be a {"whole" if self.whole else "finite"} number'
                    + (f', or {self.word!r}.' if self.word else '.'))
        if ((self.least is None or value >= self.least) and (self.above is None or value > self.above)
                and (self.most is None or value <= self.most) and (self.below is None or value < self.below)):
            return ''
        return f'{it} must be {self.words}.'


def whole(least: Optional[int] = None, most: Optional[int] = None, word: Optional[str] = None) -> Number:
    """A whole number."""
    return Number(True, least=least, most=most, word=word)


def number(least: Optional[float] = None, above: Optional[float] = None, most: Optional[float] = None,
           below: Optional[float] = None, read: Optional[Callable[[str], float]] = None) -> Number:
    """A finite number."""
    return Number(False, least, above, most, below, read=read)


SHARE = number(least=0, most=1)


@dataclass(frozen=True)
class Setting:
    """What a field of `MultiMixConfig` says of itself.

    Attributes:
        help: its meaning, in a sentence without its end.
        values: a `Number`, the words to choose from, `bool`, or None for what has checks of its own.
        metavar: its value in help texts.
        many: several values: for a `Number` the ends of a range, which may be one.
        modes: the modes that it says something in; all where it is empty.
        needs: a setting without which it says nothing.
        usual: its value where neither the user nor the preset gives one.
        more: what the documentation says beside `help`.
    """
    help: str
    values: Union[Number, tuple[str, ...], type[bool], None] = None
    metavar: Optional[str] = None
    many: bool = False
    modes: tuple[str, ...] = ()
    needs: str = ''
    usual: Any = None
    more: str = ''

    @property
    def text(self) -> str:
        """`help`, behind the mode that it is for."""
        return f'{self.modes[0]} only: {self.help}' if self.modes else self.help


def setting(default: Any, help: str, values: Union[Number, tuple[str, ...], type[bool], None] = None,
            **about: Any) -> Any:
    """A dataclass field with its `Setting`."""
    return dataclasses.field(default=default, metadata={'setting': Setting(help, values, **about)})
