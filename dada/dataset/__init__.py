"""Datasets, label sets, transforms and the order in which samples are drawn."""

from __future__ import annotations

from pathlib import Path

from dada.dataset import storage
from dada.dataset.base import Item, SegmentationDataset
from dada.dataset.camvid import CamVid
from dada.dataset.cityscapes import Cityscapes
from dada.dataset.folder import Folder
from dada.dataset.mapillary import Mapillary
from dada.dataset.sample import Batch, Sample, collate
from dada.dataset.sampler import Draw, StepSampler, step_loader
from dada.dataset.street_table import TABLE, dataset_class
from dada.dataset.synthia import SYNTHIA
from dada.dataset.transforms import EvalTransform, TrainTransform
from dada.label_sets import IGNORE_LABEL, LABEL_SETS, LabelSet

__all__ = [
    "DATASETS",
    "IGNORE_LABEL",
    "LABEL_SETS",
    "Batch",
    "CamVid",
    "Cityscapes",
    "Draw",
    "Folder",
    "Item",
    "LabelSet",
    "Mapillary",
    "SYNTHIA",
    "Sample",
    "SegmentationDataset",
    "StepSampler",
    "EvalTransform",
    "TrainTransform",
    "build_dataset",
    "collate",
    "step_loader",
]

DATASETS: dict[str, type[SegmentationDataset]] = {
    "SYNTHIA": SYNTHIA,
    "Cityscapes": Cityscapes,
    "Mapillary": Mapillary,
    "CamVid": CamVid,
    **{entry.title: dataset_class(entry) for entry in TABLE},
    "Folder": Folder,
}
OTHER_NAMES = {"GTA": "GTA5", "GTAV": "GTA5", "BDD": "BDD100K", "WildDash2": "WildDash"}  # as ADVENT, PLCA and others write it


def build_dataset(
    name: str, root: str | Path, *, split: str, num_classes: int, info: str | Path = "", role: str = "source", **options
) -> SegmentationDataset:
    """Build the dataset that the configuration names.

    Args:
        info: JSON file with your own id map and classes.
        role: "source" or "target": which settings (DATA_DIRECTORY_SOURCE or DATA_DIRECTORY_TARGET) the
            messages name.
        options: those of PublishedDataset, including `transform`, and those of this dataset alone.

    Raises:
        ValueError: no dataset has that name, or `info` holds another number of classes.
        FileNotFoundError: its folders or files do not exist.
    """
    name = OTHER_NAMES.get(name, name)
    if name not in DATASETS:
        raise ValueError(f"{role.upper()} is {name!r}; the datasets are {', '.join(DATASETS)}")
    dataset = DATASETS[name](root, split, num_classes, info=info, role=role, **options)
    if dataset.num_classes != num_classes:
        raise ValueError(f"{info} holds {dataset.num_classes} classes, but NUM_CLASSES is {num_classes}")
    if not dataset.items:
        what = "images with a label file" if options.get("labelled_only") else "images"
        raise ValueError(f"{role.upper()} {name}: there are no {what} in the split {split!r} of {root}")
    if place := storage.in_pack(dataset.items[0].image):
        names = [item.name for item in dataset.items]
        resized = getattr(dataset.transform, "fixed_resize", None)
        place[0].check_use(name, split, names, resized, listed=bool(options.get("list_file")))
    return dataset
