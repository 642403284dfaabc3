"""How much each cycle of the association counts: by its class, and by how sure the network is where it turns around."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dada.domain_adaptation.contrastive_learning import Cycles
from dada.domain_adaptation.parallel.ranks import joint_sum

IDS = 256  # labels are bytes in the files: 0 .. 255

BALANCES = {"none": 0.0, "sqrt": 0.5, "equal": 1.0}  # powers of the number of cycles by which a class is divided


def per_class(labels: Tensor, values: Tensor) -> Tensor:
    """Sums of `values` over the pixels of each label, of all ranks: two tensors of one shape -> (256,)."""
    sums = torch.zeros(IDS, dtype=values.dtype, device=values.device)
    return joint_sum(sums.index_add_(0, labels.flatten(), values.flatten()))


def class_balanced(weights: Tensor, labels: Tensor, power: float) -> Tensor:
    r"""Divide the weights of each class k by W_k^power, where W_k is their sum over the batch.

        w_i <- w_i / W_{label(i)}^power

    With power 1 every class that has a weight at all gets the same share of the loss, with 0.5 a share in proportion to
    the square root of what it had. Any other power between 0 and 1 works too.

    Args:
        weights: not negative. labels: 0 .. 255, the same shape.
    """
    sums = per_class(labels, weights)
    return weights * torch.where(sums > 0, sums, 1.0).pow(-power)[labels]


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


def cycle_weights(
    labels: Tensor,
    probabilities: Tensor | None = None,
    *,
    power: float = 0.0,
    min_confidence: float = 0.0,
    by_confidence: bool = False,
    own: tuple[int, int] | None = None,
) -> Callable[[Cycles], Tensor]:
    """The weights of cycles, to be handed to `association_loss`.

    A cycle whose confidence (`turning_confidence`) is below `min_confidence` is rejected; the others weigh 1, or their
    confidence with `by_confidence`. The balance of the classes comes last, over the closed cycles that are left.

    Args:
        labels: (B, Hs, Ws), those of the association.
        probabilities: (B, K, Ht, Wt) of the pixels where cycles turn around; needed for the confidence alone.
        power: of `class_balanced`.
        own: of the S and of the T pixels as many, the first ones, are of this step, the others remembered without gradient.
            Cycles through remembered pixels alone are left out: they would only dilute the others. None: all are.
    """
    labels_BS = labels.flatten(1)

    def weigh(cycles: Cycles) -> Tensor:
        weights = cycles.closed.to(torch.float32 if probabilities is None else probabilities.dtype)
        if own is not None:
            start = torch.arange(weights.shape[1], device=weights.device) < own[0]
            weights = weights * (start | (cycles.target_index < own[1]) | (cycles.source_index < own[0]))
        if by_confidence or min_confidence > 0:
            confidence = turning_confidence(cycles, labels_BS, probabilities)
            kept = weights * (confidence >= min_confidence)
            weights = kept * confidence if by_confidence else kept
        return class_balanced(weights, labels_BS, power) if power else weights

    return weigh
