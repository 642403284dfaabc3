"""Cityscapes (Cordts et al., CVPR 2016): street scenes of 50 cities, the usual target domain."""

from __future__ import annotations

import posixpath

import numpy as np

from dada.dataset.base import Item
from dada.dataset.published import PublishedDataset
from dada.label_sets import cityscapes_id_map

_IMAGES, _IMAGE_END = "leftImg8bit", "_leftImg8bit.png"


class Cityscapes(PublishedDataset):
    """leftImg8bit/<split>/<city>/*_leftImg8bit.png with labels gtFine/<split>/<city>/*_gtFine_labelIds.png.

    Splits: folders of leftImg8bit/, "train", "val", "test" or "train_extra". The labels of train_extra are those of
    gtCoarse/; test has none that are public. A list file has one image a line,
    `aachen/aachen_000000_000019_leftImg8bit.png` (ADVENT, DADA) or paths from the root, image and label divided by a
    tab (PLCA).
    """

    title = "Cityscapes"
    splits = ("train", "val", "test", "train_extra")
    usual_role = "target"
    num_ids = 35  # 34 is the licence plate
    holds = f"{_IMAGES}/"

    def find(self) -> list[Item]:
        listed = self.listed()
        coarse = self.split == "train_extra"
        labels = "gtCoarse" if coarse else "gtFine"
        package = "trainextra" if coarse else "trainvaltest"
        needed = f"{_IMAGES}/ " + (f"and {labels}/" if self.with_labels else f"({labels}/ is not needed here)")

        def require(folder: str, what: str, archive: str) -> None:
            where = f"The {what} are in {archive}.zip, from https://www.cityscapes-dataset.com/downloads/."
            folder = folder if listed else posixpath.join(folder, self.split)
            self.require(folder, f"{what} for split {self.split!r}", holds=needed, download=where)

        require(_IMAGES, "images", f"{_IMAGES}_{package}")
        if listed:
            pairs = [_from_line(fields, self.split) for fields in listed]
        else:
            pairs = [_from_line([p], self.split) for p in self.scan(f"{_IMAGES}/{self.split}", f"*/*{_IMAGE_END}")]
            if self.with_labels:
                require(labels, "labels", labels if coarse else f"{labels}_{package}")
        return [self.item(image, label, "/".join(image.split("/")[-2:])) for image, label in pairs]

    def map_of(self, num_classes: int) -> np.ndarray:
        return cityscapes_id_map(num_classes)


def _from_line(fields: list[str], split: str) -> tuple[str, str]:
    """The fields of a list line -> image and label, as paths from the root."""
    image = fields[0].replace("\\", "/")
    if len(fields) == 2:
        return image, fields[1]
    if not image.startswith(_IMAGES + "/"):
        image = f"{_IMAGES}/{split}/{image}"
    _, split, name = image.split("/", 2)
    labels = "gtCoarse" if split == "train_extra" else "gtFine"
    return image, f"{labels}/{split}/{name.removesuffix(_IMAGE_END)}_{labels}_labelIds.png"
