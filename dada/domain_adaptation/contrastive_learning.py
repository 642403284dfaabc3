r"""Pixel-level cycle association: the definition, in its plain dense form.

Kang et al., "Pixel-Level Cycle Association: A New Perspective for Domain Adaptive Semantic Segmentation", NeurIPS 2020
(arXiv:2011.00147), as their released code computes it. Every function here is the executable specification: one line
of tensor code for one line of the paper, with the whole similarity matrix in memory.

The dense form is made for reading and for small maps. What training calls is `cycle_association.py`, which takes this
form for small maps, and for larger ones the same values and gradients in tiles, in memory linear in the number of
pixels: package `association`, derived in docs/association.md.

Letters in names and shapes: B images, C channels, S = Hs*Ws source pixels, T = Ht*Wt target pixels, in row-major order.
`sim_BST` is thus a similarity whose rows are source pixels and whose columns are target pixels.

What is undefined in the paper and decided here:
  * A map of one pixel, and any row of similarities that differ by rounding only, has no contrast: its normalised
    row is zero, its softmax is uniform and it passes no gradient (dividing by the spread would give 0/0, or
    gradients of 1e10).
  * A feature vector of zeros has no direction. No cycle starts at it or turns around at it, and it receives no gradient
    (the published code divides by 1e-12 there, which gives gradients of 1e20).
  * Ties: the pixel that comes first in row-major order is the most similar one.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dada.matmul_precision import full_float32_products

METRICS = ("cos", "kl")
EPS = 1e-10  # in log(p + EPS) and std + EPS, as published
ROUNDINGS = 32  # of a number, that the deviation of a row without contrast may be


class Cycles(NamedTuple):
    """Every source pixel's cycle: to the target, back to the source, and whether both ends have the same class."""

    target_index: Tensor  # (B, S) int64: j*, the target pixel most similar to source pixel i
    source_index: Tensor  # (B, S) int64: i*, the source pixel most similar to j*
    closed: Tensor  # (B, S) bool: label(i) == label(i*), neither ignored

    def covered(self, pixels: int) -> Tensor:
        """(B, pixels) bool: which of that many target pixels lie on a closed cycle."""
        # Open cycles share a place after the last. A maximum over bools, scatter_reduce, is nothing that CUDA has.
        place = torch.where(self.closed, self.target_index, pixels)
        on_cycle = torch.zeros(len(place), pixels + 1, dtype=torch.bool, device=place.device)
        return on_cycle.scatter_(1, place, True)[:, :pixels]


def cosine_similarity(x: Tensor, y: Tensor) -> Tensor:
    """(B, N, C), (B, M, C) -> (B, N, M), each entry in [-1, 1]; 0 where either vector is zero."""
    return direction(x) @ direction(y).mT


def direction(x: Tensor) -> Tensor:
    """x / |x| over the last dimension; a zero vector stays zero and passes no gradient."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    zero = norm == 0
    return torch.where(zero, 0.0, x) / torch.where(zero, 1.0, norm)


def kl_similarity(p: Tensor, q: Tensor) -> Tensor:
    """-KL(p_i || q_j) = sum_c p_ic (log q_jc - log p_ic): (B, N, C), (B, M, C) -> (B, N, M), each entry <= 0.

    Args:
        p, q: probabilities over the last dimension. Logarithms are taken of p + 1e-10, as published.
    """
    log_p, log_q = torch.log(p + EPS), torch.log(q + EPS)
    return p @ log_q.mT - (p * log_p).sum(dim=-1, keepdim=True)


def similarity(x: Tensor, y: Tensor, metric: str) -> Tensor:
    """Rows x, columns y by `metric`: "cos" for features, "kl" for class probabilities. (B, N, C), (B, M, C) -> (B, N, M)."""
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {METRICS}, not {metric!r}")
    return cosine_similarity(x, y) if metric == "cos" else kl_similarity(x, y)


def contrast_normalize(sim: Tensor) -> Tensor:
    """Each row minus its mean, over its standard deviation (N-1): (..., N) -> (..., N).

    Mean and deviation are constants in the backward pass, as in the authors' code: they set the temperature of
    the softmax that follows, and are not to be trained through. A row without contrast becomes zero.
    """
    if sim.shape[-1] == 1:
        return sim * 0.0  # the deviation of one value is 0/0
    with torch.no_grad():
        mean = sim.mean(dim=-1, keepdim=True)
        std = sim.std(dim=-1, keepdim=True)
        scale = contrast_scale(mean, std)
    return (sim - mean) * scale


def contrast_scale(mean: Tensor, std: Tensor) -> Tensor:
    """1 / std of a row of similarities; 0 where its values differ by rounding only (any shape, elementwise)."""
    return torch.where(std > rounding_of(mean), 1 / (std + EPS), 0.0)


def rounding_of(mean: Tensor) -> Tensor:
    """The deviation of a row of similarities that rounding alone may give, from its mean.

    Similarities are sums of terms of order one, also where they cancel to nearly nothing. So the rounding of
    a row is measured against 1 + |mean|: dividing by a smaller deviation would turn noise into certainty.
    """
    return ROUNDINGS * torch.finfo(mean.dtype).eps * (1 + mean.abs())


def dense_aggregation(x: Tensor, alpha: float, metric: str) -> Tensor:
    """x_j <- (1 - alpha) x_j + alpha * sum_k w_jk x_k with w_j = softmax_k similarity(x_j, x_k): (B, C, H, W) -> same."""
    pixels = as_pixels(x)
    sim_BNN = similarity(pixels, pixels, metric)
    if metric == "cos":
        sim_BNN = contrast_normalize(sim_BNN)
    mixed = (1 - alpha) * pixels + alpha * (sim_BNN.softmax(dim=-1) @ pixels)
    return mixed.mT.reshape(x.shape)


def cycle_associate(sim_BST: Tensor, sim_BTS: Tensor, labels: Tensor, *, ignore_index: int = 255) -> Cycles:
    """Follow every source pixel to its most similar target pixel and back (paper, Eq. 1 and 2).

    Args:
        sim_BST: (B, S, T) similarity of source rows to target columns.
        sim_BTS: (B, T, S) similarity of target rows to source columns.
        labels: (B, S) ids of the source pixels; those with `ignore_index` close no cycle.
    """
    target_index = sim_BST.argmax(dim=-1)
    source_index = sim_BTS.argmax(dim=-1).gather(1, target_index)
    closed = (labels != ignore_index) & (labels == labels.gather(1, source_index))
    return Cycles(target_index, source_index, closed)


def dense_loss(source: Tensor, target: Tensor, labels: Tensor, metric: str, ignore_index: int = 255) -> tuple[Tensor, Cycles]:
    """-sum over closed cycles of log p(j* | i) + log p(i* | j*), p the softmax of a contrast-normalised row; and the cycles.

    Args:
        source, target: (B, C, Hs, Ws), (B, C, Ht, Wt).
        labels: (B, Hs, Ws).
    """
    cycles, sim_BST, sim_BTS = _followed(source, target, labels, metric, ignore_index)
    log_p_BST = contrast_normalize(sim_BST).log_softmax(dim=-1)
    log_p_BTS = contrast_normalize(sim_BTS).log_softmax(dim=-1)
    image, i = cycles.closed.nonzero(as_tuple=True)
    j, i_back = cycles.target_index[image, i], cycles.source_index[image, i]
    return -(log_p_BST[image, i, j] + log_p_BTS[image, j, i_back]).sum(), cycles


def dense_cycles(source: Tensor, target: Tensor, labels: Tensor, metric: str, ignore_index: int = 255) -> Cycles:
    """The cycles of `dense_loss`; same arguments."""
    return _followed(source, target, labels, metric, ignore_index)[0]


def _followed(source: Tensor, target: Tensor, labels: Tensor, metric: str, ignore_index: int) -> tuple[Cycles, Tensor, Tensor]:
    """The cycles, and the two similarities (B, S, T) and (B, T, S) they follow."""
    source_BSC, target_BTC = as_pixels(source), as_pixels(target)
    with full_float32_products():
        sim_BST = similarity(source_BSC, target_BTC, metric)
        sim_BTS = sim_BST.mT if metric == "cos" else similarity(target_BTC, source_BSC, metric)
    cycles = cycle_associate(sim_BST, sim_BTS, labels.flatten(1), ignore_index=ignore_index)
    if metric == "cos":  # a vector without direction is similar to nothing
        source_BS, target_BT = (direction(x).any(dim=-1) for x in (source_BSC, target_BTC))
        directed = source_BS & target_BT.gather(1, cycles.target_index)
        cycles = cycles._replace(closed=cycles.closed & directed)
    return cycles, sim_BST, sim_BTS


def labels_at(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, H, W) labels -> (B, *size) int64 by nearest neighbour, pixel floor(i * H / h), as PLCA resizes them."""
    return F.interpolate(labels[:, None].float(), size=size, mode="nearest")[:, 0].long()


def as_pixels(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H*W, C), at least float32."""
    return x.to(at_least_float32(x)).flatten(2).mT


def at_least_float32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


# Functions that published pages import from here. They choose between this form and the tiles, which need this module.
_PUBLIC = ("cycle_association_loss", "find_cycles", "spatial_aggregation", "Association")
# Former names, which pages and other people's code still use; they go with the next release.
_FORMER = {"association_loss": "cycle_association_loss", "cycle_association": "find_cycles"}


def __getattr__(name: str) -> Any:
    if name in _FORMER:
        warnings.warn(f"{name} is now called {_FORMER[name]}", DeprecationWarning, stacklevel=2)
    name = _FORMER.get(name, name)
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("dada.domain_adaptation.cycle_association"), name)
