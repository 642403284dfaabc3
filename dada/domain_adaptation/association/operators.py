"""The same computations as operators of torch, with their derivatives.

A model around them can be compiled whole: the compiler knows shapes and derivatives from here and does not look
inside, where the host decides how many tiles there are. Nothing is given up in eager mode.

    dada::associate            the sum over cycles, its counts and its gradients
    dada::aggregate            spatial aggregation, and the softmax statistics of every pixel
    dada::aggregate_backward   its gradient
    dada::follow_cycles        j*, i* and whether both are usable; no derivative
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dada.domain_adaptation.association import aggregation, cycles, loss
from dada.domain_adaptation.association.form import form_for

# ---- the functions that contrastive_learning.py calls ----------------------------------------------


def stream_loss(
    source: Tensor, target: Tensor, labels: Tensor, metric: str, ignore_index: int, fused: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss per closed cycle, closed cycles, and distinct target pixels on them; all 0-dim.

    Args:
        source, target: (B, C, H, W) float32 or float64, sizes may differ. labels: (B, Hs, Ws).
    """
    needs = (torch.is_grad_enabled() and x.requires_grad for x in (source, target))
    total, closed, covered, *_ = associate(source, target, labels, metric, ignore_index, *needs, fused)
    return total / closed.clamp(min=1), closed, covered


def stream_aggregation(x: Tensor, metric: str, alpha: float, fused: bool = False) -> Tensor:
    """(1 - alpha) x + alpha * softmax(similarity) x, over the pixels of each image: (B, C, H, W) -> same."""
    return aggregate(x, metric, alpha, fused)[0] if alpha > 0 else x.clone()


def stream_cycles(
    source: Tensor, target: Tensor, metric: str, fused: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """(B, C, Hs, Ws), (B, C, Ht, Wt) -> three (B, S), as `cycles.batch_cycles`."""
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
    schema="(Tensor source, Tensor target, Tensor labels, str metric, int ignore_index, bool needs_source, "
    "bool needs_target, bool fused) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def associate(source, target, labels, metric, ignore_index, needs_source, needs_target, fused):
    """Sum, closed, covered, and the gradients of the sum, empty where not needed."""
    with _plainly(source):
        *results, grad_source, grad_target = loss.sum_over_cycles(
            source,
            target,
            labels,
            metric,
            ignore_index,
            (needs_source, needs_target),
            form_for(source.device, fused),
        )
    return *results, *(source.new_empty(0) if g is None else g for g in (grad_source, grad_target))


@associate.register_fake
def _(source, target, labels, metric, ignore_index, needs_source, needs_target, fused):
    grads = (
        torch.empty(x.shape, dtype=x.dtype, device=x.device) if need else x.new_empty(0)
        for x, need in ((source, needs_source), (target, needs_target))
    )
    counts = (source.new_empty((), dtype=torch.int64) for _ in range(2))
    return source.new_empty(()), *counts, *grads


def _keep_for_associate(ctx, inputs, output):
    """The result is a scalar, so its gradient is formed while the tiles are at hand, and scaled in backward."""
    source, target, labels, *options = inputs
    ctx.save_for_backward(source, target, labels)
    ctx.options = options
    # Aliases: the outputs themselves refer to ctx, and would keep it alive.
    ctx.gradients = [g.detach() for g in output[3:]]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # zeros as large as the maps, for the outputs that have none


@once_differentiable
def _associate_backward(ctx, grad_total, *_):
    """Hands the gradients out, scaled in place; if it is called again, they are computed again."""
    if grad_total is None:
        return (None,) * 8
    gradients, ctx.gradients = ctx.gradients, None
    if gradients is None:
        gradients = associate(*ctx.saved_tensors, *ctx.options)[3:]
    # Not in place where a compiler looks on, whose tensors are of a class of their own: outputs must not change.
    gradients = (g.mul_(grad_total) if type(g) is Tensor else g * grad_total for g in gradients)
    return *(g if need else None for g, need in zip(gradients, ctx.options[2:4])), *[None] * 6


associate.register_autograd(_associate_backward, setup_context=_keep_for_associate)


# ---- aggregation ---------------------------------------------------------------------------------


@torch.library.custom_op(
    "dada::aggregate",
    mutates_args=(),
    schema="(Tensor x, str metric, float alpha, bool fused) -> (Tensor, Tensor, Tensor, Tensor)",
)
def aggregate(x, metric, alpha, fused):
    with _plainly(x):
        return aggregation.aggregate(x, metric, alpha, form_for(x.device, fused))


@aggregate.register_fake
def _(x, metric, alpha, fused):
    statistics = (x.new_empty(x.shape[0], x.shape[2] * x.shape[3]) for _ in range(3))
    return torch.empty(x.shape, dtype=x.dtype, device=x.device), *statistics


@torch.library.custom_op(
    "dada::aggregate_backward",
    mutates_args=(),
    schema="(Tensor x, Tensor mixed, Tensor scale, Tensor peak, Tensor total, Tensor grad_mixed, str metric, "
    "float alpha, bool fused) -> Tensor",
)
def aggregate_backward(x, mixed, scale, peak, total, grad_mixed, metric, alpha, fused):
    with _plainly(x):
        return aggregation.aggregate_backward(
            x, mixed, scale, peak, total, grad_mixed, metric, alpha, form_for(x.device, fused)
        )


@aggregate_backward.register_fake
def _(x, mixed, scale, peak, total, grad_mixed, metric, alpha, fused):
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
        return cycles.batch_cycles(source, target, metric, form_for(source.device, fused))


@follow_cycles.register_fake
def _(source, target, metric, fused):
    shape = source.shape[0], source.shape[2] * source.shape[3]
    return tuple(source.new_empty(shape, dtype=dtype) for dtype in (torch.int64, torch.int64, torch.bool))
