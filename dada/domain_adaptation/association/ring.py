"""The association of one image whose pixels lie on several ranks: columns go around a ring, rows stay.

For maps that are too large for one GPU. Every rank holds a slice of the pixels of both maps, all of one size. The columns of
each rank visit every other one, with the gradient that they collect on the way, and are back home after as many steps as
there are ranks. A rank needs memory for its own slices, those that visit, their gradients and a stripe. What is computed is
that of `contrastive_learning.py`; in one process the ring has one member.

Letters: B images, N own rows, M columns of each rank, R rows of a stripe.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from dada.domain_adaptation.association.tiles import even_parts, stripe_height
from dada.domain_adaptation.contrastive_learning import EPS, as_pixels, contrast_scale, direction
from dada.matmul_precision import full_float32_products
from dada.parallel.ranks import joint_concat, joint_sum, rank, world_size


def ring_association_loss(
    source: Tensor, target: Tensor, labels: Tensor, *, metric: str = "cos", alpha: float = 0.5, ignore_index: int = 255
) -> tuple[Tensor, Tensor]:
    """`cycle_association_loss` of images whose pixels are spread over the ranks, in the order of the ranks.

    Args:
        source, target: (B, C, h, W) this rank's rows of the maps, of the same size on all ranks.
        labels: (B, h, W) those of its source pixels.
        alpha: share of the aggregated target; 0 leaves it as it is.

    Returns:
        The loss of the whole images, the same on every rank, with the gradient of this rank's pixels; and how many cycles close.
    """
    with torch.autocast(source.device.type, enabled=False):
        return _loss(as_pixels(source), as_pixels(target), labels.flatten(1), metric, alpha, ignore_index)


def _loss(x: Tensor, y: Tensor, labels: Tensor, metric: str, alpha: float, ignore_index: int) -> tuple[Tensor, Tensor]:
    if alpha:
        queries, keys, constant = _vectors(y, metric)
        own = _softmax(queries, keys, constant if metric == "cos" else None)
        y = torch.lerp(y, _Mix.apply(queries, keys, y, own.scale, own.level), alpha)
    rows, columns, constants = zip(_vectors(x, metric), _vectors(y, metric))
    with full_float32_products():
        there, back = (_softmax(rows[way], columns[1 - way], constants[way]) for way in (0, 1))
    all_labels, place_back = joint_concat(labels, dim=1)[0], joint_concat(back.place, dim=1)[0]
    usable = [joint_concat(v.any(dim=2) | (metric == "kl"), dim=1)[0] for v in (x, y)]
    here = slice(rank() * labels.shape[1], (rank() + 1) * labels.shape[1])
    i = place_back.gather(1, there.place)
    closed = usable[0][:, here] & usable[1].gather(1, there.place)
    closed &= (labels == all_labels.gather(1, i)) & (labels != ignore_index)
    weight = closed.to(x.dtype)
    turned = joint_sum(weight.new_zeros(place_back.shape).scatter_add_(1, there.place, weight))
    turned = turned[:, rank() * y.shape[1] : (rank() + 1) * y.shape[1]]
    count = joint_sum(closed.sum())
    own_part = _CrossEntropy.apply(rows[0], columns[1], there, weight) + _CrossEntropy.apply(rows[1], columns[0], back, turned)
    own_part = own_part / count.clamp(min=1)
    return own_part + (joint_sum(own_part.detach()) - own_part.detach()), count


def _vectors(x: Tensor, metric: str) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels (B, N, C) as rows and as columns; and what the similarities of a row are beyond products, (B, N)."""
    if metric == "cos":
        u = direction(x)
        return u, u, x.new_zeros(x.shape[:2])
    log_x = torch.log(x + EPS)
    return x, log_x, -(x * log_x).sum(dim=2).detach()


# ---- the ring -----------------------------------------------------------------------------------------------


def _around(columns: list[Tensor], collected: list[Tensor]) -> Iterator[tuple[int, list[Tensor]]]:
    """The rank whose columns are here; these, and what is collected for them (contiguous), which comes back at the end."""
    here = [*(x.contiguous() for x in columns), *collected]
    for left in reversed(range(world_size())):
        yield (rank() + left + 1) % world_size(), here
        here = _passed_on(here if left else here[len(columns) :])
    for x, returned in zip(collected, here):
        if x is not returned:
            x.copy_(returned)


def _passed_on(tensors: list[Tensor]) -> list[Tensor]:
    if world_size() == 1 or not tensors:
        return tensors
    received = [torch.empty_like(x) for x in tensors]
    after, before = (rank() + 1) % world_size(), (rank() - 1) % world_size()
    sends = [dist.P2POp(dist.isend, x, after, tag=i) for i, x in enumerate(tensors)]
    receives = [dist.P2POp(dist.irecv, x, before, tag=i) for i, x in enumerate(received)]
    for work in dist.batch_isend_irecv(sends + receives):
        work.wait()
    return received


def _stripes(rows: Tensor, columns: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Slices of the rows, and the products of each with the columns that are here, (B, R, M)."""
    height = stripe_height(columns.shape[1], columns.shape[2], columns.device)
    for part in even_parts(rows.shape[1], height):
        yield part, rows[:, part] @ columns.mT


class Softmax(NamedTuple):
    """Of each own row over the columns of all ranks, (B, N): p = exp(scale * product - level)."""

    place: Tensor  # int64, of the greatest product: the first of equals
    scale: Tensor
    level: Tensor
    log_p: Tensor  # at that place


@torch.no_grad()
def _softmax(rows: Tensor, columns: Tensor, constant: Tensor | None) -> Softmax:
    """In two rounds. `constant` of `_vectors` for rows that are contrast-normalized; without it the scale is 1."""
    best, squares, total = (rows.new_full(rows.shape[:2], x) for x in (-torch.inf, 0.0, 0.0))
    place = torch.zeros(rows.shape[:2], dtype=torch.int64, device=rows.device)
    size = columns.shape[1] * world_size()
    mean = (rows * (joint_sum(columns.sum(dim=1, keepdim=True)) / size)).sum(dim=2)
    for owner, (here,) in _around([columns], []):
        for part, product in _stripes(rows, here):
            top, at = product.max(dim=2)
            at += owner * columns.shape[1]
            better = (top > best[:, part]) | ((top == best[:, part]) & (at < place[:, part]))
            best[:, part], place[:, part] = torch.where(better, top, best[:, part]), torch.where(better, at, place[:, part])
            squares[:, part] += (product - mean[:, part, None]).square().sum(dim=2)
    scale = torch.ones_like(best)
    if constant is not None:
        scale = contrast_scale(mean + constant, (squares / max(size - 1, 1)).sqrt())
    for _, (here,) in _around([columns], []):
        for part, product in _stripes(rows, here):
            total[:, part] += (scale[:, part, None] * (product - best[:, part, None])).exp().sum(dim=2)
    return Softmax(place, scale, scale * best + total.log(), -total.log())


class _Mix(torch.autograd.Function):
    """The mean of all values by the softmax of each row."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor, values: Tensor, scale: Tensor, level: Tensor) -> Tensor:
        mixed = torch.zeros_like(rows)
        for _, (here, value) in _around([columns, values], []):
            for part, product in _stripes(rows, here):
                mixed[:, part] += (scale[:, part, None] * product - level[:, part, None]).exp() @ value
        ctx.save_for_backward(rows, columns, values, scale, level, mixed)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, columns, values, scale, level, mixed = ctx.saved_tensors
        less = (grad * mixed).sum(dim=2, keepdim=True)
        grad_rows, grad_columns, grad_values = (x.new_zeros(x.shape) for x in (rows, columns, values))
        for _, (here, value, to_columns, to_values) in _around([columns, values], [grad_columns, grad_values]):
            for part, product in _stripes(rows, here):
                weight = (scale[:, part, None] * product - level[:, part, None]).exp()
                to_values += weight.mT @ grad[:, part]
                pull = scale[:, part, None] * weight * (grad[:, part] @ value.mT - less[:, part])
                grad_rows[:, part] += pull @ here
                to_columns += pull.mT @ rows[:, part]
        return grad_rows, grad_columns, grad_values, None, None


class _CrossEntropy(torch.autograd.Function):
    """-sum of weight * log p over the own rows, at the place of each."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor, softmax: Softmax, weight: Tensor) -> Tensor:
        ctx.save_for_backward(rows, columns, weight, *softmax)
        return -(weight * softmax.log_p).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, columns, weight, place, scale, level, _ = ctx.saved_tensors
        factor = grad * weight * scale
        grad_rows, grad_columns = (x.new_zeros(x.shape) for x in (rows, columns))
        own = torch.arange(columns.shape[1], device=columns.device)
        for owner, (here, to_columns) in _around([columns], [grad_columns]):
            for part, product in _stripes(rows, here):
                p = (scale[:, part, None] * product - level[:, part, None]).exp()
                p -= (place[:, part, None] == owner * columns.shape[1] + own).to(p.dtype)
                pull = factor[:, part, None] * p
                grad_rows[:, part] += pull @ here
                to_columns += pull.mT @ rows[:, part]
        return grad_rows, grad_columns, None, None
