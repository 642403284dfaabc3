"""Cycle association as a term of an objective, and what it logs."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dada.domain_adaptation.contrastive_learning import Cycles, labels_at
from dada.domain_adaptation.cycle_association import Association, cycle_association_loss
from dada.domain_adaptation.step import Notes, Step, TermValue
from dada.label_sets import IGNORE_LABEL
from dada.model.outputs import Outputs
from dada.parallel.device import widest
from dada.parallel.ranks import joint_mean, joint_sum

IDS = 256  # labels are bytes in the files: 0 .. 255
METRIC_OF = {"fass": "cos", "cass": "kl"}  # features, and class probabilities


def association_term(level: str, num_classes: int, *, aggregate: bool, alpha: float) -> Callable[[Step], TermValue]:
    """L_fass or L_cass of PLCA between the images of a step, see `cycle_association_loss`: over the cycles of all processes.

    Args:
        level: "fass", features compared by cosine, or "cass", class probabilities compared by divergence.
        num_classes: K.
        aggregate, alpha: of the target, see `spatial_aggregation`.
    """

    def associate(step: Step) -> TermValue:
        source, target = (compared(x, level) for x in (step.source_outputs, step.target_outputs))
        labels = labels_at(step.source.label, source.shape[-2:])
        found = cycle_association_loss(source, target, labels, metric=METRIC_OF[level], aggregate=aggregate, alpha=alpha)
        with torch.no_grad():
            notes = _notes(level, found, labels.flatten(1), probabilities_at_features(step.target_outputs), num_classes)
        return TermValue(joint_mean(found.loss, found.closed), notes)

    return associate


def compared(outputs: Outputs, level: str) -> Tensor:
    """(B, C, h, w): what the cycles of a level compare."""
    return outputs.features if level == "fass" else probabilities_at_features(outputs)


def probabilities_at_features(outputs: Outputs) -> Tensor:
    """Decoders give finer maps than the features; averages of probabilities still sum to 1."""
    probabilities, size = outputs.logits.softmax(dim=1), outputs.features.shape[-2:]
    return probabilities if probabilities.shape[-2:] == size else F.adaptive_avg_pool2d(probabilities, size)


def _notes(level: str, found: Association, labels: Tensor, probabilities: Tensor, num_classes: int) -> Notes:
    """How many cycles close, how much of the target they cover and how sure the network is there; labels (B, S)."""
    closes, known = found.cycles.closed, labels != IGNORE_LABEL
    closed, labelled, covered = (joint_sum(count) for count in (found.closed, found.labelled, found.covered))
    confidence = turning_confidence(found.cycles, labels, probabilities)
    scalars = {
        "closed": closed / labelled.clamp(min=1),
        "covered": covered / closed.clamp(min=1),
        "confidence": joint_sum((confidence * closes).sum()) / closed.clamp(min=1),
    }
    by_class = {"closed": _by_class(labels, closes, known), "confidence": _by_class(labels, confidence, closes)}
    return Notes(
        {f"{level}/{name}": value for name, value in scalars.items()},
        {f"{level}/{name}": values[:num_classes] for name, values in by_class.items()},
        cycles={level: found.cycles},
    )


def _by_class(labels: Tensor, values: Tensor, weights: Tensor) -> Tensor:
    """Weighted means of `values` over the pixels of each label; NaN without any."""
    values, weights = (x.to(widest(x.device)) for x in (values, weights))
    return per_class(labels, values * weights) / per_class(labels, weights)


def per_class(labels: Tensor, values: Tensor) -> Tensor:
    """Sums of `values` over the pixels of each label, of all ranks: two tensors of one shape -> (256,)."""
    sums = torch.zeros(IDS, dtype=values.dtype, device=values.device)
    return joint_sum(sums.index_add_(0, labels.flatten(), values.flatten()))


def turning_confidence(cycles: Cycles, labels: Tensor, probabilities: Tensor) -> Tensor:
    """Probability of the class of pixel i at the pixel j*(i) where its cycle turns around.

    Args:
        labels: (B, S) of the pixels that start cycles.
        probabilities: (B, K, ...) over the classes, of the T pixels at which cycles turn around.

    Returns:
        (B, S); 0 for labels that are no class.
    """
    k, pixels = probabilities.shape[1], probabilities[0, 0].numel()
    known = (labels >= 0) & (labels < k)
    place = torch.where(known, labels, 0) * pixels + cycles.target_index
    return probabilities.flatten(1).gather(1, place) * known
