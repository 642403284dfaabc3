"""How figures look: made for the columns of a paper, and to be read without colour.

Sizes are those in print: a figure of PAGE inches is placed without scaling, and its letters have the size that is
said here. Whatever a colour says, a hatch, a marker, a line style or a word says as well; numbers are shown by maps that are
perceptually uniform and for colour-blind readers as for others (cividis).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import numpy as np

from dada.files import whole_file
from dada.label_sets import LabelSet

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

P, R = ParamSpec("P"), TypeVar("R")

PAGE = 7.16  # inches, the width of both columns of the usual two-column paper
FORMATS = ("png", "pdf", "jpg")
NUMBERS = "cividis"  # the map of everything that is a number
# Okabe and Ito's colours, told apart by all kinds of colour vision; yellow and black are for points only, not for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
POINTS = (*COLOURS, "#F0E442", "#000000")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))
HATCHES = ("", "////", "....", "xxxx", "----", "\\\\\\\\")
DOMAINS = {"source": "o", "target": "^"}  # their markers

RC = {
    "font.size": 7,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.2,
    "hatch.linewidth": 0.5,
    "legend.frameon": False,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,  # TrueType, so that letters stay letters; many venues refuse the default
    "ps.fonttype": 42,
}


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Let `draw` work under RC, and leave matplotlib's settings as they were."""

    @functools.wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        import matplotlib  # imported where it is used: it takes a second

        with matplotlib.rc_context(RC):
            return draw(*args, **kwargs)

    return wrapper


@styled
def save_figure(figure: Figure, *paths: str | Path) -> None:
    """Write the figure to each path, whole, as PNG, PDF or JPEG by its ending."""
    logging.getLogger("fontTools").setLevel(logging.WARNING)  # it tells of every letter that a PDF needs
    for path in check_formats(paths):
        with whole_file(path) as part:
            # Without a date the same figure gives the same file.
            stamp = {".pdf": {"CreationDate": None}, ".png": {"Software": None}}.get(path.suffix)
            # JPEG is for screens: smaller, and not quite exact.
            small = {"dpi": 140, "pil_kwargs": {"quality": 80, "optimize": True}} if path.suffix == ".jpg" else {}
            figure.savefig(part, format=path.suffix[1:], metadata=stamp, **small)


def check_formats(paths: Iterable[str | Path]) -> list[Path]:
    """The paths, if each ends in one of FORMATS."""
    found = [Path(path) for path in paths]
    for path in found:
        if path.suffix[1:] not in FORMATS:
            raise ValueError(f"figures are written as {' or '.join(FORMATS)}, by the ending of the name; got {str(path)!r}")
    return found


@styled
def as_pixels(figure: Figure, dpi: int = 120) -> np.ndarray:
    """(H, W, 3) uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def class_colours(classes: LabelSet) -> np.ndarray:
    """(K, 3) in 0..1, as matplotlib takes them."""
    return classes.palette / 255


def line(k: int) -> dict:
    """Colour and dashes of the k-th line of a plot."""
    return {"color": COLOURS[k % len(COLOURS)], "linestyle": DASHES[(k + k // len(COLOURS)) % len(DASHES)]}


def bar(k: int) -> dict:
    """Colour and hatch of the k-th set of bars."""
    hatch = HATCHES[(k + k // len(COLOURS)) % len(HATCHES)]
    return {"facecolor": COLOURS[k % len(COLOURS)], "hatch": hatch, "edgecolor": "white", "linewidth": 0}


def class_patches(classes: LabelSet) -> list[Patch]:
    """For a legend: a patch with the name of each class."""
    from matplotlib.patches import Patch

    colours = class_colours(classes)
    return [Patch(facecolor=c, edgecolor="0.3", linewidth=0.4, label=name) for c, name in zip(colours, classes.names)]


def class_id(name: str, classes: LabelSet) -> int:
    """The id of the class of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in classes.names:
        raise ValueError(f"there is no class {name!r}; the classes are {', '.join(classes.names)}")
    return classes.names.index(name)
