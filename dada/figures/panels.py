"""Pictures of what networks predict, in the colours of the field."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from dada.dataset.sample import Sample, collate
from dada.evaluation.predictor import Predictor
from dada.figures.style import PAGE, class_patches, styled
from dada.label_sets import LabelSet, colorize
from dada.normalization import Normalization

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Each is lighter or darker than all others, so that it is known in grey print.
ERRORS = {"right": (235, 235, 235), "fixed": (140, 190, 235), "broken": (214, 94, 0), "wrong": (70, 70, 70)}


def predict_labels(predictor: Predictor, samples: Sequence[Sample], device: torch.device) -> list[np.ndarray]:
    """Class ids (H, W) uint8 of each sample, at the size of its label."""
    predictions = []
    for sample in samples:
        image = collate([sample]).image.to(device)
        ids = predictor(image, tuple(sample.label.shape)).argmax(dim=1)[0]
        predictions.append(ids.to(torch.uint8).cpu().numpy())
    return predictions


def error_map(label: np.ndarray, prediction: np.ndarray, before: np.ndarray | None, num_classes: int) -> np.ndarray:
    """(H, W, 3) uint8: ERRORS at every labelled pixel, black elsewhere.

    Args:
        label, prediction: (H, W) class ids.
        before: of another network; "fixed" is what it has wrong and `prediction` right, "broken" the reverse. None: none is.
    """
    right = prediction == label
    was_right = right if before is None else before == label
    picture = np.zeros((*label.shape, 3), np.uint8)
    for name, where in (
        ("right", right & was_right),
        ("fixed", right & ~was_right),
        ("broken", ~right & was_right),
        ("wrong", ~right & ~was_right),
    ):
        picture[where & (label < num_classes)] = ERRORS[name]
    return picture


@styled
def draw_panel(
    samples: Sequence[Sample],
    predictions: Mapping[str, Sequence[np.ndarray]],
    normalization: Normalization,
    classes: LabelSet,
    errors: bool = False,
) -> Figure:
    """One row for each sample: image, label, and one column for each entry of `predictions`; classes named below.

    Args:
        samples: test samples with labels.
        predictions: by column title, one (H, W) map of class ids for each sample, at the size of its label.
        normalization: what the samples' images went through.
        classes: names and colours.
        errors: a last column, where the last prediction is wrong; with several predictions also what it has right or wrong
            that the first has not.
    """
    from matplotlib.figure import Figure  # the object-oriented interface: no display, nothing kept open
    from matplotlib.patches import Patch

    titles = ["target image", "label", *predictions]
    maps = list(predictions.values())
    compared = errors and len(maps) > 1
    if errors:
        titles.append("errors")
    height, width = samples[0].label.shape[-2:]
    patches = [*class_patches(classes), Patch(color="black", label="unlabelled")]
    lines = math.ceil(len(patches) / 9) + errors
    legend, title = 0.14 * lines + 0.06, 0.2
    picture = (PAGE - 0.03 * len(titles)) / len(titles) * height / width
    figure = Figure(figsize=(PAGE, (picture + 0.03) * len(samples) + legend + title))
    axes = figure.subplots(len(samples), len(titles), squeeze=False)
    for row, sample in enumerate(samples):
        pictures = [normalization.pixels(sample.image)]
        pictures += [colorize(ids, classes).convert("RGB") for ids in (sample.label, *(column[row] for column in maps))]
        if errors:
            before = maps[0][row] if compared else None
            pictures.append(error_map(np.asarray(sample.label), maps[-1][row], before, classes.num_classes))
        for column, picture in enumerate(pictures):
            axis = axes[row, column]
            # Every column is drawn over the same area, whatever size the network read.
            axis.imshow(picture, extent=(0, width, height, 0), interpolation="nearest", aspect="auto")
            axis.set_axis_off()
            if row == 0:
                axis.set_title(titles[column], pad=3)
    tall = figure.get_figheight()
    figure.subplots_adjust(left=0.003, right=0.997, top=1 - title / tall, bottom=legend / tall, wspace=0.02, hspace=0.03)
    style = {"loc": "lower center", "handlelength": 1.2, "columnspacing": 1.2, "borderaxespad": 0.1}
    if errors:
        first, last = list(predictions)[0], list(predictions)[-1]
        names = {"right": "right", "wrong": "wrong"}
        if compared:
            names = {"right": "both right", "fixed": f"only {last} right", "broken": f"only {first} right", "wrong": "both wrong"}
        style_of = {"edgecolor": "0.3", "linewidth": 0.4}
        shown = [Patch(facecolor=np.array(ERRORS[n]) / 255, label=text, **style_of) for n, text in names.items()]
        figure.legend(handles=shown, ncol=len(shown), **style)
        style["bbox_to_anchor"] = (0.5, 0.14 / tall)
    figure.legend(handles=patches, ncol=9, **style)
    return figure
