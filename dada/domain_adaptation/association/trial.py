"""Trying once what this machine can do, without affecting the computation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import _disable_current_modes


@contextmanager
def aside(device: torch.device) -> Iterator[None]:
    """As outside of every mode: the first call may come from a training step, from prediction, or on fake tensors."""
    with (
        _disable_current_modes(),
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(device.type, enabled=False),
        device,  # as the default, which may be another
    ):
        yield


def first_line(error: Exception) -> str:
    """The message of an error, without the lines that compilers put around it."""
    error = getattr(error, "inner_exception", error)
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
