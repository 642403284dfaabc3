"""The cycle-association loss and its gradient, stripe by stripe."""

from __future__ import annotations

import torch
from torch import Tensor

from dada.domain_adaptation.association import few_channels
from dada.domain_adaptation.association.both_ways import sum_both_ways
from dada.domain_adaptation.association.cycle_search import cycles_by_kernel, image_cycles
from dada.domain_adaptation.association.form import PLAIN, Form
from dada.domain_adaptation.association.pixels import PIXELS, Directions, Pixels
from dada.domain_adaptation.association.tiles import softmax_, stripes, take_one


def ways(source: Tensor, target: Tensor, metric: str, form: Form = PLAIN) -> tuple[Tensor, Tensor, Tensor]:
    """(B, C, Hs, Ws), (B, C, Ht, Wt) -> (B, S) j*; (B, T) the way back from every j that is some j* at least;
    (B, S) whether i and j* are usable.
    """
    if form.kernels and source.dtype is torch.float32:
        return cycles_by_kernel(source.flatten(2), target.flatten(2), metric)
    of_images = [
        image_cycles(PIXELS[metric](x_CS, form=form), PIXELS[metric](y_CT, form=form))
        for x_CS, y_CT in zip(source.flatten(2), target.flatten(2))
    ]
    target_index, back_index, usable = (torch.stack(part) for part in zip(*of_images))
    return target_index, back_index, usable


def sum_over_cycles(
    source: Tensor,
    target: Tensor,
    target_index: Tensor,
    back_index: Tensor,
    weights: Tensor,
    metric: str,
    needs_grad: tuple[bool, bool],
    form: Form = PLAIN,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """-sum over source pixels of weight * (log p(j* | i) + log p(i* | j*)) of a batch, 0-dim; and the gradients of the
    sum, None where none is needed.

    Args:
        target_index, back_index: as `ways` returns them.
        weights: (B, S), 0 for cycles that do not count.
    """
    if few_channels.suits(form, source, metric):
        return few_channels.sum_over_cycles(source, target, target_index, back_index, weights, needs_grad)
    grads = source_grad, target_grad = [_zeros(x) if need else None for x, need in zip((source, target), needs_grad)]
    total = source.new_zeros(())
    for b in range(source.shape[0]):
        source_CS, target_CT = (
            PIXELS[metric](x[b].flatten(1), None if grad is None else grad[b].flatten(1), form)
            for x, grad in zip((source, target), grads)
        )
        total += _image_sum(source_CS, target_CT, target_index[b], back_index[b], weights[b])
    return total, source_grad, target_grad


def _zeros(x: Tensor) -> Tensor:
    return torch.zeros(x.shape, dtype=x.dtype, device=x.device)  # contiguous whatever x is: images are flat views


def _image_sum(source: Pixels, target: Pixels, j_S: Tensor, back_T: Tensor, weight_S: Tensor) -> Tensor:
    """The sum of one image; the gradient goes into `source` and `target`."""
    # Cycles that turn around at one target pixel share their way back: one row, with the sum of their weights.
    weight_T = weight_S.new_zeros(back_T.shape).index_add_(0, j_S, weight_S)
    wants_gradient = not (source.grad_CN is None and target.grad_CN is None)
    if isinstance(source, Directions) and isinstance(target, Directions) and wants_gradient:
        return sum_both_ways(source, target, j_S, back_T, weight_S, weight_T)
    there = _cross_entropy(source, target, j_S, weight_S)
    back = _cross_entropy(target, source, back_T, weight_T)
    source.finish_gradient()
    target.finish_gradient()
    return there + back


def _cross_entropy(rows: Pixels, columns: Pixels, chosen_M: Tensor, weight_M: Tensor) -> Tensor:
    """-sum_m weight_m log p(chosen_m | m) of contrast-normalized rows; adds the gradients on the way.

    Rows of weight 0 are left out, unless their number would have to be waited for: then all are made.

    With p the softmax of row m, its gradient is weight * scale * (p - onehot); the factor in front is a number per row,
    and goes to the (C, R) row vectors, not to the (R, N) tile.
    """
    wants_gradient = rows.grad_CN is not None or columns.grad_CN is not None
    loss = rows.x_CN.new_zeros(())
    index_K = None if rows.form.static else weight_M.nonzero()[:, 0]
    for part, tile_RN in stripes(weight_M.numel() if index_K is None else index_K.numel(), columns):
        index = part if index_K is None else index_K[part]
        chosen_R, weight_R, rows_CR = chosen_M[index], weight_M[index], rows.rows(index)
        product_RN = columns.product(rows_CR, out_RN=tile_RN)
        grad_RN, softmax = softmax_(product_RN, rows_CR, columns, chosen_R, contrast=True)
        loss -= weight_R @ softmax.log_p
        if wants_gradient:  # of divergences: both_ways.py takes cosines
            factor_R = weight_R * softmax.scale
            take_one(grad_RN, chosen_R)
            columns.add_column_gradient(rows_CR * factor_R, grad_RN)
            if rows.grad_CN is not None:
                rows.add_row_gradient(index, columns.gradient_of_rows(grad_RN).mul_(factor_R))
    return loss
