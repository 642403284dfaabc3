"""Which images, and which regions of them, are worth a label next, by what a network says of them. No label is looked at.

Xie et al., "Towards Fewer Annotations: Active Learning via Region Impurity and Prediction Uncertainty for Domain Adaptive
Semantic Segmentation" (RIPU), CVPR 2022, arXiv:2111.12940, for what a pixel is worth; images are then spread over the features,
as k-centres are (Sener and Savarese, ICLR 2018, arXiv:1708.00489), weighted by what they are worth.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Region(NamedTuple):
    """A box of an image, in pixels; x1 and y1 lie outside. `score` is that of its middle, 0..1."""

    x0: int
    y0: int
    x1: int
    y1: int
    score: float


def worth(probabilities: Tensor, side: int) -> Tensor:
    """Uncertainty times impurity of the square around every pixel, (B, H, W), 0..1: RIPU's acquisition function.

    Uncertainty is the mean entropy of the predictions in the square; impurity the entropy of the shares in which the most likely
    classes occur in it. Both are divided by log K. At the border, the part of the square within the image counts.

    Args:
        probabilities: (B, K, H, W).
        side: of the square, in pixels, odd.
    """
    num_classes = probabilities.shape[1]
    entropy = torch.special.entr(probabilities).sum(dim=1, keepdim=True)
    classes = F.one_hot(probabilities.argmax(dim=1), num_classes).movedim(-1, 1).to(probabilities)
    impurity = torch.special.entr(_box_mean(classes, side)).sum(dim=1)
    return (_box_mean(entropy, side)[:, 0] * impurity / math.log(num_classes) ** 2).clamp(0, 1)


def _box_mean(x: Tensor, side: int) -> Tensor:
    """Mean over the square around every pixel of (B, C, H, W), one direction after the other."""
    for kernel in ((side, 1), (1, side)):
        padding = (kernel[0] // 2, kernel[1] // 2)
        x = F.avg_pool2d(x, kernel, stride=1, padding=padding, count_include_pad=False)
    return x


def best_regions(score: Tensor, side: int, count: int) -> list[Region]:
    """The `count` squares within the image (H, W) whose middles are worth most, none of which overlap; best first."""
    height, width = score.shape
    tall, wide = min(side, height), min(side, width)
    left = torch.full_like(score, -1.0)  # worth of the middles that a whole square has room around
    inner = (slice(tall // 2, height - (tall - 1) // 2), slice(wide // 2, width - (wide - 1) // 2))
    left[inner] = score[inner]
    found: list[Region] = []
    while len(found) < count and (best := left.max().item()) >= 0:
        y, x = divmod(int(left.argmax()), width)
        y0, x0 = y - tall // 2, x - wide // 2
        found.append(Region(x0, y0, x0 + wide, y0 + tall, best))
        left[max(0, y - tall + 1) : y + tall, max(0, x - wide + 1) : x + wide] = -1.0
    return found


def spread_choice(scores: Tensor, features: Tensor, count: int, taken: Tensor | None = None) -> list[int]:
    """Images that are worth much and unlike each other, in the order of choice; each choice holds those before it.

    The next one has the largest product of its score and its distance to the nearest that is chosen or `taken`; of the first,
    where nothing is taken, the score alone counts. Of equals the earlier.

    Args:
        scores: (N,), at least 0.
        features: (N, C), one vector an image; lengths do not count.
        count: at most N.
        taken: (M, C) of images that have labels already.
    """
    features = F.normalize(features, dim=1)
    nearest = torch.ones_like(scores)
    if taken is not None and len(taken):
        nearest = torch.cdist(features, F.normalize(taken, dim=1)).amin(dim=1)
    free = torch.ones_like(scores, dtype=torch.bool)
    chosen: list[int] = []
    while len(chosen) < count:
        chosen.append(int(torch.where(free, scores * nearest, -1.0).argmax()))
        free[chosen[-1]] = False
        distance = (features - features[chosen[-1]]).norm(dim=1)
        first = len(chosen) == 1 and (taken is None or not len(taken))
        nearest = distance if first else torch.minimum(nearest, distance)
    return chosen
