"""Label files that have a dataset's names but hold ids of another numbering."""

from __future__ import annotations

import logging

import numpy as np

from dada.dataset.base import SegmentationDataset
from dada.dataset.spread import spread

log = logging.getLogger(__name__)

LOOKED_AT = 8  # label files: reading one takes a few hundredths of a second


def warn_of_foreign_ids(dataset: SegmentationDataset) -> None:
    """Read a few labels, and log a warning if they look like train ids under the names of original labels."""
    ids: set[int] = set()
    for index in spread(len(dataset), LOOKED_AT):
        try:
            found = dataset.read_ids(index)
        except (ValueError, OSError):  # reported once the file is needed
            continue
        ids.update([] if found is None else np.unique(np.asarray(found)).tolist())
    if text := dataset.foreign_ids(ids):
        log.warning("%s", text)
