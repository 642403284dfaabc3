"""Predict and measure: probabilities at label size, one integer confusion matrix, mIoU from it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from dada.dataset.label_sets import LabelSet, category_of_class, subsets
from dada.dataset.sample import Batch
from dada.domain_adaptation.contrastive_learning import spatial_aggregation
from dada.domain_adaptation.losses import upsample
from dada.domain_adaptation.metrics import confusion_matrix, iou, mean_iou
from dada.model import SegmentationModel


@dataclass
class Predictor:
    """Class probabilities of an ensemble, with the test-time options of the protocols.

    Every member, flip and scale gives probabilities at the wanted size; their weighted mean is the prediction.

    Args:
        networks: members, in eval mode on their device; they must agree in normalization.
        weights: of the members, any positive scale; None for equal weights.
        align_corners: how logits are upsampled.
        flip: also predict the mirrored image.
        scales: multiples of the input size to predict at.
        aggregate: PLCA's test: mix features, then probabilities, over the image with weight 0.5 each.
        autocast: run the networks in bfloat16.
    """

    networks: Sequence[SegmentationModel]
    weights: Sequence[float] | None = None
    align_corners: bool = True
    flip: bool = False
    scales: Sequence[float] = (1.0,)
    aggregate: bool = False
    autocast: bool = False
    _shares: list[float] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        weights = list(self.weights) if self.weights else [1.0] * len(self.networks)
        if len(weights) != len(self.networks) or not self.networks:
            raise ValueError(f"{len(self.networks)} networks and {len(weights)} weights: give one weight to each network")
        if min(weights) <= 0:
            raise ValueError(f"weights of an ensemble must be positive, got {weights}")
        if any(n.normalization != self.networks[0].normalization for n in self.networks):
            raise ValueError("networks of one ensemble must share their normalization; set TRAIN.IMG_MODE")
        self._shares = [w / sum(weights) for w in weights]

    @torch.inference_mode()
    def __call__(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """Normalised (B, 3, H, W) -> probabilities (B, K, *size), float32."""
        total, views = torch.zeros(()), len(self.scales) * (2 if self.flip else 1)
        for scale in self.scales:
            scaled = image if scale == 1.0 else F.interpolate(image, scale_factor=scale, mode="bilinear")
            for mirrored in (False, True) if self.flip else (False,):
                for network, share in zip(self.networks, self._shares):
                    probabilities = self._one(network, scaled.flip(-1) if mirrored else scaled, size)
                    total = total + (probabilities.flip(-1) if mirrored else probabilities) * (share / views)
        return total

    def _one(self, network: SegmentationModel, image: Tensor, size: tuple[int, int]) -> Tensor:
        with torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            outputs = network(image)
            if self.aggregate:
                logits = network.classify(spatial_aggregation(outputs.features), outputs.skip)
        if not self.aggregate:
            return self._upsample(outputs.logits.float(), size).softmax(dim=1)
        return self._upsample(spatial_aggregation(logits.float().softmax(dim=1), metric="kl"), size)

    def _upsample(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return upsample(x, size, self.align_corners)


@dataclass(frozen=True)
class Evaluation:
    """A confusion matrix (rows: labels) with what follows from it; IoU in 0..1, NaN for absent classes."""

    confusion: Tensor
    classes: LabelSet
    rule: str = "ignore"  # what pixels of classes outside the label set count for, see dada.domain_adaptation.metrics

    @property
    def iou(self) -> np.ndarray:
        return iou(self.confusion, rule=self.rule)

    @property
    def means(self) -> dict[str, float]:
        """mIoU over every label set that follows from the counts, by its number of classes: 16, 13 and 7 from 16."""
        means = {name: mean_iou(self.iou, keep) for name, keep in subsets(self.classes).items()}
        category = category_of_class(self.classes)
        if category is not None:
            means["7"] = mean_iou(iou(self._categories(category), rule=self.rule))
        return means

    def _categories(self, category: np.ndarray) -> Tensor:
        """The counts added up to the 7 categories; a last row for other classes stays a row of its own."""
        index = torch.from_numpy(category.astype(np.int64))
        columns = torch.zeros(len(self.confusion), 7, dtype=torch.int64).index_add_(1, index, self.confusion)
        rows = torch.cat([index, torch.arange(7, 7 + len(self.confusion) - len(index))])
        return torch.zeros(int(rows.max()) + 1, 7, dtype=torch.int64).index_add_(0, rows, columns)

    @property
    def miou(self) -> float:
        """mIoU over all classes of the label set."""
        return mean_iou(self.iou)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: percentages, None for absent classes, and the counts themselves."""
        return {
            "mIoU": {name: _percent(value) for name, value in self.means.items()},
            "IoU": dict(zip(self.classes.names, map(_percent, self.iou.tolist()))),
            "confusion": self.confusion.tolist(),
        }


def _percent(share: float) -> float | None:
    return None if np.isnan(share) else round(100 * share, 4)


def evaluate(
    predictor: Predictor, batches: Iterable[Batch], classes: LabelSet, device: torch.device, rule: str = "ignore"
) -> Evaluation:
    """Count every labelled pixel of `batches` once; batches may differ in size."""
    count, total = classes.num_classes, None
    for batch in tqdm(batches, desc="evaluating", unit="batch", dynamic_ncols=True):
        prediction = predictor(batch.image.to(device), tuple(batch.label.shape[-2:])).argmax(dim=1)
        counts = confusion_matrix(batch.label.to(device), prediction, count, other=rule == "count").cpu()
        total = counts if total is None else total + counts
    if total is None:
        raise ValueError("nothing to evaluate: the test split is empty")
    return Evaluation(total, classes, rule)


def table(columns: dict[str, Evaluation]) -> str:
    """Per-class IoU and mIoU in percent, one column for each evaluation; '-' for absent classes."""
    first = next(iter(columns.values()))
    width = max(12, *(len(name) + 2 for name in columns))
    lines = [f"{'IoU (%)':<14}" + "".join(f"{name:>{width}}" for name in columns)]

    def row(name: str, values: Iterable[float]) -> str:
        return f"{name:<14}" + "".join(f"{'-' if np.isnan(v) else f'{100 * v:.1f}':>{width}}" for v in values)

    for k, name in enumerate(first.classes.names):
        lines.append(row(name, (float(e.iou[k]) for e in columns.values())))
    for name in first.means:
        lines.append(row(f"mIoU {name}", (e.means[name] for e in columns.values())))
    return "\n".join(lines)


def to_json(result: dict[str, Any]) -> bytes:
    return (json.dumps(result, indent=2, allow_nan=False) + "\n").encode()
