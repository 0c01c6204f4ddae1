"""What is wrong with a picture: text that is cut off, text on other text."""
from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from tests import blank

SLACK = 1.5  # pixels: the ink of a letter is a little smaller than its box


def texts(figure: Figure) -> list[tuple[str, Bbox]]:
    """What is written on a figure, and where, in pixels: every text but those of legends, each legend as a whole."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    ticks = {id(label): tick for axis in figure.findobj(Axis)
             for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()) for label in (tick.label1, tick.label2)}
    drawn = {id(label) for axis in figure.findobj(Axis) if axis.axes.axison and axis.get_visible()
             for tick in axis._update_ticks() for label in (tick.label1, tick.label2)}
    legends = [legend for legend in figure.findobj(Legend) if legend.get_visible()]
    inside = {id(text) for legend in legends for text in legend.findobj(Text)}
    hidden = {id(text) for ax in figure.axes if not ax.axison for axis in (ax.xaxis, ax.yaxis)
              for text in axis.findobj(Text)}
    found = [('legend ' + '; '.join(text.get_text() for text in legend.get_texts()),
              legend.get_window_extent(renderer)) for legend in legends]
    for text in figure.findobj(Text):
        if not text.get_visible() or not text.get_text().strip() or id(text) in inside | hidden:
            continue
        if id(text) in ticks and id(text) not in drawn:
            continue
        found.append((text.get_text(), text.get_window_extent(renderer)))
    return found


def faults(figure: Figure, tight: bool = False) -> list[str]:
    """A sentence for each text outside the figure, each two texts that overlap, and each legend on a line.

    Args:
        figure: as it is saved.
        tight: it is saved by bbox_inches='tight', which cuts nothing off.
    """
    found = texts(figure)
    assert found, 'nothing is written on it'
    width, height = figure.bbox.width, figure.bbox.height
    sentences = [
        f'{name!r} is cut off: {box.extents.round().tolist()} of {width:.0f}×{height:.0f}' for name, box in found
        if not tight and (min(box.x0, box.y0) < -SLACK or box.x1 > width + SLACK or box.y1 > height + SLACK)]
    for ax in figure.axes:
        legend = ax.get_legend()
        for line in ax.get_lines() if legend is not None else ():
            path = line.get_path().transformed(line.get_transform())
            if len(path) and path.intersects_bbox(legend.get_window_extent(), filled=False):
                sentences.append(f'the legend lies on the line {line.get_label()!r}')
    for (one, a), (other, b) in itertools.combinations(found, 2):
        both = Bbox.intersection(a, b)
        if both is not None and both.width > SLACK and both.height > SLACK:
            sentences.append(f'{one!r} lies on {other!r}')
    return sentences


@contextmanager
def watched() -> Iterator[dict[str, list[str]]]:
    """Name of a picture → its faults, of all that are saved meanwhile. They are drawn once, to look for faults."""
    found: dict[str, list[str]] = {}

    def savefig(figure: Figure, path: Any, **kwargs: Any) -> None:
        number = len(found)
        found[f'{number}: {getattr(path, "name", path)}'] = faults(figure, kwargs.get('bbox_inches') == 'tight')
        blank.savefig(figure, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, 'savefig', savefig)
        yield found
