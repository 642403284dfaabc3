"""Triton: softmax attention between maps of few channels, and its gradient, with nothing of the size of rows x columns stored.

The plain forms are stripes: `softmax_` in tiles.py and what aggregation.py and streamed_loss.py do with it. A program takes a
block of pixels of one image, with all of their channels, and goes through all pixels of the other map. Similarities are
products of three TF32 parts, as exact as one of float32. Every sum has one order, whatever runs first.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from dada.domain_adaptation.association.form import Softmax
from dada.domain_adaptation.association.launch import Launcher
from dada.domain_adaptation.contrastive_learning import EPS

BLOCKS = ((64, 64, 4, 2), (64, 32, 4, 3), (128, 64, 8, 2))  # own pixels, others, warps, stages
CONFIGS = [
    triton.Config({"OWN": own, "OTHER": other}, num_warps=warps, num_stages=stages) for own, other, warps, stages in BLOCKS
]

SMALL = {"OWN": 16, "OTHER": 16}


@triton.jit
def pixels(x_ptr, image, place, c, C, N):
    """Of x (B, C, N) all channels at some places: (CHANNELS, len(place)), 0 outside."""
    at = (image * C + c)[:, None] * N + place[None, :]
    return tl.load(x_ptr + at, mask=(c < C)[:, None] & (place < N)[None, :], other=0.0)


@triton.jit
def softmax_kernel(  # type: ignore[no-untyped-def]
    row_ptr,
    column_ptr,
    value_ptr,
    chosen_ptr,
    mean_ptr,
    rounding_ptr,
    scale_ptr,
    level_ptr,
    log_p_ptr,
    mixed_ptr,
    C,
    N,
    M,
    CONTRAST: tl.constexpr,
    VALUES: tl.constexpr,
    CHANNELS: tl.constexpr,
    EPS: tl.constexpr,
    OWN: tl.constexpr,
    OTHER: tl.constexpr,
):
    """row, mixed (B, C, N); column, value (B, C, M); all else (B, N). EPS is that of `contrast_scale`."""
    image = tl.program_id(1).to(tl.int64)
    n, c = tl.program_id(0) * OWN + tl.arange(0, OWN), tl.arange(0, CHANNELS)
    of_row = image * N + n
    row = pixels(row_ptr, image, n, c, C, N)
    chosen = tl.load(chosen_ptr + of_row, mask=n < N, other=0)
    top = tl.sum(row * pixels(column_ptr, image, chosen, c, C, M), axis=0)
    scale = tl.full([OWN], 1.0, tl.float32)
    if CONTRAST:
        mean = tl.load(mean_ptr + of_row, mask=n < N, other=0.0)
        squares = tl.zeros([OWN], tl.float32)
        for start in range(0, M, OTHER):
            m = start + tl.arange(0, OTHER)
            column = pixels(column_ptr, image, m, c, C, M)
            centred = tl.dot(tl.trans(row), column, input_precision="tf32x3") - mean[:, None]
            squares += tl.sum(tl.where((m < M)[None, :], centred * centred, 0.0), axis=1)
        deviation = tl.sqrt(squares / tl.maximum(M - 1, 1))
        scale = tl.where(deviation > tl.load(rounding_ptr + of_row, mask=n < N, other=0.0), 1 / (deviation + EPS), 0.0)
    total = tl.zeros([OWN], tl.float32)
    mixed = tl.zeros([OWN, CHANNELS], tl.float32)
    for start in range(0, M, OTHER):
        m = start + tl.arange(0, OTHER)
        product = tl.dot(tl.trans(row), pixels(column_ptr, image, m, c, C, M), input_precision="tf32x3")
        p = tl.where((m < M)[None, :], tl.exp(scale[:, None] * (product - top[:, None])), 0.0)
        total += tl.sum(p, axis=1)
        if VALUES:
            value = pixels(value_ptr, image, m, c, C, M)
            mixed = tl.dot(p, tl.trans(value), mixed, input_precision="tf32x3")
    tl.store(scale_ptr + of_row, scale, mask=n < N)
    tl.store(level_ptr + of_row, scale * top + tl.log(total), mask=n < N)
    tl.store(log_p_ptr + of_row, -tl.log(total), mask=n < N)
    if VALUES:
        at = (image * C + c)[:, None] * N + n[None, :]
        tl.store(mixed_ptr + at, tl.trans(mixed / total[:, None]), mask=(c < C)[:, None] & (n < N)[None, :])


_launch = Launcher(softmax_kernel, CONFIGS, "CNM", SMALL)


def own_blocks(count: int, batch: int) -> Callable[[dict], tuple[int, ...]]:
    """A program for each block of `count` pixels of each image."""
    return lambda block: (triton.cdiv(count, block["OWN"]), batch)


def softmax(
    rows: Tensor, columns: Tensor, chosen: Tensor, contrast: tuple[Tensor, Tensor] | None = None, values: Tensor | None = None
) -> tuple[Softmax, Tensor]:
    """The softmax of the products of every row with all columns; and the mean of `values` by it, (B, C, N), empty without.

    Args:
        rows, columns, values: (B, C, N), (B, C, M), (B, C, M) float32, few channels.
        chosen: (B, N) int64, the column of the greatest product of each row.
        contrast: (B, N) each, the mean of the products of a row and the least deviation that is contrast; else the scale is 1.
    """
    batch, channels, count = rows.shape
    found = Softmax(*torch.empty(3, batch, count, dtype=rows.dtype, device=rows.device))
    mixed = torch.empty(rows.shape if values is not None else 0, dtype=rows.dtype, device=rows.device)
    inputs = rows, columns, values, chosen, *(contrast or (None, None))
    flags = contrast is not None, values is not None, padded(channels), EPS
    _launch(own_blocks(count, batch), *inputs, *found, mixed, channels, count, columns.shape[2], *flags)
    return found, mixed


def padded(channels: int) -> int:
    return max(16, triton.next_power_of_2(channels))
