"""Evaluations while a run trains, and the best network so far.

The training is not touched: a copy of the network is evaluated, and the random generators are put back. A run that is
interrupted finds the best that the uninterrupted run finds.

Choosing a network by the labels of the target uses what an unsupervised method must do without. It can be asked for; the
run says so at its start, model_best.pth holds by what it was chosen, and so does the report of its test.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from dada.build import cudnn_search, eval_loaders, evaluated_splits
from dada.config import plain_cfg
from dada.dataset.conventions import warn_of_conventions
from dada.dataset.sample import Batch
from dada.evaluation.evaluator import Evaluation, evaluate, mean_over
from dada.evaluation.predictor import Predictor
from dada.evaluation.tester import build_predictor, protocol
from dada.parallel.distributed import greatest
from dada.parallel.ranks import is_main
from dada.runs import BEST, save_whole, snapshot
from dada.training.rng import rng_state, set_rng_state

log = logging.getLogger(__name__)


class Validation:
    """Evaluate the network every TRAIN.EVAL_EVERY iterations on TRAIN.EVAL_SPLIT, as the TEST section says.

    Args:
        folder: of the run's snapshots, where model_best.pth is written.
        network: whose images are loaded; any state of it.
        state: of an earlier `state()`, from which to go on. Numbers that were measured in another way do not count.

    Raises:
        ValueError, FileNotFoundError: the split, or data that cannot be used.
    """

    def __init__(self, cfg: Any, folder: Path, network: nn.Module, device: torch.device, state: dict | None = None) -> None:
        role, splits = evaluated_splits(cfg)
        if role == "source" and cfg.TRAIN.SOURCE_FREE:
            raise ValueError(f"TRAIN.SOURCE_FREE opens no file of the source, but TRAIN.EVAL_SPLIT is {cfg.TRAIN.EVAL_SPLIT!r}")
        self._cfg, self._device, self._path = cfg, device, folder / BEST
        self._loaders = eval_loaders(cfg, network.normalization, role, splits)
        if is_main():
            for loader in self._loaders.values():
                warn_of_conventions(loader.dataset)
        self._measured = {"split": cfg.TRAIN.EVAL_SPLIT, **protocol(cfg)}
        self._last, self._best = 0, None  # iterations; the best as {"iter", "mIoU"}
        if state is not None and state["measured"] == self._measured:
            self._last, self._best = state["last"], state["best"]
        elif state is not None:
            log.warning("the best network so far was measured in another way: the choice starts over")
        if role == "target":
            log.warning(
                "%s is chosen by labels of the target (TRAIN.EVAL_SPLIT %s), which the method must do without: report the last "
                "snapshot, or say so",
                self._path,
                cfg.TRAIN.EVAL_SPLIT,
            )

    def state(self) -> dict[str, Any]:
        """Plain values, for the checkpoint."""
        return {"last": self._last, "best": self._best, "measured": self._measured}

    def due(self, done: int) -> bool:
        """Whether the network of that iteration is to be evaluated, and was not yet."""
        return done > self._last and done % self._cfg.TRAIN.EVAL_EVERY == 0

    def run(self, network: Callable[[], nn.Module], done: int, interrupted: Callable[[], bool] = bool) -> Evaluation | None:
        """Evaluate the network of iteration `done`; write it if it is the best.

        Args:
            network: gives it; it stays as it is.
            interrupted: asked after every batch; once it is true the evaluation is dropped, and `due` again.

        Returns:
            None if it was interrupted.
        """
        rng = rng_state(self._device)  # loaders draw a seed
        try:
            copied = copy.deepcopy(network()).eval()
            predictor = build_predictor(self._cfg, [copied], [1.0], self._device)
            with cudnn_search(False):  # unlike those of training, the images of a test may be of many sizes
                found = mean_over(
                    {name: self._evaluated(predictor, loader, interrupted) for name, loader in self._loaders.items()}
                )
        finally:
            set_rng_state(rng, self._device)
        if greatest(int(interrupted())):
            return None
        self._last = done
        log.info("iteration %d: %s on %s", done, found.headline(), self._cfg.TRAIN.EVAL_SPLIT)
        if self._best is None or found.miou > self._best["mIoU"]:
            self._best = {"iter": done, "mIoU": found.miou}
            if is_main():
                chosen = {**self._best, "by": self._measured}
                content = snapshot(self._path.parent, copied, done, plain_cfg(self._cfg))
                save_whole(self._path, {**content, "chosen": chosen})
        return found

    def _evaluated(self, predictor: Predictor, loader: DataLoader, interrupted: Callable[[], bool]) -> Evaluation:
        batches = _until(interrupted, loader)
        return evaluate(predictor, batches, loader.dataset.classes, self._device, self._cfg.TEST.CLASS_RULE)


def _until(interrupted: Callable[[], bool], batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches, at least one, until `interrupted`."""
    for batch in batches:
        yield batch
        if interrupted():
            return
