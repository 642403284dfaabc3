"""Triton: the most similar column of every row and row of every column, from products that are never stored.

The plain form is `cycle_search._most_similar`. A program takes a block of rows of one image and goes through all columns,
for each block of them through all channels. A similarity and its place are one integer, the ordered bits of the
float above the place counted down: the greatest of these is the first of the most similar, in whatever order blocks are compared.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dada.domain_adaptation.association.launch import Launcher

NOTHING = -0x7FFFFFFFFFFFFFFF
# Rows, columns, channels, warps, stages. The first one spills registers on an A100; `benchmarks/kernels.py` shows it.
BLOCKS = ((128, 128, 32, 8, 3), (128, 128, 16, 8, 4), (128, 64, 32, 8, 3), (64, 128, 32, 8, 3))
CONFIGS = [
    triton.Config({"ROWS": rows, "COLUMNS": columns, "CHANNELS": channels}, num_warps=warps, num_stages=stages)
    for rows, columns, channels, warps, stages in BLOCKS
]


@triton.jit
def most_similar_kernel(  # type: ignore[no-untyped-def]
    row_ptr,
    column_ptr,
    row_unit_ptr,
    column_unit_ptr,
    best_of_row_ptr,
    best_of_column_ptr,
    C,
    N,
    M,
    COLUMNS_TOO: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """row (B, C, N), column (B, C, M), their units (B, N) and (B, M); best (B, N) and (B, M) int64, the latter NOTHING before."""
    image = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, CHANNELS)
    row_unit = tl.load(row_unit_ptr + image * N + n, mask=n < N, other=0.0)
    best_of_row = tl.full([ROWS], -0x7FFFFFFFFFFFFFFF, tl.int64)
    for start in range(0, M, COLUMNS):
        m = start + tl.arange(0, COLUMNS)
        product = tl.zeros([ROWS, COLUMNS], tl.float32)
        for first in range(0, C, CHANNELS):
            channel = (image * C + first + c)[:, None]
            here = (first + c < C)[:, None]
            row = tl.load(row_ptr + channel * N + n[None, :], mask=here & (n < N)[None, :], other=0.0)
            column = tl.load(column_ptr + channel * M + m[None, :], mask=here & (m < M)[None, :], other=0.0)
            # Three products of TF32 parts on tensor cores: as exact as one of float32.
            product = tl.dot(tl.trans(row), column, product, input_precision="tf32x3")
        column_unit = tl.load(column_unit_ptr + image * M + m, mask=m < M, other=0.0)
        similarity = product * row_unit[:, None] * column_unit[None, :]
        bits = tl.where(similarity == 0.0, 0.0, similarity).to(tl.int32, bitcast=True)  # one zero of two
        high = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64) << 32
        valid = (n < N)[:, None] & (m < M)[None, :]
        by_row = tl.where(valid, high | (0x7FFFFFFF - m)[None, :].to(tl.int64), -0x7FFFFFFFFFFFFFFF)
        best_of_row = tl.maximum(best_of_row, tl.max(by_row, axis=1))
        if COLUMNS_TOO:
            by_column = tl.where(valid, high | (0x7FFFFFFF - n)[:, None].to(tl.int64), -0x7FFFFFFFFFFFFFFF)
            tl.atomic_max(best_of_column_ptr + image * M + m, tl.max(by_column, axis=0), mask=m < M)
    tl.store(best_of_row_ptr + image * N + n, best_of_row, mask=n < N)


# A maximum that an earlier try has found does no harm.
_launch = Launcher(most_similar_kernel, CONFIGS, "CNM", {"ROWS": 16, "COLUMNS": 16, "CHANNELS": 16})


def most_similar(
    rows: Tensor, columns: Tensor, row_unit: Tensor, column_unit: Tensor, columns_too: bool = True
) -> tuple[Tensor, Tensor]:
    """The most similar column of every row, and row of every column, if `columns_too`: (B, N) and (B, M) int64.

    The similarity of row n and column m is the product of their vectors and of their units. The first of equal ones.

    Args:
        rows, columns: (B, C, N) and (B, C, M) float32.
        row_unit, column_unit: (B, N) and (B, M) float32.
    """
    (batch, channels, count), width = rows.shape, columns.shape[2]
    best_of_row = torch.empty(batch, count, dtype=torch.int64, device=rows.device)
    best_of_column = torch.full((batch, width), NOTHING, dtype=torch.int64, device=rows.device)
    tensors = rows, columns, row_unit, column_unit, best_of_row, best_of_column
    _launch(lambda block: (triton.cdiv(count, block["ROWS"]), batch), *tensors, channels, count, width, columns_too)
    return _places(best_of_row), _places(best_of_column)


def _places(best: Tensor) -> Tensor:
    return 0x7FFFFFFF - (best & 0xFFFFFFFF)
