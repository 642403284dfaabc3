"""Apply a function to many items in loader processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch.utils.data import Dataset

from dada.dataset.loader import Loader

T = TypeVar("T")


class _Results(Dataset):
    def __init__(self, function: Callable[[Any], Any], items: Sequence) -> None:
        self._function, self._items = function, items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Any:
        return self._function(self._items[index])


def parallel_map(function: Callable[[T], Any], items: Sequence[T], num_workers: int = 0, **options) -> Loader:
    """`function(item)` for each item, in order, computed by `num_workers` processes, or by this one if 0.

    Args:
        function: of a module, or a partial of one, since processes may have to import it.
        options: of a Loader.
    """
    return Loader(_Results(function, items), batch_size=None, num_workers=num_workers, collate_fn=_as_it_is, **options)


def _as_it_is(result: Any) -> Any:
    return result
