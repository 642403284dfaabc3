"""The association as other libraries compute it, or the part of it that they have: rows of benchmarks/association.py.

Each takes what a user of that library would write, and leaves to ours what the library has not. The packages are optional:

    pip install pykeops flash-sinkhorn inf-cl
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from dada.domain_adaptation.association.operators import stream_cycles, stream_loss
from dada.domain_adaptation.cycle_association import spatial_aggregation

ALPHA = 0.5
EPS = 1e-10
IGNORE = 255
ROWS = 1024  # whose deviations are found at a time where a library cannot


class Cannot(Exception):
    """What keeps a library from a case: that it is not installed, or has no such operation."""


def _vectors(x: Tensor, y: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """(N, C), (M, C) -> vectors of rows and columns, whose products are the similarities, but for a constant of each row."""
    if metric == "cos":
        return F.normalize(x, dim=1), F.normalize(y, dim=1)
    return x, (y + EPS).log()


@torch.no_grad()
def _scales(a: Tensor, b: Tensor) -> Tensor:
    """(N, 1): 1 / deviation of every row of a @ b.T."""
    return 1 / (torch.cat([(rows @ b.T).std(dim=1, keepdim=True) for rows in a.split(ROWS)]) + EPS)


def _images(source: Tensor, target: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    for x, y, of_x in zip(source, target, labels):
        yield x.flatten(1).T.contiguous(), y.flatten(1).T.contiguous(), of_x.flatten()


def _closed(labels: Tensor, j: Tensor, back: Tensor) -> Tensor:
    """Indices of the source pixels whose cycle closes; `back` from every target pixel."""
    return ((labels == labels[back[j]]) & (labels != IGNORE)).nonzero()[:, 0]


def keops(source: Tensor, target: Tensor, labels: Tensor, metric: str) -> Tensor:
    """All of it by symbolic matrices of KeOps, whose reductions are compiled for the number of channels."""
    try:
        from pykeops.torch import LazyTensor
    except ImportError as error:
        raise Cannot("pykeops is not installed") from error

    def products(a: Tensor, b: Tensor):
        return LazyTensor(a[:, None, :].contiguous()) | LazyTensor(b[None].contiguous())

    @torch.no_grad()
    def scales(a: Tensor, b: Tensor) -> Tensor:
        mean = (a @ b.mean(0))[:, None, None]
        return 1 / (((products(a, b) - LazyTensor(mean)) ** 2).sum(dim=1) / (len(b) - 1)).sqrt().add(EPS)

    def cross_entropy(a: Tensor, b: Tensor, rows: Tensor, chosen: Tensor) -> Tensor:
        scaled = a[rows] * scales(a, b)[rows]
        return products(scaled, b).logsumexp(dim=1)[:, 0] - (scaled * b[chosen]).sum(1)

    terms = []
    for x, y, of_x in _images(source, target, labels):
        a, b = _vectors(y, y, metric)
        scaled = a * scales(a, b) if metric == "cos" else a
        z = (1 - ALPHA) * y + ALPHA * products(scaled, b).sumsoftmaxweight(LazyTensor(y[None].contiguous()), dim=1)
        there, back = _vectors(x, z, metric), _vectors(z, x, metric)
        with torch.no_grad():
            j, turned = (products(*pair).argmax(dim=1)[:, 0] for pair in (there, back))
        rows = _closed(of_x, j, turned)
        terms.append(cross_entropy(*there, rows, j[rows]) + cross_entropy(*back, j[rows], turned[j[rows]]))
    return torch.cat(terms).mean()


def flex(source: Tensor, target: Tensor, labels: Tensor, metric: str) -> Tensor:
    """The aggregation by FlexAttention, a temperature for each query in its score; cycles and loss by ours."""
    from torch.nn.attention.flex_attention import flex_attention

    if target.requires_grad and target.device.type == "cpu":
        raise Cannot("FlexAttention has no backward on a CPU")
    attention = torch.compile(flex_attention) if target.is_cuda else flex_attention
    mixed = []
    for y in target:
        y_NC = y.flatten(1).T
        a, b = _vectors(y_NC, y_NC, metric)
        scale = _scales(a, b)[:, 0] if metric == "cos" else y.new_ones(len(a))

        def score(product: Tensor, _batch: Tensor, _head: Tensor, query: Tensor, _key: Tensor, scale: Tensor = scale) -> Tensor:
            return product * scale[query]

        mean = attention(a[None, None], b[None, None], y_NC[None, None], score_mod=score, scale=1.0)[0, 0]
        mixed.append(torch.lerp(y, mean.T.view(y.shape), ALPHA))
    return _by_ours(source, torch.stack(mixed), labels, metric, *stream_cycles(source, torch.stack(mixed), metric)[:2])


def flash_sinkhorn(source: Tensor, target: Tensor, labels: Tensor, metric: str) -> Tensor:
    """The cycles by the argmin of flash-sinkhorn: with |y|^2 as potential, the least distance is the greatest product."""
    try:
        from flash_sinkhorn.c_transform import c_transform_fwd
    except ImportError as error:
        raise Cannot(f"flash-sinkhorn is not installed ({error})") from error
    if not source.is_cuda:
        raise Cannot("flash-sinkhorn needs CUDA")
    mixed = spatial_aggregation(target, metric=metric)
    ways = []
    with torch.no_grad():
        for x, z, _ in _images(source, mixed, labels):
            pairs = _vectors(x, z, metric), _vectors(z, x, metric)
            ways.append([c_transform_fwd(a, b, b.square().sum(1), allow_tf32=False)[1].long() for a, b in pairs])
    return _by_ours(source, mixed, labels, metric, *(torch.stack(part) for part in zip(*ways)))


def inf_cl(source: Tensor, target: Tensor, labels: Tensor, metric: str) -> Tensor:
    """The loss by the tiled cross-entropy of inf-cl, temperatures multiplied into its rows; aggregation and cycles by ours."""
    try:
        from inf_cl import cal_flash_loss
    except ImportError as error:
        raise Cannot(f"inf-cl is not installed ({error})") from error
    if not source.is_cuda:
        raise Cannot("inf-cl needs CUDA")
    mixed = spatial_aggregation(target, metric=metric)
    ways = stream_cycles(source, mixed, metric)
    width = min(256, source.shape[1])
    if source.shape[1] % width or width & (width - 1):
        raise Cannot(f"inf-cl takes channels in blocks of a power of 2, here are {source.shape[1]}")
    terms = []
    for (x, z, of_x), j, turned in zip(_images(source, mixed, labels), *ways[:2]):
        rows = _closed(of_x, j, turned)
        steps = (_vectors(x, z, metric), rows, j[rows]), (_vectors(z, x, metric), j[rows], turned[j[rows]])
        terms += [cal_flash_loss(a[i] * _scales(a[i], b), b, chosen, head_dim=width) for (a, b), i, chosen in steps]
    return torch.cat(terms).mean() * 2


def _by_ours(source: Tensor, mixed: Tensor, labels: Tensor, metric: str, j: Tensor, back: Tensor) -> Tensor:
    of_x = labels.flatten(1)
    closed = (of_x == of_x.gather(1, back.gather(1, j))) & (of_x != IGNORE)
    return stream_loss(source, mixed, j, back, closed.float(), metric) / closed.sum()


PEERS: dict[str, Callable[[Tensor, Tensor, Tensor, str], Tensor]] = {
    "flex": flex,
    "flash-sinkhorn": flash_sinkhorn,
    "inf-cl": inf_cl,
    "keops": keops,
}
