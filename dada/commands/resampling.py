"""Resizing as EvalTransform does it, out of operations that exported networks can have: products with matrices of weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dada.dataset import EvalTransform


class Resampling(nn.Module):
    """Images of any size -> the size that the network is given; the pixels are those of EvalTransform, but for a rare grey level.

    Every row of a matrix holds the weights of one output position over all input positions, from Pillow's kernels, which widen
    where an image becomes smaller. Pillow rounds to whole grey levels after each direction; which of the two comes first in
    pictures that are higher than wide depends on its version, here it is the rows.

    Args:
        transform: says size, kernel and whether images keep their shape; padding to a size is not offered.
    """

    def __init__(self, transform: EvalTransform) -> None:
        super().__init__()
        assert transform.size is not None and not transform.pad
        self.size: tuple[int, int] = transform.size
        self.kernel = transform.resample
        self.keep_ratio = transform.keep_ratio

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> float32 (B, 3, h, w), whole numbers from 0 to 255."""
        across, down = _positions(image.shape[3]), _positions(image.shape[2])
        width, height = self._fitting(_length(across), _length(down)) if self.keep_ratio else self.size
        x = image.float() @ self._weights(across, width).t()
        x = self._whole(x) if self.kernel != "bilinear_aliased" else x
        return self._whole(self._weights(down, height) @ x)

    def _fitting(self, width: Tensor, height: Tensor) -> tuple[Tensor, Tensor]:
        """As transforms._fitting, of sizes that are tensors."""
        longer, shorter = max(self.size) / torch.maximum(width, height), min(self.size) / torch.minimum(width, height)
        scale = torch.minimum(longer, shorter)
        return (width * scale + 0.5).long().clamp(min=1), (height * scale + 0.5).long().clamp(min=1)

    def _weights(self, positions: Tensor, count: int | Tensor) -> Tensor:
        """(count, N) for N positions; every row sums to 1."""
        step = _length(positions) / count
        distance = positions - _positions(count)[:, None] * step
        if self.kernel != "bilinear_aliased":
            distance = distance / step.clamp(min=1)
        x = distance.abs()
        if self.kernel == "bicubic":  # a = -1/2
            near, far = (1.5 * x - 2.5) * x * x + 1, -0.5 * (((x - 5) * x + 8) * x - 4)
            weights = torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
        else:
            weights = F.relu(1 - x)
        return (weights / weights.sum(dim=1, keepdim=True)).float()

    @staticmethod
    def _whole(x: Tensor) -> Tensor:
        # Halves go up, as Pillow's do, also where a sum in float32 ends just below: other programs add in another order.
        return (x + 0.5001).floor().clamp(0, 255)


def _positions(count: int | Tensor) -> Tensor:
    """Middles of `count` pixels, (count,) float64."""
    return torch.arange(count).double() + 0.5


def _length(positions: Tensor) -> Tensor:
    """How many there are, as a tensor: traced programs keep the arithmetic on it."""
    return positions[-1] + 0.5
