"""SYNTHIA-RAND-CITYSCAPES (Ros et al., CVPR 2016): 9400 rendered street scenes with labels and depth."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from dada.dataset import files
from dada.dataset.base import Item, SegmentationDataset, check_items, check_not_empty
from dada.dataset.label_sets import label_set, label_set_from_info, synthia_id_map, synthia_ids

PARSED_LABELS = "parsed_LABELS"  # 8-bit, one channel; made from the original by the ancestors' users
RAW_LABELS = "GT/LABELS"  # as downloaded: 16-bit, several channels, the first is the class
_SOURCE = "SYNTHIA-RAND-CITYSCAPES (RGB/, GT/LABELS/, Depth/) is at https://synthia-dataset.net/downloads/."


class SYNTHIA(SegmentationDataset):
    """RGB/<name>, labels in parsed_LABELS/<name> or GT/LABELS/<name>, depth in Depth/<name>.

    Args:
        root: the folder that holds RGB/.
        split: "all"; the dataset has no others, but a list file's name may hold a `{}` for it.
        num_classes: 19, 16, 13 or 7.
        transform: see SegmentationDataset.
        list_file: one image a line, `0000000.png` (ADVENT, DADA) or
            `RGB/0000000.png<TAB>GT/LABELS/0000000.png` (PLCA); "" takes every PNG in RGB/.
        labels: "parsed", "raw", or "auto" for parsed_LABELS where it exists and GT/LABELS otherwise.
        published: for 7 classes, DADA's map; see synthia_id_map.
        info: JSON file with an id map and classes of one's own; see label_set_from_info.
        role: "source" or "target", whose settings the messages name.

    Raises:
        FileNotFoundError, ValueError: a folder, a list, an image or a label is missing; nothing is opened
        before.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "all",
        num_classes: int = 16,
        *,
        transform: Callable,
        list_file: str | Path = "",
        with_labels: bool = True,
        with_depth: bool = False,
        seed: int = 0,
        labels: str = "auto",
        published: bool = False,
        info: str | Path = "",
        role: str = "source",
    ) -> None:
        root = Path(root)
        setting, list_setting = f"DATA_DIRECTORY_{role.upper()}", f"DATA_LIST_{role.upper()}"

        def require(folder: Path, what: str) -> None:
            files.require_folder(folder, root, what=what, setting=setting, holds="RGB/", source=_SOURCE)

        require(root / "RGB", "SYNTHIA images")
        if list_file:
            rows = files.read_list(Path(str(list_file).replace("{}", split)), list_setting)
            names = [os.path.basename(row[0]) for row in rows]
        elif split in ("", "all"):
            names = sorted(
                entry.name for entry in os.scandir(root / "RGB") if entry.name.lower().endswith(".png")
            )
            check_not_empty(names, root / "RGB", "*.png", "SYNTHIA", setting)
        else:
            raise ValueError(
                f"SYNTHIA has no split {split!r}: all its images are in one folder. "
                f"Set TRAIN.SET_{role.upper()} to 'all', or name the images in a list file ({list_setting})."
            )
        label_folder = _label_folder(root, labels) if with_labels else None
        if label_folder:
            require(root / label_folder, "SYNTHIA labels")
        if with_depth:
            require(root / "Depth", "SYNTHIA depth")
        items = [
            Item(
                image=str(root / "RGB" / name),
                label=str(root / label_folder / name) if label_folder else None,
                depth=str(root / "Depth" / name) if with_depth else None,
                name=name,
            )
            for name in names
        ]
        check_items(items, "SYNTHIA", setting, list_setting)
        if info:
            classes, id_map = label_set_from_info(info)
        else:
            classes, id_map = label_set(num_classes), synthia_id_map(num_classes, published)
        super().__init__(
            "SYNTHIA",
            items,
            classes=classes,
            id_map=id_map,
            defined_ids=synthia_ids(),
            transform=transform,
            seed=seed,
        )


def _label_folder(root: Path, labels: str) -> str:
    if labels not in ("auto", "parsed", "raw"):
        raise ValueError(f"labels must be 'auto', 'parsed' or 'raw', not {labels!r}")
    if labels == "auto":
        return PARSED_LABELS if (root / PARSED_LABELS).is_dir() else RAW_LABELS
    return PARSED_LABELS if labels == "parsed" else RAW_LABELS
