"""How many cycles close between source and target images: a criterion for choosing networks without target labels."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dada.dataset.sample import Batch
from dada.domain_adaptation.association_term import METRIC_OF, per_class
from dada.domain_adaptation.contrastive_learning import labels_at
from dada.domain_adaptation.cycle_association import find_cycles
from dada.label_sets import IGNORE_LABEL
from dada.model.batch_norm import SOURCE, TARGET, select_domain
from dada.parallel.device import widest


class Closure(NamedTuple):
    """Of all labelled source pixels of all pairs, shares in 0 .. 1."""

    closed: float  # pixels whose cycle returns to their class
    balanced: float  # mean of that over the classes. 1 / (number of classes) if all target pixels look alike
    covered: float  # target pixels that lie on closed cycles
    correct: float  # of the closed cycles that turn around at a labelled target pixel, those whose class it has; NaN without
    by_class: Tensor  # (K,) float64, closed pixels of each class; NaN for a class without pixels


@torch.no_grad()
def cycle_closure(
    network: nn.Module, pairs: Iterable[tuple[Batch, Batch]], num_classes: int, *, with_truth: bool = False
) -> Closure:
    """Follow the cycles of pairs of labelled source and target images through a network, which is left as it is.

    Args:
        network: gives Outputs; evaluated with running statistics.
        pairs: batches of as many images of both domains, on its device.
        with_truth: compare the ends of closed cycles with the target's labels, for `Closure.correct`; nothing else reads them.
    """
    mode = network.training
    network.eval()
    labelled, closed, hit, targets, judged, right = 0.0, 0.0, 0, 0, 0, 0  # tensors from the first pair on: no wait before the end
    for source, target in pairs:
        select_domain(network, SOURCE)
        outputs_source = network(source.image)
        select_domain(network, TARGET)
        outputs_target = network(target.image)
        x, y = outputs_source.features, outputs_target.features
        labels = labels_at(source.label, x.shape[-2:])
        cycles = find_cycles(x, y, labels, metric=METRIC_OF["fass"], aggregate=True)
        labels = labels.flatten(1)
        kind = widest(labels.device)
        labelled = labelled + per_class(labels, torch.ones_like(labels, dtype=kind))[:num_classes]
        closed = closed + per_class(labels, cycles.closed.to(kind))[:num_classes]
        on_cycle = cycles.covered(y.shape[2:].numel())
        hit = hit + on_cycle.sum()
        targets += on_cycle.numel()
        if with_truth:
            truth = labels_at(target.label, y.shape[-2:]).flatten(1).gather(1, cycles.target_index)
            known = cycles.closed & (truth != IGNORE_LABEL)
            judged = judged + known.sum()
            right = right + (known & (truth == labels)).sum()
    network.train(mode)
    if not targets:
        raise ValueError("cycle closure needs at least one pair of a source and a target image, got none")
    by_class = (closed / labelled).cpu().double()
    hit, judged, right = int(hit), int(judged), int(right)
    correct = right / judged if judged else math.nan
    return Closure((closed.sum() / labelled.sum()).item(), by_class.nanmean().item(), hit / targets, correct, by_class)
