"""Cityscapes (Cordts et al., CVPR 2016): street scenes of 50 cities, the usual target domain."""

from __future__ import annotations

import numpy as np

from dada.dataset.base import Item
from dada.dataset.published import PublishedDataset
from dada.label_sets import cityscapes_id_map

_IMAGES, _IMAGE_END = "leftImg8bit", "_leftImg8bit.png"


class Cityscapes(PublishedDataset):
    """leftImg8bit/<split>/<city>/*_leftImg8bit.png with labels gtFine/<split>/<city>/*_gtFine_labelIds.png.

    Splits: folders of leftImg8bit/, "train", "val", "test" or "train_extra". The labels of train_extra are those of
    gtCoarse/; those of test are not public. A list file has one image per line,
    `aachen/aachen_000000_000019_leftImg8bit.png` (ADVENT, DADA), or image and label as paths from the root, separated
    by a tab (PLCA).
    """

    title = "Cityscapes"
    splits = ("train", "val", "test", "train_extra")
    usual_role = "target"
    num_ids = 35  # 34 is the licence plate
    usual_ids_above = 18  # vegetation, sky and cars
    label_advice = (
        "Take *_gtFine_labelIds.png from gtFine_trainvaltest.zip, or name in a list file only images that have one. Train ids, "
        "as in *_labelTrainIds.png, are read with Folder (docs/datasets.md#train-ids)."
    )
    holds = f"{_IMAGES}/"

    def find(self) -> list[Item]:
        coarse = self.split == "train_extra"
        labels = "gtCoarse" if coarse else "gtFine"
        package = "trainextra" if coarse else "trainvaltest"
        needed = f"{_IMAGES}/ " + (f"and {labels}/" if self.with_labels else f"({labels}/ is not needed here)")
        folders = [(_IMAGES, "images", f"{_IMAGES}_{package}")]
        if self.with_labels and not self.list_file:
            folders.append((labels, "labels", labels if coarse else f"{labels}_{package}"))
        for folder, what, archive in folders:
            where = f"The {what} are in {archive}.zip, from https://www.cityscapes-dataset.com/downloads/."
            folder = folder if self.list_file else f"{folder}/{self.split}"
            self.require(folder, f"{what} for split {self.split!r}", holds=needed, download=where)
        lines = self.lines(f"{_IMAGES}/{self.split}", f"*/*{_IMAGE_END}")
        return [self.item(line, _label_of(line.image), name="/".join(line.image.split("/")[-2:])) for line in lines]

    def map_of(self, num_classes: int) -> np.ndarray:
        return cityscapes_id_map(num_classes)


def _label_of(image: str) -> str:
    """The label of an image, both as paths from the root."""
    *_, split, city, name = ("", "", *image.split("/"))
    labels = "gtCoarse" if split == "train_extra" else "gtFine"
    return f"{labels}/{split}/{city}/{name.removesuffix(_IMAGE_END)}_{labels}_labelIds.png"
