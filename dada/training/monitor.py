"""What a run shows while it trains: scalars and pictures, in TensorBoard or elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dada.domain_adaptation.losses import entropy_map
from dada.domain_adaptation.step import Notes, Step
from dada.evaluation.criteria import information
from dada.evaluation.evaluator import Evaluation
from dada.figures.cycle_arrows import draw_arrows
from dada.figures.scores import draw_confusion
from dada.label_sets import LabelSet, colorize
from dada.normalization import Normalization
from dada.training.drawing import Drawing, scene_of, source_confusion
from dada.training.loggers import check_installed, open_loggers
from dada.training.memory import peak_memory


class Monitor:
    """Write scalars every iteration and pictures every TRAIN.TENSORBOARD_VIZRATE; nothing if `folder` is None.

    In TensorBoard a run that goes on from iteration `start` replaces what was written there and later before it stopped.

    Raises:
        ImportError: a package of `loggers` is not installed.
    """

    def __init__(
        self,
        folder: Path | None,
        cfg: Any,
        normalization: Normalization,
        classes: LabelSet,
        start: int = 0,
        loggers: Sequence[str] = ("tensorboard",),
    ) -> None:
        if folder is not None:
            check_installed(loggers)
        self._loggers, self._cfg = loggers, cfg
        self._folder = folder
        self._start = start
        self._period = cfg.TRAIN.TENSORBOARD_VIZRATE
        self._classes = classes
        self._normalization = normalization

    @cached_property
    def _writer(self) -> Any:
        """Made at the first thing to write, so that a run that fails at its start leaves no folder behind."""
        return open_loggers(self._loggers, self._folder, self._cfg, self._start)

    def __enter__(self) -> Monitor:
        return self

    @cached_property
    def _drawing(self) -> Drawing:
        return Drawing(lambda name, pixels, iteration: self._writer.add_image(name, pixels, iteration, dataformats="HWC"))

    def __exit__(self, *_: object) -> None:
        if "_drawing" in vars(self):
            self._drawing.close()
        if "_writer" in vars(self):
            self._writer.close()

    def scalars(self, iteration: int, values: dict[str, float], optimizer: torch.optim.Optimizer) -> None:
        if self._folder is None:
            return
        for name, value in values.items():
            self._writer.add_scalar(f"data/{name}", value, iteration)
        for k, group in enumerate(optimizer.param_groups):
            self._writer.add_scalar(f"lr/group_{k}", group["lr"], iteration)
        if iteration % self._period == self._period - 1:
            peak = peak_memory(optimizer.param_groups[0]["params"][0].device)
            self._writer.add_scalar("cost/peak memory (GB)", peak / 1e9, iteration)

    def evaluation(self, iteration: int, found: Evaluation) -> None:
        """mIoU, of several datasets also that of each, and confusion matrix of an evaluation in training."""
        if self._folder is not None:
            for of, one in {"": found, **{f"{name}/": part for name, part in found.parts.items()}}.items():
                for name, value in one.means.items():
                    self._writer.add_scalar(f"eval/{of}mIoU {name}", value, iteration)
            self._drawing.draw("Confusion - evaluation", iteration, draw_confusion, found.confusion.numpy(), found.classes)

    def by_class(self, iteration: int, step: Step, notes: Notes) -> None:
        """What terms noted for each class, where there was one, and the share of each class in what is predicted.

        That is on the source, on the target and by the teacher on the target; the effective number of classes (exp of the
        entropy of the shares), which falls when a network collapses onto a few; and the criterion by which `dada select`
        chooses, on the batch at hand.
        """
        if self._folder is None or iteration % self._period != self._period - 1:
            return
        values = dict(notes.by_class)
        for domain in ("source", "target", "teacher"):
            if f"{domain}_outputs" in vars(step):  # as for pictures
                logits = vars(step)[f"{domain}_outputs"].logits.detach().float()
                shares = predicted_shares(logits)
                values[f"{domain}/predicted"] = shares
                effective = torch.special.entr(shares).sum().exp().item()
                self._writer.add_scalar(f"classes/{domain}/effective number", effective, iteration)
                self._writer.add_scalar(f"criteria/{domain}/information", information(logits.softmax(dim=1)), iteration)
        for name, of_classes in values.items():
            for class_name, value in zip(self._classes.names, of_classes.tolist()):
                if value == value:
                    self._writer.add_scalar(f"classes/{name}/{class_name}", value, iteration)

    def pictures(self, iteration: int, step: Step, notes: Notes) -> None:
        """Image, prediction and entropy of the first image of either domain, under ADVENT's names; what terms made.

        Also how sure the predictions are, as a histogram; the confusion matrix of the source batch; and the cycles that the
        association has followed between the first images. Figures are drawn by a thread of their own.
        """
        if self._folder is None or iteration % self._period != self._period - 1:
            return
        for name, images in notes.pictures.items():
            self._writer.add_image(f"Image - {name}", self._normalization.inverse(images[0]), iteration)
        for domain in ("source", "target"):
            letter, batch, outputs = domain[0].upper(), step.batches.get(domain), f"{domain}_outputs"
            # Only what the losses have computed already: drawing must not run the network, which would move batch norm.
            if batch is None or outputs not in vars(step):
                continue
            probabilities = vars(step)[outputs].logits[:1].detach().float().softmax(dim=1)
            image = self._normalization.inverse((step.source_image if letter == "S" else batch.image)[0])
            prediction = np.asarray(colorize(probabilities[0].argmax(dim=0), self._classes).convert("RGB"))
            self._writer.add_image(f"Image - {letter}", image, iteration)
            self._writer.add_image(f"Prediction - {letter}", prediction, iteration, dataformats="HWC")
            self._writer.add_image(f"Entropy - {letter}", _grey(entropy_map(probabilities)[0].sum(dim=0)), iteration)
            self._writer.add_histogram(f"Confidence - {letter}", probabilities.amax(dim=1).cpu(), iteration)
        if "source_outputs" in vars(step):
            counts = source_confusion(step.source_outputs.logits.detach(), step.source.label, self._classes.num_classes)
            self._drawing.draw("Confusion - S", iteration, draw_confusion, counts, self._classes)
        for name, cycles in notes.cycles.items():
            shown = scene_of(step, cycles, self._normalization)
            if shown is not None:
                self._drawing.draw(f"Cycles - {name}", iteration, draw_arrows, {"": shown}, self._classes)


def predicted_shares(logits: Tensor) -> Tensor:
    """Share of the pixels of (B, K, H, W) at which each class is the most likely: (K,), sum 1."""
    classes = logits.detach().argmax(dim=1).flatten()
    return torch.bincount(classes, minlength=logits.shape[1]).float() / max(1, classes.numel())


def _grey(x: Tensor) -> Tensor:
    """(H, W) in 0..1 -> (1, H, W)."""
    return x.clamp(0, 1)[None].cpu()
