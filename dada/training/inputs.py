"""What a training reads, checked before anything is fetched, read or written: everything missing is reported at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader

from dada.build import labelled_loader, source_loader, target_loader
from dada.domain_adaptation.objectives import build_objective
from dada.model.registry import check_name
from dada.model.weights import RANDOM, check_at_hand
from dada.normalization import TORCHVISION_RGB


def find_inputs(cfg: Any, weights: str, start: int, stop: int) -> dict[str, DataLoader]:
    """Loaders of "source", "target" and "labelled" for the iterations start .. stop - 1, those that are read.

    Their images are prepared for no network yet: which one it is, and how, may be known only when its weights are fetched.

    Raises:
        ValueError, FileNotFoundError: all that is wrong with weights, options and data, as far as it shows without reading.
    """
    mistakes = _Mistakes()
    objective, loaders = None, {}
    steps = {"start_step": start * cfg.TRAIN.ITER_SIZE, "steps": stop * cfg.TRAIN.ITER_SIZE}
    with mistakes.noted():
        objective = build_objective(cfg, torch.device("cpu"))
    with mistakes.noted():
        check_name(cfg.TRAIN.MODEL)
    with mistakes.noted():
        check_at_hand(weights)
    with mistakes.noted():
        if not cfg.TRAIN.SOURCE_FREE:
            loaders["source"] = source_loader(cfg, TORCHVISION_RGB, **steps)
        elif not start and weights in (*RANDOM, "imagenet"):
            raise ValueError(
                "TRAIN.SOURCE_FREE begins with a network that has learnt the source: set TRAIN.RESTORE_FROM to a snapshot or a "
                f"release; it is {weights!r}"
            )
    with mistakes.noted():
        if objective is None or objective.uses_target:
            second_view = objective is not None and objective.uses_view
            loaders["target"] = target_loader(cfg, TORCHVISION_RGB, second_view=second_view, **steps)
    with mistakes.noted():
        if cfg.TARGET_LABELLED if objective is None else objective.uses_labelled:
            loaders["labelled"] = labelled_loader(cfg, TORCHVISION_RGB, **steps)
    mistakes.raise_all()
    return loaders


class _Mistakes(list[Exception]):
    @contextmanager
    def noted(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, OSError) as error:
            self.append(error)

    def raise_all(self) -> None:
        """Raise what was noted: the error itself, if it is the only one."""
        if len(self) == 1:
            raise self[0]
        if self:
            kind = FileNotFoundError if all(isinstance(error, FileNotFoundError) for error in self) else ValueError
            raise kind("\n".join(dict.fromkeys(map(str, self))))
