"""Triton: the gradient of attention between maps of few channels, beside softmax_kernel.py.

The plain forms are the stripes of `_unmix_distributions` in aggregation.py and `_cross_entropy` in streamed_loss.py. A program
adds up what a block of pixels receives from all pixels of the other map. It is launched for rows and for columns, which
makes the tiles twice and leaves every sum in one program, in one order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dada.domain_adaptation.association.launch import Launcher
from dada.domain_adaptation.association.softmax_kernel import CONFIGS, SMALL, own_blocks, padded, pixels


@triton.jit
def pull_kernel(  # type: ignore[no-untyped-def]
    own_ptr,
    other_ptr,
    own_value_ptr,
    other_value_ptr,
    scale_ptr,
    bias_ptr,
    less_ptr,
    chosen_ptr,
    out_ptr,
    value_out_ptr,
    C,
    N,
    M,
    OWN_ARE_ROWS: tl.constexpr,
    VALUES: tl.constexpr,
    CHANNELS: tl.constexpr,
    OWN: tl.constexpr,
    OTHER: tl.constexpr,
):
    """own, own_value and both out (B, C, N); other and other_value (B, C, M); all else (B, pixels that are rows)."""
    image = tl.program_id(1).to(tl.int64)
    n, c = tl.program_id(0) * OWN + tl.arange(0, OWN), tl.arange(0, CHANNELS)
    own = pixels(own_ptr, image, n, c, C, N)
    pulled = tl.zeros([OWN, CHANNELS], tl.float32)
    if VALUES:
        own_value = pixels(own_value_ptr, image, n, c, C, N)
        value_pulled = tl.zeros([OWN, CHANNELS], tl.float32)
    for start in range(0, M, OTHER):
        m = start + tl.arange(0, OTHER)
        other = pixels(other_ptr, image, m, c, C, M)
        row = n[:, None] if OWN_ARE_ROWS else m[None, :]
        column = m[None, :] if OWN_ARE_ROWS else n[:, None]
        rows = N if OWN_ARE_ROWS else M
        of_row = image * rows + row
        scale = tl.load(scale_ptr + of_row, mask=row < rows, other=0.0)
        bias = tl.load(bias_ptr + of_row, mask=row < rows, other=0.0)
        less = tl.load(less_ptr + of_row, mask=row < rows, other=0.0)
        product = tl.dot(tl.trans(own), other, input_precision="tf32x3")
        valid = (n < N)[:, None] & (m < M)[None, :]
        weight = tl.where(valid, tl.exp(scale * product + bias), 0.0)
        if VALUES:
            other_value = pixels(other_value_ptr, image, m, c, C, M)
            pull = weight * (tl.dot(tl.trans(own_value), other_value, input_precision="tf32x3") - less)
        else:
            chosen = tl.load(chosen_ptr + of_row, mask=row < rows, other=-1)
            pull = weight - tl.where(chosen == column, less, 0.0)
        pulled = tl.dot(pull, tl.trans(other), pulled, input_precision="tf32x3")
        if VALUES and not OWN_ARE_ROWS:
            value_pulled = tl.dot(weight, tl.trans(other_value), value_pulled, input_precision="tf32x3")
    at, here = (image * C + c)[:, None] * N + n[None, :], (c < C)[:, None] & (n < N)[None, :]
    tl.store(out_ptr + at, tl.trans(pulled), mask=here)
    if VALUES and not OWN_ARE_ROWS:
        tl.store(value_out_ptr + at, tl.trans(value_pulled), mask=here)


_launch = Launcher(pull_kernel, CONFIGS, "CNM", SMALL)


class Rows(NamedTuple):
    """Of each pixel as a row, (B, R): weight = exp(scale * product + bias) on every column; and `less`.

    A row pulls at a column by weight * (gradient . value - less), where there are values; else by weight, and by `less` less
    at its chosen column.
    """

    scale: Tensor
    bias: Tensor
    less: Tensor
    chosen: Tensor | None = None  # int64


def pull(
    own: Tensor, other: Tensor, of_rows: Rows, own_are_rows: bool, values: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """What every own pixel receives, the sum of pull * other; and as a column, of weight * gradient, empty without values.

    Args:
        own, other: (B, C, N) and (B, C, M) float32, the vectors whose products are the similarities.
        values: for own and other pixels, the gradient of the mixed map for those that are rows, and the value of columns.
    """
    batch, channels, count = own.shape
    out = torch.empty(own.shape, dtype=own.dtype, device=own.device)
    value_out = out.new_empty(0 if values is None or own_are_rows else out.shape)
    inputs = own, other, *(values or (None, None)), *of_rows, out, value_out
    flags = own_are_rows, values is not None, padded(channels)
    _launch(own_blocks(count, batch), *inputs, channels, count, other.shape[2], *flags)
    return out, value_out
