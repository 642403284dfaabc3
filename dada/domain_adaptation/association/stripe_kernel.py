"""Triton: all that is done to a stripe of cosines between two products, in one launch, written as the next product takes it.

The plain forms are `softmax_` in tiles.py, `_both_ways` in both_ways.py and the rounding of products.py. The products before and
after stay with cuBLAS. A program takes one row, three times, of which the cache answers two; every sum has one order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dada.domain_adaptation.association.form import Softmax
from dada.domain_adaptation.association.launch import Launcher
from dada.domain_adaptation.association.products import operand_type
from dada.domain_adaptation.contrastive_learning import EPS, ROUNDINGS

CONFIGS = [
    triton.Config({"COLUMNS": columns}, num_warps=warps) for columns, warps in ((1024, 4), (2048, 8), (4096, 8), (4096, 16))
]
ROUNDING = ROUNDINGS * torch.finfo(torch.float32).eps


@triton.jit
def columns_of_row(product_ptr, unit_ptr, mean, row, m, M):
    """Of row `row` at columns m: the products; their units; the cosines less their mean, 0 outside."""
    product = tl.load(product_ptr + row * M + m, mask=m < M, other=0.0)
    unit = tl.load(unit_ptr + m, mask=m < M, other=0.0)
    return product, unit, tl.where(m < M, product * unit - mean, 0.0)


@triton.jit
def stripe_kernel(  # type: ignore[no-untyped-def]
    product_ptr,
    unit_ptr,
    mean_ptr,
    chosen_ptr,
    weight_ptr,
    back_scale_ptr,
    back_bias_ptr,
    back_factor_ptr,
    back_chosen_ptr,
    scale_ptr,
    level_ptr,
    log_p_ptr,
    out_ptr,
    M,
    TILE: tl.constexpr,
    BOTH: tl.constexpr,
    EPS: tl.constexpr,
    ROUNDING: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """product, out (R, M); unit and all of the way back (M,); all else (R,). EPS and ROUNDING are those of `contrast_scale`."""
    row, block = tl.program_id(0), tl.arange(0, COLUMNS)
    mean, chosen = tl.load(mean_ptr + row), tl.load(chosen_ptr + row)
    # Centred first, so that the sum of squares has nothing to cancel.
    squares, most = tl.zeros([COLUMNS], tl.float32), tl.full([COLUMNS], -float("inf"), tl.float32)
    for start in range(0, M, COLUMNS):
        _, _, centred = columns_of_row(product_ptr, unit_ptr, mean, row, start + block, M)
        squares += centred * centred
        most = tl.maximum(most, tl.where(start + block < M, centred, -float("inf")))
    deviation = tl.sqrt(tl.sum(squares) / tl.maximum(M - 1, 1))
    scale = tl.where(deviation > ROUNDING * (1 + tl.abs(mean)), 1 / (deviation + EPS), 0.0)
    top, sums = scale * tl.max(most), tl.zeros([COLUMNS], tl.float32)
    for start in range(0, M, COLUMNS):
        _, _, centred = columns_of_row(product_ptr, unit_ptr, mean, row, start + block, M)
        sums += tl.where(start + block < M, tl.exp(scale * centred - top), 0.0)
    total = tl.sum(sums)
    above = top + tl.log(total)
    _, _, own = columns_of_row(product_ptr, unit_ptr, mean, row, chosen, M)
    tl.store(scale_ptr + row, scale)
    tl.store(level_ptr + row, scale * mean + above)
    tl.store(log_p_ptr + row, scale * own - above)
    if TILE:
        weight = tl.load(weight_ptr + row) * scale if BOTH else 0.0
        for start in range(0, M, COLUMNS):
            m = start + block
            product, unit, centred = columns_of_row(product_ptr, unit_ptr, mean, row, m, M)
            out = tl.exp(scale * centred - top) / total
            if BOTH:
                back_scale = tl.load(back_scale_ptr + m, mask=m < M, other=0.0)
                back_bias = tl.load(back_bias_ptr + m, mask=m < M, other=0.0)
                back_factor = tl.load(back_factor_ptr + m, mask=m < M, other=0.0)
                back_chosen = tl.load(back_chosen_ptr + m, mask=m < M, other=-1)
                back = tl.exp(back_scale * product + back_bias) - tl.where(back_chosen == row, back_factor, 0.0)
                out = (weight * (out - tl.where(m == chosen, 1.0, 0.0)) + back) * unit
            tl.store(out_ptr + row * M + m, out.to(out_ptr.dtype.element_ty), mask=m < M)


_launch = Launcher(stripe_kernel, CONFIGS, ["M", "TILE", "BOTH"], {"COLUMNS": 32})


def of_rows(
    product_RN: Tensor, unit_N: Tensor, mean_R: Tensor, chosen_R: Tensor, tile: bool = True, both: tuple[Tensor, ...] = ()
) -> tuple[Tensor, Softmax]:
    """Of a stripe of products its tile, as an operand of the next product; and scale, level and log p of the contrast-normalized
    softmax of each row. Without `tile` only these.

    The tile is that softmax. With `both` it is the gradient of both ways at the products, times unit.

    Args:
        product_RN: float32; `unit_N` makes cosines of them. Left as it is.
        mean_R: of the cosines of each row.
        both: the weight of each row, (R,); `both_ways.WayBack` of the columns; and the row that each of them has chosen, (N,)
            integers, from the first one of the stripe.
    """
    rows, columns = product_RN.shape
    found = Softmax(*product_RN.new_empty(3, rows))
    out = torch.empty_like(product_RN, dtype=operand_type(product_RN)) if tile else product_RN
    inputs = product_RN, unit_N, mean_R, chosen_R, *(both or (None,) * 5)
    _launch((rows,), *inputs, *found, out, columns, tile, bool(both), EPS, ROUNDING)
    return out, found
