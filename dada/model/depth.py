"""DADA's depth block, for any network: inverse depth from the deepest map, and that map weighted by the code behind it."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class DepthBlock(nn.Module):
    """Mixin that adds the block of Vu et al., ICCV 2019 (arXiv:1904.01886), Figure 2, to a network.

    A small encoder (1x1, 3x3, 1x1) turns the deepest map x into a code. The mean over its channels is the inverse
    depth, and a 1x1 convolution decodes it into factors for x:

        code  = enc4_3(relu(enc4_2(relu(enc4_1(x)))))
        depth = mean over channels of code
        fused = x * relu(dec4(code))

    The classifier reads `fused`. This is a mixin rather than a submodule, since DADA publishes its weights as `enc4_1` ...
    `dec4`. Without `add_depth_block`, `fuse` returns the map unchanged.
    """

    predicts_depth = False

    def add_depth_block(self, channels: int, *, init: str = "open") -> None:
        """Add the block on a map of `channels`.

        Args:
            init: the start of its weights, which the formula leaves free. "published" draws all from N(0, 0.01) and
                leaves the biases to PyTorch, as DADA does: half the channels of the fused map begin at zero and the
                others near it, so the classifier has next to nothing to read until depth is partly learnt. "open"
                draws the encoder by He et al. (ICCV 2015) and gives dec4 the bias 1, so that the fused map begins as
                the pretrained map, and depth is learnt sooner: docs/methods.md compares the two.
        """
        if init not in ("published", "open"):
            raise ValueError(f"init must be 'published' or 'open', not {init!r}")
        hidden, code = max(1, channels // 4), max(1, channels // 16)  # 512 and 128 on ResNet-101
        self.enc4_1 = nn.Conv2d(channels, hidden, 1)
        self.enc4_2 = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.enc4_3 = nn.Conv2d(hidden, code, 1)
        self.dec4 = nn.Conv2d(code, channels, 1)
        self.predicts_depth = True
        for conv in self.depth_modules():
            nn.init.normal_(conv.weight, 0.0, 0.01)
        if init == "open":
            for conv in (self.enc4_1, self.enc4_2, self.enc4_3):
                nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
                nn.init.zeros_(conv.get_parameter("bias"))
            nn.init.ones_(self.dec4.get_parameter("bias"))

    def fuse(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, C, h, w) -> the fused map of that shape and inverse depth (B, 1, h, w), or x and None without the block."""
        if not self.predicts_depth:
            return x, None
        code = self.enc4_3(F.relu(self.enc4_2(F.relu(self.enc4_1(x)))))
        return x * F.relu(self.dec4(code)), code.mean(dim=1, keepdim=True)

    def depth_modules(self) -> list[nn.Conv2d]:
        """The convolutions of the block; they are trained from scratch, as the heads are."""
        return [self.enc4_1, self.enc4_2, self.enc4_3, self.dec4] if self.predicts_depth else []
