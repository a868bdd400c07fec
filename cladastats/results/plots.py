"""How figures look: a journal's widths, type of at least 7 points, and lines that differ in grey print.

Every figure states on itself what its lines are. A response stands on an axis that reaches 1, where the hybrid would
act like the other text, and once more magnified.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

COLUMN, PAGE = 3.5, 7.0
"""Inches: the width of a journal's column, and of its page."""

SMALL, LARGE = 7, 8
"""Points: all text, and titles."""

STYLE: Any = {
    "font.size": SMALL,
    "axes.titlesize": LARGE,
    "axes.labelsize": SMALL,
    "figure.titlesize": LARGE,
    "figure.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "legend.title_fontsize": SMALL,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.0,
    "lines.markersize": 3.5,
}


in_style = mpl.rc_context(STYLE)
"""Decorator of a function that draws a figure."""


class Look(NamedTuple):
    """What tells a line from others, also in grey."""

    color: str
    marker: str
    line: str


LOOKS = (Look("black", "o", "-"), Look("0.5", "s", "--"), Look("0.25", "^", ":"), Look("0.65", "D", "-."))
"""Of the lines of one panel, in order."""

GROUP_LOOKS: Mapping[str, Look] = {"nls": LOOKS[0], "rts": LOOKS[1]}


def key(look: Look, label: str, **changes: Any) -> Line2D:
    """An entry of a legend."""
    shown = {"color": look.color, "marker": look.marker, "linestyle": look.line, "label": label}
    return Line2D([], [], **{**shown, **changes})


def finish(axis: Axes, *, zero: bool = True) -> None:
    """Small labels of ticks, and a line at 0 where that means something."""
    axis.tick_params(labelsize=SMALL)  # ticks are made when the figure is drawn, when the style is gone
    if zero:
        axis.axhline(0, color="0.75", linewidth=0.6, zorder=0)


def magnified(axis: Axes, values: Iterable[float], whole: float) -> bool:
    """Limit an axis to what is drawn on it, and say how many times it magnifies an axis of another length.

    Args:
        axis: With everything drawn.
        values: What is drawn on it, ends of intervals included; 0 belongs to it in any case.
        whole: Length of the axis that it magnifies.

    Returns:
        Whether it shows more than the other axis: half as much again.
    """
    found = np.array([0.0, *values])
    low, high = np.nanmin(found), np.nanmax(found)
    room = 0.08 * (high - low) or 0.01
    axis.set_ylim(low - room, high + room)
    times = whole / (high - low + 2 * room)
    more = bool(times >= 1.5)
    axis.set_title(f"magnified {times:,.0f} times" if more else "the same", loc="left", fontsize=SMALL)
    return more


def explain(figure: Figure, handles: Sequence[Artist], title: str, columns: int) -> None:
    """The legend of a whole figure, below it, under lines that say what must be known."""
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns, title=title)
    legend.get_title().set_multialignment("center")
