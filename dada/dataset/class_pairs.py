"""Draw for each target image a source image that holds the same classes."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from dada.dataset.sampler import epoch_order, mixed_seed


def class_overlap_scores(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """How much the classes of each source and each target image overlap: (n, K), (m, K) pixels -> (m, n) in 0 .. 1.

    The Bhattacharyya coefficient of their shares, sum over k of sqrt(p_k q_k): 1 for equal shares, 0 where no class is in
    both. The root lets a sign count beside a road. An image without a pixel overlaps with none.
    """
    p, q = (x / np.maximum(x.sum(axis=1, keepdims=True), 1e-12) for x in (np.asarray(source, float), np.asarray(target, float)))
    return np.sqrt(q) @ np.sqrt(p).T


class ClassPairs:
    """Partners of target images: each is drawn evenly from the source images that overlap with it most.

    Args:
        source: (n, K) pixels of each class in each source image.
        target: (m, K) the same of the target: predicted ones, its labels are not known.
        top: share of the source images that are drawn from, above 0 and at most 1; at least one image.
        batch_size: target images of a step. Slot s of the source is paired with slot s, modulo this, of the target.

    Raises:
        ValueError: top out of its range, or the domains differ in classes.
    """

    def __init__(self, source: np.ndarray, target: np.ndarray, top: float, batch_size: int) -> None:
        if not 0 < top <= 1:
            raise ValueError(f"ASSOCIATION.PAIR_TOP is {top}; expected more than 0 and at most 1, for example 0.1")
        if source.shape[1] != target.shape[1]:
            raise ValueError(f"source images have {source.shape[1]} classes, target images {target.shape[1]}")
        self._source, self._target = source, target
        self._count = max(1, round(top * len(source)))
        self._batch_size = batch_size
        self._order = lru_cache(maxsize=2)(epoch_order)
        self._partners = lru_cache(maxsize=None)(self._find_partners)

    def _find_partners(self, target: int) -> np.ndarray:
        scores = class_overlap_scores(self._source, self._target[target : target + 1])[0]
        if not scores.any():  # nothing is known of it
            return np.arange(len(scores))
        return np.argsort(-scores, kind="stable")[: self._count].astype(np.int32)

    def draw(self, seed: int, stream: str, step: int, slot: int) -> tuple[int, int]:
        """(source image, -1) for a slot: a function of the arguments, of the kind that StepSampler takes."""
        number = step * self._batch_size + slot % self._batch_size
        epoch, place = divmod(number, len(self._target))
        partners = self._partners(int(self._order(len(self._target), seed, "target", epoch)[place]))
        generator = np.random.default_rng(mixed_seed(seed, stream, step, slot, "partner"))
        return int(partners[generator.integers(len(partners))]), -1
