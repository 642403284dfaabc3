"""Scalars of one run or several over the iterations, smoothed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np

from dada.figures.scalars import Curve, over_seeds, smoothed
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
def draw_curves(runs: Mapping[str, Sequence[Mapping[str, Curve]]], tags: Sequence[str], width: float = PAGE) -> Figure:
    """A plot for each tag, a line for each of `runs` that has it: the mean of its seeds, smoothed, over what was logged.

    Several seeds have a band of a standard deviation. A scalar that spans more than two orders of magnitude and is
    positive has a logarithmic axis. One tag alone is drawn without title and legend, for a page that has both.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    columns, alone = min(4, len(tags)), len(tags) == 1
    rows = math.ceil(len(tags) / columns)
    legend = 0.2 if len(runs) > 1 and not alone else 0.02
    figure = Figure(figsize=(width, 1.45 * rows + legend))
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, tag in zip(axes, tags):
        lowest, highest = math.inf, -math.inf
        for k, seeds in enumerate(runs.values()):
            own = [curves[tag] for curves in seeds if tag in curves]
            if not own:
                continue
            step, mean, std = over_seeds(own)
            middle, spread = smoothed(mean), smoothed(std)
            style = line(k)
            axis.plot(step + 1, middle, **style, **({"marker": "o", "markersize": 2.5} if len(step) < 12 else {}))
            if len(own) > 1:
                axis.fill_between(step + 1, middle - spread, middle + spread, color=style["color"], alpha=0.2, linewidth=0)
            else:
                axis.plot(step + 1, np.where(np.isfinite(mean), mean, np.nan), color=style["color"], alpha=0.25, linewidth=0.6)
            known = np.isfinite(middle)
            lowest, highest = min(lowest, *(middle - spread)[known]), max(highest, *(middle + spread)[known])
        if lowest > 0 and highest > 100 * lowest:
            axis.set_yscale("log")
        elif lowest < highest:  # what is smoothed away may leave the plot
            margin = 0.15 * (highest - lowest)
            axis.set_ylim(lowest - margin, highest + margin)
        if not alone:
            axis.set_title(tag.removeprefix("data/"), pad=3)
        axis.grid(color="0.5", alpha=0.2, linewidth=0.5)
    for axis in axes[len(tags) :]:
        axis.set_axis_off()
    for axis in axes[max(0, len(tags) - columns) : len(tags)]:
        axis.set_xlabel("iteration", labelpad=1)
    figure.tight_layout(pad=0.3, rect=(0, 0, 1, 1 - legend / figure.get_figheight()))
    if len(runs) > 1 and not alone:
        handles = [Line2D([], [], label=name, **line(k)) for k, name in enumerate(runs)]
        figure.legend(handles=handles, loc="upper center", ncol=min(5, len(runs)), handlelength=3, borderaxespad=0.1)
    return figure
