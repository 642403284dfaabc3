"""Rates of cycles for the log: by class, and how sure the network is where they turn around."""

from __future__ import annotations

import torch
from torch import Tensor

from dada.domain_adaptation.contrastive_learning import Cycles
from dada.parallel.ranks import joint_sum

IDS = 256  # labels are bytes in the files: 0 .. 255


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
