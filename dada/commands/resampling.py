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
        transform: says size, kernel, and whether images keep their shape, with or without padding to the size.
    """

    def __init__(self, transform: EvalTransform) -> None:
        super().__init__()
        assert transform.size is not None
        self.size: tuple[int, int] = transform.size
        self.kernel = transform.resample
        self.keep_ratio = transform.keep_ratio
        self.pad = transform.pad
        # In double, as `_length`: whole pixels are cut off exactly.
        self.register_buffer("bounds", torch.tensor(self.size).double()[:, None], persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> float32 (B, 3, h, w), whole numbers from 0 to 255."""
        across, down = _positions(image.shape[3]), _positions(image.shape[2])
        shape: tuple[int | Tensor, int | Tensor] = self.size
        if self.keep_ratio or self.pad:
            shape = (self._fitting if self.keep_ratio else self._filling)(_length(across), _length(down))
        width, height = shape
        x = image.float() @ self._weights(across, width, self.size[0]).t()
        x = self._whole(x) if self.kernel != "bilinear_aliased" else x
        return self._whole(self._weights(down, height, self.size[1]) @ x)

    def without_padding(self, maps: Tensor, image: Tensor, align_corners: bool) -> Tensor:
        """(B, K, h, w) of a padded image -> (B, K, H, W): as F.interpolate to the padded size, then cut to the image."""
        across, down = _positions(image.shape[3]), _positions(image.shape[2])
        width, height = self._widened(_length(across), _length(down))
        rows, columns = (
            _between(positions, length, count, align_corners)
            for positions, length, count in ((down, height, maps.shape[2]), (across, width, maps.shape[3]))
        )
        return rows @ (maps @ columns.t())

    def _fitting(self, width: Tensor, height: Tensor) -> tuple[Tensor, Tensor]:
        """As transforms._fitting, of sizes that are tensors."""
        longer, shorter = max(self.size) / torch.maximum(width, height), min(self.size) / torch.minimum(width, height)
        scale = torch.minimum(longer, shorter)
        return _whole_sides(width * scale + 0.5, height * scale + 0.5)

    def _filling(self, width: Tensor, height: Tensor) -> tuple[Tensor, Tensor]:
        """As transforms._filling."""
        widest, highest = self.bounds
        wide = width / height > widest / highest
        return _whole_sides(
            torch.where(wide, widest, width * (highest / height)), torch.where(wide, height * (widest / width), highest)
        )

    def _widened(self, width: Tensor, height: Tensor) -> tuple[Tensor, Tensor]:
        """As transforms._widened."""
        widest, highest = self.bounds
        aspect = widest / highest
        wide = aspect > width / height
        return torch.where(wide, (aspect * height).floor(), width), torch.where(wide, height, (width / aspect).floor())

    def _weights(self, positions: Tensor, count: int | Tensor, padded: int) -> Tensor:
        """(count, N) for N positions; every row sums to 1. With padding (padded, N), the rows beyond `count` being 0."""
        step = _length(positions) / count
        places = _positions(padded if self.pad else count)
        distance = positions - places[:, None] * step
        if self.kernel != "bilinear_aliased":
            distance = distance / step.clamp(min=1)
        x = distance.abs()
        if self.kernel == "bicubic":  # a = -1/2
            near, far = (1.5 * x - 2.5) * x * x + 1, -0.5 * (((x - 5) * x + 8) * x - 4)
            weights = torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
        else:
            weights = F.relu(1 - x)
        weights = weights / weights.sum(dim=1, keepdim=True)
        return (torch.where(places[:, None] < count, weights, torch.zeros_like(weights)) if self.pad else weights).float()

    @staticmethod
    def _whole(x: Tensor) -> Tensor:
        # Halves go up, as Pillow's do, also where a sum in float32 ends just below: other programs add in another order.
        return (x + 0.5001).floor().clamp(0, 255)


def _positions(count: int | Tensor) -> Tensor:
    """Middles of `count` pixels, (count,) float64."""
    return torch.arange(count).double() + 0.5


def _between(positions: Tensor, length: Tensor, count: int, align_corners: bool) -> Tensor:
    """(N, count): what F.interpolate from `count` to `length` values takes of each, at the first N of these."""
    if align_corners:
        places = (positions - 0.5) * ((count - 1) / (length - 1).clamp(min=1))
    else:
        places = (positions * (count / length) - 0.5).clamp(min=0, max=count - 1)
    return F.relu(1 - (places[:, None] - torch.arange(count).double()).abs()).float()


def _length(positions: Tensor) -> Tensor:
    """(1,): how many there are, in double. A file would have a tensor without axes, like a number of Python, in float32."""
    return positions[-1:] + 0.5


def _whole_sides(width: Tensor, height: Tensor) -> tuple[Tensor, Tensor]:
    """Cut to whole pixels, 0-dim."""
    return width.long().clamp(min=1)[0], height.long().clamp(min=1)[0]
