"""Measure a predictor over a test split: one integer confusion matrix, and mIoU from it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dada.dataset.sample import Batch
from dada.evaluation.metrics import confusion_matrix, iou, mean_iou
from dada.evaluation.predictor import Predictor
from dada.label_sets import LabelSet, category_of_class, subsets
from dada.parallel.ranks import is_main, joint_sum


@dataclass(frozen=True)
class Evaluation:
    """A confusion matrix (rows: labels) with what follows from it; IoU in 0..1, NaN for absent classes.

    Of several datasets, IoU and mIoU are the means of theirs, and the matrix is the sum.
    """

    confusion: Tensor
    classes: LabelSet
    rule: str = "ignore"  # what pixels of classes outside the label set count for, see dada.evaluation.metrics
    parts: Mapping[str, Evaluation] = field(default_factory=dict)  # of several datasets, each by itself

    @property
    def iou(self) -> np.ndarray:
        if not self.parts:
            return iou(self.confusion, rule=self.rule)
        found = np.stack([part.iou for part in self.parts.values()])
        there = (~np.isnan(found)).sum(axis=0)  # each class is the mean of the datasets that have it
        return np.divide(np.nansum(found, axis=0), there, out=np.full(there.shape, np.nan), where=there > 0)

    @property
    def means(self) -> dict[str, float]:
        """mIoU over every label set that follows from the counts, by its number of classes: 16, 13 and 7 from 16."""
        if self.parts:
            found = [part.means for part in self.parts.values()]
            return {name: float(np.mean([means[name] for means in found])) for name in found[0]}
        return {name: mean_iou(values) for name, values in self._scored.items()}

    @property
    def covered(self) -> dict[str, int]:
        """How many classes each of `means` is over: those that are labelled or predicted."""
        return {name: int((~np.isnan(values)).sum()) for name, values in self._scored.items()}

    @property
    def _scored(self) -> dict[str, np.ndarray]:
        """The IoU that each mean is made of."""
        scored = {name: self.iou[keep] for name, keep in subsets(self.classes).items()}
        category = category_of_class(self.classes)
        if category is not None:
            scored["7"] = iou(self._categories(category), rule=self.rule)
        return scored

    def _categories(self, category: np.ndarray) -> Tensor:
        """The counts added up to the 7 categories; a last row for other classes stays a row of its own."""
        index = torch.from_numpy(category.astype(np.int64))
        columns = torch.zeros(len(self.confusion), 7, dtype=torch.int64).index_add_(1, index, self.confusion)
        rows = torch.cat([index, torch.arange(7, 7 + len(self.confusion) - len(index))])
        return torch.zeros(int(rows.max()) + 1, 7, dtype=torch.int64).index_add_(0, rows, columns)

    @property
    def miou(self) -> float:
        """mIoU over all classes of the label set."""
        return next(iter(self.means.values())) if self.parts else mean_iou(self.iou)

    def headline(self, digits: int = 2) -> str:
        """ "mIoU 54.13", or "mIoU 54.13 over 15 of 16 classes"."""
        covered, classes = int((~np.isnan(self.iou)).sum()), self.classes.num_classes
        return f"mIoU {100 * self.miou:.{digits}f}" + ("" if covered == classes else f" over {covered} of {classes} classes")

    def as_dict(self) -> dict[str, Any]:
        """For JSON: percentages, None for absent classes, and the counts themselves; of several datasets also of each."""
        parts = {"datasets": {name: part.as_dict() for name, part in self.parts.items()}} if self.parts else {}
        return {
            "mIoU": {name: _percent(value) for name, value in self.means.items()},
            "classes_in_mean": self.covered,
            "IoU": dict(zip(self.classes.names, map(_percent, self.iou.tolist()))),
            "confusion": self.confusion.tolist(),
            **parts,
        }


def mean_name(name: str, covered: Iterable[int]) -> str:
    """ "mIoU 2", or "mIoU 2, over 1 of 2 classes": a mean, and what it covers where that is not all.

    Args:
        name: the number of classes of its label set, as of Evaluation.means.
        covered: how many of them, in each of several evaluations.
    """
    counts = sorted(set(covered))
    return f"mIoU {name}" + ("" if counts == [int(name)] else f", over {' or '.join(map(str, counts))} of {name} classes")


def _percent(share: float) -> float | None:
    return None if np.isnan(share) else round(100 * share, 4)


def confusions(
    predictor: Predictor, batches: Iterable[Batch], num_classes: int, device: torch.device, rule: str = "ignore"
) -> Iterator[Tensor]:
    """The confusion matrix of each batch, (K, K) or, under the rule "count", (K + 1, K) int64; batches may differ in size."""
    for batch in tqdm(batches, desc="evaluating", unit="batch", dynamic_ncols=True, disable=None if is_main() else True):
        image, label = (x.to(device, non_blocking=True) for x in (batch.image, batch.label))
        prediction = predictor(image, tuple(label.shape[-2:])).argmax(dim=1)
        yield confusion_matrix(label, prediction, num_classes, other=rule == "count").cpu()


def evaluate(
    predictor: Predictor, batches: Iterable[Batch], classes: LabelSet, device: torch.device, rule: str = "ignore"
) -> Evaluation:
    """Count every labelled pixel of `batches` once. Several processes add up their counts."""
    count = classes.num_classes
    total = torch.zeros(count + (rule == "count"), count, dtype=torch.int64)
    seen = 0
    for confusion in confusions(predictor, batches, count, device, rule):
        total += confusion
        seen += 1
    if joint_sum(torch.tensor(seen)) == 0:
        raise ValueError("nothing to evaluate: the test split is empty")
    return Evaluation(joint_sum(total), classes, rule)


def mean_over(found: Mapping[str, Evaluation]) -> Evaluation:
    """The evaluation of several datasets, by name, whose classes are the same; of one its own."""
    first, *others = found.values()
    if not others:
        return first
    confusion = torch.stack([one.confusion for one in found.values()]).sum(dim=0)
    return Evaluation(confusion, first.classes, first.rule, found)


def table(columns: dict[str, Evaluation]) -> str:
    """Per-class IoU and mIoU in percent, one column for each evaluation; '-' for absent classes."""
    first = next(iter(columns.values()))
    width = max(12, *(len(name) + 2 for name in columns))
    rows = {name: [float(e.iou[k]) for e in columns.values()] for k, name in enumerate(first.classes.names)}
    for name in first.means:
        rows[mean_name(name, (e.covered[name] for e in columns.values()))] = [e.means[name] for e in columns.values()]
    left = max(14, *(len(name) for name in rows))
    lines = [f"{'IoU (%)':<{left}}" + "".join(f"{name:>{width}}" for name in columns)]
    for name, values in rows.items():
        lines.append(f"{name:<{left}}" + "".join(f"{'-' if np.isnan(v) else f'{100 * v:.1f}':>{width}}" for v in values))
    return "\n".join(lines)


def to_json(result: dict[str, Any]) -> bytes:
    return (json.dumps(result, indent=2, allow_nan=False) + "\n").encode()
