"""The fully convolutional discriminator of the adversarial methods."""

from __future__ import annotations

from torch import Tensor, nn


class FCDiscriminator(nn.Sequential):
    """Which domain each patch of a class map comes from (Tsai et al., CVPR 2018; used by ADVENT, DADA, PLCA).

    Five 4x4 convolutions of stride 2, LeakyReLU 0.2 in between, no normalisation. State names are ADVENT's:
    `0`, `2`, `4`, `6`, `8`.

    Args:
        num_classes: K, channels of the map.
        ndf: channels after the first convolution; each further one doubles them.
    """

    def __init__(self, num_classes: int, ndf: int = 64) -> None:
        widths = (num_classes, ndf, 2 * ndf, 4 * ndf, 8 * ndf, 1)
        layers: list[nn.Module] = []
        for index in range(5):
            if index:
                layers.append(nn.LeakyReLU(0.2, inplace=True))
            layers.append(nn.Conv2d(widths[index], widths[index + 1], 4, stride=2, padding=1))
        super().__init__(*layers)
        self.num_classes = num_classes

    def forward(self, x: Tensor) -> Tensor:
        """(B, K, H, W), sides of at least 32 -> logits (B, 1, H // 32, W // 32)."""
        if x.ndim != 4 or x.shape[1] != self.num_classes or min(x.shape[2:]) < 32:
            raise ValueError(
                f"the discriminator reads maps (B, {self.num_classes}, H, W) with sides of at least 32, "
                f"got {tuple(x.shape)}; resize the map to the image size first"
            )
        return super().forward(x)
