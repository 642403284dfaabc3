"""Aggregation and loss on class probabilities by the kernels of Triton: all images of a batch at once, in a few launches.

The same interfaces as aggregation.py and streamed_loss.py, and the same steps, over the maps (B, C, N) of a batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dada.domain_adaptation.association.form import Form
from dada.domain_adaptation.contrastive_learning import EPS, rounding_of

MOST_CHANNELS = 128  # of which a block of pixels and a sum of as many fit into registers


def suits(form: Form, x: Tensor, metric: str) -> bool:
    return form.kernels and metric == "kl" and x.dtype is torch.float32 and x.shape[1] <= MOST_CHANNELS


def aggregate(x: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    from dada.domain_adaptation.association.softmax_kernel import softmax  # needs triton

    p = x.flatten(2)
    own = torch.arange(p.shape[2], device=x.device).expand(len(p), -1)
    found, mean = softmax(p, torch.log(p + EPS), own, values=p)
    return torch.lerp(p, mean, alpha).view(x.shape), found.scale, found.level


def aggregate_backward(x: Tensor, mixed: Tensor, level: Tensor, grad_mixed: Tensor, alpha: float) -> Tensor:
    from dada.domain_adaptation.association.pull_kernel import Rows, pull

    p, grad = x.flatten(2), grad_mixed.flatten(2)
    log_p = torch.log(p + EPS)
    mean = ((grad * mixed.flatten(2)).sum(1) - (1 - alpha) * (grad * p).sum(1)) / alpha
    of_rows = Rows(torch.ones_like(level), math.log(alpha) - level, mean)
    as_row, _ = pull(p, log_p, of_rows, True, (grad, p))
    as_column, as_value = pull(log_p, p, of_rows, False, (p, grad))
    return ((1 - alpha) * grad + as_row + as_column / (p + EPS) + as_value).view(x.shape)


def sum_over_cycles(
    source: Tensor, target: Tensor, j: Tensor, back: Tensor, weight: Tensor, needs_grad: tuple[bool, bool]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    p, q = source.flatten(2), target.flatten(2)
    turned = torch.zeros(back.shape, dtype=weight.dtype, device=weight.device).scatter_add_(1, j, weight)
    there, grad_p, grad_log_q = _cross_entropy(p, q, j, weight, needs_grad)
    here, grad_q, grad_log_p = _cross_entropy(q, p, back, turned, needs_grad[::-1])

    def joined(x: Tensor, grad: Tensor | None, grad_log: Tensor | None) -> Tensor | None:
        return None if grad is None or grad_log is None else (grad + grad_log / (x.flatten(2) + EPS)).view(x.shape)

    return there + here, joined(source, grad_p, grad_log_p), joined(target, grad_q, grad_log_q)


def _cross_entropy(
    rows: Tensor, columns: Tensor, chosen: Tensor, weight: Tensor, needs_grad: tuple[bool, bool]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """-sum of weight * log p(chosen | row); its gradients at the rows and at the logarithms of the columns, where needed."""
    from dada.domain_adaptation.association.pull_kernel import Rows, pull
    from dada.domain_adaptation.association.softmax_kernel import softmax

    log_columns = torch.log(columns + EPS)
    mean = (rows * log_columns.mean(dim=2, keepdim=True)).sum(1)
    entropy = -(rows * torch.log(rows + EPS)).sum(1)
    found, _ = softmax(rows, log_columns, chosen, (mean, rounding_of(mean + entropy)))
    factor = weight * found.scale
    of_rows = Rows(found.scale, factor.log() - found.level, factor, chosen)
    grad_rows = pull(rows, log_columns, of_rows, True)[0] if needs_grad[0] else None
    grad_log = pull(log_columns, rows, of_rows, False)[0] if needs_grad[1] else None
    return -(weight * found.log_p).sum(), grad_rows, grad_log
