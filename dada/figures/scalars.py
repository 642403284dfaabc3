"""The scalars that training logs for TensorBoard, read back."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Curve(NamedTuple):
    """One scalar over a run."""

    step: np.ndarray  # (N,) iterations, counted from 0
    value: np.ndarray  # (N,)
    seconds: np.ndarray  # (N,) since 1970, when each was logged


def has_logs(folder: str | Path) -> bool:
    return Path(folder).is_dir() and any(Path(folder).glob("events.out.tfevents.*"))


def read_scalars(folder: str | Path) -> dict[str, Curve]:
    """Every scalar of the event files in `folder`, by its tag. What a run that went on has replaced is left out.

    Raises:
        FileNotFoundError: there are no event files.
    """
    if not has_logs(folder):
        raise FileNotFoundError(
            f"{folder} holds no TensorBoard logs (events.out.tfevents.*); train with --tensorboard, and give the folder "
            "<EXP_ROOT>/logs/tensorboard/<name of the run>"
        )
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it tells that it has come to the end of a file
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # 0 keeps all; of the other kinds, which are large, one each.
    sizes = {"scalars": 0, "images": 1, "audio": 1, "histograms": 1, "compressedHistograms": 1, "tensors": 1, "graph": 1}
    events = EventAccumulator(str(folder), size_guidance=sizes).Reload()
    curves = {}
    for tag in events.Tags()["scalars"]:
        # Of one step the last written: files are read in the order of their names, which is not always that of their times.
        found = {e.step: e for e in sorted(events.Scalars(tag), key=lambda event: event.wall_time)}
        ordered = [found[step] for step in sorted(found)]
        columns = ([e.step for e in ordered], [e.value for e in ordered], [e.wall_time for e in ordered])
        curves[tag] = Curve(*(np.array(c, dtype=float) for c in columns))
    return curves


def thinned(curve: Curve, most: int = 200) -> Curve:
    """The means of at most `most` equal stretches of the curve."""
    count = len(curve.step)
    if count <= most:
        return curve
    parts = np.array_split(np.arange(count), most)
    return Curve(*(np.array([column[part].mean() for part in parts]) for column in curve))


def over_seeds(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps, mean and standard deviation (N - 1; 0 for one) of the thinned curves of a method's seeds, as far as all got."""
    own = [thinned(curve) for curve in curves]
    steps = min(own, key=lambda curve: curve.step[-1]).step
    values = np.stack([np.interp(steps, curve.step, curve.value) for curve in own])
    std = values.std(axis=0, ddof=1) if len(own) > 1 else np.zeros(len(steps))
    return steps, values.mean(axis=0), std


def smoothed(values: np.ndarray) -> np.ndarray:
    """Means over a tenth of the values around each, fewer at the ends; what is not finite counts for nothing."""
    kernel, finite = np.ones(max(1, len(values) // 10)), np.isfinite(values)
    counts = np.convolve(finite, kernel, "same")
    sums = np.convolve(np.where(finite, values, 0.0), kernel, "same")
    return np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0)
