"""What a map looks like to each metric: row i . column j is the similarity of pixels i and j.

`Pixels` is their interface. A map takes part as rows (the pixels that choose) and as columns (those
chosen from); the gradients of both parts are collected tile by tile, and `finish_gradient` turns them into
that of the map.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from dada.domain_adaptation.association.form import GPU_TILE_ELEMENTS, PLAIN, Form, on_gpu
from dada.domain_adaptation.association.products import addmm_, mm, operand, rounded_to_half
from dada.domain_adaptation.contrastive_learning import EPS

CHANNEL_CHUNK, CHUNK_ELEMENTS = 64, 2**19  # channels at a time, and values, where a product of two maps is summed on a CPU


class Pixels(ABC):
    """A map as stripes see it, whatever the metric.

    Attributes:
        x_CN: the map.
        grad_CN: (C, N) where its gradient is collected, or None if none is wanted.
        compared_CN: (C, N) what rows are multiplied with.
        column_grad_CN: (C, N) where that of `compared_CN` is collected, or None.
        unit_N: (N,) scales the products with this map as columns to similarities; None: they are similarities.
        form: how its tiles are worked on.
    """

    compared_CN: Tensor
    column_grad_CN: Tensor | None
    unit_N: Tensor | None = None

    def __init__(self, x_CN: Tensor, grad_CN: Tensor | None = None, form: Form = PLAIN):
        """`grad_CN`: zeros that become the gradient of x, or None if none is wanted."""
        self.x_CN = x_CN
        self.grad_CN = grad_CN
        self.form = form

    @property
    @abstractmethod
    def usable_N(self) -> Tensor:
        """(N,) bool: pixels at which a cycle may start or turn around."""

    @property
    @abstractmethod
    def mean_column_C(self) -> Tensor:
        """(C,); its product with a row is the mean of the row's similarities but for `row_constant`: no pass over the tile."""

    @abstractmethod
    def finish_gradient(self) -> None:
        """Make of what was collected, for rows and columns as they are compared, the gradient of the map."""

    def rows(self, index: slice | Tensor) -> Tensor:
        """(C, R): the pixels of `index` as rows."""
        # x_CN[:, index] is four times slower for places one by one.
        return self.x_CN[:, index] if isinstance(index, slice) else self.x_CN.index_select(1, index)

    def row_constant(self, rows_CR: Tensor) -> Tensor:
        """(R, 1): what row . column leaves out of the similarity, the same for all columns."""
        return rows_CR.new_zeros(rows_CR.shape[1], 1)

    @cached_property
    def _half_CN(self) -> Tensor:
        return operand(self.compared_CN)

    @property
    def columns_CN(self) -> Tensor:
        """`compared_CN` as it enters the products."""
        return self._half_CN if rounded_to_half(self.compared_CN) else self.compared_CN

    def product(self, rows_CR: Tensor, out_RN: Tensor) -> Tensor:
        """Row . column: the similarities, but for `row_constant` and the factor `unit_N` of the columns."""
        return mm(rows_CR.mT, self.columns_CN, out=out_RN)

    def gradient_of_rows(self, grad_RN: Tensor) -> Tensor:
        """Gradient (C, R) of the rows compared with this map, from that of the products (R, N)."""
        return mm(grad_RN, self.columns_CN.mT).mT  # in this order: the other one is slow for odd R

    def add_row_gradient(self, index: slice | Tensor, grad_CR: Tensor) -> None:
        """Add to the gradient of the pixels of `index`, (C, R)."""
        if self.grad_CN is None:
            return
        if isinstance(index, slice):
            self.grad_CN[:, index] += grad_CR
        else:
            self.grad_CN.index_add_(1, index, grad_CR)

    def add_column_gradient(self, rows_CR: Tensor, grad_RN: Tensor) -> None:
        """Add to the gradient of this map as columns, from that of the products (R, N)."""
        if self.column_grad_CN is not None:
            addmm_(self.column_grad_CN, rows_CR, grad_RN)


class Directions(Pixels):
    """Cosine: rows and columns are x / |x|, never stored; 1 / |x| scales stripes and tiles instead."""

    unit_N: Tensor

    def __init__(self, x_CN: Tensor, grad_CN: Tensor | None = None, form: Form = PLAIN):
        super().__init__(x_CN, grad_CN, form)
        self.compared_CN, self.column_grad_CN = x_CN, grad_CN
        norm_N = channel_dot(x_CN, x_CN).sqrt()  # vector_norm down the rows is many times slower
        # A zero vector has no direction: similarity 0 to all, no gradient.
        self.unit_N = torch.where(norm_N == 0, 0.0, 1 / norm_N)

    @property
    def usable_N(self) -> Tensor:
        return self.unit_N > 0

    @cached_property
    def mean_column_C(self) -> Tensor:
        return torch.mv(self.x_CN, self.unit_N) / self.unit_N.numel()

    def rows(self, index: slice | Tensor) -> Tensor:
        return super().rows(index) * self.unit_N[index]

    def finish_gradient(self) -> None:
        """(g - u (u . g)) / |x| with u = x / |x|; that g / |x| is what was collected."""
        if self.grad_CN is not None:
            along_N = channel_dot(self.x_CN, self.grad_CN) * self.unit_N.square()
            self.grad_CN.addcmul_(self.x_CN, along_N, value=-1)


class Distributions(Pixels):
    """Kullback-Leibler: rows are p, columns log(p + EPS); the entropy of the row is a constant of the row."""

    def __init__(self, x_CN: Tensor, grad_CN: Tensor | None = None, form: Form = PLAIN):
        super().__init__(x_CN, grad_CN, form)
        self.compared_CN = torch.log(x_CN + EPS)
        self.column_grad_CN = None if grad_CN is None else torch.zeros_like(x_CN)

    @property
    def usable_N(self) -> Tensor:
        return self.x_CN.new_ones(self.x_CN.shape[1], dtype=torch.bool)

    @cached_property
    def mean_column_C(self) -> Tensor:
        return self.compared_CN.mean(dim=1)

    def row_constant(self, rows_CR: Tensor) -> Tensor:
        """-sum_c p_c log p_c of the row, which the softmax does not see."""
        return -channel_dot(rows_CR, torch.log(rows_CR + EPS))[:, None]

    def finish_gradient(self) -> None:
        """d log(p + EPS) = dp / (p + EPS)."""
        if self.grad_CN is not None and self.column_grad_CN is not None:
            self.grad_CN.addcdiv_(self.column_grad_CN, self.x_CN + EPS)


PIXELS: dict[str, Callable[..., Pixels]] = {"cos": Directions, "kl": Distributions}


def channel_dot(x_CN: Tensor, y_CN: Tensor) -> Tensor:
    """sum_c x_cn y_cn, with no larger temporary than a tile.

    Never a matrix product, which may be of rounded operands: norms are sums like this one.
    """
    count = x_CN.shape[1]
    chunk = max(1, min(CHANNEL_CHUNK, CHUNK_ELEMENTS // count))
    if on_gpu(x_CN.device):
        chunk = max(CHANNEL_CHUNK, GPU_TILE_ELEMENTS // count)
    (x, y), *others = zip(x_CN.split(chunk), y_CN.split(chunk))
    dot_N = (x * y).sum(dim=0)
    for x, y in others:
        dot_N += (x * y).sum(dim=0)
    return dot_N
