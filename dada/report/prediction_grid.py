"""A few test images with the prediction of each method, as pictures that a page can hold."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image

from dada.build import eval_loader
from dada.dataset.spread import spread
from dada.figures.panels import predict_labels
from dada.figures.web import shown_in_page
from dada.label_sets import colorize
from dada.report.groups import Group
from dada.segmenter import Segmenter

log = logging.getLogger(__name__)

SIDE = 480  # longest side of a picture, in pixels


class Column(NamedTuple):
    """One column of the panels: a title, and the attributes of an <img> for each image, or why there are none."""

    title: str
    pictures: list[str]
    note: str = ""


def columns(groups: Sequence[Group], images: int, overrides: Sequence[str] = ()) -> tuple[list[str], list[Column]]:
    """Names of the images, and the columns image, label, and one for each method: its first seed's network.

    A method whose weights or data are not there has a note in place of pictures. Images and labels are those of the first
    method that has both; another one whose test images are not the same has a note.
    """
    names: list[str] = []
    found: list[Column] = []
    for group in groups:
        try:
            segmenter = _segmenter(group, overrides)
            normalization = segmenter.predictor.networks[0].normalization
            dataset = eval_loader(segmenter.cfg, normalization).dataset
            samples = [dataset[k] for k in spread(len(dataset), images)]
            if names and [s.name for s in samples] != names:
                raise ValueError("it is tested on other images than the methods before it")
            predictions = predict_labels(segmenter.predictor, samples, segmenter.device)
        except (ValueError, OSError, ImportError) as error:
            log.warning("no pictures of %s: %s", group.name, error)
            found.append(Column(group.name, [], str(error).splitlines()[0]))
            continue
        if not names:
            names = [s.name for s in samples]
            photos = [Image.fromarray(normalization.pixels(s.image)) for s in samples]
            sizes = [s.label.shape for s in samples]
            photos = [p.resize((w, h), Image.BILINEAR) for p, (h, w) in zip(photos, sizes)]
            found.insert(0, Column("target image", [_shown(p, "JPEG") for p in photos]))
            found.insert(1, Column("label", [_shown(colorize(s.label, segmenter.classes), "PNG") for s in samples]))
        found.append(Column(group.name, [_shown(colorize(ids, segmenter.classes), "PNG") for ids in predictions]))
    return names, found


def _segmenter(group: Group, overrides: Sequence[str]) -> Segmenter:
    run = group.runs[0]
    if run.headline is not None:  # with the options of the test, and all members of an ensemble
        files = [c["file"] for c in run.headline.content["checkpoints"]]
        files = [run.weights] if len(files) == 1 and run.weights else files
        return Segmenter.from_checkpoint(files, run.headline.content.get("cfg") or run.stored or None, options=overrides)
    if run.weights is None:
        raise FileNotFoundError("there is no snapshot")
    return Segmenter.from_checkpoint(run.weights, run.stored or None, options=overrides)


def _shown(picture: Image.Image, kind: str) -> str:
    factor = min(1.0, SIDE / max(picture.size))
    size = [max(1, round(side * factor)) for side in picture.size]
    picture = picture.resize(size, Image.NEAREST if picture.mode == "P" else Image.LANCZOS)
    return shown_in_page(picture, kind)
