"""Stripes of rows of the similarity matrix, and what is done to one while it is in the cache."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dada.domain_adaptation.association.contrast import contrast_scale
from dada.domain_adaptation.association.pixels import Pixels

TILE_ELEMENTS = 2**19  # 2 MiB in float32: a stripe that stays in the cache while it is worked on
PRODUCT_ROWS = 256  # but at least so many rows, if there are enough channels to make a matrix product of it
BLOCK = 64  # values of a row that `row_argmax` compares before it looks for a place


def stripe_height(columns: int, channels: int) -> int:
    """Rows of a stripe.

    With few channels the time goes into passes over the tile, which want it small; with many into the
    products, which want it high.
    """
    return max(1, TILE_ELEMENTS // columns, min(channels // 2, PRODUCT_ROWS))


def stripes(rows: int, columns: Pixels, tiles: int = 1) -> Iterator[tuple]:
    """Cut `rows` into stripes: yields the slice of the rows, and `tiles` tensors (R, N), not initialised.

    The tensors of one stripe are those of the next: what is to be kept must be copied.
    """
    channels, width = columns.x_CN.shape
    height = min(rows, stripe_height(width, channels))
    buffers = columns.x_CN.new_empty(tiles, height * width)
    for start in range(0, rows, max(height, 1)):
        stop = min(rows, start + height)
        yield slice(start, stop), *(b[: (stop - start) * width].view(stop - start, width) for b in buffers)


class Softmax(NamedTuple):
    """What `softmax_` tells of the rows of a stripe: p = exp((sim - peak) * scale) / total. All (R, 1)."""

    scale: Tensor  # 1 / std, or 1
    peak: Tensor
    total: Tensor


def softmax_(sim_RN: Tensor, rows_CR: Tensor, columns: Pixels, peak_R: Tensor, contrast: bool) -> Softmax:
    """Replace similarities by their softmax times `total`, row by row; dividing is left to a smaller tensor.

    Args:
        sim_RN: similarities of rows_CR to all columns, overwritten by exp((sim - peak) * scale).
        peak_R: index of the greatest similarity of each row, known beforehand: no pass for it, no overflow.
        contrast: contrast-normalize, that is, take 1 / std of the row as scale; otherwise the scale is 1.
    """
    if contrast:
        mean_R1 = torch.mv(rows_CR.mT, columns.mean_column_C)[:, None]
        # Centred first, so that the sum of squares has nothing to cancel.
        norm_R1 = torch.linalg.vector_norm(sim_RN.sub_(mean_R1), dim=1, keepdim=True)
        std_R1 = norm_R1 / math.sqrt(max(sim_RN.shape[1] - 1, 1))
        scale_R1 = contrast_scale(mean_R1 + columns.row_constant(rows_CR), std_R1)
    else:
        mean_R1, scale_R1 = sim_RN.new_zeros(()), sim_RN.new_ones(sim_RN.shape[0], 1)
    peak_R1 = sim_RN.gather(1, peak_R[:, None])
    sim_RN.sub_(peak_R1)
    if contrast:
        sim_RN.mul_(scale_R1)
    total_R1 = sim_RN.exp_().sum(dim=1, keepdim=True)
    return Softmax(scale_R1, peak_R1 + mean_R1, total_R1)


def row_argmax(x_RN: Tensor) -> Tensor:
    """`x_RN.argmax(dim=1)`, several times faster on a CPU: (R,) int64, the first of equal maxima.

    Maxima alone are found much faster than maxima with their place. So find them block by block, then the
    place of the best block, then the place inside it; each takes the first.
    """
    rows, columns = x_RN.shape
    if columns <= BLOCK:
        return x_RN.argmax(dim=1)
    whole = columns - columns % BLOCK
    blocks, rest = x_RN[:, :whole].unflatten(1, (-1, BLOCK)), x_RN[:, whole:]
    top, best = blocks.amax(dim=2).max(dim=1)
    place_R = best * BLOCK + blocks[torch.arange(rows, device=x_RN.device), best].argmax(dim=1)
    if whole < columns:
        place_R = torch.where(rest.amax(dim=1) > top, whole + rest.argmax(dim=1), place_R)
    return place_R
