"""What can be wrong with the data of a run, and all that is wrong with the files of one sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from dada.dataset import SegmentationDataset, image_files
from dada.dataset.packed import IDS as IDS_KIND

T = TypeVar("T")


@dataclass(frozen=True)
class Kind:
    """A kind of problem. Errors stop a run when it meets the file; warnings do not."""

    name: str
    warning: bool = False
    of_all: bool = False  # of a split, not of single files


UNOPENED = Kind("dataset cannot be opened", of_all=True)
UNUSABLE = Kind("options cannot be used", of_all=True)
IMAGE, LABEL, DEPTH = Kind("unreadable image"), Kind("unreadable label"), Kind("unreadable depth")
SIZE, IDS, MISSING = Kind("sizes differ"), Kind("label ids outside the map"), Kind("image without label")
BLANK = Kind("no trained class in the label", warning=True)
ABSENT, NOTHING = Kind("classes in no label", of_all=True), Kind("no labelled pixel", of_all=True)
FEWER = Kind("classes not in all that was read", warning=True, of_all=True)
RELEASE = Kind("unusual archive", warning=True, of_all=True)
FOREIGN = Kind("ids of another numbering", of_all=True)
PERHAPS_FOREIGN = Kind("perhaps ids of another numbering", warning=True, of_all=True)
TWO_VALUES = Kind("255 is ignored", warning=True, of_all=True)
FLAT, PAGES = Kind("nearly all one value", warning=True), Kind("several pictures in a file", warning=True)
TURNED = Kind("turned by EXIF", warning=True)
WHITES = Kind("several whites", warning=True, of_all=True)
PALETTES = Kind("palettes differ", warning=True, of_all=True)
LEFT_OUT = Kind("masks among the images", warning=True, of_all=True)
FLAT_SHARE = 0.99


@dataclass(frozen=True)
class Problem:
    kind: Kind
    file: str
    message: str


@dataclass(frozen=True)
class Pair:
    """What was found in the files of one sample."""

    problems: list[Problem]
    size: tuple[int, int] | None  # (width, height) of the image
    counts: np.ndarray | None  # (K,) pixels of each class; None without labels
    pixels: int = 0  # of the label
    ids: dict[int, int] = field(default_factory=dict)  # pixels of each id in the label file
    palette: dict[int, tuple[int, int, int]] = field(default_factory=dict)  # colours of the indices that occur in it
    facts: dict[str, Any] = field(default_factory=dict)  # what else stands in the image file, see image_files.read_image


def read_pair(dataset: SegmentationDataset, index: int) -> Pair:
    """Read all files of one sample as training does, and say what is wrong with them; never raises for a file."""
    item, problems = dataset.items[index], []

    def add(kind: Kind, path: str, message: str) -> None:
        problems.append(Problem(kind, path, message))

    def attempt(kind: Kind, path: str, read: Callable[[], T]) -> T | None:
        try:
            return read()
        except Exception as error:
            add(IDS if isinstance(error, image_files.LabelIdError) else kind, path, text_of(error))
            return None

    ids = None if item.label is None else attempt(LABEL, item.label, lambda: dataset.read_ids(index))
    label = None if ids is None else attempt(LABEL, item.label, lambda: dataset.train_ids(ids, item.label))
    depth = None if item.depth is None else attempt(DEPTH, item.depth, lambda: image_files.read_inverse_depth(item.depth))
    image = attempt(IMAGE, item.image, lambda: dataset.read_image(index, ids, depth))
    facts = {} if image is None else image.info
    if image is not None:
        others = {item.label: ids and ids.size, item.depth: None if depth is None else depth.shape[::-1]}
        turned = f", and is stored turned (EXIF orientation {facts['orientation']})" if "orientation" in facts else ""
        for path, size in others.items():
            if size not in (None, image.size):
                (w, h), (width, height) = size, image.size
                add(SIZE, path, f"{path} is {w}x{h}, its image {item.image} is {width}x{height}{turned}")
        for kind, text in _oddities(image, item.label is not None):
            add(kind, item.image, f"{item.image} {text}")
    if ids is not None and ids.info.get("pages", 1) > 1:
        add(PAGES, item.label, f"{item.label} holds {ids.info['pages']} pictures; the first is read")
    counts = None if label is None else np.array(label.histogram()[: dataset.num_classes], dtype=np.int64)
    if counts is not None and not counts.any():
        add(BLANK, item.label, f"{item.label} holds no pixel of a trained class")
    held = {} if ids is None or dataset.label_kind != IDS_KIND else _counted(ids)
    colors = [] if ids is None else ids.info.get("palette", [])
    palette = {k: tuple(colors[3 * k : 3 * k + 3]) for k in held if len(colors) >= 3 * k + 3}
    size, pixels = (None if image is None else image.size), (0 if label is None else label.width * label.height)
    return Pair(problems, size, counts, pixels, held, palette, facts)


def text_of(error: Exception) -> str:
    known = isinstance(error, (ValueError, OSError))
    return str(error) if known and str(error) else f"{type(error).__name__}: {error}"


def _counted(ids: Image.Image) -> dict[int, int]:
    """Pixels of each id."""
    if ids.mode == "L":
        return {k: count for k, count in enumerate(ids.histogram()) if count}
    return dict(zip(*(found.tolist() for found in np.unique(np.asarray(ids), return_counts=True))))


def _oddities(image: Image.Image, labelled: bool) -> Iterator[tuple[Kind, str]]:
    """What looks suspicious in an image."""
    bands = np.array(image.histogram()).reshape(3, 256) / (image.width * image.height)
    if (np.lib.stride_tricks.sliding_window_view(bands, 3, axis=1).sum(axis=2).max(axis=1) >= FLAT_SHARE).all():
        values = ", ".join(str(level) for level in bands.argmax(axis=1))
        yield FLAT, f"is nearly all of one colour ({values}, of 255), once read"
    if (pages := image.info.get("pages", 1)) > 1:
        yield PAGES, f"holds {pages} pictures; the first is read"
    if labelled and "orientation" in image.info and not image.info["decided"]:
        was = "turned upright" if image.info["upright"] else "read as it is stored"
        stored = f"is stored turned (EXIF orientation {image.info['orientation']}) and was {was}"
        options = "FOLDER_SOURCE.ORIENTATION or FOLDER_TARGET.ORIENTATION says"
        yield TURNED, f"{stored}; the size of its label does not tell on which of the two that lies: {options}"
