"""Spatial aggregation as attention: queries and keys are directions (or p and log p), values the pixels."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dada.domain_adaptation.association.pixels import PIXELS, Directions, Distributions, channel_dot
from dada.domain_adaptation.association.tiles import Softmax, softmax_, stripes

PAIR_SIDE = 512  # of the square tiles of the backward pass


@torch.compiler.disable
def stream_aggregation(x: Tensor, metric: str, alpha: float) -> Tensor:
    """(1 - alpha) x + alpha * softmax(similarity) x, over the pixels of each image: (B, C, H, W) -> same."""
    return _Aggregation.apply(x, metric, alpha)[0] if alpha > 0 else x.clone()


class _Aggregation(torch.autograd.Function):
    """Keeps three numbers a pixel for the backward pass, which finds the weights again from them."""

    @staticmethod
    def forward(ctx, x, metric, alpha):
        mixed = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        softmaxes = [_mix(x_CHW.flatten(1), metric, alpha, out.flatten(1)) for x_CHW, out in zip(x, mixed)]
        statistics = [torch.stack(part) for part in zip(*softmaxes)]
        ctx.save_for_backward(x, mixed, *statistics)
        ctx.metric, ctx.alpha = metric, alpha
        ctx.mark_non_differentiable(*statistics)
        return mixed, *statistics

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_mixed, *_):
        with torch.autocast(grad_mixed.device.type, enabled=False):  # backward may be called under autocast
            return _unmix(*ctx.saved_tensors, grad_mixed, ctx.metric, ctx.alpha), None, None


def _mix(x_CN: Tensor, metric: str, alpha: float, out_CN: Tensor) -> Softmax:
    """Aggregate one image into `out_CN`; returns what is needed to find the weights again, each (N,)."""
    pixels = PIXELS[metric](x_CN)
    count = x_CN.shape[1]
    own_N = torch.arange(count, device=x_CN.device)
    parts = []
    for part, tile_RN in stripes(count, pixels):
        rows_CR = pixels.rows(part)
        weight_RN = pixels.similarity(rows_CR, out_RN=tile_RN)
        # Nothing is more similar to a pixel than itself, by either metric: it is the peak of its row.
        softmax = softmax_(weight_RN, rows_CR, pixels, own_N[part], contrast=metric == "cos")
        mean_CR = torch.mm(x_CN, weight_RN.mT).div_(softmax.total[:, 0])
        torch.lerp(x_CN[:, part], mean_CR, alpha, out=out_CN[:, part])
        parts.append(softmax)
    return Softmax(*(torch.cat(part)[:, 0] for part in zip(*parts)))


def _unmix(
    x: Tensor,
    mixed: Tensor,
    scale: Tensor,
    peak: Tensor,
    total: Tensor,
    grad_mixed: Tensor,
    metric: str,
    alpha: float,
) -> Tensor:
    """The gradient of x from that of `mixed`."""
    grad = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    for b in range(x.shape[0]):
        x_CN, grad_mixed_CN, grad_CN = x[b].flatten(1), grad_mixed[b].flatten(1), grad[b].flatten(1)
        torch.mul(grad_mixed_CN, 1 - alpha, out=grad_CN)
        # The softmax takes away sum_k w_jk (grad_j . x_k): that is grad_j . (the mean of x that went into
        # mixed_j). To divide is harmless for small alpha, since the weights are multiplied by alpha in turn.
        mean_N = channel_dot(grad_mixed_CN, mixed[b].flatten(1)) - (1 - alpha) * channel_dot(
            grad_mixed_CN, x_CN
        )
        backward = _unmix_directions if metric == "cos" else _unmix_distributions
        backward(x_CN, grad_mixed_CN, Softmax(scale[b], peak[b], total[b]), mean_N / alpha, alpha, grad_CN)
    return grad


def _unmix_distributions(
    x_CN: Tensor, grad_mixed_CN: Tensor, softmax: Softmax, mean_N: Tensor, alpha: float, grad_CN: Tensor
) -> None:
    """Add the gradient of one image through weights and values to `grad_CN`, stripe by stripe."""
    pixels = Distributions(x_CN, grad_CN)
    for part, weight_RN, pull_RN in stripes(x_CN.shape[1], pixels, tiles=2):
        rows_CR, grad_rows_CR = pixels.rows(part), grad_mixed_CN[:, part]
        pixels.similarity(rows_CR, out_RN=weight_RN)
        shift_R = softmax.peak[part] + softmax.total[part].log() - math.log(alpha)
        weight_RN.sub_(shift_R[:, None]).exp_()  # alpha * w
        torch.mm(grad_rows_CR.mT, x_CN, out=pull_RN)
        pull_RN.sub_(mean_N[part, None]).mul_(weight_RN)
        grad_CN.addmm_(grad_rows_CR, weight_RN)  # as values
        pixels.add_column_gradient(rows_CR, pull_RN)  # as keys
        grad_CN[:, part] += pixels.gradient_of_rows_(pull_RN)  # as queries
    pixels.finish_gradient()


def _unmix_directions(
    x_CN: Tensor, grad_mixed_CN: Tensor, softmax: Softmax, mean_N: Tensor, alpha: float, grad_CN: Tensor
) -> None:
    """The same for cosines, in half the tiles: `_CosinePairs` does tile (I, K) and tile (K, I) at once."""
    pairs = _CosinePairs(x_CN, grad_mixed_CN, softmax, mean_N, alpha, grad_CN)
    parts = _even_parts(x_CN.shape[1])
    for i, first in enumerate(parts):
        for second in parts[i:]:
            pairs.add(first, second)
    pairs.finish()


def _even_parts(count: int) -> list[slice]:
    """Cut 0 .. count into the fewest parts of at most PAIR_SIDE, all but the last of equal length."""
    length = -(-count // -(-count // PAIR_SIDE))
    return [slice(start, min(count, start + length)) for start in range(0, count, length)]


class _CosinePairs:
    """Gradient of the cosine aggregation by square tiles.

    cos_IK and cos_KI are transposes of each other, so one product gives both; and as a cosine pulls at both
    of its pixels alike, the gradients as query and as key are one product with pull_IK + pull_KI^T. Seven
    products for two tiles instead of ten.
    """

    def __init__(
        self,
        x_CN: Tensor,
        grad_mixed_CN: Tensor,
        softmax: Softmax,
        mean_N: Tensor,
        alpha: float,
        grad_CN: Tensor,
    ):
        self.x_CN, self.grad_mixed_CN, self.grad_CN = x_CN, grad_mixed_CN, grad_CN
        self.unit_N = Directions(x_CN).unit_N
        self.scale_N1, self.peak_N1, self.mean_N1 = (
            v[:, None] for v in (softmax.scale, softmax.peak, mean_N)
        )
        self.shift_N1 = softmax.total[:, None].log() - math.log(alpha)
        self.along_N = torch.zeros_like(mean_N)  # sum over k of pull_ik cos_ik
        self.buffers = x_CN.new_empty(4, min(PAIR_SIDE, x_CN.shape[1]) ** 2)

    def add(self, first: slice, second: slice) -> None:
        """The tile of pixels I of `first` by K of `second`, and its transpose: one tile if both are equal."""
        height, width = first.stop - first.start, second.stop - second.start
        cos_IK, weight_IK, pull_IK, other_IK = (b[: height * width].view(height, width) for b in self.buffers)
        x_CI, x_CK = self.x_CN[:, first], self.x_CN[:, second]
        unit_I1, unit_K = self.unit_N[first, None], self.unit_N[second]
        torch.mm(x_CI.mT, x_CK, out=cos_IK).mul_(unit_I1).mul_(unit_K)

        self._pull_rows(cos_IK, first, second, weight_IK, pull_IK)
        if first == second:
            pull_IK = torch.add(pull_IK, pull_IK.mT, out=other_IK)
        else:
            self._pull_rows(cos_IK.mT, second, first, weight_IK.mT, other_IK.mT)
            pull_IK.add_(other_IK)

        along_IK = torch.mul(pull_IK, cos_IK, out=weight_IK)
        pull_IK.mul_(unit_I1).mul_(unit_K)
        self.along_N[first] += along_IK.sum(dim=1)
        self.grad_CN[:, first].addmm_(x_CK, pull_IK.mT)
        if first != second:
            self.along_N[second] += along_IK.sum(dim=0)
            self.grad_CN[:, second].addmm_(x_CI, pull_IK)

    def _pull_rows(
        self, cos_RN: Tensor, rows: slice, columns: slice, weight_RN: Tensor, pull_RN: Tensor
    ) -> None:
        """Write alpha * weights and the gradient of the cosines; add that of the columns as values."""
        grad_mixed_CR = self.grad_mixed_CN[:, rows]
        torch.sub(cos_RN, self.peak_N1[rows], out=weight_RN)
        weight_RN.mul_(self.scale_N1[rows]).sub_(self.shift_N1[rows]).exp_()
        self.grad_CN[:, columns].addmm_(grad_mixed_CR, weight_RN)
        torch.mm(grad_mixed_CR.mT, self.x_CN[:, columns], out=pull_RN)
        pull_RN.sub_(self.mean_N1[rows]).mul_(weight_RN).mul_(self.scale_N1[rows])

    def finish(self) -> None:
        """Take away what points along the pixel itself: length does not change a cosine."""
        self.grad_CN.addcmul_(self.x_CN, self.along_N * self.unit_N.square(), value=-1)
