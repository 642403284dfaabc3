"""Contrast normalization as a temperature: the rule that the dense and the streaming form share."""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-10  # in log(p + EPS) and std + EPS, as published


def contrast_scale(mean: Tensor, std: Tensor) -> Tensor:
    """1 / std of a row of similarities; 0 where its values differ by rounding only (any shape, elementwise).

    Similarities are sums of terms of order one, also where they cancel to nearly nothing. So the rounding of
    a row is measured against 1 + |mean|: dividing by a smaller deviation would turn noise into certainty.
    """
    rounding = 32 * torch.finfo(std.dtype).eps * (1 + mean.abs())
    return torch.where(std > rounding, 1 / (std + EPS), 0.0)
