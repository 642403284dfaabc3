"""What a dataset returns: one named structure for a sample, one for a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dada.dataset.loader import shared


class Sample(NamedTuple):
    """One image with what is known about it."""

    image: Tensor  # (3, H, W) float32, normalised for the weights in use
    label: Tensor | None  # (H, W) int64 train ids, 255 = ignore; None where labels are not read
    depth: Tensor | None  # (H, W) float32 inverse depth; None where depth is not read
    name: str  # the image file, relative to the dataset's image folder
    size: tuple[int, int]  # (height, width) of the image file
    view: Tensor | None = None  # (3, H, W): the same pixels under a second, stronger photometric augmentation
    skipped: tuple[tuple[str, str], ...] = ()  # samples that could not be read before this one: image file and reason


class Batch(NamedTuple):
    """B samples stacked. A field that is None in the samples stays None."""

    image: Tensor  # (B, 3, H, W)
    label: Tensor | None  # (B, H, W)
    depth: Tensor | None  # (B, H, W)
    name: list[str]
    size: list[tuple[int, int]]
    view: Tensor | None = None  # (B, 3, H, W)
    skipped: tuple[tuple[str, str], ...] = ()  # those of all samples

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch with its tensors on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The batch with its tensors in page-locked memory; called by a DataLoader with `pin_memory` on."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function) -> Batch:
        return Batch(*(function(value) if isinstance(value, Tensor) else value for value in self))


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples into a Batch; the `collate_fn` of every loader here.

    Raises:
        ValueError: the sizes differ, or only some samples have a field.
    """
    return Batch(
        image=_stack(samples, "image"),
        label=_stack(samples, "label"),
        depth=_stack(samples, "depth"),
        name=[sample.name for sample in samples],
        size=[tuple(sample.size) for sample in samples],
        view=_stack(samples, "view"),
        skipped=tuple(entry for sample in samples for entry in sample.skipped),
    )


def collate_by_size(samples: Sequence[Sample]) -> list[Batch]:
    """As `collate`, but one batch for each size of image and label among the samples.

    Test images may keep their shape and their labels' own sizes, and so need not fit into one batch.
    """
    groups: dict[tuple, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(tuple(None if t is None else t.shape for t in sample[:3]), []).append(sample)
    return [collate(group) for group in groups.values()]


def _stack(samples: Sequence[Sample], field: str) -> Tensor | None:
    values = [getattr(sample, field) for sample in samples]
    missing = [sample.name for sample, value in zip(samples, values) if value is None]
    if len(missing) == len(samples):
        return None
    if missing:
        raise ValueError(f"{len(missing)} of {len(samples)} samples of one batch have no {field}, first {missing[0]!r}")
    if any(value.shape != values[0].shape for value in values):
        shapes = ", ".join(f"{sample.name} {tuple(value.shape)}" for sample, value in zip(samples, values))
        raise ValueError(
            f"the {field}s of one batch differ in size: {shapes}. "
            "Give the transform a crop or a fixed size, or use a batch size of 1."
        )
    return shared(torch.stack(values))
