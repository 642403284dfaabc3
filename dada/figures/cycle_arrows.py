"""Cycle associations: arrows of single cycles, and maps of all cycles that start at a class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch import Tensor

from dada.domain_adaptation.contrastive_learning import Cycles
from dada.figures.style import NUMBERS, PAGE, class_colours, styled
from dada.label_sets import IGNORE_LABEL, LabelSet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


CAPTION = (
    "i: a source pixel; j*: the target pixel most similar to i; i*: the source pixel most similar to j*. "
    "A cycle is closed if i and i* carry one label."
)


class Scene(NamedTuple):
    """One image pair and its cycles, on the CPU. h, w are the resolution of the features."""

    source: np.ndarray  # (H, W, 3) uint8
    target: np.ndarray  # (H', W', 3) uint8
    labels: np.ndarray  # (h, w) ids of the source pixels
    target_size: tuple[int, int]  # (h', w')
    target_index: np.ndarray  # (h*w,) j*
    source_index: np.ndarray  # (h*w,) i*
    closed: np.ndarray  # (h*w,) bool


def scene(source: np.ndarray, target: np.ndarray, labels: Tensor, target_size: tuple[int, int], cycles: Cycles) -> Scene:
    """Of the first image pair of a batch: labels (B, h, w), cycles of as many images."""
    index, back, closed = (x[0].cpu().numpy() for x in cycles)
    return Scene(source, target, labels[0].cpu().numpy(), tuple(target_size), index, back, closed)


class ClassMaps(NamedTuple):
    """Of the cycles that start at a class: the share of closed ones among those that meet each pixel; NaN where none does."""

    start: np.ndarray  # (h, w), at i: 0 or 1
    turn: np.ndarray  # (h', w'), at j*
    end: np.ndarray  # (h, w), at i*: 0 or 1, as i* has the label or has not
    cycles: int
    closed: int


def sample_cycles(labels: np.ndarray, count: int, classes: list[int] | None = None, seed: int = 0) -> np.ndarray:
    """Source pixels, at most `count`, to draw the cycles of: in turn one of every class that is there, the largest first.

    Of each class the pixel nearest to the middle of them all comes first, then any at random: closed or open, as they are.

    Args:
        labels: (h, w) ids.
        classes: that are asked for; None: all.

    Returns:
        Sorted indices into the flat map.
    """
    flat = labels.ravel()
    present, sizes = np.unique(flat[flat != IGNORE_LABEL], return_counts=True)
    generator = np.random.default_rng(seed)
    orders = []
    for k in present[np.argsort(-sizes, kind="stable")]:
        if classes is None or k in classes:
            own = generator.permutation(np.flatnonzero(flat == k))
            places = centres(own, labels.shape)
            middle = np.square(places - places.mean(axis=0)).sum(axis=1).argmin()
            orders.append([own[middle], *np.delete(own, middle)])
    chosen: list[int] = []
    turn = 0
    while len(chosen) < count and any(turn < len(order) for order in orders):
        chosen += [int(order[turn]) for order in orders if turn < len(order)]
        turn += 1
    return np.sort(np.array(chosen[:count], dtype=np.int64))


def class_maps(of: Scene, class_id: int) -> ClassMaps:
    """Raises ValueError if no source pixel has the class."""
    starts = np.flatnonzero(of.labels.ravel() == class_id)
    if not len(starts):
        raise ValueError(f"no source pixel of this pair is of class {class_id}; take another class or another pair")
    closed = of.closed[starts].astype(np.float64)

    def shares(indices: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        met = np.bincount(indices, minlength=size[0] * size[1])
        total = np.bincount(indices, closed, minlength=size[0] * size[1])
        return np.where(met > 0, total / np.maximum(met, 1), np.nan).reshape(size)

    return ClassMaps(
        shares(starts, of.labels.shape),
        shares(of.target_index[starts], of.target_size),
        shares(of.source_index[starts], of.labels.shape),
        len(starts),
        int(closed.sum()),
    )


def centres(index: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(N, 2) x and y, in 0..1 of the image, of the centres of feature pixels."""
    y, x = np.divmod(index, size[1])
    return np.stack([(x + 0.5) / size[1], (y + 0.5) / size[0]], axis=1)


@styled
def draw_arrows(scenes: Mapping[str, Scene], classes: LabelSet, count: int = 6, only: int | None = None) -> Figure:
    """Source on the left, target on the right, one row for each scene; an arrow from i to j* and a thin one back to i*.

    Lines have the colour of the class of i. A closed cycle is drawn with full lines and filled marks, an open one with
    dotted lines and hollow marks.

    Args:
        scenes: by title; the same source pixels are drawn in each.
        count: cycles.
        only: id of the one class that they start at.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import ConnectionPatch
    from matplotlib.patheffects import Normal, withStroke

    first = next(iter(scenes.values()))
    chosen = sample_cycles(first.labels, count, None if only is None else [only])
    if not len(chosen):
        raise ValueError("no source pixel of this pair has the class" if only is not None else "no source pixel has a label")
    height = _height(first.source, PAGE / 2.2)
    present = sorted({int(first.labels.ravel()[i]) for i in chosen})
    legend = 0.14 * (2 + -(-len(present) // 9)) + 0.1
    figure = Figure(figsize=(PAGE, (height + 0.22) * len(scenes) + legend))
    axes = figure.subplots(len(scenes), 2, squeeze=False)
    colours = class_colours(classes)
    for row, (title, of) in enumerate(scenes.items()):
        left, right = axes[row]
        _show(left, of.source, f"source: {_shares(of, only)}")
        _show(right, of.target, f"target, {title}" if title else "target")
        starts = centres(chosen, of.labels.shape)
        turns = centres(of.target_index[chosen], of.target_size)
        ends = centres(of.source_index[chosen], of.labels.shape)
        for i, start, turn, end in zip(chosen, starts, turns, ends):
            colour, closed = colours[of.labels.ravel()[i]], of.closed[i]
            style = {"color": colour, "linestyle": "-" if closed else ":", "arrowstyle": "-|>", "mutation_scale": 6}
            # The way back is bent, or it would lie on the way there where both are one.
            inwards = 0.06 if turn[1] + end[1] > 1 else -0.06  # away from the nearer edge, where titles are
            for a, b, axis_a, axis_b, width, bend in ((start, turn, left, right, 1.3, 0), (turn, end, right, left, 0.7, inwards)):
                style["path_effects"] = [withStroke(linewidth=width + 0.8, foreground="white"), Normal()]
                way = {"linewidth": width, "connectionstyle": f"arc3,rad={bend}", "shrinkA": 2, "shrinkB": 2}
                figure.add_artist(ConnectionPatch(a, b, "data", "data", axesA=axis_a, axesB=axis_b, **way, **style))
            mark = {"markeredgecolor": "black", "markeredgewidth": 0.5, "linestyle": "", "zorder": 5}
            face = colour if closed else "white"
            left.plot(*start, marker="o", markersize=3.6, markerfacecolor=face, **mark)
            right.plot(*turn, marker="o", markersize=3, markerfacecolor=face, **mark)
            left.plot(*end, marker="s", markersize=2.6, markerfacecolor=face, **mark)
    tall = figure.get_figheight()
    figure.subplots_adjust(0.005, legend / tall, 0.995, 1 - 0.2 / tall, wspace=0.08, hspace=0.22 / height)
    at = {"loc": "lower center", "columnspacing": 1.2, "borderaxespad": 0.1}
    lines = [Line2D([], [], color=colours[k], linewidth=1.8, label=classes.names[k]) for k in present]
    figure.legend(handles=lines, ncol=9, handlelength=1.4, bbox_to_anchor=(0.5, 0.28 / tall), **at)
    grey = {"color": "0.2", "markeredgecolor": "black", "markersize": 4, "markeredgewidth": 0.5}
    kinds = [
        Line2D([], [], marker="o", markerfacecolor="0.2", **grey, label="closed"),
        Line2D([], [], marker="o", markerfacecolor="white", linestyle=":", **grey, label="open"),
        Line2D([], [], marker="s", markerfacecolor="white", linestyle="", **grey, label="i*, the end of the thin line back"),
    ]
    figure.legend(handles=kinds, ncol=3, handlelength=2.2, bbox_to_anchor=(0.5, 0.14 / tall), **at)
    figure.text(0.5, 0.03 / tall, CAPTION, ha="center", va="bottom", fontsize=6)
    return figure


@styled
def draw_class_maps(scenes: Mapping[str, Scene], classes: LabelSet, class_id: int) -> Figure:
    """All cycles that start at a class, one row for each scene: where they start, turn around, and end.

    The colour of a pixel is the share of closed cycles among those that meet there; the image is left where none does.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

    first = next(iter(scenes.values()))
    width = (PAGE - 0.6) / 3
    height = _height(first.source, width)
    figure = Figure(figsize=(PAGE, (height + 0.22) * len(scenes) + 0.17))
    axes = figure.subplots(len(scenes), 3, squeeze=False)
    name = classes.names[class_id]
    for row, (title, of) in enumerate(scenes.items()):
        maps = class_maps(of, class_id)
        share = f"{100 * maps.closed / maps.cycles:.0f} % of {maps.cycles} close"
        for axis, image, values, text in (
            (axes[row, 0], of.source, maps.start, f"source, i of {name}: {share}"),
            (axes[row, 1], of.target, maps.turn, f"target, j*, {title}" if title else "target, j*"),
            (axes[row, 2], of.source, maps.end, "source, i*"),
        ):
            _show(axis, (255 - (255 - _grey(image)) * 0.6).astype(np.uint8), text)
            coloured = colormaps[NUMBERS](np.nan_to_num(values))
            coloured[..., 3] = np.isfinite(values)
            axis.imshow(coloured, extent=(0, 1, 1, 0), interpolation="nearest", aspect="auto")
    tall = figure.get_figheight()
    right = 1 - 0.55 / PAGE
    figure.text(0.005, 0.03 / tall, CAPTION, va="bottom", fontsize=6)
    figure.subplots_adjust(0.005, 0.17 / tall, right, 1 - 0.2 / tall, wspace=0.04, hspace=0.22 / height)
    bar = figure.add_axes((right + 0.08 / PAGE, 0.15, 0.09 / PAGE, 0.7))
    figure.colorbar(ScalarMappable(cmap=NUMBERS), cax=bar, ticks=[0, 0.5, 1]).set_label("share that close", labelpad=0)
    return figure


def _shares(of: Scene, only: int | None) -> str:
    flat = of.labels.ravel()
    counted = flat == only if only is not None else flat != IGNORE_LABEL
    return f"{100 * of.closed[counted].mean():.0f} % of {counted.sum()} cycles close"


def _show(axis: Axes, image: np.ndarray, title: str) -> None:
    axis.imshow(image, extent=(0, 1, 1, 0), aspect="auto")
    axis.set_axis_off()
    axis.set_title(title, pad=3)


def _grey(image: np.ndarray) -> np.ndarray:
    luma = image.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
    return np.repeat(luma[..., None], 3, axis=2)


def _height(image: np.ndarray, width: float) -> float:
    return width * image.shape[0] / image.shape[1]
