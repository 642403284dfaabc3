r"""Soft cycles: the probability of a walk from a source pixel to the target and back to the same class.

In place of the one most similar pixel, every pixel is a way there, as probable as it is similar: the round trips of Haeusser
et al., "Associative Domain Adaptation", ICCV 2017 (arXiv:1708.00938), whose walker loss asks for

    P(i -> t -> s) = sum_t p(t | i) p(s | t)

to be uniform over the source pixels s of the class of i. Here it is the class that has to be right, not every pixel of it to be equally
likely:

    L = -1/W * sum over labelled i of w_i log sum_t p(t | i) A_t(label(i)),     A_t(k) = sum over s labelled k of p(s | t)

p is the softmax of contrast-normalised similarity, as in the hard form. Their visit loss is left out.

A is attention of the target pixels to the source with one-hot labels as values, the sum over t is attention of the source
pixels to the target with A as values. So neither needs a matrix of source x target pixels at once: stripes of rows are
made, used, and made again in the backward pass, and memory is linear in the number of pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dada.domain_adaptation.association.contrast import EPS
from dada.domain_adaptation.contrastive_learning import (
    METRICS,
    as_pixels,
    at_least_float32,
    check_pair,
    contrast_normalize,
    direction,
    full_precision,
    spatial_aggregation,
)
from dada.domain_adaptation.parallel.ranks import joint_mean, joint_sum

STRIPE = 2**20  # similarities that are made at once


class SoftAssociation(NamedTuple):
    loss: Tensor  # nats per labelled pixel; 0, with zero gradient, if no pixel has a weight
    returning: Tensor  # 0-dim, mean probability over labelled pixels of coming back to the same class
    probability: Tensor  # (B, Hs, Ws), that probability; 0 where there is no label


def attend(rows: Tensor, columns: Tensor, values: Tensor, stripe: int = STRIPE) -> Tensor:
    """softmax(contrast_normalize(rows @ columns^T)) @ values, some rows at a time.

    Args:
        rows: (N, C). columns: (M, C). values: (M, K).

    Returns:
        (N, K), the same values and derivatives as in one piece.
    """

    def some(rows: Tensor, columns: Tensor, values: Tensor) -> Tensor:
        return contrast_normalize(rows @ columns.mT).softmax(dim=-1) @ values

    parts = rows.split(max(1, stripe // len(columns)))
    if len(parts) == 1:
        return some(rows, columns, values)
    options = {"use_reentrant": False, "preserve_rng_state": False}
    return torch.cat([checkpoint(some, part, columns, values, **options) for part in parts])


def soft_association_loss(
    source: Tensor,
    target: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    weights: Tensor | None = None,
    metric: str = "cos",
    aggregate: bool = True,
    alpha: float = 0.5,
    ignore_index: int = 255,
    stripe: int = STRIPE,
) -> SoftAssociation:
    """The loss at the head of this file; image b of the source is paired with image b of the target.

    Args:
        source, target, labels, metric, aggregate, alpha, ignore_index: as for `association_loss`.
        num_classes: labels are 0 .. num_classes - 1, or ignored. Ignored source pixels start no walk; to end at one is to
            end at no class.
        weights: w, (B, Hs, Ws), not negative; constants in the backward pass. None: 1.
        stripe: similarities that are made at once.

    Raises:
        ValueError: as `association_loss`.
    """
    check_pair(source, target, labels)
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {METRICS}, not {metric!r}")
    if weights is not None and weights.shape != labels.shape:
        raise ValueError(f"weights {tuple(weights.shape)} do not fit the source pixels: expected {tuple(labels.shape)}")
    with full_precision(source):
        source = source.to(at_least_float32(source))
        target = target.to(source.dtype)
        if aggregate:
            target = spatial_aggregation(target, alpha=alpha, metric=metric)
        known = labels != ignore_index
        onehot = F.one_hot(torch.where(known, labels, num_classes), num_classes + 1)[..., :num_classes].to(source.dtype)
        onehot_BSK = onehot.flatten(1, 2)
        returned_BSK = torch.stack([
            _round_trip(x_SC, y_TC, onehot_SK, metric, stripe)
            for x_SC, y_TC, onehot_SK in zip(as_pixels(source), as_pixels(target), onehot_BSK)
        ])  # fmt: skip
        probability_BS = (returned_BSK * onehot_BSK).sum(dim=-1)
        known_BS = known.flatten(1)
        weights_BS = known_BS.to(source.dtype) if weights is None else weights.detach().flatten(1).to(source.dtype) * known_BS
        # Where nothing comes back, as for a class whose only pixel is far away, the logarithm needs a floor.
        log_BS = torch.where(known_BS, probability_BS, 1.0).clamp(min=torch.finfo(source.dtype).tiny).log()
        weight, labelled = weights_BS.sum(), joint_sum(known.sum())
        return SoftAssociation(
            joint_mean(-(weights_BS * log_BS).sum() / torch.where(weight > 0, weight, 1.0), weight),
            joint_sum(probability_BS.sum()) / labelled.clamp(min=1),
            probability_BS.detach().view_as(labels),
        )


def _round_trip(x_SC: Tensor, y_TC: Tensor, onehot_SK: Tensor, metric: str, stripe: int) -> Tensor:
    """(S, K): probability of each class at the end of a walk that starts at each source pixel."""
    there, back = _compared(x_SC, y_TC, metric), _compared(y_TC, x_SC, metric)
    class_TK = attend(*back, onehot_SK, stripe)
    return attend(*there, class_TK, stripe)


def _compared(rows: Tensor, columns: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """Vectors whose products are the similarities of rows to columns."""
    if metric == "cos":
        return direction(rows), direction(columns)
    negative_entropy = (rows * torch.log(rows + EPS)).sum(dim=-1, keepdim=True)
    log_columns = torch.log(columns + EPS)
    return torch.cat([rows, -negative_entropy], dim=1), torch.cat([log_columns, torch.ones_like(log_columns[:, :1])], dim=1)
