"""How often classes occur, and how often both images of a source/target pair hold them.

Everything follows from one count: pixels of each class in each image. Pixels that are not trained (255) are left
out. Association can close a cycle only on a class that both images of a pair hold; the fork of DADA counted, over
random pairs, how often one lacks it. Here the share over all pairs is computed, which its counts approach.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Frequencies:
    """For each class, shares in 0..1, (K,) float64; all zero if there are no pixels or images."""

    pixels: np.ndarray  # of all labelled pixels
    images: np.ndarray  # of all images: those that hold the class


def class_frequencies(counts: np.ndarray) -> Frequencies:
    """Pixels of each class in each image, (images, K) -> how often classes occur."""
    counts = np.asarray(counts)
    pixels = counts.sum(axis=0, dtype=np.float64)
    return Frequencies(pixels / max(pixels.sum(), 1.0), (counts > 0).sum(axis=0) / max(len(counts), 1))


@dataclass(frozen=True)
class Overlap:
    """Over all pairs of a source with a target image, shares in 0..1.

    Args:
        both: (K,) pairs in which both images hold the class.
        source_only: (K,) only the source image does; the fork's count, see table 4.1 of the thesis behind it.
        target_only: (K,) only the target image does.
        any_source_only: pairs in which the source image holds some class that the target image lacks.
        any_target_only: the reverse.
    """

    both: np.ndarray
    source_only: np.ndarray
    target_only: np.ndarray
    any_source_only: float
    any_target_only: float


def class_overlap(source: np.ndarray, target: np.ndarray) -> Overlap:
    """Exact shares over all pairs, from which classes each image holds.

    Args:
        source: (n, K) pixels of each class in each of n > 0 source images, or whether there are any.
        target: (m, K) the same of the target.
    """
    held, met = np.asarray(source) > 0, np.asarray(target) > 0
    # Images are drawn independently, so that a share over pairs is a product of shares over images.
    p, q = held.mean(axis=0), met.mean(axis=0)
    # That a whole set of classes is held is not independent; few distinct sets occur, and those are compared.
    (sets, n), (other_sets, m) = (np.unique(x, axis=0, return_counts=True) for x in (held, met))
    missing = (sets.astype(np.int64) @ ~other_sets.T > 0, ~sets @ other_sets.T.astype(np.int64) > 0)
    pairs = np.outer(n, m)
    any_source_only, any_target_only = (float((lacks * pairs).sum() / pairs.sum()) for lacks in missing)
    return Overlap(p * q, p * (1 - q), (1 - p) * q, any_source_only, any_target_only)
