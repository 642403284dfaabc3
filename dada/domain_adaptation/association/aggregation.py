"""Spatial aggregation as attention: queries and keys are directions (or p and log p), values the pixels."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from dada.domain_adaptation.association import few_channels
from dada.domain_adaptation.association.form import GPU_ROWS, PLAIN, Form, on_gpu
from dada.domain_adaptation.association.pixels import PIXELS, Directions, Pixels, channel_dot
from dada.domain_adaptation.association.products import addmm_, mm, operand
from dada.domain_adaptation.association.tiles import TILE_ELEMENTS, even_parts, softmax_, stripes, tiles_in


def aggregate(x: Tensor, metric: str, alpha: float, form: Form = PLAIN) -> tuple[Tensor, Tensor, Tensor]:
    """(1 - alpha) x + alpha * softmax(similarity) x over the pixels of each image, (B, C, H, W) -> same; and
    scale and level of the softmax, each (B, H*W), from which `aggregate_backward` finds the weights again.
    """
    if few_channels.suits(form, x, metric):
        return few_channels.aggregate(x, alpha)
    mixed = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    softmaxes = [_mix(PIXELS[metric](x[b].flatten(1), form=form), alpha, mixed[b].flatten(1)) for b in range(len(x))]
    scale, level = (torch.stack(part) for part in zip(*softmaxes))
    return mixed, scale, level


def _mix(pixels: Pixels, alpha: float, out_CN: Tensor) -> tuple[Tensor, Tensor]:
    """Aggregate one image into `out_CN`; returns scale and level of the softmax, each (N,)."""
    x_CN, contrast = pixels.x_CN, isinstance(pixels, Directions)
    count = x_CN.shape[1]
    own_N = torch.arange(count, device=x_CN.device)
    values_CN = pixels.columns_CN if contrast else operand(x_CN)
    scale_N, level_N = x_CN.new_empty(2, count)
    for part, tile_RN in stripes(count, pixels):
        rows_CR = pixels.rows(part)
        product_RN = pixels.product(rows_CR, out_RN=tile_RN)
        # Nothing is more similar to a pixel than itself, by either metric.
        weight_RN, softmax = softmax_(product_RN, rows_CR, pixels, own_N[part], contrast)
        torch.lerp(x_CN[:, part], mm(weight_RN, values_CN.mT).mT, alpha, out=out_CN[:, part])
        scale_N[part], level_N[part] = softmax.scale, softmax.level
        del weight_RN  # a kernel writes the next one elsewhere
    return scale_N, level_N


def aggregate_backward(
    x: Tensor, mixed: Tensor, scale: Tensor, level: Tensor, grad_mixed: Tensor, metric: str, alpha: float, form: Form = PLAIN
) -> Tensor:
    """The gradient of x from that of `mixed` and the results of `aggregate`."""
    if few_channels.suits(form, x, metric):
        return few_channels.aggregate_backward(x, mixed, level, grad_mixed, alpha)
    grad = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    for b in range(x.shape[0]):
        x_CN, grad_mixed_CN, grad_CN = x[b].flatten(1), grad_mixed[b].flatten(1), grad[b].flatten(1)
        torch.mul(grad_mixed_CN, 1 - alpha, out=grad_CN)
        # The softmax takes away sum_k w_jk (grad_j . x_k): that is grad_j . (the mean of x that went into
        # mixed_j). To divide is harmless for small alpha, since the weights are multiplied by alpha in turn.
        mean_N = channel_dot(grad_mixed_CN, mixed[b].flatten(1)) - (1 - alpha) * channel_dot(grad_mixed_CN, x_CN)
        pixels = PIXELS[metric](x_CN, grad_CN, form)
        rest = grad_CN, grad_mixed_CN, scale[b], level[b], mean_N / alpha, alpha
        if isinstance(pixels, Directions):
            _unmix_directions(pixels, *rest)
        else:
            _unmix_distributions(pixels, *rest)
    return grad


def _unmix_distributions(
    pixels: Pixels, grad_CN: Tensor, grad_mixed_CN: Tensor, _: Tensor, level_N: Tensor, mean_N: Tensor, alpha: float
) -> None:
    """Add the gradient of one image through weights and values, stripe by stripe."""
    x_CN, grad_mixed_CN = operand(pixels.x_CN), operand(grad_mixed_CN)
    shift_N = level_N - math.log(alpha)
    for part, weight_RN, pull_RN in stripes(x_CN.shape[1], pixels, tiles=2):
        rows_CR, grad_rows_CR = pixels.rows(part), grad_mixed_CN[:, part]
        pixels.product(rows_CR, out_RN=weight_RN)
        mm(grad_rows_CR.mT, x_CN, out=pull_RN)
        weight_RN.sub_(shift_N[part, None]).exp_()  # alpha * w
        pull_RN.sub_(mean_N[part, None]).mul_(weight_RN)
        addmm_(grad_CN, grad_rows_CR, weight_RN)  # as values
        pixels.add_column_gradient(rows_CR, pull_RN)  # as keys
        grad_CN[:, part] += pixels.gradient_of_rows(pull_RN)  # as queries
    pixels.finish_gradient()


def _unmix_directions(
    pixels: Directions, grad_CN: Tensor, grad_mixed_CN: Tensor, scale_N: Tensor, level_N: Tensor, mean_N: Tensor, alpha: float
) -> None:
    """The same for cosines, in half the tiles.

    cos_IK and cos_KI are transposes of each other, so one product gives both; and as a cosine pulls at both
    of its pixels alike, the gradients as query and as key are one product with pull_IK + pull_KI^T. Seven
    products for two tiles instead of ten. Everything lies in memory as (I, K), that of tile (K, I) as well.
    Factors of the pixels I go to their vectors, once for all tiles: not into the tiles.
    """
    unit_N, kernels = pixels.unit_N, pixels.form.kernels
    weigh: Callable = _compiled(_weigh_pair_) if kernels else _weigh_pair_
    pull: Callable = _compiled(_pull_pair_) if kernels else _pull_pair_
    x_CN, grad_mixed_CN = pixels.columns_CN, operand(grad_mixed_CN)
    half = x_CN.dtype is torch.bfloat16  # and so is what is multiplied with it
    numbers = (unit_N, scale_N, math.log(alpha) - level_N, -mean_N * scale_N)
    along_N = torch.zeros_like(mean_N)  # sum over k of pull_ik cos_ik
    parts = even_parts(x_CN.shape[1], pair_side(x_CN.shape[0], x_CN.device))
    buffers = [grad_CN.new_empty(parts[0].stop ** 2) for _ in range(3 if kernels else 5)]
    for i, first in enumerate(parts):
        x_CI, grad_mixed_CI = x_CN[:, first], grad_mixed_CN[:, first]
        of_I = Rows(*(v[first].clone() for v in numbers))
        unit_CI, scaled_CI = operand(pixels.rows(first)), operand(grad_mixed_CI * of_I.scale)
        grad_unit_CI = grad_CN.new_zeros(x_CI.shape)
        for second in parts[i:]:
            x_CK, grad_mixed_CK = x_CN[:, second], grad_mixed_CN[:, second]
            of_K = Rows(*(v[second].clone() for v in numbers))
            cos_IK, pull_IK, other_IK, *weights = tiles_in(buffers, x_CI.shape[1], x_CK.shape[1])
            mm(unit_CI.mT, x_CK, out=cos_IK)
            cos_IK, weight_IK, back_IK = weigh(cos_IK, *(weights or (None, None)), of_I, of_K, half)
            addmm_(grad_CN[:, second], grad_mixed_CI, weight_IK)  # as values
            if first != second:
                addmm_(grad_CN[:, first], grad_mixed_CK, back_IK.mT)
            mm(scaled_CI.mT, x_CK, out=pull_IK)
            mm(x_CI.mT, grad_mixed_CK, out=other_IK)
            pull_IK, along_K = pull(cos_IK, weight_IK, back_IK, pull_IK, other_IK, of_I, of_K, half)
            addmm_(grad_unit_CI, x_CK, pull_IK.mT)  # as queries and keys
            if first != second:
                addmm_(grad_CN[:, second], unit_CI, pull_IK)
                along_N[second] += along_K
        grad_CN[:, first].addcmul_(grad_unit_CI, of_I.unit)
        along_N[first] += channel_dot(unit_CI, grad_unit_CI)
    # Take away what points along the pixel itself: length does not change a cosine.
    grad_CN.addcmul_(pixels.x_CN, along_N * unit_N.square(), value=-1)


@cache
def _compiled(epilogue: Callable) -> Callable:
    """Two kernels in place of a pass over the tiles for each operation. Hand it no views into larger tensors: a compiler tells
    them apart by their place there, and would compile anew for some of them.
    """
    return torch.compile(epilogue, dynamic=True)


def _writable(tile: Tensor) -> Tensor:
    """A tile that an epilogue may overwrite. In a compiled one a new tensor: what is written into an argument would be written
    elsewhere first and then copied, a pass more. The copy here is compiled away.
    """
    return tile.clone() if torch.compiler.is_compiling() else tile


class Rows(NamedTuple):
    """What the backward pass knows of some pixels as rows, a number each."""

    unit: Tensor
    scale: Tensor
    bias: Tensor  # alpha * weight = exp(scale * cos + bias)
    less: Tensor  # -scale * mean


def _weigh_pair_(
    cos_IK: Tensor, weight_IK: Tensor | None, back_IK: Tensor | None, of_I: Rows, of_K: Rows, half: bool
) -> tuple[Tensor, ...]:
    """Cosines from products with directions I; alpha * the weights of both tiles, in the tiles given, or in new ones, which are
    bfloat16 if `half`, as the products take them.
    """
    cos_IK = _writable(cos_IK)
    cos_IK.mul_(of_K.unit)
    weight_IK, back_IK = _weights(cos_IK, weight_IK, back_IK, of_I, of_K)
    return cos_IK, *((weight_IK.bfloat16(), back_IK.bfloat16()) if half else (weight_IK, back_IK))


def _weights(cos_IK: Tensor, weight_IK: Tensor | None, back_IK: Tensor | None, of_I: Rows, of_K: Rows) -> tuple[Tensor, Tensor]:
    weight_IK = torch.mul(cos_IK, of_I.scale[:, None], out=weight_IK).add_(of_I.bias[:, None]).exp_()
    return weight_IK, torch.addcmul(of_K.bias, cos_IK, of_K.scale, out=back_IK).exp_()


def _pull_pair_(
    cos_IK: Tensor, weight_IK: Tensor, back_IK: Tensor, pull_IK: Tensor, other_IK: Tensor, of_I: Rows, of_K: Rows, half: bool
) -> tuple[Tensor, Tensor]:
    """The gradient of the cosines of both tiles, times the unit of K; and its share along the pixels K."""
    pull_IK, other_IK = _writable(pull_IK), _writable(other_IK)
    if half:  # once more instead of rounded ones
        weight_IK, back_IK = _weights(cos_IK, None, None, of_I, of_K)
    pull_IK.add_(of_I.less[:, None]).mul_(weight_IK)  # the scale of I came with the product
    torch.addcmul(of_K.less, other_IK, of_K.scale, out=other_IK)
    pull_IK.addcmul_(other_IK, back_IK)
    along_K = torch.mul(pull_IK, cos_IK, out=other_IK).sum(dim=0)
    pull_IK.mul_(of_K.unit)
    return (pull_IK.bfloat16() if half else pull_IK), along_K


def pair_side(channels: int, device: torch.device) -> int:
    """Pixels of a square tile: five tiles and three slices of the map have 3/2 TILE_ELEMENTS."""
    if on_gpu(device):
        return GPU_ROWS
    return int((math.sqrt(9 * channels**2 + 30 * TILE_ELEMENTS) - 3 * channels) / 10)  # 5 s^2 + 3 C s
