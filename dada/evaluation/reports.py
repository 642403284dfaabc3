"""The JSON that a test writes, read back and checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dada.build import classes_of
from dada.config import cfg_from_dict, default_cfg
from dada.dataset.own_classes import own_classes
from dada.label_sets import LABEL_SETS, LabelSet

_NEEDED = ("mIoU", "IoU", "confusion", "protocol", "checkpoints")


@dataclass(frozen=True)
class EvalReport:
    """What dada.evaluation.tester wrote to `path`."""

    path: Path
    content: dict[str, Any]

    @property
    def name(self) -> str:
        """Of the snapshot that was tested: `model_300` of test_model_300.json."""
        return self.path.stem.removeprefix("test_")

    @property
    def iou(self) -> dict[str, float]:
        """In percent, by class; NaN for those that are absent."""
        return {name: _percent(value) for name, value in self.content["IoU"].items()}

    @property
    def means(self) -> dict[str, float]:
        """mIoU in percent, by the number of classes; the first is that of all."""
        return {name: _percent(value) for name, value in self.content["mIoU"].items()}

    @property
    def datasets(self) -> dict[str, float]:
        """mIoU in percent over all classes on each of several targets, whose mean is that of `means`; empty for one."""
        return {name: _percent(next(iter(one["mIoU"].values()))) for name, one in self.content.get("datasets", {}).items()}

    @property
    def covered(self) -> dict[str, int]:
        """How many classes each of `means` is over; that of all is known of every report, the others of newer ones."""
        first = next(iter(self.means))
        known = {first: int(np.isfinite(list(self.iou.values())).sum())}
        return {**known, **self.content.get("classes_in_mean", {})}

    @property
    def confusion(self) -> np.ndarray:
        """(K, K) or (K + 1, K) pixels, rows are labels."""
        return np.array(self.content["confusion"], dtype=np.int64)

    @cached_property
    def classes(self) -> LabelSet:
        """Names as in the report, colours as in its cfg, or as the field has them."""
        names, cfg = tuple(self.content["IoU"]), self.content.get("cfg")
        candidates = list(LABEL_SETS.values())
        if isinstance(cfg, Mapping):
            with suppress(ValueError, OSError):  # of another version, or with an info file that is elsewhere
                candidates.insert(0, classes_of(cfg_from_dict(cfg, str(self.path), default_cfg())))
        return next((c for c in candidates if c.names == names), None) or own_classes(names, ())


def _percent(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def read_report(path: str | Path) -> EvalReport:
    """Read what `dada test` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"test report {path} does not exist; `dada test` writes test_<snapshot>.json beside the snapshot")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"test report {path} is not valid JSON: {error}") from None
    missing = [key for key in _NEEDED if not isinstance(content, dict) or key not in content]
    if missing:
        raise ValueError(
            f"{path} is not a test report: it lacks {', '.join(missing)}; give a test_<snapshot>.json of `dada test`"
        )
    matrix = np.array(content["confusion"], dtype=object)
    if not isinstance(content["IoU"], dict) or matrix.ndim != 2 or matrix.shape[1] != len(content["IoU"]):
        raise ValueError(
            f"test report {path}: confusion is {matrix.shape}, expected a column for each of {len(content['IoU'])} classes"
        )
    return EvalReport(path, content)
