"""Cycle association as a term of an objective, and what it tells for the log."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dada.domain_adaptation.contrastive_learning import Association, cycle_association_loss, labels_at
from dada.domain_adaptation.cycle_rates import per_class, turning_confidence
from dada.domain_adaptation.step import Step
from dada.label_sets import IGNORE_LABEL
from dada.model.outputs import Outputs
from dada.parallel.device import widest
from dada.parallel.ranks import joint_sum

METRICS = {"fass": "cos", "cass": "kl"}  # features, and class probabilities


def association_term(level: str, num_classes: int, *, aggregate: bool, alpha: float) -> Callable[[Step], Tensor]:
    """L_fass or L_cass of PLCA between the images of a step, see `cycle_association_loss`.

    The step keeps the cycles and their rates.

    Args:
        level: "fass", features compared by cosine, or "cass", class probabilities compared by divergence.
        num_classes: K.
        aggregate, alpha: of the target, see `spatial_aggregation`.
    """

    def associate(step: Step) -> Tensor:
        source, target = (compared(x, level) for x in (step.source_outputs, step.target_outputs))
        labels = labels_at(step.source.label, source.shape[-2:])
        found = cycle_association_loss(source, target, labels, metric=METRICS[level], aggregate=aggregate, alpha=alpha)
        with torch.no_grad():
            _note(step, level, found, labels.flatten(1), num_classes)
        step.cycles[level] = found.cycles
        return found.loss

    return associate


def compared(outputs: Outputs, level: str) -> Tensor:
    """(B, C, h, w): what the cycles of a level compare."""
    return outputs.features if level == "fass" else probabilities_at_features(outputs)


def probabilities_at_features(outputs: Outputs) -> Tensor:
    """Decoders give finer maps than the features; averaging keeps probabilities probabilities."""
    probabilities, size = outputs.logits.softmax(dim=1), outputs.features.shape[-2:]
    return probabilities if probabilities.shape[-2:] == size else F.adaptive_avg_pool2d(probabilities, size)


def _note(step: Step, level: str, found: Association, labels: Tensor, num_classes: int) -> None:
    closed, known = found.cycles.closed, labels != IGNORE_LABEL
    confidence = turning_confidence(found.cycles, labels, probabilities_at_features(step.target_outputs))
    step.notes[f"{level}/closed"] = found.closed / found.labelled.clamp(min=1)
    step.notes[f"{level}/covered"] = found.covered / found.closed.clamp(min=1)
    step.notes[f"{level}/confidence"] = joint_sum((confidence * closed).sum()) / found.closed.clamp(min=1)
    step.by_class[f"{level}/closed"] = _by_class(labels, closed, known)[:num_classes]
    step.by_class[f"{level}/confidence"] = _by_class(labels, confidence, closed)[:num_classes]


def _by_class(labels: Tensor, values: Tensor, weights: Tensor) -> Tensor:
    """Weighted means of `values` over the pixels of each label; NaN without any."""
    values, weights = (x.to(widest(x.device)) for x in (values, weights))
    return per_class(labels, values * weights) / per_class(labels, weights)
