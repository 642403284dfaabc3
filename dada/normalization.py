"""How an image is shifted and scaled before it enters a network: it must follow the weights, not the dataset."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Normalization:
    """From RGB in 0..255 to what the weights were trained on.

    value = (channel / scale - mean) / std, with the channels first put into `order`.

    Args:
        order: "RGB" or "BGR", the order of the channels that the network sees, and of `mean` and `std`.
        scale: what 255 is divided by; 255 gives 0..1, 1 keeps 0..255.
        mean: per channel, in units of the scaled image.
        std: per channel, in units of the scaled image.
    """

    order: str
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        if self.order not in ("RGB", "BGR"):
            raise ValueError(f"channel order must be 'RGB' or 'BGR', not {self.order!r}")

    def _constants(self, image: Tensor) -> tuple[Tensor, Tensor]:
        shape = (3, 1, 1)
        mean, std = (torch.tensor(values, dtype=torch.float32).view(shape) for values in (self.mean, self.std))
        # Given the device, torch.tensor would wait for all that a GPU has still to do.
        return mean.to(image.device, non_blocking=True), std.to(image.device, non_blocking=True)

    def __call__(self, image: Tensor) -> Tensor:
        """RGB (..., 3, H, W) in 0..255, any dtype -> float32 of the same shape, normalised."""
        mean, std = self._constants(image)
        image = image.float()
        if self.order == "BGR":
            image = image.flip(-3)
        if self.scale != 1.0:
            image = image / self.scale
        return (image - mean) / std

    def to_rgb(self, image: Tensor) -> Tensor:
        """Normalised (..., 3, H, W) -> float32 RGB of the same shape, 0..255 up to rounding."""
        mean, std = self._constants(image)
        image = (image.float() * std + mean) * self.scale
        return image.flip(-3) if self.order == "BGR" else image

    def inverse(self, image: Tensor) -> Tensor:
        """Normalised (..., 3, H, W) -> RGB uint8 of the same shape, for pictures."""
        return self.to_rgb(image).round().clamp(0, 255).to(torch.uint8)

    def pixels(self, image: Tensor) -> np.ndarray:
        """Normalised (3, H, W) on any device -> RGB uint8 (H, W, 3)."""
        return self.inverse(image).permute(1, 2, 0).cpu().numpy()


# The Caffe ResNet-101 that ADVENT, DADA and PLCA start from: BGR, 0..255, mean subtracted, never divided.
CAFFE_BGR = Normalization("BGR", 1.0, (104.00698793, 116.66876762, 122.67891434), (1.0, 1.0, 1.0))
# Every torchvision ResNet.
TORCHVISION_RGB = Normalization("RGB", 255.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
