"""Confusion matrices, and bars for the IoU of every class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from dada.figures.style import NUMBERS, PAGE, bar, class_colours, styled
from dada.label_sets import LabelSet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def shares_of_labels(confusion: np.ndarray) -> np.ndarray:
    """Each row over its sum: of the pixels with that label, the share of each prediction; NaN for a row without pixels."""
    confusion = np.asarray(confusion, dtype=np.float64)
    sums = confusion.sum(axis=1, keepdims=True)
    return np.where(sums > 0, confusion / np.maximum(sums, 1), np.nan)


@styled
def draw_confusion(confusion: np.ndarray, classes: LabelSet) -> Figure:
    """Rows are labels, columns predictions; the number is the percentage of the row, 0 is left out, - is a class without
    pixels. A row beyond the classes is "other": labelled, with a class that is not predicted.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

    shares = shares_of_labels(confusion)
    rows, columns = shares.shape
    cell, margin, above = min(0.28, (PAGE - 1.5) / columns), 0.8, 0.04
    figure = Figure(figsize=(cell * columns + margin + 0.6, cell * rows + margin + above))
    wide, tall = figure.get_size_inches()
    axis = figure.add_axes((margin / wide, margin / tall, cell * columns / wide, cell * rows / tall))
    axis.imshow(np.nan_to_num(shares), cmap=NUMBERS, vmin=0, vmax=1, aspect="auto")
    for (r, c), share in np.ndenumerate(shares):
        text = "-" if np.isnan(share) and r == c else f"{100 * share:.0f}" if share >= 0.005 else ""
        axis.text(c, r, text, ha="center", va="center", fontsize=5.8, color="black" if share > 0.5 else "white")
    names = [*classes.names, *["other"] * (rows - columns)]
    axis.set_xticks(range(columns), names[:columns], rotation=90)
    axis.set_yticks(range(rows), names)
    axis.set(xlabel="prediction", ylabel="label")
    axis.tick_params(length=0, pad=7)
    axis.spines[:].set_visible(False)
    _class_marks(axis, classes, along_y=True)
    _class_marks(axis, classes, along_y=False)
    place = ((margin + cell * columns + 0.08) / wide, margin / tall, 0.1 / wide, cell * rows / tall)
    colours = figure.colorbar(ScalarMappable(cmap=NUMBERS), cax=figure.add_axes(place), ticks=[0, 0.5, 1])
    colours.ax.set_yticklabels(["0", "50", "100 %"])
    return figure


@styled
def draw_classes(
    scores: Mapping[str, Mapping[str, float]], means: Mapping[str, Mapping[str, float]], classes: LabelSet
) -> Figure:
    """IoU of every class as bars, one set for each entry of `scores`; below, the differences from the first, with numbers.

    Args:
        scores: by name of the network, percent by class name; NaN, or no entry, for a class that is absent.
        means: mIoU in percent, by name of the network and number of classes.
    """
    from matplotlib.figure import Figure

    names, columns = list(scores), list(classes.names)
    counts = list(means[names[0]])
    values = {n: np.array([scores[n].get(c, np.nan) for c in columns] + [means[n].get(c, np.nan) for c in counts]) for n in names}
    labels = [*columns, *(f"mIoU {c}" for c in counts)]
    place = np.arange(len(labels)) + (np.arange(len(labels)) >= len(columns)) * 0.6
    compared = len(names) > 1
    figure = Figure(figsize=(PAGE, 3.3 if compared else 2.2))
    axes = figure.subplots(1 + compared, 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": [3, 2][: 1 + compared]})[
        :, 0
    ]
    width = 0.8 / len(names)
    for k, name in enumerate(names):
        axes[0].bar(place + (k - (len(names) - 1) / 2) * width, np.nan_to_num(values[name]), width, label=name, **bar(k))
    axes[0].set(ylabel="IoU (%)", ylim=(0, 100))
    axes[0].legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=min(4, len(names)), handlelength=2)
    if compared:
        width = 0.8 / (len(names) - 1)
        for k, name in enumerate(names[1:], 1):
            difference = values[name] - values[names[0]]
            x = place + (k - 1 - (len(names) - 2) / 2) * width
            axes[1].bar(x, np.nan_to_num(difference), width, **bar(k))
            if len(names) <= 3:
                style = {"textcoords": "offset points", "ha": "center", "fontsize": 5.5 if len(names) == 2 else 4.5}
                for at, d in zip(x[~np.isnan(difference)], difference[~np.isnan(difference)]):
                    where, side = ((0, 1), "bottom") if d >= 0 else ((0, -1), "top")
                    axes[1].annotate(f"{d:+.1f}", (at, d), where, va=side, **style)
        axes[1].axhline(0, color="black", linewidth=0.6)
        axes[1].margins(y=0.2)
        axes[1].set_ylabel(f"difference\nfrom {names[0]}")
    for axis in axes:
        axis.grid(axis="y", color="0.9", linewidth=0.5)
        axis.set_axisbelow(True)
        axis.tick_params(axis="x", length=0)
    axes[-1].set_xticks(place, labels, rotation=40, ha="right", rotation_mode="anchor")
    axes[-1].tick_params(axis="x", pad=8)
    _class_marks(axes[-1], classes, along_y=False)
    figure.subplots_adjust(0.09, 0.62 / figure.get_figheight(), 0.995, 1 - 0.25 / figure.get_figheight(), hspace=0.08)
    return figure


def _class_marks(axis: Axes, classes: LabelSet, along_y: bool) -> None:
    """Squares in the colours of the classes between the axis and their names."""
    colours, places = class_colours(classes), np.arange(classes.num_classes)
    style = {"marker": "s", "s": 16, "c": colours, "edgecolors": "0.3", "linewidths": 0.4, "clip_on": False}
    if along_y:
        axis.scatter(np.full(len(places), -0.012), places, transform=axis.get_yaxis_transform(), **style)
    else:
        height = axis.get_position().height * axis.figure.get_figheight()
        axis.scatter(places, np.full(len(places), -0.055 / height), transform=axis.get_xaxis_transform(), **style)
