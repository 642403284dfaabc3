"""The loss on cosines with its gradient: both directions of the cycles share products (docs/association.md, step 5).

The cosine of source pixel i and target pixel j stands in the softmax of row i and in that of column j, and its gradient is the
sum of both. So where row i closes a cycle and column j is hit, one product finds it and two hand it on.
The way back comes first, since a whole column must be known before anything of it is: its softmax, and its gradient at
source pixels that close no cycle. Then the way there, whose stripes take along what is left of the way back.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dada.domain_adaptation.association.pixels import Directions
from dada.domain_adaptation.association.products import addmm_, mm, operand
from dada.domain_adaptation.association.tiles import by_kernel, mean_of_rows, softmax_, stripes, take_one


def sum_both_ways(
    source: Directions, target: Directions, j_S: Tensor, back_T: Tensor, weight_S: Tensor, weight_T: Tensor
) -> Tensor:
    """-sum_i weight_i log p(j_i | i) - sum_j weight_j log p(back_j | j), 0-dim; and the gradient, in `source` and `target`."""
    if source.form.static:
        loss = _there_and_back(source, target, len(j_S), j_S, back_T, weight_S, weight_T)
        source.finish_gradient()
    else:
        # With the pixels first that close a cycle, each part of the source is a slice. Until the gradient is known, the
        # source in this order lies in its place: no further map.
        order_S = weight_S.eq(0).sort(stable=True).indices
        place_S = order_S.argsort()
        x_CS = torch.index_select(source.x_CN, 1, order_S, out=source.grad_CN)
        ordered = Directions(x_CS, None if source.grad_CN is None else torch.zeros_like(x_CS), source.form)
        closed = int(weight_S.count_nonzero())
        loss = _there_and_back(ordered, target, closed, j_S[order_S], place_S[back_T], weight_S[order_S], weight_T)
        ordered.finish_gradient()
        if ordered.grad_CN is not None:
            torch.index_select(ordered.grad_CN, 1, place_S, out=source.grad_CN)
    target.finish_gradient()
    return loss


def _there_and_back(
    source: Directions, target: Directions, closed: int, j_S: Tensor, back_T: Tensor, weight_S: Tensor, weight_T: Tensor
) -> Tensor:
    """The same for a source whose first `closed` pixels alone have a weight; gradients are not finished."""
    loss, back = _way_back(source, target, closed, back_T, weight_T)
    for part, *tiles_RN in stripes(closed, target, tiles=1 if by_kernel(target) else 2):
        rows_CR = source.rows(part)
        target.product(rows_CR, out_RN=tiles_RN[0])
        grad_RN, log_p_R = _both_ways(tiles_RN, rows_CR, target, j_S[part], weight_S[part], back, back_T - part.start)
        loss -= weight_S[part] @ log_p_R
        target.add_column_gradient(rows_CR, grad_RN)
        if source.grad_CN is not None:
            source.add_row_gradient(part, target.gradient_of_rows(grad_RN).mul_(source.unit_N[part]))
        del grad_RN  # a kernel writes the next one elsewhere
    return loss


class WayBack(NamedTuple):
    """What is known of the target pixels as rows, (T,): at source pixel i they pass on exp(scale * product + bias), and
    -factor where they go.
    """

    scale_N: Tensor  # of products with directions of the source
    bias_N: Tensor
    factor_N: Tensor


def _way_back(source: Directions, target: Directions, closed: int, back_T: Tensor, weight_T: Tensor) -> tuple[Tensor, WayBack]:
    """Its part of the loss and its softmax; adds the gradient at the source pixels after the first `closed`."""
    loss = weight_T.new_zeros(())
    back = WayBack(torch.zeros_like(weight_T), torch.full_like(weight_T, -torch.inf), torch.zeros_like(weight_T))
    index_K = None if source.form.static else weight_T.nonzero()[:, 0]
    open_ones, any_open = slice(closed, None), closed < source.x_CN.shape[1]
    for part, tile_RN in stripes(weight_T.numel() if index_K is None else index_K.numel(), source):
        index = part if index_K is None else index_K[part]
        chosen_R, weight_R, rows_CR = back_T[index], weight_T[index], target.rows(index)
        product_RN = source.product(rows_CR, out_RN=tile_RN)
        p_RN, softmax = softmax_(product_RN, rows_CR, source, chosen_R, contrast=True, tile=any_open)
        loss -= weight_R @ softmax.log_p
        factor_R = weight_R * softmax.scale
        back.scale_N[index] = softmax.scale * target.unit_N[index]
        back.bias_N[index] = factor_R.log() - softmax.level
        back.factor_N[index] = factor_R
        if any_open:
            take_one(p_RN, chosen_R)
            grad_RN, columns_CN = p_RN[:, open_ones].mul_(source.unit_N[open_ones]), source.columns_CN[:, open_ones]
            if source.grad_CN is not None:
                addmm_(source.grad_CN[:, open_ones], rows_CR * factor_R, grad_RN)
            if target.grad_CN is not None:
                target.add_row_gradient(index, mm(grad_RN, columns_CN.mT).mT * (factor_R * target.unit_N[index]))
        del p_RN
    return loss, back


def _both_ways(
    tiles_RN: list[Tensor], rows_CR: Tensor, target: Directions, j_R: Tensor, weight_R: Tensor, back: WayBack, row_N: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradient of both directions at the products of a stripe, times the unit of the columns, and log p of the way there.

    Args:
        tiles_RN: the products, and a tile to use.
        row_N: where the way back goes, counted from the first row of the stripe.
    """
    product_RN = tiles_RN[0]
    if by_kernel(target):
        from dada.domain_adaptation.association import stripe_kernel  # needs triton

        mean_R = mean_of_rows(rows_CR, target)
        grad_RN, softmax = stripe_kernel.of_rows(product_RN, target.unit_N, mean_R, j_R, both=(weight_R, *back, row_N))
        return grad_RN, softmax.log_p
    back_RN = torch.addcmul(back.bias_N, product_RN, back.scale_N, out=tiles_RN[1]).exp_()
    p_RN, softmax = softmax_(product_RN, rows_CR, target, j_R, contrast=True)
    take_one(p_RN, j_R)
    inside_N = (row_N >= 0) & (row_N < len(j_R))
    back_RN.scatter_add_(0, (row_N * inside_N)[None], (-back.factor_N * inside_N)[None])
    back_RN.addcmul_(p_RN, (weight_R * softmax.scale)[:, None]).mul_(target.unit_N)
    return operand(back_RN), softmax.log_p
