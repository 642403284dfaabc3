"""What every segmentation network returns, by name."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Outputs(NamedTuple):
    """Maps of one forward pass; h, w are the network's own resolution, not the image's.

    Args:
        logits: (B, K, h, w) class scores before the softmax.
        features: (B, C, h', w') the map that cycle association compares, and that the classifier reads.
        aux_logits: (B, K, h'', w'') scores of the auxiliary head; only with `multi_level`.
        depth: (B, 1, h, w) predicted inverse depth; only from networks that predict it.
        skip: (B, C', h, w) a finer map that the classifier also reads; only from networks that use one.
            Pass it on when classifying changed features: `model.classify(mixed, outputs.skip)`.
    """

    logits: Tensor
    features: Tensor
    aux_logits: Tensor | None = None
    depth: Tensor | None = None
    skip: Tensor | None = None
