"""Criteria that tell good networks from bad ones on the target, without target labels.

Each criterion is a number of one network on unlabelled images; higher is better. None of them is the mIoU, and each can be
fooled, as described below; docs/results.md shows how well they ordered the networks of our own comparisons. Musgrave et al.
("Benchmarking Validation Methods for Unsupervised Domain Adaptation", 2022, arXiv:2208.07360) compare many of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from dada.evaluation.predictor import Predictor
from dada.parallel.device import widest

SHRINK = 4  # predictions are judged at a quarter of the side of the image: their borders are not what is judged


class Criteria(NamedTuple):
    """All criteria of one network; fields are in 0..1, higher is better."""

    information: float
    certainty: float
    agreement: float


def information(p: Tensor) -> float:
    """Entropy of the mean prediction less the mean entropy of the predictions (B, K, H, W), over log K: 0..1.

    The mutual information between pixels and predicted classes: Bridle et al., "Unsupervised Classifiers, Mutual Information
    and Phantom Targets", NIPS 1991. 0 for a network that says the same of all pixels, as one does that has collapsed.
    """
    marginal = torch.special.entr(p.mean(dim=(0, 2, 3))).sum()
    return ((marginal - torch.special.entr(p).sum(dim=1).mean()) / math.log(p.shape[1])).item()


@torch.inference_mode()
def label_free_criteria(predictor: Predictor, images: Iterable[Tensor | None], device: torch.device) -> Criteria:
    """Judge a network, or an ensemble, on unlabelled images.

    Args:
        images: (3, H, W) each, of the target, normalised for the network; None is passed over.

    Raises:
        ValueError: there is no image.
    """
    total, entropies, alike, pixels = 0.0, 0.0, 0, 0
    for image in images:
        if image is None:
            continue
        image = image[None].to(device, non_blocking=True)
        size = tuple(max(1, side // SHRINK) for side in image.shape[-2:])
        p = predictor(image, size).to(widest(device))
        mirrored = predictor(image.flip(-1), size).flip(-1)
        total = total + p.sum(dim=(0, 2, 3))
        entropies = entropies + torch.special.entr(p).sum()
        alike = alike + (p.argmax(dim=1) == mirrored.argmax(dim=1)).sum()
        pixels += p[:, 0].numel()
    if not pixels:
        raise ValueError("there is no image to judge a network on: the split is empty")
    highest = math.log(len(total))
    conditional = entropies.item() / pixels / highest
    marginal = torch.special.entr(total / pixels).sum().item() / highest
    return Criteria(information=marginal - conditional, certainty=1 - conditional, agreement=alike.item() / pixels)
