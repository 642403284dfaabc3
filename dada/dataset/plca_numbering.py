"""The order in which PLCA numbers its classes, which its published weights and numbers depend on: LEGACY.PLCA_CLASS_ORDER."""

from __future__ import annotations

import numpy as np

from dada.dataset import IGNORE_LABEL, LabelSet, SegmentationDataset
from dada.label_sets import LABEL_SETS, PLCA_CLASSES


def plca_order(classes: LabelSet) -> LabelSet:
    """The 16 or 19 classes in the order in which PLCA (Kang et al., NeurIPS 2020) numbers them.

    Raises:
        ValueError: other classes.
    """
    order = list(_plca_to_ours(classes))
    return LabelSet(tuple(classes.names[ours] for ours in order), classes.palette[order])


def number_as_plca(dataset: SegmentationDataset) -> None:
    """Give the classes of `dataset` the train ids of PLCA, in place.

    Raises:
        ValueError: it has other classes than the 16 or 19 of Cityscapes.
    """
    order = _plca_to_ours(dataset.classes)
    new_id = np.arange(256, dtype=np.uint8)
    new_id[list(order)] = np.arange(len(order))
    dataset.classes = plca_order(dataset.classes)
    dataset.id_map = np.where(dataset.id_map == IGNORE_LABEL, IGNORE_LABEL, new_id[dataset.id_map]).astype(np.uint8)


def _plca_to_ours(classes: LabelSet) -> tuple[int, ...]:
    if classes.names not in (LABEL_SETS[16].names, LABEL_SETS[19].names):
        raise ValueError(
            "LEGACY.PLCA_CLASS_ORDER is defined for 16 and 19 classes of Cityscapes, but the "
            f"{classes.num_classes} classes are {', '.join(classes.names)}; set it to False"
        )
    return PLCA_CLASSES[classes.num_classes]
