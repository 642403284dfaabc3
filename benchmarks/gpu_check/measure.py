"""Time on a device, from its own clock where it has one."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(function: Callable[[], object], device: str, repeat: int = 3, warm: int = 1) -> float:
    """Median time of a call, after `warm` calls that are not counted."""
    for _ in range(warm):
        function()
    synchronize(device)
    return statistics.median(_once(function, device) for _ in range(repeat))


def _once(function: Callable[[], object], device: str) -> float:
    if device == "cuda":
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        function()
        last.record()
        torch.cuda.synchronize()
        return first.elapsed_time(last) / 1000
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
