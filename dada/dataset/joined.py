"""Several datasets of one role as one."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from torch.utils.data import Dataset

from dada.dataset.base import Item, SegmentationDataset
from dada.dataset.sample import Sample
from dada.dataset.sampler import Draw
from dada.label_sets import LabelSet


class Joined(Dataset):
    """The samples of the first of `parts`, then those of the next, and so on, each with the transform of its part.

    Args:
        shares: in what proportion training draws from the parts; empty: equally often.

    Raises:
        ValueError: their classes differ.
    """

    skip_bad_files = False  # as of a SegmentationDataset; samples of training steps go by that of their part

    def __init__(self, parts: Sequence[SegmentationDataset], shares: Sequence[float] = ()) -> None:
        self.parts = list(parts)
        self.shares = list(shares) or [1.0] * len(self.parts)
        self._first = list(accumulate((len(part) for part in parts), initial=0))
        for part in parts[1:]:
            if part.classes.names != self.classes.names:
                raise ValueError(
                    f"the classes of {parts[0].title} are {', '.join(self.classes.names)}, those of {part.title} "
                    f"{', '.join(part.classes.names)}: all must have the same, in the same order"
                )

    @property
    def title(self) -> str:
        return " and ".join(part.title for part in self.parts)

    @property
    def classes(self) -> LabelSet:
        return self.parts[0].classes

    @property
    def items(self) -> list[Item]:
        return [item for part in self.parts for item in part.items]

    def __len__(self) -> int:
        return self._first[-1]

    def __getitem__(self, key: int | Draw) -> Sample:
        index = key.index if isinstance(key, Draw) else key
        part = bisect_right(self._first, index) - 1
        index -= self._first[part]
        return self.parts[part][key._replace(index=index) if isinstance(key, Draw) else index]


def parts_of(dataset: SegmentationDataset | Joined) -> list[SegmentationDataset]:
    """The datasets that `dataset` is made of; just itself, unless it is a Joined."""
    return dataset.parts if isinstance(dataset, Joined) else [dataset]
