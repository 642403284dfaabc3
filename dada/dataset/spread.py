"""Samples spread evenly over a dataset."""

from __future__ import annotations

import numpy as np


def spread(length: int, count: int) -> list[int]:
    """`count` places, or all if there are fewer, evenly spaced from the first to the last of `length`."""
    return np.linspace(0, length - 1, min(count, length)).round().astype(int).tolist()
