"""Datasets, label sets, transforms and the order in which samples are drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dada.dataset.base import Item, SegmentationDataset
from dada.dataset.cityscapes import Cityscapes
from dada.dataset.label_sets import IGNORE_LABEL, LABEL_SETS, LabelSet
from dada.dataset.sample import Batch, Sample, collate
from dada.dataset.sampler import Draw, StepSampler, step_loader
from dada.dataset.synthia import SYNTHIA
from dada.dataset.transforms import TestTransform, TrainTransform

__all__ = [
    "DATASETS", "IGNORE_LABEL", "LABEL_SETS", "Batch", "Cityscapes", "Draw", "Item", "LabelSet", "SYNTHIA",
    "Sample", "SegmentationDataset", "StepSampler", "TestTransform", "TrainTransform", "build_dataset",
    "collate", "step_loader",
]  # fmt: skip

DATASETS: dict[str, type[SegmentationDataset]] = {"SYNTHIA": SYNTHIA, "Cityscapes": Cityscapes}


def build_dataset(
    name: str,
    root: str | Path,
    *,
    split: str,
    num_classes: int,
    transform: Callable,
    list_file: str | Path = "",
    with_labels: bool = True,
    with_depth: bool = False,
    seed: int = 0,
    info: str | Path = "",
    role: str = "source",
    **options,
) -> SegmentationDataset:
    """The dataset of that name, as the configuration writes it.

    The arguments are those of the classes in DATASETS, and further:

    Args:
        role: "source" or "target": which settings (DATA_DIRECTORY_SOURCE or DATA_DIRECTORY_TARGET) the
            messages name.
        options: what one dataset alone takes, for example labels="raw" for SYNTHIA.

    Raises:
        ValueError: no dataset has that name.
        FileNotFoundError: its folders or files are not there.
    """
    if name not in DATASETS:
        raise ValueError(f"{role.upper()} is {name!r}; the datasets are {', '.join(DATASETS)}")
    return DATASETS[name](
        root,
        split,
        num_classes,
        transform=transform,
        list_file=list_file,
        with_labels=with_labels,
        with_depth=with_depth,
        seed=seed,
        info=info,
        role=role,
        **options,
    )
