"""Integer counts first, pure functions of them after: every score follows from one confusion matrix.

M[g, p] counts pixels labelled g and predicted p. Columns are the K classes a network predicts. Rows are the
same K classes, plus, where asked for, one last row for pixels whose label is known to be none of them.

The field scores a network trained on 16 classes on data labelled with 19 in two ways, which differ only in
the rows that may raise a false positive. With C the classes that are scored, for c in C

    IoU_c = M[c, c] / (sum_p M[c, p] + sum over counted rows g of M[g, c] - M[c, c])

    rule "ignore": the counted rows are C; pixels of other classes do not exist (ADVENT, DADA, PLCA).
    rule "count":  all rows count; a truck predicted as car is an error of car (DAFormer and later).

Terrain, truck and train carry `OTHER_LABEL` for "count", and `confusion_matrix(..., other=True)` is (17, 16).

Published 13-class scores are a mean of 13 of the 16 IoUs, nothing more: wall, fence and pole stay classes of
M, and predicting them, or labelling a pixel so, is an error of the others as before:
`mean_iou(iou(M)[subset])`.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from dada.label_sets import OTHER_LABEL

RULES = ("ignore", "count")


def confusion_matrix(
    labels: Tensor | np.ndarray, predictions: Tensor | np.ndarray, num_classes: int, *, other: bool = False
) -> Tensor:
    """Count pixels by label (rows) and prediction (columns). Matrices of several images, or ranks, are added.

    Args:
        labels: any shape, ids. Those outside 0..K-1 (255, negative) are left out.
        predictions: same shape, ids in 0..K-1 at every pixel.
        num_classes: K.
        other: add a last row that counts the pixels labelled `OTHER_LABEL`.

    Returns:
        int64 (K, K), or (K + 1, K) with `other`, on the device of the predictions.

    Raises:
        ValueError: shapes disagree, or a prediction lies outside 0..K-1.
    """
    predictions = torch.as_tensor(predictions)
    labels = torch.as_tensor(labels).to(predictions.device)
    if labels.shape != predictions.shape:
        raise ValueError(
            f"labels have shape {tuple(labels.shape)} and predictions {tuple(predictions.shape)}; they must "
            "be equal: resize the scores to the label size, then take their argmax over classes"
        )
    if num_classes < 1 or (other and num_classes > OTHER_LABEL):
        raise ValueError(f"num_classes must be at least 1 (and at most {OTHER_LABEL} with other=True), got {num_classes}")
    labels, predictions = labels.reshape(-1).long(), predictions.reshape(-1).long()
    outside = (predictions < 0) | (predictions >= num_classes)
    if bool(outside.any()):
        raise ValueError(
            f"predictions hold the ids {predictions[outside].unique().tolist()}; expected 0.."
            f"{num_classes - 1}: does the network have as many outputs as the evaluation has classes?"
        )
    rows = num_classes + int(other)
    if other:
        # Row K is free for OTHER_LABEL only; a label that happens to be K stays ignored.
        labels = labels.masked_fill(labels == num_classes, -1).masked_fill(labels == OTHER_LABEL, num_classes)
    counted = (labels >= 0) & (labels < rows)
    cells = labels[counted] * num_classes + predictions[counted]
    return torch.bincount(cells, minlength=rows * num_classes).view(rows, num_classes)


def iou(confusion: Tensor | np.ndarray, *, rule: str = "ignore") -> np.ndarray:
    """Intersection over union of each class (formula at the top of this file), float64 (..., K), in 0..1.

    NaN for a class that is absent: neither labelled nor predicted in a counted row. A class that is predicted but never
    labelled scores 0, as in the published evaluations.

    Args:
        confusion: integer (..., K, K), or with rows beyond K for labels without a class, which count under "count"
            only.
        rule: "ignore" or "count". They agree on a (K, K) matrix.

    Raises:
        ValueError: the matrix is not of this form, or the rule is unknown.
    """
    matrix = torch.as_tensor(confusion).cpu().numpy()
    if matrix.ndim < 2 or matrix.shape[-2] < matrix.shape[-1]:
        raise ValueError(f"confusion matrix must have shape (..., K, K) or (..., K + extra rows, K), got {matrix.shape}")
    if rule not in RULES:
        raise ValueError(f"unknown rule {rule!r}; expected one of {', '.join(map(repr, RULES))}")
    own, hits = matrix[..., : matrix.shape[-1], :], np.diagonal(matrix, axis1=-2, axis2=-1)
    union = own.sum(axis=-1) + (own if rule == "ignore" else matrix).sum(axis=-2) - hits
    return np.divide(hits, union, out=np.full(union.shape, np.nan), where=union > 0)


def mean_iou(per_class: np.ndarray) -> float:
    """Mean over the classes that are present, in 0..1: NaN entries are left out, not scored 0.

    Args:
        per_class: (K,) from `iou`.

    Returns:
        The mean, or NaN with a warning when none of the classes is present: nothing was measured.
    """
    values = np.asarray(per_class, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"per-class scores must have shape (K,), got {values.shape}")
    values = values[~np.isnan(values)]
    if not len(values):
        warnings.warn("mean IoU is NaN: no class was labelled or predicted", RuntimeWarning, stacklevel=2)
        return float("nan")
    return float(values.mean())
