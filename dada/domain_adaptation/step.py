"""One training step as the loss terms see it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor, nn

from dada.dataset.sample import Batch
from dada.domain_adaptation.losses import upsample
from dada.model.batch_norm import SOURCE, TARGET, select_domain
from dada.model.outputs import Outputs


class Step:
    """One batch of each domain and the network's outputs on it, each computed when it is first asked for.

    Source and target run through the network apart, so that batch norm never mixes the two domains in one batch; a
    network with batch norms for each domain (TRAIN.DOMAIN_BN) is told which one comes.

    Args:
        network: maps images (B, 3, H, W) to Outputs.
        source: labelled batch.
        target: unlabelled batch; its label is dropped here, so that no term can train on it.
        align_corners: how logits are upsampled.
        autocast: run the network in bfloat16.
    """

    def __init__(
        self,
        network: Callable[[Tensor], Outputs],
        source: Batch,
        target: Batch | None,
        *,
        align_corners: bool = True,
        autocast: bool = False,
    ) -> None:
        self.source = source
        self.target = None if target is None else target._replace(label=None, depth=None)
        self.align_corners = align_corners
        self.notes: dict[str, Tensor] = {}  # diagnostics that terms leave for the log
        self._network = network
        self._autocast = autocast

    def _forward(self, image: Tensor, domain: int) -> Outputs:
        if isinstance(self._network, nn.Module):
            select_domain(self._network, domain)
        with torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=self._autocast):
            outputs = self._network(image)
        if not self._autocast:
            return outputs
        return Outputs(*(None if o is None else o.float() for o in outputs))

    @cached_property
    def source_outputs(self) -> Outputs:
        return self._forward(self.source.image, SOURCE)

    @cached_property
    def target_outputs(self) -> Outputs:
        return self._forward(self.target.image, TARGET)

    @cached_property
    def view_outputs(self) -> Outputs:
        """Outputs on the second photometric view of the target images."""
        return self._forward(self.target.view, TARGET)

    def upsample(self, x: Tensor, like: Tensor) -> Tensor:
        """Bilinear, (B, K, h, w) to the height and width of `like`."""
        return upsample(x, tuple(like.shape[-2:]), self.align_corners)

    @cached_property
    def source_logits(self) -> Tensor:
        """Main logits at the resolution of the source labels."""
        return self.upsample(self.source_outputs.logits, self.source.label)
