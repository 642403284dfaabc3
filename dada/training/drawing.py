"""Figures for the log of a run, drawn beside the training: a step hands over what it has computed, a thread draws it."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from torch import Tensor

from dada.domain_adaptation.contrastive_learning import Cycles, labels_at
from dada.domain_adaptation.step import Step
from dada.evaluation.metrics import confusion_matrix
from dada.figures.cycle_arrows import Scene, scene
from dada.figures.style import as_pixels
from dada.normalization import Normalization

log = logging.getLogger(__name__)

MOST_WAITING = 8  # figures: those of about two iterations that are drawn


class Drawing:
    """One thread that draws, one figure after the other.

    A figure is handed over with everything that it shows, on the CPU and of its own, so that the training can continue and change
    anything. A run that asks for more than it can draw waits, so that memory stays what it is. A figure that fails is left out
    with a warning and never ends a run.
    """

    def __init__(self, write: Callable[[str, np.ndarray, int], None]) -> None:
        self._write = write
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="figures")
        self._waiting: deque[Future] = deque()

    def draw(self, name: str, iteration: int, figure: Callable[..., Any], *args: Any) -> None:
        """Write the pixels of `figure(*args)`, a matplotlib Figure, under `name`."""
        if len(self._waiting) == MOST_WAITING:
            self._waiting.popleft().result()
        self._waiting.append(self._thread.submit(self._draw, name, iteration, figure, args))

    def close(self) -> None:
        """Return when all that was handed over is written."""
        self._thread.shutdown(wait=True)

    def _draw(self, name: str, iteration: int, figure: Callable[..., Any], args: tuple) -> None:
        try:
            self._write(name, as_pixels(figure(*args)), iteration)
        except Exception:
            log.warning("the picture %r of iteration %d could not be drawn", name, iteration, exc_info=True)


def scene_of(step: Step, cycles: Cycles, normalization: Normalization) -> Scene | None:
    """The first image pair of a step; None where no pixel of it is labelled."""
    source, target = (x.features for x in (step.source_outputs, step.target_outputs))
    labels = labels_at(step.source.label[:1], tuple(source.shape[-2:]))
    if not (labels != 255).any():
        return None
    images = (normalization.pixels(x[0]) for x in (step.source_image, step.target.image))
    return scene(*images, labels, tuple(target.shape[-2:]), Cycles(*(x[:1] for x in cycles)))


def source_confusion(logits: Tensor, label: Tensor, num_classes: int) -> np.ndarray:
    """(K, K) pixels of a batch at the resolution of the logits: rows are labels. Counted where the logits are."""
    labels = labels_at(label, tuple(logits.shape[-2:]))
    return confusion_matrix(labels, logits.argmax(dim=1), num_classes).cpu().numpy()
