"""The association of source and target pixels as terms of an objective, and what it tells for the log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dada.domain_adaptation.contrastive_learning import (
    Association,
    association_loss,
    labels_at,
    spatial_aggregation,
)
from dada.domain_adaptation.parallel.ranks import joint_sum
from dada.domain_adaptation.step import Step
from dada.domain_adaptation.variants.class_contrast import ClassStatistics, class_contrast, directions
from dada.domain_adaptation.variants.cycle_weights import (
    class_balanced,
    cycle_weights,
    per_class,
    turning_confidence,
)
from dada.domain_adaptation.variants.pixel_memory import IGNORE, PixelMemory
from dada.domain_adaptation.variants.soft_cycles import soft_association_loss
from dada.model.outputs import Outputs

METRICS = {"fass": "cos", "cass": "kl"}  # features, and class probabilities


@dataclass(frozen=True)
class Variant:
    """What is associated with what, and how much each cycle counts. The defaults are PLCA as published.

    Args:
        aggregate, alpha: of the target, see `spatial_aggregation`.
        power: of the balance of classes, see `class_balanced`; 0 is none.
        min_confidence, by_confidence: see `cycle_weights`.
        teacher: ask the teacher, not the network, for confidence and pseudo-labels.
        both_directions: associate target -> source -> target as well, with pseudo-labels, and take the mean of both.
        pseudo_threshold: least probability of a pseudo-label.
        whole_batch: associate the pixels of all images of the batch, not image by image.
        memory: pixels of earlier images, of each domain, that are associated too; 0: none.
        memory_per_image: pixels that are remembered of each image.
        soft: walks in place of cycles, see `soft_cycles.py`.
    """

    aggregate: bool = True
    alpha: float = 0.5
    power: float = 0.0
    min_confidence: float = 0.0
    by_confidence: bool = False
    teacher: bool = False
    both_directions: bool = False
    pseudo_threshold: float = 0.9
    whole_batch: bool = False
    memory: int = 0
    memory_per_image: int = 256
    soft: bool = False

    def __post_init__(self) -> None:
        if self.soft and (self.min_confidence or self.by_confidence):
            raise ValueError(
                "ASSOCIATION.SOFT takes every way through the target: there is no pixel whose confidence could count. "
                "Set ASSOCIATION.MIN_CONFIDENCE to 0 and ASSOCIATION.BY_CONFIDENCE to False"
            )


class Side(NamedTuple):
    """The pixels of one domain that take part. B is 1 where all images of a batch are one."""

    x: Tensor  # (B, C, 1, N)
    labels: Tensor  # (B, 1, N); pseudo-labels of the target, 255 where none is sure
    probabilities: Tensor  # (B, K, 1, N), no gradient: true labels as 0 and 1 for the source
    own: int  # the first of the N pixels, which are of the step; the others are remembered


class AssociationTerm:
    """L_fass or L_cass of PLCA, or a variant of them, of a step.

    Pixels of the memory take part as those of the step do, but without gradient: cycles start at them, turn around at them
    and return to them, and count where one of their pixels is of the step. Walks of soft cycles start at pixels of the step
    alone. A step remembers its own pixels after its loss.

    Args:
        level: "fass", features compared by cosine, or "cass", class probabilities compared by divergence.
        num_classes: K.
    """

    def __init__(self, level: str, num_classes: int, variant: Variant) -> None:
        self.level = level
        self.num_classes = num_classes
        self.variant = variant
        rooms = (variant.memory, variant.memory_per_image)
        self.memories = {d: PixelMemory(*rooms) for d in ("source", "target")} if variant.memory else {}

    def __call__(self, step: Step) -> Tensor:
        v = self.variant
        source, target = (self._compared(x) for x in (step.source_outputs, step.target_outputs))
        labels = labels_at(step.source.label, source.shape[-2:])
        with torch.no_grad():
            probabilities = probabilities_at_features(step.teacher_outputs if v.teacher else step.target_outputs)
        if v.aggregate:  # within each image, whatever it is compared with
            target = spatial_aggregation(target, alpha=v.alpha, metric=METRICS[self.level])
        sides = self._source(source, labels), self._target(target, probabilities)
        loss = self._associate(step, *sides)
        if v.both_directions:
            loss = (loss + self._associate(step, *reversed(sides), back=True)) / 2
        if self.memories:
            self.memories["source"].add(source, labels)
            self.memories["target"].add(torch.cat([target.detach(), probabilities], 1), probabilities.argmax(1))
        return loss

    def _compared(self, outputs: Outputs) -> Tensor:
        return outputs.features if self.level == "fass" else probabilities_at_features(outputs)

    def _source(self, x: Tensor, labels: Tensor) -> Side:
        x, labels = self._laid_out(x), self._laid_out(labels[:, None])[:, 0]
        own = x.shape[-1]
        if self.memories:
            memory = self.memories["source"]
            x, labels = _joined(x, memory.x), _joined(labels[:, None], memory.labels[None])[:, 0]
        known = F.one_hot(torch.where(labels < self.num_classes, labels, self.num_classes), self.num_classes + 1)
        return Side(x, labels, known[..., :-1].permute(0, 3, 1, 2).to(torch.float32), own)

    def _target(self, x: Tensor, probabilities: Tensor) -> Side:
        x, probabilities = self._laid_out(x), self._laid_out(probabilities)
        own = x.shape[-1]
        if self.memories and len(self.memories["target"]):
            remembered = self.memories["target"].x
            x, probabilities = _joined(x, remembered[: -self.num_classes]), _joined(probabilities, remembered[-self.num_classes :])
        confidence, labels = probabilities.max(dim=1)
        return Side(x, torch.where(confidence >= self.variant.pseudo_threshold, labels, IGNORE), probabilities, own)

    def _laid_out(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 1, H*W), or (1, C, 1, B*H*W)."""
        x = x.flatten(2)
        return (x.transpose(0, 1).flatten(1)[None] if self.variant.whole_batch else x)[:, :, None]

    def _associate(self, step: Step, rows: Side, columns: Side, back: bool = False) -> Tensor:
        """From `rows` to `columns` and back to `rows`."""
        v, name = self.variant, f"{self.level}_back" if back else self.level
        remembers = bool(self.memories) and len(self.memories["source"]) > 0
        options = {"metric": METRICS[self.level], "aggregate": False}
        if v.soft:
            known = (rows.labels != IGNORE).to(rows.probabilities.dtype)
            known[..., rows.own :] = 0
            weights = class_balanced(known, rows.labels, v.power) if v.power else known
            soft = soft_association_loss(rows.x, columns.x, rows.labels, self.num_classes, weights=weights, **options)
            step.notes[f"{name}/returning"] = joint_sum((soft.probability * known).sum()) / joint_sum(known.sum()).clamp(min=1)
            step.by_class[f"{name}/returning"] = self._by_class(rows.labels, soft.probability, known)
            return soft.loss
        weights = None
        if v.power or v.min_confidence or v.by_confidence or remembers:
            weights = cycle_weights(
                rows.labels,
                columns.probabilities,
                power=v.power,
                min_confidence=v.min_confidence,
                by_confidence=v.by_confidence,
                own=(rows.own, columns.own) if remembers else None,
            )
        association = association_loss(rows.x, columns.x, rows.labels, weights=weights, **options)
        self._note(step, name, association, rows, columns)
        step.cycles[name] = association.cycles
        return association.loss

    @torch.no_grad()
    def _note(self, step: Step, name: str, association: Association, rows: Side, columns: Side) -> None:
        labels, cycles = rows.labels.flatten(1), association.cycles
        confidence = turning_confidence(cycles, labels, columns.probabilities)
        # Of the step's own pixels; the cycles of remembered ones have been noted.
        labels, confidence, closed = (x[:, : rows.own] for x in (labels, confidence, cycles.closed))
        known = labels != IGNORE
        labelled, count = joint_sum(known.sum()), joint_sum(closed.sum())
        step.notes[f"{name}/closed"] = count / labelled.clamp(min=1)
        step.notes[f"{name}/covered"] = association.covered / association.closed.clamp(min=1)
        step.notes[f"{name}/confidence"] = joint_sum((confidence * closed).sum()) / count.clamp(min=1)
        step.by_class[f"{name}/closed"] = self._by_class(labels, closed, known)
        step.by_class[f"{name}/confidence"] = self._by_class(labels, confidence, closed)

    def _by_class(self, labels: Tensor, values: Tensor, weights: Tensor) -> Tensor:
        """(K,) weighted means of `values` over the pixels of each class; NaN without any."""
        values, weights = values.double(), weights.double()
        return (per_class(labels, values * weights) / per_class(labels, weights))[: self.num_classes]

    def state_dict(self) -> dict[str, Any]:
        return {domain: memory.state_dict() for domain, memory in self.memories.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for domain, memory in self.memories.items():
            memory.load_state_dict(state[domain])


class ClassContrastTerm:
    """Features of both domains against the distributions of the classes, see `class_contrast.py`; the mean of both domains.

    The distributions are those of the source's features, by its labels; the step's own are taken in first. Target pixels
    count where their pseudo-label is sure.

    Args:
        num_classes: K.
        form: "dist" or "proto".
        temperature, momentum: see there.
        threshold: least probability of a pseudo-label.
        teacher: pseudo-labels are the teacher's, not the network's.

    Raises:
        ValueError: a temperature or a momentum out of its range.
    """

    def __init__(
        self, num_classes: int, *, form: str, temperature: float, momentum: float, threshold: float, teacher: bool
    ) -> None:
        if temperature <= 0:
            raise ValueError(f"CLASS_CONTRAST.TEMPERATURE is {temperature}; expected more than 0, for example 0.1")
        self.statistics = ClassStatistics(num_classes, momentum)
        self.form = form
        self.temperature = temperature
        self.threshold = threshold
        self.teacher = teacher

    def __call__(self, step: Step) -> Tensor:
        labels = labels_at(step.source.label, step.source_outputs.features.shape[-2:]).flatten()
        source, target = directions(step.source_outputs.features), directions(step.target_outputs.features)
        with torch.no_grad():
            probabilities = probabilities_at_features(step.teacher_outputs if self.teacher else step.target_outputs)
            confidence, pseudo = (x.flatten() for x in probabilities.max(dim=1))
            self.statistics.update(source, labels)
        s = self.statistics
        variance = s.variance if self.form == "dist" else None
        of_domains = (
            class_contrast(x, y, s.mean, variance, s.met, temperature=self.temperature, weights=w)
            for x, y, w in ((source, labels, None), (target, pseudo, confidence >= self.threshold))
        )
        return sum(of_domains) / 2

    def state_dict(self) -> dict[str, Any]:
        return self.statistics.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.statistics.load_state_dict(state)


def probabilities_at_features(outputs: Outputs) -> Tensor:
    """Decoders give finer maps than the features; averaging keeps probabilities probabilities."""
    probabilities, size = outputs.logits.softmax(dim=1), outputs.features.shape[-2:]
    return probabilities if probabilities.shape[-2:] == size else F.adaptive_avg_pool2d(probabilities, size)


def _joined(x: Tensor, remembered: Tensor) -> Tensor:
    """(B, C, 1, N) and (C, M) -> (B, C, 1, N + M): the remembered pixels beside those of every image."""
    if not remembered.numel():
        return x
    return torch.cat([x, remembered.to(x)[None, :, None].expand(len(x), -1, -1, -1)], dim=-1)
