"""Pixels of earlier images, kept as vectors with labels, for terms that compare more than the images of one step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dada.domain_adaptation.parallel.ranks import joint_concat

IGNORE = 255


class PixelMemory:
    """A ring buffer of pixels without gradient; what came first is overwritten first.

    Of every image `per_image` pixels are drawn, all classes alike: a pixel of a class with n pixels in the image has 1/n of
    the chance of one that is alone. Numbers come from torch's global CPU generator on any device, which checkpoints save.
    The processes of a run remember the images of all of them.

    Args:
        capacity: pixels; at least 1.
        per_image: pixels that are drawn of each image; at least 1, all if the image has fewer.

    Raises:
        ValueError: one of them is less than 1.
    """

    def __init__(self, capacity: int, per_image: int) -> None:
        if capacity < 1 or per_image < 1:
            raise ValueError(f"a memory needs room for a pixel: capacity is {capacity}, pixels per image {per_image}")
        self.capacity = capacity
        self.per_image = per_image
        self.x = torch.empty(0, 0)  # (C, M) the pixels, M <= capacity
        self.labels = torch.empty(0, dtype=torch.int64)  # (M,)
        self.next = 0  # where the next pixel goes, once the memory is full

    def __len__(self) -> int:
        return self.labels.numel()

    @torch.no_grad()
    def add(self, x: Tensor, labels: Tensor) -> None:
        """Remember some pixels of each image.

        Args:
            x: (B, C, H, W). labels: (B, H, W) ids 0 .. 255; pixels labelled 255 are drawn only if there are no others.
        """
        labels_BN = labels.flatten(1)
        chosen_BM = balanced_sample(labels_BN, self.per_image)
        drawn_BCM = x.detach().flatten(2).gather(2, chosen_BM[:, None].expand(-1, x.shape[1], -1))
        drawn_BCM, of_drawn_BM = joint_concat(drawn_BCM, 0)[0], joint_concat(labels_BN.gather(1, chosen_BM), 0)[0]
        self._append(drawn_BCM.transpose(0, 1).flatten(1), of_drawn_BM.flatten())

    def _append(self, x_CM: Tensor, labels_M: Tensor) -> None:
        x_CM, labels_M = x_CM[:, -self.capacity :], labels_M[-self.capacity :]
        free = self.capacity - len(self)
        # What is remembered may come from a checkpoint, and so from another device.
        old_CM, old_M = (self.x.to(x_CM) if len(self) else x_CM[:, :0]), self.labels.to(labels_M)
        # New tensors: a graph that still waits for its backward pass may hold the old ones.
        self.x, self.labels = torch.cat([old_CM, x_CM[:, :free]], 1), torch.cat([old_M, labels_M[:free]])
        x_CM, labels_M = x_CM[:, free:], labels_M[free:]
        place = (self.next + torch.arange(labels_M.numel(), device=labels_M.device)) % self.capacity
        self.x, self.labels = self.x.index_copy(1, place, x_CM), self.labels.index_copy(0, place, labels_M)
        self.next = (self.next + labels_M.numel()) % self.capacity

    def state_dict(self) -> dict[str, Any]:
        return {"x": self.x, "labels": self.labels, "next": self.next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.x, self.labels, self.next = state["x"], state["labels"], state["next"]


def balanced_sample(labels: Tensor, count: int) -> Tensor:
    """`count` pixels of each image without repetition, (B, N) -> (B, min(count, N)) indices; see `PixelMemory`.

    Weighted sampling by keys (Efraimidis & Spirakis, Information Processing Letters 2006): the greatest u^(1/w), which are
    the least e/w for exponential e. No shape depends on a value.
    """
    b, n = labels.shape
    sizes = torch.zeros(b, IGNORE + 1, device=labels.device).scatter_add_(1, labels, torch.ones_like(labels, dtype=torch.float32))
    keys = torch.empty(b, n).exponential_().to(labels.device) * sizes.gather(1, labels)
    keys = keys.masked_fill(labels == IGNORE, torch.inf)
    return keys.topk(min(count, n), dim=1, largest=False).indices
