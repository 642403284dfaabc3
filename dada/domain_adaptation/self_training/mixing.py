"""Images for a student to learn from: pasted classes, hidden patches, changed colours.

Random numbers come from torch's global CPU generator on any device, so that they are saved with a run and the host never waits
for a device: the copies are small and asynchronous.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import dada.torchvision_compat  # noqa: F401  before torchvision, hence the split
from dada.normalization import Normalization

# isort: split
from torchvision.transforms import v2


def class_mask(labels: Tensor, num_classes: int) -> Tensor:
    """Where ClassMix pastes: the pixels of half of the classes of each image, rounded up.

    Olsson et al., WACV 2021 (arXiv:2007.07936), as DACS uses it (Tranheden et al., WACV 2021, arXiv:2007.08702).

    Args:
        labels: (B, H, W) int64 train ids; 255 is no class and never pasted.

    Returns:
        (B, H, W) bool.
    """
    b = len(labels)
    index = labels.flatten(1).clamp(0, num_classes)  # what is no class shares the number after the last
    present = torch.zeros(b, num_classes + 1, dtype=torch.bool, device=labels.device).scatter_(1, index, True)
    present[:, num_classes] = False
    # Each class gets a random number; those with the lowest are chosen among the present ones.
    lots = torch.rand(b, num_classes + 1).to(labels.device, non_blocking=True).masked_fill(~present, 2.0)
    rank = lots.argsort(dim=1).argsort(dim=1)
    chosen = present & (rank < (present.sum(dim=1, keepdim=True) + 1) // 2)
    return chosen.gather(1, index).view_as(labels)


def patch_mask(size: tuple[int, int, int], ratio: float, patch: int, device: torch.device | str = "cpu") -> Tensor:
    """Which pixels stay visible, (B, 1, H, W) bool of `size` (B, H, W): each square patch is hidden with probability `ratio`.

    Hoyer et al., CVPR 2023 (arXiv:2212.01322). Patches at the right and lower border may be cut.

    Args:
        patch: its side in pixels.
        device: of the mask.
    """
    b, h, w = size
    # A number a patch is copied, not the mask: the host goes on at once where little is copied from ordinary memory.
    visible = torch.rand(b, 1, -(-h // patch), -(-w // patch)).to(device, non_blocking=True) >= ratio
    return visible.repeat_interleave(patch, 2).repeat_interleave(patch, 3)[..., :h, :w]


def strong_colors(normalization: Normalization, jitter: float, blur: float) -> Callable[[Tensor], Tensor]:
    """Random colours for normalised images, each image its own.

    Args:
        jitter: strength s: brightness, contrast and saturation change by factors from 1 - s to 1 + s, and the hue by up
            to s / 4 of the colour circle, in four of five images. 0: never.
        blur: probability of a Gaussian blur of 0.15 to 1.15 pixels.

    Returns:
        From (B, 3, H, W) to the same, both as `normalization` makes them.
    """
    steps: list[v2.Transform] = []
    if jitter:
        steps.append(v2.RandomApply([v2.ColorJitter(jitter, jitter, jitter, jitter / 4)], p=0.8))
    if blur:
        steps.append(v2.RandomApply([v2.GaussianBlur(kernel_size=5, sigma=(0.15, 1.15))], p=blur))

    def change(images: Tensor) -> Tensor:
        if not steps:
            return images
        rgb = (normalization.to_rgb(images) / 255).clamp(0, 1)
        for step in steps:
            rgb = torch.stack([step(image) for image in rgb])
        return normalization(255 * rgb)

    return change


def paste(mask: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Source where `mask` (B, H, W), else target; both (B, H, W) or (B, C, H, W)."""
    return torch.where(mask if source.dim() == 3 else mask[:, None], source, target)
