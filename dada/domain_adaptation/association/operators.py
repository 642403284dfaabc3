"""The same computations as operators of torch, with their derivatives.

A model around them can be compiled whole: the compiler knows shapes and derivatives from here and does not look
inside, where the host decides how many tiles there are. Nothing is given up in eager mode.

    dada::associate            the weighted sum over cycles and its gradients
    dada::aggregate            spatial aggregation, and the softmax statistics of every pixel
    dada::aggregate_backward   its gradient
    dada::follow_cycles        j*, the way back from there and whether both are usable; no derivative
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dada.domain_adaptation.association import aggregation, streamed_loss
from dada.domain_adaptation.association.attention import attend, attends
from dada.domain_adaptation.association.form import form_for

# ---- the functions that cycle_association.py calls -------------------------------------------------


def stream_loss(
    source: Tensor, target: Tensor, target_index: Tensor, back_index: Tensor, weights: Tensor, metric: str, fused: bool = False
) -> Tensor:
    """-sum over source pixels of weight * (log p(j* | i) + log p(i* | j*)), 0-dim.

    Args:
        source, target: (B, C, H, W) float32 or float64, sizes may differ.
        target_index, back_index: as `stream_cycles` returns them.
        weights: (B, S), 0 for cycles that do not count; constants.
    """
    needs = (torch.is_grad_enabled() and x.requires_grad for x in (source, target))
    weights = weights.detach().to(source.dtype)
    return associate(source, target, target_index, back_index, weights, metric, *needs, fused)[0]


def stream_aggregation(x: Tensor, metric: str, alpha: float, fused: bool = False) -> Tensor:
    """(1 - alpha) x + alpha * softmax(similarity) x, over the pixels of each image: (B, C, H, W) -> same."""
    if alpha == 0:
        return x.clone()
    return attend(x, alpha) if not fused and attends(x, metric) else aggregate(x, metric, alpha, fused)[0]


def stream_cycles(source: Tensor, target: Tensor, metric: str, fused: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """(B, C, Hs, Ws), (B, C, Ht, Wt) -> (B, S), (B, T) and (B, S), as `loss.ways`."""
    return follow_cycles(source, target, metric, fused)


@contextmanager
def _plainly(x: Tensor) -> Iterator[None]:
    """Neither autograd nor autocast: backward may be called under both."""
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        yield


# ---- the loss ------------------------------------------------------------------------------------


@torch.library.custom_op(
    "dada::associate",
    mutates_args=(),
    schema="(Tensor source, Tensor target, Tensor target_index, Tensor back_index, Tensor weights, str metric, "
    "bool needs_source, bool needs_target, bool fused) -> (Tensor, Tensor, Tensor)",
)
def associate(source, target, target_index, back_index, weights, metric, needs_source, needs_target, fused):
    """The sum, and its gradients, empty where not needed."""
    with _plainly(source):
        total, *grads = streamed_loss.sum_over_cycles(
            source,
            target,
            target_index,
            back_index,
            weights,
            metric,
            (needs_source, needs_target),
            form_for(source.device, fused),
        )
    return total, *(source.new_empty(0) if g is None else g for g in grads)


@associate.register_fake
def _(source, target, target_index, back_index, weights, metric, needs_source, needs_target, fused):
    grads = (
        torch.empty(x.shape, dtype=x.dtype, device=x.device) if need else x.new_empty(0)
        for x, need in ((source, needs_source), (target, needs_target))
    )
    return source.new_empty(()), *grads


def _keep_for_associate(ctx, inputs, output):
    """The result is a scalar, so its gradient is formed while the tiles are at hand, and scaled in backward."""
    *tensors, metric, needs_source, needs_target, fused = inputs
    ctx.save_for_backward(*tensors)
    ctx.options = metric, needs_source, needs_target, fused
    # Aliases: the outputs themselves refer to ctx, and would keep it alive.
    ctx.gradients = [g.detach() for g in output[1:]]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # zeros as large as the maps, for the outputs that have none


@once_differentiable
def _associate_backward(ctx, grad_total, *_):
    """Hands the gradients out, scaled in place; if it is called again, they are computed again."""
    if grad_total is None:
        return (None,) * 9
    gradients, ctx.gradients = ctx.gradients, None
    if gradients is None:
        gradients = associate(*ctx.saved_tensors, *ctx.options)[1:]
    # Not in place where a compiler looks on, whose tensors are of a class of their own: outputs must not change.
    gradients = (g.mul_(grad_total) if type(g) is Tensor else g * grad_total for g in gradients)
    return *(g if need else None for g, need in zip(gradients, ctx.options[1:3])), *[None] * 7


associate.register_autograd(_associate_backward, setup_context=_keep_for_associate)


# ---- aggregation ---------------------------------------------------------------------------------


@torch.library.custom_op(
    "dada::aggregate", mutates_args=(), schema="(Tensor x, str metric, float alpha, bool fused) -> (Tensor, Tensor, Tensor)"
)
def aggregate(x, metric, alpha, fused):
    with _plainly(x):
        return aggregation.aggregate(x, metric, alpha, form_for(x.device, fused))


@aggregate.register_fake
def _(x, metric, alpha, fused):
    statistics = (x.new_empty(x.shape[0], x.shape[2] * x.shape[3]) for _ in range(2))
    return torch.empty(x.shape, dtype=x.dtype, device=x.device), *statistics


@torch.library.custom_op(
    "dada::aggregate_backward",
    mutates_args=(),
    schema="(Tensor x, Tensor mixed, Tensor scale, Tensor level, Tensor grad_mixed, str metric, "
    "float alpha, bool fused) -> Tensor",
)
def aggregate_backward(x, mixed, scale, level, grad_mixed, metric, alpha, fused):
    with _plainly(x):
        return aggregation.aggregate_backward(x, mixed, scale, level, grad_mixed, metric, alpha, form_for(x.device, fused))


@aggregate_backward.register_fake
def _(x, mixed, scale, level, grad_mixed, metric, alpha, fused):
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _keep_for_aggregate(ctx, inputs, output):
    x, *options = inputs
    ctx.save_for_backward(x, *output)
    ctx.options = options
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


@once_differentiable
def _aggregate_backward(ctx, grad_mixed, *_):
    if grad_mixed is None:
        return (None,) * 4
    return aggregate_backward(*ctx.saved_tensors, grad_mixed, *ctx.options), None, None, None


aggregate.register_autograd(_aggregate_backward, setup_context=_keep_for_aggregate)


# ---- cycles --------------------------------------------------------------------------------------


@torch.library.custom_op(
    "dada::follow_cycles",
    mutates_args=(),
    schema="(Tensor source, Tensor target, str metric, bool fused) -> (Tensor, Tensor, Tensor)",
)
def follow_cycles(source, target, metric, fused):
    with _plainly(source):
        return streamed_loss.ways(source, target, metric, form_for(source.device, fused))


@follow_cycles.register_fake
def _(source, target, metric, fused):
    (batch, _, *size), back = source.shape, target.shape[2] * target.shape[3]
    return (
        source.new_empty(batch, size[0] * size[1], dtype=torch.int64),
        source.new_empty(batch, back, dtype=torch.int64),
        source.new_empty(batch, size[0] * size[1], dtype=torch.bool),
    )
