"""Cityscapes (Cordts et al., CVPR 2016): street scenes of 50 cities, the usual target domain."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable
from pathlib import Path

from dada.dataset import files
from dada.dataset.base import Item, SegmentationDataset, check_items, check_not_empty
from dada.dataset.label_sets import cityscapes_id_map, cityscapes_ids, label_set, label_set_from_info

_IMAGES, _IMAGE_END = "leftImg8bit", "_leftImg8bit.png"
_LABELS, _LABEL_END = "gtFine", "_gtFine_labelIds.png"
_SOURCE = "The {} are in {}_trainvaltest.zip, from https://www.cityscapes-dataset.com/downloads/."


class Cityscapes(SegmentationDataset):
    """leftImg8bit/<split>/<city>/*_leftImg8bit.png with labels gtFine/<split>/<city>/*_gtFine_labelIds.png.

    Args:
        root: the folder that holds leftImg8bit/.
        split: "train", "val" or "test", a folder of leftImg8bit/.
        num_classes: 19, 16, 13 or 7.
        transform: see SegmentationDataset.
        list_file: one image a line, `aachen/aachen_000000_000019_leftImg8bit.png` (ADVENT, DADA) or paths
            from the root, image and label divided by a tab (PLCA); `{}` in its name stands for the split; ""
            scans the folders.
        with_labels: False never opens gtFine/, which need not exist then.
        with_depth: not available; refused.
        info: JSON file with an id map and classes of one's own; see label_set_from_info.
        role: "source" or "target", whose settings the messages name.

    Raises:
        FileNotFoundError, ValueError: a folder, a list, an image or a label is missing; nothing is opened
        before.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        num_classes: int = 19,
        *,
        transform: Callable,
        list_file: str | Path = "",
        with_labels: bool = True,
        with_depth: bool = False,
        seed: int = 0,
        info: str | Path = "",
        role: str = "target",
    ) -> None:
        if with_depth:
            raise ValueError(
                "Cityscapes has no depth here. Set USE_DEPTH to False, or take SYNTHIA as the source."
            )
        root = Path(root)
        setting, list_setting = f"DATA_DIRECTORY_{role.upper()}", f"DATA_LIST_{role.upper()}"
        listed = (
            files.read_list(Path(str(list_file).replace("{}", split)), list_setting) if list_file else None
        )

        image_folder = root / _IMAGES / ("" if listed else split)
        files.require_folder(
            image_folder,
            root,
            what=f"Cityscapes images for split {split!r}",
            setting=setting,
            holds=f"{_IMAGES}/ " + (f"and {_LABELS}/" if with_labels else f"({_LABELS}/ is not needed here)"),
            source=_SOURCE.format("images", _IMAGES),
        )
        if listed:
            pairs = [_from_line(row, split) for row in listed]
        else:
            found = sorted(glob.glob(f"*/*{_IMAGE_END}", root_dir=image_folder))
            check_not_empty(found, image_folder, f"*/*{_IMAGE_END}", "Cityscapes", setting)
            pairs = [_from_line([name], split) for name in found]
        if with_labels and not listed:
            files.require_folder(
                root / _LABELS / split,
                root,
                what=f"Cityscapes labels for split {split!r}",
                setting=setting,
                holds=f"{_IMAGES}/ and {_LABELS}/",
                source=_SOURCE.format("labels", _LABELS),
            )
        items = [
            Item(
                image=str(root / image),
                label=str(root / label) if with_labels else None,
                depth=None,
                name="/".join(image.split("/")[-2:]),
            )
            for image, label in pairs
        ]
        check_items(items, "Cityscapes", setting, list_setting)
        if info:
            classes, id_map = label_set_from_info(info)
        else:
            classes, id_map = label_set(num_classes), cityscapes_id_map(num_classes)
        super().__init__(
            "Cityscapes",
            items,
            classes=classes,
            id_map=id_map,
            defined_ids=cityscapes_ids(),
            transform=transform,
            seed=seed,
        )


def _from_line(fields: list[str], split: str) -> tuple[str, str]:
    """The fields of a list line -> image and label, relative to the root."""
    image = fields[0].replace(os.sep, "/")
    if len(fields) == 2:
        return image, fields[1]
    if not image.startswith(_IMAGES + "/"):
        image = f"{_IMAGES}/{split}/{image}"
    folder, name = image.split("/", 1)
    return image, f"{_LABELS}/{name.removesuffix(_IMAGE_END)}{_LABEL_END}"
