"""What every segmentation network returns, by name."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Outputs(NamedTuple):
    """Maps of one forward pass; h, w are the network's own resolution, not the image's.

    Args:
        logits: (B, K, h, w) class scores before the softmax.
        features: (B, C, h', w') the map that cycle association compares, and that the classifier reads.
        aux_logits: (B, K, h'', w'') scores of the auxiliary head, with `multi_level` only.
        depth: (B, 1, h, w) predicted inverse depth, of networks that predict it.
        skip: (B, C', h, w) a finer map that the classifier reads beside `features`, of networks that use one.
            Hand it back when classifying changed features: `model.classify(mixed, outputs.skip)`.
    """

    logits: Tensor
    features: Tensor
    aux_logits: Tensor | None = None
    depth: Tensor | None = None
    skip: Tensor | None = None
