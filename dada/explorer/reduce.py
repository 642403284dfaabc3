"""Vectors in few bytes, so that their products stay nearly what they were.

Principal directions without centring: no other k directions keep more of the products x . y over all pairs of the given
vectors. Along each direction a vector is a number, stored as a sum of int8 planes: the second plane of a direction holds what
the first one rounded away. Which direction gets how many planes is decided by where one more byte takes away most error.
"""

from __future__ import annotations

import heapq
from typing import NamedTuple

import numpy as np

LEVELS = 127  # int8, the same on both sides of zero
NEGLIGIBLE = 1e-8  # mean squared error of unit vectors at which no plane is added


class Planes(NamedTuple):
    """Coordinate d of vector n is the sum of scale[p] * values[p, n] over the planes p of direction d."""

    values: np.ndarray  # (P, N) int8
    scale: np.ndarray  # (P,) float32
    direction: np.ndarray  # (P,) uint16, from 0 without a gap
    kept: float  # share of the sum of squares that the directions hold

    @property
    def dimensions(self) -> int:
        return int(self.direction.max()) + 1


def reduce(x_NC: np.ndarray, most_planes: int) -> Planes:
    """At most `most_planes` bytes for each of the vectors, which must not all be zero. Computed in float64."""
    x_NC = np.asarray(x_NC, dtype=np.float64)
    energy, basis = np.linalg.eigh(x_NC.T @ x_NC)
    energy, basis = energy[::-1].clip(min=0), basis[:, ::-1]
    candidates = min(most_planes, len(energy))
    coordinates_DN = basis[:, :candidates].T @ x_NC.T
    planes_D = _shares(energy / len(x_NC), np.abs(coordinates_DN).max(axis=1), most_planes)
    values, scale, direction = [], [], []
    used = np.flatnonzero(planes_D)
    for number, d in enumerate(used):
        rest = coordinates_DN[d]
        for _ in range(planes_D[d]):
            step = np.float32(np.abs(rest).max() / LEVELS) or np.float32(1)
            plane = np.rint(rest / np.float64(step)).clip(-LEVELS, LEVELS)
            rest = rest - plane * np.float64(step)
            values.append(plane.astype(np.int8))
            scale.append(step)
            direction.append(number)
    kept = energy[used].sum() / energy.sum()
    return Planes(np.stack(values), np.array(scale, np.float32), np.array(direction, np.uint16), float(kept))


def restore(planes: Planes) -> np.ndarray:
    """(N, D) float32: the coordinates, as the page computes them."""
    coordinates_DN = np.zeros((planes.dimensions, planes.values.shape[1]), dtype=np.float32)
    np.add.at(coordinates_DN, planes.direction, planes.scale[:, None] * planes.values)
    return coordinates_DN.T


def _shares(error: np.ndarray, reach: np.ndarray, most_planes: int) -> list[int]:
    """Planes of each direction; `error` is the mean square along every direction, `reach` the largest value along some."""
    gone = error.sum()
    # (minus what the next plane takes away, direction, error after it); rounding to steps s leaves s^2 / 12
    gains = [((r / LEVELS) ** 2 / 12 - e, d, (r / LEVELS) ** 2 / 12) for d, (e, r) in enumerate(zip(error, reach))]
    heapq.heapify(gains)
    planes = [0] * len(reach)
    for n in range(most_planes):
        gain, d, left = heapq.heappop(gains)
        if n and (gain >= 0 or gone < NEGLIGIBLE):
            break
        planes[d] += 1
        gone += gain
        finer = left / (2 * LEVELS) ** 2
        heapq.heappush(gains, (finer - left, d, finer))
    return planes
