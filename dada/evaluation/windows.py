"""Scores of a large image from overlapping windows of it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from dada.domain_adaptation.losses import upsample


def starts(length: int, crop: int, stride: int) -> list[int]:
    """Where windows of `crop` pixels begin along a side of `length`, the last one ending at the border.

    They begin at multiples of `stride`, the last one earlier where it would stick out; 0 alone if one covers all.
    """
    last = max(length - crop, 0)
    return [*range(0, last, stride), last]


def slide(
    scores: Callable[[Tensor], Tensor], image: Tensor, crop: tuple[int, int], stride: tuple[int, int], align_corners: bool
) -> Tensor:
    """Mean of the scores that windows give each pixel, as mmsegmentation's "slide" mode computes it.

    Only the sum and one window's scores are in memory at a time. A side of the image that is shorter than the window
    is taken whole, without padding.

    Args:
        scores: (B, 3, h, w) -> (B, K, any, any); resized, bilinear, to the window's (h, w).
        image: (B, 3, H, W).
        crop, stride: (height, width), stride not over crop.

    Returns:
        (B, K, H, W), of the kind that `scores` returns: means of logits or of probabilities.
    """
    height, width = image.shape[-2:]
    total, count = None, image.new_zeros(height, width)
    for top in starts(height, crop[0], stride[0]):
        for left in starts(width, crop[1], stride[1]):
            window = (..., slice(top, top + crop[0]), slice(left, left + crop[1]))
            part = image[window]
            found = upsample(scores(part), tuple(part.shape[-2:]), align_corners)
            if total is None:
                total = found.new_zeros(*found.shape[:2], height, width)
            total[window] += found
            count[window] += 1
    return total / count
