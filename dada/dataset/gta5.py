"""GTA5, or "Playing for Data" (Richter et al., ECCV 2016): 24966 frames of a game with the labels of Cityscapes."""

from __future__ import annotations

from pathlib import PurePosixPath

import numpy as np

from dada.dataset.base import Item
from dada.dataset.published import PublishedDataset
from dada.label_sets import cityscapes_id_map


class GTA5(PublishedDataset):
    """images/<name> with labels/<name>, a paletted PNG of Cityscapes labelIds.

    Splits: "all". A list file has one image a line, `00001.png` (ADVENT) or
    `images/00001.png<TAB>labels/00001.png` (PLCA).
    """

    title = "GTA5"
    num_ids = 35  # as Cityscapes; 34 is the licence plate
    usual_ids_above = 18  # vegetation, sky and cars
    holds = "images/ and labels/"
    download = "Images and labels, ten archives each, are at https://download.visinf.tu-darmstadt.de/data/from_games/."
    size_advice = (
        "A few pairs of GTA5 were published like this. Name the others in a list file (DATA_LIST_SOURCE); "
        "`dada check-data` tells which they are."
    )

    def find(self) -> list[Item]:
        self.require("images", "images")
        if not self.list_file:
            self.check_split()
        lines = self.lines("images", "*.png")
        if self.with_labels:
            self.require("labels", "labels")
        return [self.item(line, f"labels/{PurePosixPath(line.image).name}") for line in lines]

    def map_of(self, num_classes: int) -> np.ndarray:
        return cityscapes_id_map(num_classes)
