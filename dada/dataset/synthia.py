"""SYNTHIA-RAND-CITYSCAPES (Ros et al., CVPR 2016): 9400 rendered street scenes with labels and depth."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np

from dada.dataset import storage
from dada.dataset.base import Item
from dada.dataset.published import PublishedDataset
from dada.label_sets import synthia_id_map

PARSED_LABELS = "parsed_LABELS"  # 8-bit, one channel; made from the original by users of ADVENT and DADA
RAW_LABELS = "GT/LABELS"  # as downloaded: 16-bit, several channels, the first is the class


class SYNTHIA(PublishedDataset):
    """RGB/<name>, labels in parsed_LABELS/<name> or, without that folder, in GT/LABELS/<name>, depth in Depth/<name>.

    Splits: "all". A list file has one image per line, `0000000.png` (ADVENT, DADA) or
    `RGB/0000000.png<TAB>GT/LABELS/0000000.png` (PLCA).

    Args:
        published: for 7 classes, DADA's map; see synthia_id_map.
        options: of PublishedDataset.
    """

    title = "SYNTHIA"
    label_sets = (16, 13, 7, 19)
    has_depth = True
    first_channel = True
    num_ids = 23
    usual_ids_above = 18  # lane markings are 22
    holds = "RGB/"
    download = "SYNTHIA-RAND-CITYSCAPES (RGB/, GT/LABELS/, Depth/) is at https://synthia-dataset.net/downloads/."

    def __init__(self, root: str | Path, split: str = "", num_classes: int = 0, *, published: bool = False, **options) -> None:
        self.published = published
        super().__init__(root, split, num_classes, **options)

    def find(self) -> list[Item]:
        self.require("RGB", "images")
        if not self.list_file:
            self.check_split()
        lines = self.lines("RGB", "*.png", "*.PNG")
        labels = PARSED_LABELS if storage.is_dir(self.root / PARSED_LABELS) else RAW_LABELS
        if self.with_labels:
            self.require(labels, "labels")
        if self.with_depth:
            self.require("Depth", "depth")
        names = [PurePosixPath(line.image).name for line in lines]
        return [self.item(line, f"{labels}/{name}", f"Depth/{name}") for line, name in zip(lines, names)]

    def map_of(self, num_classes: int) -> np.ndarray:
        return synthia_id_map(num_classes, self.published)
