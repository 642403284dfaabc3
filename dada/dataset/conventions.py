"""Files that can be read in more than one way: labels of another numbering, pictures that do not say what white is."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import TypeVar

import numpy as np

from dada.dataset.base import SegmentationDataset
from dada.dataset.folder import Folder
from dada.dataset.spread import spread

log = logging.getLogger(__name__)
T = TypeVar("T")

LOOKED_AT = 8  # files: reading one takes a few hundredths of a second


def warn_of_conventions(dataset: SegmentationDataset, labels: bool = True) -> None:
    """Warn of both; without `labels` no label file is opened."""
    warn_of_several_whites(dataset)
    if labels:
        warn_of_foreign_ids(dataset)


def warn_of_foreign_ids(dataset: SegmentationDataset) -> None:
    """Read a few labels, and log a warning if they look like train ids under the names of original labels."""
    labels = [np.unique(np.asarray(ids)) for ids in _a_few(dataset, dataset.read_ids) if ids is not None]
    if text := dataset.foreign_ids({int(number) for ids in labels for number in ids}):
        log.warning("%s", text)


def warn_of_several_whites(dataset: SegmentationDataset) -> None:
    """Read a few pictures, and log a warning if those of more than 8 bits are brightened by different factors.

    A dark picture of 12 bits in which no number exceeds 1023 is taken for one of 10, see samples.white_of. Pictures of datasets
    other than folders have 8 bits.
    """
    if not isinstance(dataset, Folder) or dataset.white:
        return
    whites: list[float] = []
    for picture in _a_few(dataset, dataset.read_image):
        if not (found := picture.info.get("white")):
            return
        whites.append(found)
    if len(set(whites)) > 1:
        log.warning("%s", several_whites(Counter(whites), f"set {dataset.section}.WHITE"))


def _a_few(dataset: SegmentationDataset, read: Callable[[int], T]) -> Iterator[T]:
    for index in spread(len(dataset), LOOKED_AT):
        with suppress(ValueError, OSError):  # reported once the file is needed
            yield read(index)


def several_whites(whites: Mapping[float, int], advice: str) -> str:
    """The sentence about pictures of more than 8 bits, by how many of them each number was taken for white in."""
    taken = ", ".join(f"{white:g} ({count})" for white, count in sorted(whites.items()))
    return f"in images of more than 8 bits different numbers were taken for white, {taken}: {advice}"
