"""What the page gets of a pair: reduced maps, the exact cycles beside them, and how far the two agree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dada.domain_adaptation.association_term import METRIC_OF
from dada.domain_adaptation.contrastive_learning import EPS, Cycles, similarity
from dada.domain_adaptation.cycle_association import find_cycles, spatial_aggregation
from dada.explorer.pairs import Pair
from dada.explorer.reduce import Planes, reduce, restore

LEVELS = {"features": "fass", "classes": "cass"}  # as the page calls them
TILE = 256  # rows of a similarity matrix at a time


class Exactness(NamedTuple):
    """The page's own computation beside the exact one, over all source pixels of a pair."""

    target_index: float  # share of source pixels with the same j*
    closed: float  # share of source pixels whose cycle is closed in both, or open in both
    error: float  # largest absolute difference of similarity, over all source and target pixels


class Prepared(NamedTuple):
    """The target is stored as it is and aggregated, since (1 - alpha) x + alpha a is all that lies between."""

    pair: Pair
    planes: Planes  # directions of source pixels, target pixels, and aggregated target pixels, in this order
    ratio: np.ndarray  # (T,) float32: |a| / |x|, the weight of a pixel's aggregated direction against its own
    logs: np.ndarray  # (S + 2T, K) float16: log(p + 1e-10) of the same pixels
    cycles: dict[tuple[str, float], Cycles]  # exact, by level and alpha
    exactness: dict[tuple[str, float], Exactness]


def prepare(pair: Pair, alphas: Sequence[float], most_planes: int) -> Prepared:
    """Reduce a pair, find its exact cycles at each of `alphas`, and compare.

    Args:
        most_planes: bytes for the features of a pixel.
    """
    source, target = pair
    aggregated = {
        "features": spatial_aggregation(target.features, alpha=1.0, metric="cos"),
        "classes": spatial_aggregation(target.probabilities, alpha=1.0, metric="kl"),
    }
    maps = [_pixels(x) for x in (source.features, target.features, aggregated["features"])]
    norms = [np.linalg.norm(x, axis=1) for x in maps]
    if not norms[0].any() or not norms[1].any():
        raise ValueError(f"all features of {source.name if norms[1].any() else target.name} are zero: nothing to associate")
    # A pixel without direction becomes its aggregated direction as soon as alpha is above 0.
    ratio = np.where(norms[1] > 0, norms[2] / np.where(norms[1] > 0, norms[1], 1), 1).astype(np.float32)
    planes = reduce(np.concatenate([x / np.where(n > 0, n, 1)[:, None] for x, n in zip(maps, norms)]), most_planes)
    probabilities = [_pixels(x) for x in (source.probabilities, target.probabilities, aggregated["classes"])]
    logs = np.log(np.concatenate(probabilities).astype(np.float32) + np.float32(EPS)).astype(np.float16)
    prepared = Prepared(pair, planes, ratio, logs, {}, {})
    for level, alpha in ((level, alpha) for level in LEVELS for alpha in alphas):
        x, y = (view.features if level == "features" else view.probabilities for view in pair)
        options = {"metric": METRIC_OF[LEVELS[level]], "aggregate": alpha > 0, "alpha": alpha}
        cycles = find_cycles(x, y, source.labels, **options)
        prepared.cycles[level, alpha] = cycles
        prepared.exactness[level, alpha] = _compare(prepared, level, alpha, cycles, x, torch.lerp(y, aggregated[level], alpha))
    return prepared


def page_maps(prepared: Prepared, level: str, alpha: float) -> tuple[Tensor, Tensor]:
    """(1, D, h, w) of source and target: what the page compares, from what it gets, by the steps that it takes."""
    source, target = prepared.pair
    parts = (source.labels.numel(), target.probabilities.shape[2:].numel())
    if level == "features":
        s, t, a = _parted(restore(prepared.planes), *parts)
        mixed = np.float32(1 - alpha) * t + np.float32(alpha) * prepared.ratio[:, None] * a
    else:
        s, t, a = _parted((np.exp(prepared.logs.astype(np.float64)) - EPS).clip(min=0).astype(np.float32), *parts)
        mixed = np.float32(1 - alpha) * t + np.float32(alpha) * a
    sizes = source.probabilities.shape[2:], target.probabilities.shape[2:]
    return tuple(torch.from_numpy(np.ascontiguousarray(x.T)).reshape(1, -1, *size) for x, size in zip((s, mixed), sizes))


def _compare(prepared: Prepared, level: str, alpha: float, exact: Cycles, source: Tensor, target: Tensor) -> Exactness:
    """`source` and `target`: the maps between which the exact cycles run."""
    metric, labels = METRIC_OF[LEVELS[level]], prepared.pair.source.labels
    reduced = [x.to(labels.device) for x in page_maps(prepared, level, alpha)]
    own = find_cycles(*reduced, labels, metric=metric, aggregate=False)
    tiles = zip(_tiles(source, target, metric), _tiles(*reduced, metric))
    return Exactness(
        (own.target_index == exact.target_index).cpu().double().mean().item(),
        (own.closed == exact.closed).cpu().double().mean().item(),
        max((a - b).abs().max().item() for a, b in tiles),
    )


def _tiles(source: Tensor, target: Tensor, metric: str) -> Iterator[Tensor]:
    target_BTC = target.flatten(2).mT
    for rows_BRC in source.flatten(2).mT.split(TILE, dim=1):
        yield similarity(rows_BRC, target_BTC, metric)


def _pixels(x: Tensor) -> np.ndarray:
    """(1, C, h, w) -> (h*w, C) float64."""
    return x[0].flatten(1).T.cpu().double().numpy()


def _parted(x_NC: np.ndarray, source: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return x_NC[:source], x_NC[source : source + target], x_NC[source + target :]
