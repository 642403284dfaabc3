"""The discriminator game of ADVENT (Vu et al., CVPR 2019, arXiv:1811.12833) and DADA (Vu et al., ICCV 2019, arXiv:1904.01886).

A discriminator looks at entropy maps and tells source (0) from target (1); the segmentation network is trained to make
target maps look like source maps. DADA multiplies the maps with the predicted depth; PLCA's optional adversary looks at
the class probabilities themselves, as Tsai et al. do (CVPR 2018, arXiv:1802.10349).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dada.domain_adaptation.losses import domain_bce, entropy_map
from dada.domain_adaptation.step import Step
from dada.model.discriminator import FCDiscriminator
from dada.model.outputs import Outputs

SOURCE, TARGET = 0, 1  # what the discriminator answers

# From a step, the outputs on one domain and the images they belong to, to what the discriminator sees: (B, K, H, W).
InputMap = Callable[[Step, Outputs, Tensor], Tensor]


def entropy_map_of(head: str) -> InputMap:
    """Weighted self-information of `head` ("logits" or "aux_logits") at image resolution, ADVENT Eq. 6."""

    return lambda step, outputs, image: entropy_map(probability_map(step, outputs, image, head))


def probability_map(step: Step, outputs: Outputs, image: Tensor, head: str = "logits") -> Tensor:
    """Class probabilities of `head` at image resolution: Tsai et al., and PLCA's ADV_TRAIN."""
    return step.upsample(getattr(outputs, head), image).softmax(dim=1)


def depth_entropy_map(step: Step, outputs: Outputs, image: Tensor) -> Tensor:
    """Entropy map times the predicted depth: the game trains segmentation and depth together (DADA Eq. 5)."""
    return entropy_map_of("logits")(step, outputs, image) * step.upsample(outputs.depth, image)


class Adversary:
    """One discriminator with its optimizer: a loss term for the segmentation network, and its own update.

    Args:
        name: "main" or "aux", for the log.
        input_map: what the discriminator sees.
        num_classes: channels of that map.
        train: the TRAIN section of the cfg, for the learning rate and its schedule.
        device: of the discriminator.
        halve: halve the loss of either domain in the discriminator's update, as ADVENT and PLCA do.
        betas: of the discriminator's Adam.
    """

    def __init__(
        self,
        name: str,
        input_map: InputMap,
        num_classes: int,
        train: Any,
        device: torch.device,
        *,
        halve: bool = True,
        betas: tuple[float, float] = (0.9, 0.99),
    ) -> None:
        self.name = name
        self.discriminator = FCDiscriminator(num_classes).to(device)
        self.optimizer = torch.optim.Adam(self.discriminator.parameters(), lr=train.LEARNING_RATE_D, betas=betas)
        self._input_map = input_map
        self._share = 0.5 if halve else 1.0

    def fool(self, step: Step) -> Tensor:
        """How clearly target maps are told from source maps; the discriminator receives no gradient."""
        seen = self._input_map(step, step.target_outputs, step.target.image)
        # The parameters are switched off only while the graph is built, so `update` finds them as they were.
        self.discriminator.requires_grad_(False)
        loss = domain_bce(self.discriminator(seen), SOURCE)
        self.discriminator.requires_grad_(True)
        return loss

    def learn(self, step: Step, scale: float = 1.0) -> dict[str, Tensor]:
        """Add `scale` times the gradients of the discriminator's own loss on both domains, maps detached.

        Returns:
            The two halves of that loss by name, unscaled.
        """
        total = {}
        domains = (("src", step.source_outputs, step.source, SOURCE), ("trg", step.target_outputs, step.target, TARGET))
        for domain, outputs, batch, answer in domains:
            with torch.no_grad():
                seen = self._input_map(step, outputs, batch.image)
            loss = self._share * domain_bce(self.discriminator(seen), answer)
            (scale * loss).backward()
            total[f"loss_d_{domain}_{self.name}"] = loss.detach()
        return total
