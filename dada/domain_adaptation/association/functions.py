"""The same computations as functions that autograd knows, and that `cycle_association.py` calls.

The host decides how many tiles there are, so a compiler does not look inside: a compiled model around them is cut here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dada.domain_adaptation.association import aggregation, streamed_loss
from dada.domain_adaptation.association.attention import attend, attends
from dada.domain_adaptation.association.form import form_for


@torch.compiler.disable
def stream_loss(
    source: Tensor, target: Tensor, target_index: Tensor, back_index: Tensor, weights: Tensor, metric: str, fused: bool = False
) -> Tensor:
    """-sum over source pixels of weight * (log p(j* | i) + log p(i* | j*)), 0-dim.

    Args:
        source, target: (B, C, H, W) float32 or float64, sizes may differ.
        target_index, back_index: as `stream_cycles` returns them.
        weights: (B, S), 0 for cycles that do not count; constants.
    """
    needs = tuple(torch.is_grad_enabled() and x.requires_grad for x in (source, target))
    options = weights.detach().to(source.dtype), metric, needs, form_for(source.device, fused)
    return _Loss.apply(source, target, target_index, back_index, *options)


@torch.compiler.disable
def stream_aggregation(x: Tensor, metric: str, alpha: float, fused: bool = False) -> Tensor:
    """(1 - alpha) x + alpha * softmax(similarity) x, over the pixels of each image: (B, C, H, W) -> same."""
    if alpha == 0:
        return x.clone()
    if not fused and attends(x, metric):
        return attend(x, alpha)
    return _Aggregation.apply(x, metric, alpha, form_for(x.device, fused))


@torch.compiler.disable
@torch.no_grad()
def stream_cycles(source: Tensor, target: Tensor, metric: str, fused: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """(B, C, Hs, Ws), (B, C, Ht, Wt) -> (B, S), (B, T) and (B, S), as `streamed_loss.ways`; no derivative."""
    return streamed_loss.ways(source, target, metric, form_for(source.device, fused))


class _Loss(torch.autograd.Function):
    """The result is a scalar, so its gradient is formed while the tiles are at hand, and scaled in backward."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        total, *ctx.gradients = streamed_loss.sum_over_cycles(*inputs)
        ctx.save_for_backward(*inputs[:5])
        ctx.options = inputs[5:]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        """Hands the gradients out, scaled in place; if it is called again, they are computed again."""
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            with torch.autocast(grad_total.device.type, enabled=False):  # under which backward may be called
                gradients = streamed_loss.sum_over_cycles(*ctx.saved_tensors, *ctx.options)[1:]
        return *(None if g is None else g.mul_(grad_total) for g in gradients), *[None] * 6


class _Aggregation(torch.autograd.Function):
    """Spatial aggregation of an image with itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *options: Any) -> Tensor:
        mixed, scale, level = aggregation.aggregate(x, *options)
        ctx.save_for_backward(x, mixed, scale, level)
        ctx.options = options
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_mixed: Tensor) -> tuple[Tensor | None, ...]:
        x, mixed, scale, level = ctx.saved_tensors
        with torch.autocast(grad_mixed.device.type, enabled=False):
            return aggregation.aggregate_backward(x, mixed, scale, level, grad_mixed, *ctx.options), None, None, None
