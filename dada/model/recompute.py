"""Trade time for memory: drop a block's inner activations and compute them again in the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dada.model.batch_norm import kept_statistics, select_domain, selected_domain


def recomputed(block: nn.Module, x: Tensor) -> Tensor:
    """block(x), of which only x is kept for the backward pass (Chen et al., arXiv:1604.06174).

    Values, gradients and batch-norm statistics are those of block(x), even if the network was switched to another
    domain before the backward pass.
    """
    if torch.compiler.is_compiling():  # compiled code has the domain in it, and moves statistics once
        return checkpoint(block, x, use_reentrant=False)
    domain = selected_domain(block)
    return checkpoint(block, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _as_at_first(block, domain)))


@contextmanager
def _as_at_first(block: nn.Module, domain: int | None) -> Iterator[None]:
    """The second computation uses the batch norms of the first, and must not move their running statistics again."""
    now = selected_domain(block)
    if domain is not None:
        select_domain(block, domain)
    try:
        with kept_statistics(block):
            yield
    finally:
        if now is not None:
            select_domain(block, now)
