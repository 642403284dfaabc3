"""The functions to call for cycle association: the loss, the cycles and the aggregation.

`contrastive_learning.py` defines them in dense form, with matrices of source x target pixels; package `association`
computes the same in tiles. This module decides once per call which of the two is used.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dada.domain_adaptation.association import stream_aggregation, stream_cycles, stream_loss
from dada.domain_adaptation.association.check import auto_takes_fused
from dada.domain_adaptation.contrastive_learning import (
    METRICS,
    Cycles,
    at_least_float32,
    dense_aggregation,
    dense_cycles,
    dense_loss,
)

IMPLS = ("auto", "dense", "streaming", "fused")
DENSE_ELEMENTS = 2**16  # "auto" makes no larger matrix: 16x16 maps, where both forms take equally long


class Association(NamedTuple):
    """The loss and what to log beside it, 0-dim tensors; and the cycles themselves."""

    loss: Tensor  # nats per closed cycle; 0, with zero gradient, when none closes
    closed: Tensor  # int64: closed cycles in the batch
    labelled: Tensor  # int64: source pixels that could start one. closed / labelled near 0: the loss is idle
    covered: Tensor  # int64: distinct target pixels on closed cycles. covered / closed near 0: all meet at a few pixels
    cycles: Cycles


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
    with _full_precision(x):
        return _aggregated(x, alpha, metric, choose_form(impl, metric, x, x))


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
    _check_pair(source, target, labels)
    with torch.no_grad(), _full_precision(source):
        source, target, form = _prepared(source, target, aggregate, alpha, metric, impl)
        if form == "dense":
            return dense_cycles(source, target, labels, metric, ignore_index)
        return _streamed_cycles(source, target, labels, metric, ignore_index, form == "fused")[0]


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
            form where no matrix of the call is large, and "fused" on CUDA once it was found right there
            (`association/check.py`).

    Returns:
        Of this process's batch; `association_term` makes them those of all processes.

    Raises:
        ValueError: batch, channels or label sizes disagree; the message gives both shapes.

    Numerics: computed in float32 at least, also under autocast. Over 92x92 = 8464 pixels the product of the two
    probabilities can be as small as 1.4e-8, which float16 rounds to 0, so log-probabilities are added, never multiplied.
    Memory: each (S, T) float32 matrix of the dense form takes 287 MB an image at 92x92. Streaming adds about the
    size of both maps beyond their gradients, and tiles of a few MB.
    """
    _check_pair(source, target, labels)
    with _full_precision(source):
        source, target, form = _prepared(source, target, aggregate, alpha, metric, impl)
        labelled = (labels != ignore_index).sum()
        if form == "dense":
            total, cycles = dense_loss(source, target, labels, metric, ignore_index)
        else:
            fused = form == "fused"
            cycles, back_index = _streamed_cycles(source, target, labels, metric, ignore_index, fused)
            counted_BS = cycles.closed.to(source.dtype)
            total = stream_loss(source, target, cycles.target_index, back_index, counted_BS, metric, fused)
        closed, covered = cycles.closed.sum(), cycles.covered(target.shape[2:].numel()).sum()
        return Association(total / closed.clamp(min=1), closed, labelled, covered, cycles)


def choose_form(impl: str, metric: str, source: Tensor, target: Tensor, aggregate: bool = False) -> str:
    """What `impl` means for the maps of a call: "auto" resolved to one of the others.

    Args:
        aggregate: whether target pixels are compared with each other too.
    """
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {METRICS}, not {metric!r}")
    if impl not in IMPLS:
        raise ValueError(f"impl must be one of {IMPLS}, not {impl!r}")
    if impl != "auto":
        return impl
    s, t = source.shape[2:].numel(), target.shape[2:].numel()
    if source.shape[0] * t * (max(s, t) if aggregate else s) <= DENSE_ELEMENTS:
        return "dense"
    return "fused" if auto_takes_fused(source, metric) else "streaming"


def _prepared(
    source: Tensor, target: Tensor, aggregate: bool, alpha: float, metric: str, impl: str
) -> tuple[Tensor, Tensor, str]:
    """Both maps in one precision, at least float32, the target aggregated if asked for; and the form that takes them."""
    source = source.to(at_least_float32(source))
    target = target.to(source.dtype)
    form = choose_form(impl, metric, source, target, aggregate)
    return source, _aggregated(target, alpha, metric, form) if aggregate else target, form


def _aggregated(x: Tensor, alpha: float, metric: str, form: str) -> Tensor:
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be between 0 and 1, not {alpha}")
    if form == "dense":
        return dense_aggregation(x, alpha, metric)
    return stream_aggregation(x.to(at_least_float32(x)), metric, alpha, form == "fused")


def _streamed_cycles(
    source: Tensor, target: Tensor, labels: Tensor, metric: str, ignore_index: int, fused: bool
) -> tuple[Cycles, Tensor]:
    """The cycles, and the way back from every target pixel that is some j*, (B, T)."""
    target_index, back_index, usable = stream_cycles(source, target, metric, fused)
    source_index, labels_BS = back_index.gather(1, target_index), labels.flatten(1)
    closed = usable & (labels_BS != ignore_index) & (labels_BS == labels_BS.gather(1, source_index))
    return Cycles(target_index, source_index, closed), back_index


def _full_precision(x: Tensor) -> torch.autocast:
    """Autocast would run the products in half precision, where argmax ties and small probabilities vanish."""
    return torch.autocast(x.device.type, enabled=False)


def _check_map(x: Tensor, name: str) -> None:
    if x.ndim != 4 or not x.is_floating_point() or 0 in x.shape:
        raise ValueError(f"{name} must be a (B, C, H, W) float map with no empty side, got {x.dtype} {tuple(x.shape)}")


def _check_pair(source: Tensor, target: Tensor, labels: Tensor) -> None:
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
