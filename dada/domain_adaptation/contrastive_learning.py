r"""Pixel-level cycle association: the definition, in its plain dense form.

Kang et al., "Pixel-Level Cycle Association: A New Perspective for Domain Adaptive Semantic Segmentation", NeurIPS 2020
(arXiv:2011.00147), as their released code computes it. Every function here is the executable specification: one line
of tensor code for one line of the paper, with the whole similarity matrix in memory.

The dense form is made for reading and for small maps. Above `DENSE_ELEMENTS` the public functions compute the
same values and gradients in tiles, in memory linear in the number of pixels: package `association`, derived in
docs/association.md.

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
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dada.domain_adaptation.association import stream_aggregation, stream_cycles, stream_loss
from dada.domain_adaptation.association.check import auto_takes_fused
from dada.domain_adaptation.association.contrast import EPS, contrast_scale
from dada.matmul_precision import full_float32_products
from dada.parallel.ranks import joint_mean, joint_sum

METRICS = ("cos", "kl")
IMPLS = ("auto", "dense", "streaming", "fused")
DENSE_ELEMENTS = 2**16  # "auto" makes no larger matrix: 16x16 maps, where both forms take equally long


class Cycles(NamedTuple):
    """The way of every source pixel: to the target, back to the source, and whether both ends have one class."""

    target_index: Tensor  # (B, S) int64: j*, the target pixel most similar to source pixel i
    source_index: Tensor  # (B, S) int64: i*, the source pixel most similar to j*
    closed: Tensor  # (B, S) bool: label(i) == label(i*), neither ignored

    def covered(self, pixels: int) -> Tensor:
        """(B, pixels) bool: which of that many target pixels lie on a closed cycle."""
        # Open cycles share a place after the last. A maximum over bools, scatter_reduce, is nothing that CUDA has.
        place = torch.where(self.closed, self.target_index, pixels)
        on_cycle = torch.zeros(len(place), pixels + 1, dtype=torch.bool, device=place.device)
        return on_cycle.scatter_(1, place, True)[:, :pixels]


class Association(NamedTuple):
    """The loss and what to log beside it, 0-dim tensors; and the cycles themselves."""

    loss: Tensor  # nats per closed cycle; 0, with zero gradient, when none closes
    closed: Tensor  # int64: closed cycles in the batch
    labelled: Tensor  # int64: source pixels that could start one. closed / labelled near 0: the loss is idle
    covered: Tensor  # int64: distinct target pixels on closed cycles. covered / closed near 0: all meet at a few pixels
    cycles: Cycles


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


def spatial_aggregation(x: Tensor, *, alpha: float = 0.5, metric: str = "cos", impl: str = "auto") -> Tensor:
    r"""Mix every pixel with the pixels of its own image that resemble it (paper, "spatial aggregation").

        x_j <- (1 - alpha) x_j + alpha * sum_k w_jk x_k,     w_j = softmax_k similarity(x_j, x_k)

    The similarity is contrast-normalised for features ("cos") and taken as it is for probabilities ("kl"). The
    gradient flows through the weights as well.

    Args:
        x: (B, C, H, W) features, or probabilities over C for "kl".
        alpha: share of the aggregated map, 0 to 1.
        impl: as in `cycle_association_loss`.

    Returns:
        (B, C, H, W), at least float32.
    """
    _check_map(x, "x")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be between 0 and 1, not {alpha}")
    with full_precision(x):
        impl = _form(impl, metric, x, x)
        if impl != "dense":
            return stream_aggregation(x.to(at_least_float32(x)), metric, alpha, impl == "fused")
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


def find_cycles(
    source: Tensor,
    target: Tensor,
    labels: Tensor,
    *,
    metric: str = "cos",
    aggregate: bool = True,
    alpha: float = 0.5,
    ignore_index: int = 255,
    impl: str = "auto",
) -> Cycles:
    """The cycles that `cycle_association_loss` counts, for figures and statistics; same arguments, no gradient."""
    check_pair(source, target, labels)
    with torch.no_grad(), full_precision(source):
        source, target = _prepare(source, target, aggregate, alpha, metric, impl)
        impl = _form(impl, metric, source, target)
        if impl == "dense":
            return _dense_cycles(source, target, labels, metric, ignore_index)[0]
        return _streamed_cycles(source, target, labels, metric, ignore_index, impl == "fused")[0]


def cycle_association_loss(
    source: Tensor,
    target: Tensor,
    labels: Tensor,
    *,
    metric: str = "cos",
    aggregate: bool = True,
    alpha: float = 0.5,
    ignore_index: int = 255,
    impl: str = "auto",
) -> Association:
    r"""Cycle-association loss of Kang et al. (arXiv:2011.00147): L_fass on features, L_cass on class probabilities.

    From source pixel i go to its most similar target pixel j*, and from there to the most similar source pixel i*. The
    cycle closes when i and i* carry the same label. With p the softmax of contrast-normalised similarity,

        L = -1/n * sum over closed i of [ log p(j* | i) + log p(i* | j*) ]

    over the n closed cycles of the whole batch; image b of the source is paired with image b of the target.

    Args:
        source: (B, C, Hs, Ws) features of labelled images, or probabilities over C for metric "kl"; any float dtype.
        target: (B, C, Ht, Wt) of unlabelled images; the size may differ. No target label is needed or accepted.
        labels: (B, Hs, Ws) int64 train ids at feature resolution: `labels_at` resizes them.
        metric: "cos", cosine similarity, or "kl", minus the Kullback-Leibler divergence of row from column.
        aggregate: apply `spatial_aggregation` with `alpha` to the target first.
        ignore_index: pixels with this id start no cycle and close none.
        impl: "dense", the definition, makes several matrices of source x target pixels; "streaming" computes the
            same values and first derivatives in tiles; "fused" does so with compiled kernels; "auto" takes the dense
            form for small maps only, and "fused" on CUDA once it was found right there (`association/check.py`).

    Raises:
        ValueError: batch, channels or label sizes disagree; the message gives both shapes.

    Numerics: computed in float32 at least, also under autocast. Over 92x92 = 8464 pixels the product of the two
    probabilities can be as small as 1.4e-8, which float16 rounds to 0, so log-probabilities are added, never multiplied.
    Memory: each (S, T) float32 matrix of the dense form takes 287 MB an image at 92x92. Streaming adds about the
    size of both maps beyond their gradients, and tiles of a few MB.
    """
    check_pair(source, target, labels)
    with full_precision(source):
        source, target = _prepare(source, target, aggregate, alpha, metric, impl)
        labelled = (labels != ignore_index).sum()
        impl = _form(impl, metric, source, target)
        if impl == "dense":
            cycles, sim_BST, sim_BTS = _dense_cycles(source, target, labels, metric, ignore_index)
            total = _dense_sum(cycles, sim_BST, sim_BTS)
        else:
            fused = impl == "fused"
            cycles, back_index = _streamed_cycles(source, target, labels, metric, ignore_index, fused)
            counted_BS = cycles.closed.to(source.dtype)
            total = stream_loss(source, target, cycles.target_index, back_index, counted_BS, metric, fused)

        count = cycles.closed.sum()
        return Association(
            loss=joint_mean(total / count.clamp(min=1), count),
            closed=joint_sum(count),
            labelled=joint_sum(labelled),
            covered=joint_sum(cycles.covered(target.shape[2:].numel()).sum()),
            cycles=cycles,
        )


def _dense_sum(cycles: Cycles, sim_BST: Tensor, sim_BTS: Tensor) -> Tensor:
    """-sum over closed cycles of log p(j* | i) + log p(i* | j*)."""
    log_p_BST = contrast_normalize(sim_BST).log_softmax(dim=-1)
    log_p_BTS = contrast_normalize(sim_BTS).log_softmax(dim=-1)
    image, i = cycles.closed.nonzero(as_tuple=True)
    j, i_back = cycles.target_index[image, i], cycles.source_index[image, i]
    return -(log_p_BST[image, i, j] + log_p_BTS[image, j, i_back]).sum()


def _streamed_cycles(
    source: Tensor, target: Tensor, labels: Tensor, metric: str, ignore_index: int, fused: bool
) -> tuple[Cycles, Tensor]:
    """The cycles, and the way back from every target pixel that is some j*, (B, T)."""
    target_index, back_index, usable = stream_cycles(source, target, metric, fused)
    source_index, labels_BS = back_index.gather(1, target_index), labels.flatten(1)
    closed = usable & (labels_BS != ignore_index) & (labels_BS == labels_BS.gather(1, source_index))
    return Cycles(target_index, source_index, closed), back_index


def _dense_cycles(
    source: Tensor, target: Tensor, labels: Tensor, metric: str, ignore_index: int
) -> tuple[Cycles, Tensor, Tensor]:
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


def _prepare(source: Tensor, target: Tensor, aggregate: bool, alpha: float, metric: str, impl: str) -> tuple[Tensor, Tensor]:
    """Both maps in one precision, at least float32, the target aggregated if asked for."""
    source = source.to(at_least_float32(source))
    target = target.to(source.dtype)
    return source, spatial_aggregation(target, alpha=alpha, metric=metric, impl=impl) if aggregate else target


def _form(impl: str, metric: str, x: Tensor, y: Tensor) -> str:
    """How maps x and y are compared: "auto" resolved to one of the others."""
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {METRICS}, not {metric!r}")
    if impl not in IMPLS:
        raise ValueError(f"impl must be one of {IMPLS}, not {impl!r}")
    if impl != "auto":
        return impl
    if x.shape[0] * x.shape[2:].numel() * y.shape[2:].numel() <= DENSE_ELEMENTS:
        return "dense"
    return "fused" if auto_takes_fused(x, metric) else "streaming"


def labels_at(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, H, W) labels -> (B, *size) int64 by nearest neighbour, pixel floor(i * H / h), as PLCA resizes them."""
    return F.interpolate(labels[:, None].float(), size=size, mode="nearest")[:, 0].long()


def as_pixels(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H*W, C), at least float32."""
    return x.to(at_least_float32(x)).flatten(2).mT


def at_least_float32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def full_precision(x: Tensor) -> torch.autocast:
    """Autocast would run the products in half precision, where argmax ties and small probabilities vanish."""
    return torch.autocast(x.device.type, enabled=False)


def _check_map(x: Tensor, name: str) -> None:
    if x.ndim != 4 or not x.is_floating_point() or 0 in x.shape:
        raise ValueError(f"{name} must be a (B, C, H, W) float map with no empty side, got {x.dtype} {tuple(x.shape)}")


def check_pair(source: Tensor, target: Tensor, labels: Tensor) -> None:
    _check_map(source, "source")
    _check_map(target, "target")
    if source.shape[:2] != target.shape[:2]:
        raise ValueError(
            f"source {tuple(source.shape)} and target {tuple(target.shape)} must agree in batch and channels: "
            "image b of the one is paired with image b of the other"
        )
    wanted = (source.shape[0], *source.shape[2:])
    if tuple(labels.shape) != wanted:
        raise ValueError(
            f"labels {tuple(labels.shape)} do not fit source features {tuple(source.shape)}: expected {wanted}; "
            "resize labels with labels_at (nearest, never bilinear)"
        )


# Former names, which pages and other people's code still use; they go with the next release.
_FORMER = {"association_loss": "cycle_association_loss", "cycle_association": "find_cycles"}


def __getattr__(name: str) -> Any:
    if name not in _FORMER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"{name} is now called {_FORMER[name]}", DeprecationWarning, stacklevel=2)
    return globals()[_FORMER[name]]
