"""The cycle-association loss and its gradient, stripe by stripe."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dada.domain_adaptation.association.cycles import image_cycles
from dada.domain_adaptation.association.pixels import PIXELS, Pixels
from dada.domain_adaptation.association.tiles import softmax_, stripes


@torch.compiler.disable  # the number of closed cycles decides how many tiles there are
def stream_loss(
    source: Tensor, target: Tensor, labels: Tensor, metric: str, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss per closed cycle, closed cycles, and distinct target pixels on them; all 0-dim.

    Args:
        source, target: (B, C, H, W) float32 or float64, sizes may differ. labels: (B, Hs, Ws).
    """
    total, closed, covered = _SumOverCycles.apply(source, target, labels, metric, ignore_index)
    return total / closed.clamp(min=1), closed, covered


class _SumOverCycles(torch.autograd.Function):
    """-sum over closed cycles of log p(j* | i) + log p(i* | j*).

    The result is a scalar, so its gradient is formed while the tiles are at hand, and scaled when backward
    comes. Backward hands the gradients out, scaled in place; if it is called again, they are computed again.
    """

    @staticmethod
    def forward(ctx, source, target, labels, metric, ignore_index):
        ctx.save_for_backward(source, target, labels)
        ctx.options = metric, ignore_index
        results, ctx.gradients = _sum_over_cycles(
            source, target, labels, *ctx.options, ctx.needs_input_grad[:2]
        )
        ctx.mark_non_differentiable(*results[1:])
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_total, *_):
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            with torch.autocast(grad_total.device.type, enabled=False):
                _, gradients = _sum_over_cycles(*ctx.saved_tensors, *ctx.options, ctx.needs_input_grad[:2])
        grad_source, grad_target = (None if g is None else g.mul_(grad_total) for g in gradients)
        return grad_source, grad_target, None, None, None


def _sum_over_cycles(source, target, labels, metric, ignore_index, needs_grad):
    """((sum, closed, covered), [grad_source, grad_target]) of a batch; None for a gradient not needed."""
    grads = [_zeros(x) if need else None for x, need in zip((source, target), needs_grad)]
    per_image = []
    for b in range(source.shape[0]):
        source_CS, target_CT = (
            PIXELS[metric](x[b].flatten(1), None if grad is None else grad[b].flatten(1))
            for x, grad in zip((source, target), grads)
        )
        per_image.append(_image_sum(source_CS, target_CT, labels[b].flatten(), ignore_index))
    return tuple(torch.stack(part).sum(dim=0) for part in zip(*per_image)), grads


def _zeros(x: Tensor) -> Tensor:
    return torch.zeros(
        x.shape, dtype=x.dtype, device=x.device
    )  # contiguous whatever x is: images are flat views


def _image_sum(
    source: Pixels, target: Pixels, labels_S: Tensor, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum, closed, covered of one image; the gradient goes into `source` and `target`."""
    j_S, i_back_S, usable_S = image_cycles(source, target)
    closed_S = usable_S & (labels_S != ignore_index) & (labels_S == labels_S[i_back_S])
    i_K = closed_S.nonzero()[:, 0]
    j_K = j_S[i_K]
    # Cycles that turn around at one target pixel share their way back: one row, weighted by their number.
    turn_J, cycles_J = torch.unique(j_K, return_counts=True)
    back_T = j_S.new_zeros(target.x_CN.shape[1])
    back_T[j_K] = i_back_S[i_K]

    there = _cross_entropy(source, i_K, target, j_K, source.x_CN.new_ones(i_K.numel()))
    back = _cross_entropy(target, turn_J, source, back_T[turn_J], cycles_J.to(source.x_CN.dtype))
    source.finish_gradient()
    target.finish_gradient()
    return there + back, closed_S.sum(), torch.tensor(turn_J.numel(), device=i_K.device)


def _cross_entropy(
    rows: Pixels, index_M: Tensor, columns: Pixels, chosen_M: Tensor, weight_M: Tensor
) -> Tensor:
    """-sum_m weight_m log p(chosen_m | index_m) of contrast-normalized rows; adds the gradients on the way.

    With e = exp((sim - peak) * scale) and total = sum_j e_j the gradient of row m is
        weight * scale * (e / total - onehot) = (weight * scale / total) * (e - total * onehot),
    and the factor in front is a number per row: it goes to the (C, R) row vectors, not to the (R, N) tile.
    """
    wants_gradient = rows.grad_CN is not None or columns.grad_CN is not None
    loss = rows.x_CN.new_zeros(())
    for part, tile_RN in stripes(index_M.numel(), columns):
        index_R, chosen_R, weight_R = index_M[part], chosen_M[part], weight_M[part]
        rows_CR = rows.rows(index_R)
        sim_RN = columns.similarity(rows_CR, out_RN=tile_RN)
        scale_R1, _, total_R1 = softmax_(sim_RN, rows_CR, columns, chosen_R, contrast=True)
        loss += weight_R @ total_R1[:, 0].log()  # log p(chosen) is -log total: the chosen one is the peak
        if wants_gradient:
            factor_R = weight_R * (scale_R1 / total_R1)[:, 0]
            grad_RN = sim_RN.scatter_add_(1, chosen_R[:, None], -total_R1)
            columns.add_column_gradient(rows_CR * factor_R, grad_RN)
            if rows.grad_CN is not None:
                rows.add_row_gradient(index_R, columns.gradient_of_rows_(grad_RN).mul_(factor_R))
    return loss
