"""Scalars of one run or several over the iterations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from dada.figures.scalars import Curve, thinned
from dada.figures.style import PAGE, line, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

USUAL = ("data/*", "eval/*")


def chosen_tags(runs: Mapping[str, Mapping[str, Curve]], patterns: Sequence[str] = USUAL) -> list[str]:
    """The tags of all runs that fit a pattern, in the order of the patterns, then of the logs.

    Raises:
        ValueError: none fits; the message lists those that there are.
    """
    there = list(dict.fromkeys(tag for curves in runs.values() for tag in curves))
    found = list(dict.fromkeys(tag for pattern in patterns for tag in there if fnmatchcase(tag, pattern)))
    if not found:
        shown = [tag for tag in there if not tag.startswith("classes/")]
        raise ValueError(f"no logged scalar is called {' or '.join(patterns)}; there are {', '.join(shown) or 'none'}")
    return found


@styled
def draw_curves(runs: Mapping[str, Mapping[str, Curve]], tags: Sequence[str]) -> Figure:
    """A plot for each tag, a line for each run that has it; long curves as means of 200 stretches.

    A scalar that spans more than two orders of magnitude and is positive has a logarithmic axis.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    columns = min(4, len(tags))
    rows = math.ceil(len(tags) / columns)
    legend = 0.2 if len(runs) > 1 else 0.02
    figure = Figure(figsize=(PAGE, 1.45 * rows + legend))
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, tag in zip(axes, tags):
        lowest, highest = math.inf, -math.inf
        for k, curves in enumerate(runs.values()):
            if tag not in curves:
                continue
            curve = thinned(curves[tag])
            single = {"marker": "o", "markersize": 2.5} if len(curve.step) < 12 else {}
            axis.plot(curve.step + 1, curve.value, **line(k), **single)
            lowest, highest = min(lowest, curve.value.min()), max(highest, curve.value.max())
        if lowest > 0 and highest > 100 * lowest:
            axis.set_yscale("log")
        axis.set_title(tag.removeprefix("data/"), pad=3)
        axis.grid(color="0.92", linewidth=0.5)
    for axis in axes[len(tags) :]:
        axis.set_axis_off()
    for axis in axes[max(0, len(tags) - columns) : len(tags)]:
        axis.set_xlabel("iteration", labelpad=1)
    figure.tight_layout(pad=0.3, rect=(0, 0, 1, 1 - legend / figure.get_figheight()))
    if len(runs) > 1:
        handles = [Line2D([], [], label=name, **line(k)) for k, name in enumerate(runs)]
        figure.legend(handles=handles, loc="upper center", ncol=min(5, len(runs)), handlelength=3, borderaxespad=0.1)
    return figure
