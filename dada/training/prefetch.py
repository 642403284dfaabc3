"""Batches of both domains on the device; the next ones are copied while it works on the current ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import repeat

import torch
from torch import Tensor

from dada.dataset.sample import Batch

Pair = tuple[Batch | None, ...]  # of source and target, and of labelled images of the target where there are any


def paired(
    source: Iterable[Batch] | None, target: Iterable[Batch] | None, labelled: Iterable[Batch] | None = None
) -> Iterator[Pair]:
    """Batches of both domains, step by step; None for one that is not read. There is at least one."""
    domains = [source, target, *([] if labelled is None else [labelled])]
    each = [repeat(None) if domain is None else iter(domain) for domain in domains]
    try:
        yield from zip(*each)
    except Exception:
        each.clear()  # ends their loader processes, which the error would hold on to
        raise


class Prefetcher(Iterator[Pair]):
    """`pairs` on `device`, in their order, one at a time.

    A GPU computes long after its work was launched. Whoever iterates calls `request` then, and the next pair is taken from
    the loaders and copied on a stream of its own meanwhile, without waiting: from the page-locked memory in which loaders
    leave batches for a GPU. A CPU computes while it is asked to, and loader processes hold its next batches ready
    already: there `request` does nothing.

    A pair that was requested is not yet used. What went wrong with it, its end included, is raised when its turn comes,
    and a run that stops before leaves it to the run that goes on: order and content of step n depend on n alone.

    Args:
        ahead: whether `request` acts; None: on a GPU.
    """

    def __init__(self, pairs: Iterable[Pair], device: torch.device, ahead: bool | None = None) -> None:
        self._pairs = iter(pairs)
        self._device = device
        self._ahead = device.type == "cuda" if ahead is None else ahead
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._next: Pair | Exception | None = None

    def request(self) -> None:
        """Begin with the next pair, if it was not yet."""
        if self._ahead and self._next is None:
            self._next = self._load()

    def __next__(self) -> Pair:
        pair, self._next = self._load() if self._next is None else self._next, None
        if isinstance(pair, Exception):
            raise pair
        if self._stream is not None:
            used_on = torch.cuda.current_stream(self._device)
            used_on.wait_stream(self._stream)
            for value in (value for batch in pair for value in batch or ()):
                if isinstance(value, Tensor):  # or its memory would be given to the next copy while it is in use
                    value.record_stream(used_on)
        return pair

    def _load(self) -> Pair | Exception:
        try:
            pair = next(self._pairs)
        except Exception as error:
            return error
        with torch.cuda.stream(self._stream):  # does nothing where there is none
            own_stream = self._stream is not None  # which is waited for; nobody waits for a copy to another kind of device
            return tuple(None if batch is None else batch.to(self._device, non_blocking=own_stream) for batch in pair)
