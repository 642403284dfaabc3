"""The processes of a run as a loss sees them: means and counts over the pixels of all ranks, identities in one process.

A step of N processes (ranks) is the step of one process with the joint batch: rank r holds its images r*B/N .. (r+1)*B/N - 1.
Every rank computes the same value of every loss, and back-propagates its own part of it; the gradients of all ranks are
then added up (dada.parallel.distributed), and are those of the joint batch.

How a loss is written for that:

    mean over pixels     return joint_mean(total / count.clamp(min=1), count)      # count: of this rank, int or 0-dim tensor
    mean of all          return joint_mean(x.mean(), x.numel())
    a statistic          joint_sum(closed), joint_max(errors.amax()): constants, without gradient
    a ranking            joint_concat(errors, dim=1)[0], with the place of this rank's part

`joint_mean` gives rank r the gradient count_r / (sum of counts) * d mean_r, so that a rank without a valid pixel adds nothing,
whatever its mean. A mean of means over ranks would be another loss wherever the counts differ.

All ranks must come to each of these calls, in the same order: no `if` around one may depend on the data of one rank. What a
rank computes for itself goes into `with alone():`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

_alone = False


def world_size() -> int:
    """Number of processes that train or test together."""
    return dist.get_world_size() if _together() else 1


def rank() -> int:
    """Number of this process among them, from 0."""
    return dist.get_rank() if _together() else 0


def is_main() -> bool:
    """Whether this is the process that writes files and talks to the user."""
    return rank() == 0


def _together() -> bool:
    return not _alone and dist.is_available() and dist.is_initialized()


@contextmanager
def alone() -> Iterator[None]:
    """Inside the block this process is the only one."""
    global _alone
    former, _alone = _alone, True
    try:
        yield
    finally:
        _alone = former


def joint_mean(mean: Tensor, count: Tensor | int) -> Tensor:
    """The mean over what all ranks hold, from the mean over what this one holds and its number.

    Args:
        mean: 0-dim; anything finite where `count` is 0.
        count: how many values it is the mean of, or the sum of their weights.

    Returns:
        0-dim, the same on every rank: 0 if all counts are 0. The gradient is that of this rank's part.
    """
    return _JointMean.apply(mean, count) if world_size() > 1 else mean


class _JointMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mean: Tensor, count: Tensor | int) -> Tensor:
        count = torch.as_tensor(count, dtype=torch.float64, device=mean.device)  # holds every number of pixels exactly
        total, everything = joint_sum(torch.stack([mean.double() * count, count]))
        everything = torch.where(everything > 0, everything, 1.0)
        ctx.share = (count / everything).to(mean.dtype)
        return (total / everything).to(mean.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.share, None


def joint_sum(x: Tensor) -> Tensor:
    """The sum of `x` over the ranks, of any shape, without gradient."""
    return _reduced(x, "SUM")


def joint_max(x: Tensor) -> Tensor:
    """The maximum of `x` over the ranks, element by element, without gradient."""
    return _reduced(x, "MAX")


def _reduced(x: Tensor, how: str) -> Tensor:
    if world_size() == 1:
        return x.detach()
    x = x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(x, getattr(dist.ReduceOp, how))
    return x


def joint_concat(x: Tensor, dim: int) -> tuple[Tensor, slice]:
    """What all ranks hold, one after the other along `dim`, without gradient; and where in it this rank's part is.

    The parts have one shape: every rank has as many images, of the same size.
    """
    if world_size() == 1:
        return x, slice(None)
    x = x.detach().contiguous()
    as_bytes = x.view(torch.uint8) if x.dtype == torch.bool else x
    parts = [torch.empty_like(as_bytes) for _ in range(world_size())]
    dist.all_gather(parts, as_bytes)
    own = x.shape[dim] * rank()
    return torch.cat(parts, dim).view(x.dtype), slice(own, own + x.shape[dim])


def every_rank(value: T) -> list[T]:
    """`value` of every rank, in their order: anything that can be pickled. For the edges of a run, not for its steps."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def from_main(value: T) -> T:
    """`value` of the main process; what the others give is not looked at."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]
