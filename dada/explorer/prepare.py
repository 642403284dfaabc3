"""The data of a pair for the page: the exact cycles, and small maps from which it draws similarities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dada.domain_adaptation.association_term import METRIC_OF
from dada.domain_adaptation.contrastive_learning import EPS, Cycles, as_pixels, direction, similarity
from dada.domain_adaptation.cycle_association import find_cycles, spatial_aggregation
from dada.explorer.pairs import Pair

LEVELS = {"features": "fass", "classes": "cass"}  # as the page calls them
TILE = 256  # rows of a similarity matrix at a time


class Reduced(NamedTuple):
    """Vectors of the S source pixels, then of the T target pixels at each of A shares: steps * scale.

    Their products are cosines for features; for classes the vectors are log-probabilities.
    """

    steps: np.ndarray  # (S + A*T, D) int8 for features, int16 for classes
    scale: np.ndarray  # (D,) float32
    error: float  # largest difference of a similarity drawn from them, cosine or e^-KL, from the exact one


class Ways(NamedTuple):
    """Where all pixels lead: the cycle of source pixel i is i, there[i], back[there[i]]."""

    there: np.ndarray  # (S,) uint16
    back: np.ndarray  # (T,) uint16
    closed: np.ndarray  # (S,) uint8


@torch.no_grad()
def ways(pair: Pair, level: str, alpha: float) -> Ways:
    """The cycles as training finds them, and where target pixels that lie on no cycle lead."""
    (x, y), labels = _maps(pair, level), pair.source.labels
    options = {"metric": METRIC_OF[LEVELS[level]], "aggregate": alpha > 0, "alpha": alpha}
    found: Cycles = find_cycles(x, y, labels, **options)
    turned = torch.zeros_like(pair.target.probabilities[:, 0], dtype=torch.int64)  # no labels: all its cycles may close
    back = find_cycles(_at(y, level, alpha), x, turned, metric=options["metric"], aggregate=False).target_index[0]
    back[found.target_index[0]] = found.source_index[0]
    there, back, closed = (a.cpu().numpy() for a in (found.target_index[0], back, found.closed[0]))
    return Ways(there.astype(np.uint16), back.astype(np.uint16), closed.astype(np.uint8))


@torch.no_grad()
def reduce(pair: Pair, level: str, alphas: Sequence[float], most: int | None = None) -> Reduced:
    """The maps of one of LEVELS; features along their principal directions, at most `most`.

    Raises:
        ValueError: no pixel of an image has features other than zero.
    """
    x, y = _maps(pair, level)
    exact = [as_pixels(x)[0], *(as_pixels(_at(y, level, alpha))[0] for alpha in alphas)]
    if level == "features":
        for view, pixels in zip(pair, exact):
            if not pixels.any():
                raise ValueError(f"all features of {view.name} are zero: nothing to associate")
        units_NC = torch.cat([direction(pixels) for pixels in exact]).double()
        basis_CD = torch.linalg.eigh(units_NC.mT @ units_NC).eigenvectors.flip(1)[:, :most]
        vectors, kind = units_NC @ basis_CD, torch.int8
    else:
        vectors, kind = torch.cat(exact).add(EPS).log().double(), torch.int16
    largest = vectors.abs().amax(dim=0)
    scale = torch.where(largest > 0, largest / torch.iinfo(kind).max, 1).float()
    steps = (vectors / scale.double()).round().to(kind)
    drawn = (steps * scale).split([len(pixels) for pixels in exact])
    error = max(_largest_error(level, drawn[0], target, exact[0], own) for target, own in zip(drawn[1:], exact[1:]))
    return Reduced(steps.cpu().numpy(), scale.cpu().numpy(), error)


def drawn_similarity(level: str, rows: Tensor, columns: Tensor) -> Tensor:
    """(N, D), (M, D) vectors as the page has them -> (N, M): cosine, or e^-KL of class probabilities."""
    if level == "features":
        return rows @ columns.mT
    p = rows.exp()
    return (p @ columns.mT - (p * rows).sum(dim=1, keepdim=True)).exp()


def _largest_error(level: str, source: Tensor, target: Tensor, exact_source: Tensor, exact_target: Tensor) -> float:
    """Over both directions, a few rows at a time."""
    largest = 0.0
    for x, y, u, v in ((source, target, exact_source, exact_target), (target, source, exact_target, exact_source)):
        for rows, exact_rows in zip(x.split(TILE), u.split(TILE)):
            exact = similarity(exact_rows[None], v[None], METRIC_OF[LEVELS[level]])[0]
            difference = drawn_similarity(level, rows, y) - (exact if level == "features" else exact.exp())
            largest = max(largest, difference.abs().max().item())
    return largest


def _maps(pair: Pair, level: str) -> tuple[Tensor, Tensor]:
    """(1, C, h, w) of both images."""
    return tuple(view.features if level == "features" else view.probabilities for view in pair)


def _at(target: Tensor, level: str, alpha: float) -> Tensor:
    return spatial_aggregation(target, alpha=alpha, metric=METRIC_OF[LEVELS[level]]) if alpha > 0 else target
