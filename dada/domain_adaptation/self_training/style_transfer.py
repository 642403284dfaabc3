"""Source images that look more like the target, without a network: colour transfer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dada.normalization import Normalization

# Linear sRGB to XYZ under the white D65 (IEC 61966-2-1), each row divided by the white's.
_XYZ = ((0.4339499, 0.3762098, 0.1898403), (0.2126729, 0.7151522, 0.0721750), (0.0177566, 0.1094680, 0.8727754))
_LINEAR = 6 / 29  # below this the cube root of CIELAB is a straight line


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """(B, 3, H, W) sRGB in 0..1 -> CIELAB, L in 0..100."""
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4)
    xyz = _mixed(linear, torch.tensor(_XYZ))
    f = torch.where(xyz > _LINEAR**3, xyz.clamp(min=_LINEAR**3) ** (1 / 3), xyz / (3 * _LINEAR**2) + 4 / 29)
    x, y, z = f.unbind(1)
    return torch.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), 1)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """The inverse of `rgb_to_lab`, not clamped: colours that sRGB lacks lie outside 0..1."""
    lightness, a, b = lab.unbind(1)
    y = (lightness + 16) / 116
    f = torch.stack((y + a / 500, y, y - b / 200), 1)
    xyz = torch.where(f > _LINEAR, f**3, 3 * _LINEAR**2 * (f - 4 / 29))
    linear = _mixed(xyz, torch.tensor(_XYZ, dtype=torch.float64).inverse().float())
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055)


def _mixed(images: Tensor, matrix: Tensor) -> Tensor:
    return torch.einsum("ij,bjhw->bihw", matrix.to(images, non_blocking=True), images)


def color_transfer(source: Tensor, target: Tensor) -> Tensor:
    """Give each source image mean and standard deviation of a target image, channel by channel in CIELAB.

    Reinhard et al., "Color Transfer between Images", IEEE CG&A 2001, in CIELAB instead of their l-alpha-beta.

    Args:
        source, target: (B, 3, H, W) and (B, 3, H', W') sRGB in 0..1; image k takes after target image k.

    Returns:
        Like `source`, not clamped.
    """
    source_lab, target_lab = rgb_to_lab(source), rgb_to_lab(target)
    mean, wanted_mean = (x.mean((2, 3), keepdim=True) for x in (source_lab, target_lab))
    std, wanted_std = (x.std((2, 3), keepdim=True, correction=0) for x in (source_lab, target_lab))
    return lab_to_rgb((source_lab - mean) * (wanted_std / std.clamp(min=1e-3)) + wanted_mean)


def source_style(normalization: Normalization) -> Callable[[Tensor, Tensor], Tensor]:
    """What gives normalised source images the colours of normalised target images, see `color_transfer`.

    Source image k takes after target image k of the batch, with which it is associated, and begins again with the first one
    where there are fewer. Values are clamped to 0..255.
    """

    def style(source: Tensor, target: Tensor) -> Tensor:
        partner = torch.arange(len(source), device=target.device) % len(target)
        own, like = ((normalization.to_rgb(x) / 255).clamp(0, 1) for x in (source, target[partner]))
        return normalization(255 * color_transfer(own, like).clamp(0, 1)).to(source.dtype)

    return style
