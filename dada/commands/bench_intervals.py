"""How certain a comparison of methods is: bootstrap intervals over test images and seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dada.evaluation.metrics import iou

DRAWS = 2000


class Interval(NamedTuple):
    """A number of a comparison, and the bounds between which 95 % of the draws lie."""

    value: float
    low: float
    high: float


class Bootstrap:
    """mIoU of each method under resampled test images and seeds, drawn with replacement.

    Every draw takes the same images and seeds for all methods, so that differences between methods are paired: variation that
    they share cancels out (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 8).

    Args:
        counts: by method and seed, for each target (N, K, K) or (N, K + 1, K) confusion matrices of its N test images, the same
            images in each. Of several targets the mean of their mIoU counts.
        rule: of `iou`.
    """

    def __init__(
        self, counts: Mapping[str, Mapping[int, Sequence[np.ndarray]]], rule: str = "ignore", draws: int = DRAWS
    ) -> None:
        rng = np.random.default_rng(0)
        seeds = sorted(set.intersection(*(set(runs) for runs in counts.values())))
        images = {tuple(map(len, x)) for runs in counts.values() for x in runs.values()}
        if not seeds or len(images) != 1:
            raise ValueError(f"methods must share seeds and test images; they share the seeds {seeds}, and have {images} images")
        (numbers,) = images
        # The first row is no draw: every image once, every seed once.
        weights = [np.vstack([np.ones((1, n)), rng.multinomial(n, [1 / n] * n, size=draws)]) for n in numbers]
        chosen = np.vstack([np.arange(len(seeds)), rng.integers(len(seeds), size=(draws, len(seeds)))])
        self._scores = {
            method: np.take_along_axis(np.stack([_miou(runs[s], weights, rule) for s in seeds], axis=1), chosen, axis=1).mean(
                axis=1
            )
            for method, runs in counts.items()
        }

    def __contains__(self, method: str) -> bool:
        return method in self._scores

    def miou(self, method: str) -> Interval:
        """In percent, mean over seeds."""
        return _interval(self._scores[method])

    def gain(self, method: str, over: str) -> Interval:
        """In points."""
        return _interval(self._scores[method] - self._scores[over])

    def share(self, method: str, floor: str, top: str) -> Interval:
        """Of the gap between two others that the method closes, in percent."""
        low, high = self._scores[floor], self._scores[top]
        return _interval(100 * (self._scores[method] - low) / (high - low))


def _miou(counts: Sequence[np.ndarray], weights: Sequence[np.ndarray], rule: str) -> np.ndarray:
    """For each target (N, R, K) matrices, and (D, N) how often each image is taken -> (D,) percent, the mean over targets."""
    totals = [(w @ c.reshape(len(c), -1)).reshape(len(w), *c.shape[1:]) for c, w in zip(counts, weights)]
    return 100 * np.mean([np.nanmean(iou(total, rule=rule), axis=1) for total in totals], axis=0)


def _interval(draws: np.ndarray) -> Interval:
    low, high = np.percentile(draws[1:], [2.5, 97.5])
    return Interval(float(draws[0]), float(low), float(high))


def spoken(interval: Interval, form: str = ".1f", unit: str = "") -> str:
    """As tables show it: `44.9 (42.1 to 47.5)`."""
    return f"{interval.value:{form}}{unit} ({interval.low:{form}} to {interval.high:{form}})"


def counts_by_method(records: Sequence[Mapping], field: str = "counts") -> dict[str, dict[int, list[np.ndarray]]]:
    """The matrices of records of one benchmark, by method and seed; methods of which a run has none are left out."""
    found: dict[str, dict[int, list[np.ndarray]]] = {}
    without = {record["method"] for record in records if record.get(field) is None}
    for record in records:
        if record["method"] not in without:
            found.setdefault(record["method"], {})[record["seed"]] = record[field]
    return found
