"""Pictures of what networks predict, in the colours of the field."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dada.dataset.label_sets import IGNORE_LABEL, LabelSet, colorize
from dada.dataset.sample import Sample, collate
from dada.domain_adaptation.evaluator import Predictor
from dada.files import whole_file
from dada.normalization import Normalization


def predict_labels(predictor: Predictor, samples: Sequence[Sample], device: torch.device) -> list[np.ndarray]:
    """Class ids (H, W) uint8 of each sample, at the size of its label."""
    predictions = []
    for sample in samples:
        image = collate([sample]).image.to(device)
        ids = predictor(image, tuple(sample.label.shape)).argmax(dim=1)[0]
        predictions.append(ids.to(torch.uint8).cpu().numpy())
    return predictions


def save_panel(
    path: str | Path,
    samples: Sequence[Sample],
    predictions: dict[str, Sequence[np.ndarray]],
    normalization: Normalization,
    classes: LabelSet,
) -> None:
    """One row for each sample: image, label, and one column for each entry of `predictions`; classes named below.

    Args:
        path: file to write, PNG or PDF by its ending.
        samples: test samples with labels.
        predictions: by column title, one (H, W) map of class ids for each sample, at the size of its label.
        normalization: what the samples' images went through.
        classes: names and colours.
    """
    from matplotlib.figure import Figure  # the object-oriented interface: no display, nothing kept open
    from matplotlib.patches import Patch

    titles = ["target image", "label", *predictions]
    height, width = samples[0].label.shape[-2:]
    figure = Figure(figsize=(3.2 * len(titles), 3.2 * height / width * len(samples) + 0.9), dpi=120)
    axes = figure.subplots(len(samples), len(titles), squeeze=False)
    for row, sample in enumerate(samples):
        ids = [sample.label, *(columns[row] for columns in predictions.values())]
        pictures = [_rgb(sample.image, normalization), *(_colours(i, classes) for i in ids)]
        for column, picture in enumerate(pictures):
            axis = axes[row, column]
            # Every column is drawn over the same area, whatever size the network read.
            axis.imshow(picture, extent=(0, width, height, 0), interpolation="nearest")
            axis.set_axis_off()
            if row == 0:
                axis.set_title(titles[column], fontsize=11)
    patches = [Patch(color=np.asarray(c) / 255, label=n) for n, c in zip(classes.names, classes.palette)]
    patches.append(Patch(color="black", label="unlabelled"))
    figure.legend(handles=patches, loc="lower center", ncol=9, fontsize=8, frameon=False)
    figure.subplots_adjust(left=0.005, right=0.995, top=1 - 0.3 / figure.get_figheight(), wspace=0.02, hspace=0.03,
                           bottom=0.55 / figure.get_figheight())
    with whole_file(path) as part:
        figure.savefig(part, format=Path(path).suffix.lstrip(".") or "png")


def _rgb(image: Tensor, normalization: Normalization) -> np.ndarray:
    return normalization.inverse(image).permute(1, 2, 0).cpu().numpy()


def _colours(ids: Tensor | np.ndarray, classes: LabelSet) -> np.ndarray:
    ids = np.asarray(ids)
    # Ids without a colour of their own (a class counted as "other") are drawn like unlabelled pixels.
    ids = np.where(ids < classes.num_classes, ids, IGNORE_LABEL).astype(np.uint8)
    return np.asarray(colorize(ids, classes).convert("RGB"))
