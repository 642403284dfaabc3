"""What a run shows while it trains: TensorBoard scalars and pictures."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dada.dataset.label_sets import LabelSet, colorize
from dada.domain_adaptation.losses import entropy_map
from dada.domain_adaptation.step import Step
from dada.normalization import Normalization

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Monitor:
    """Write scalars every iteration and pictures every TRAIN.TENSORBOARD_VIZRATE; nothing if `folder` is None.

    A run that goes on from iteration `start` replaces what was written there and later before it stopped.
    """

    def __init__(
        self, folder: Path | None, cfg: Any, normalization: Normalization, classes: LabelSet, start: int = 0
    ) -> None:
        self._folder = folder
        self._start = start
        self._period = cfg.TRAIN.TENSORBOARD_VIZRATE
        self._classes = classes
        self._normalization = normalization

    @cached_property
    def _writer(self) -> SummaryWriter:
        """Made at the first thing to write, so that a run that fails at its start leaves no folder behind."""
        # Imported here: it is slow, and most runs on a laptop do without.
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self._folder), purge_step=self._start or None)

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_: object) -> None:
        if "_writer" in vars(self):
            self._writer.close()

    def scalars(self, iteration: int, values: dict[str, float], optimizer: torch.optim.Optimizer) -> None:
        if self._folder is None:
            return
        for name, value in values.items():
            self._writer.add_scalar(f"data/{name}", value, iteration)
        for k, group in enumerate(optimizer.param_groups):
            self._writer.add_scalar(f"lr/group_{k}", group["lr"], iteration)

    def pictures(self, iteration: int, step: Step) -> None:
        """Image, prediction and entropy of the first image of either domain, under the ancestors' names."""
        if self._folder is None or iteration % self._period != self._period - 1:
            return
        for letter, batch, outputs in (("S", step.source, "source_outputs"), ("T", step.target, "target_outputs")):
            # Only what the losses have computed already: drawing must not run the network, which would move batch norm.
            if batch is None or outputs not in vars(step):
                continue
            probabilities = vars(step)[outputs].logits[:1].detach().float().softmax(dim=1)
            image = self._normalization.inverse(batch.image[0])
            prediction = np.asarray(colorize(probabilities[0].argmax(dim=0), self._classes).convert("RGB"))
            self._writer.add_image(f"Image - {letter}", image, iteration)
            self._writer.add_image(f"Prediction - {letter}", prediction, iteration, dataformats="HWC")
            self._writer.add_image(f"Entropy - {letter}", _grey(entropy_map(probabilities)[0].sum(dim=0)), iteration)


def _grey(x: Tensor) -> Tensor:
    """(H, W) in 0..1 -> (1, H, W)."""
    return x.clamp(0, 1)[None].cpu()
