"""Counts the files that a run could not read and skipped (ON_BAD_FILE skip)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from dada.dataset.sample import Batch
from dada.parallel.distributed import greatest
from dada.parallel.ranks import every_rank, world_size

log = logging.getLogger(__name__)

# One in a hundred is what copies and downloads spoil; more of them, and what the network learns is another data set.
MOST = 0.01
FIRST_FREE = 10  # bad draws that are always let pass, or a run would stop at one that comes early


class TooManyBadFiles(ValueError):
    """Too many samples could not be read for the run to mean what it should."""


class BadFiles:
    """Counts the samples that took the place of others, warns once for every file, and stops when they are too many.

    Those of all processes are counted by all of them.

    Args:
        state: of an earlier `state()`, from which to count on.
    """

    def __init__(self, state: dict[str, Any] | None = None) -> None:
        state = state or {"draws": 0, "times": {}}
        self._draws: int = state["draws"]  # samples that the run has asked for
        self._times: dict[str, int] = dict(state["times"])  # how often each of the unreadable ones was drawn

    def state(self) -> dict[str, Any]:
        return {"draws": self._draws, "times": dict(self._times)}

    def counted(self, batches: Iterator[tuple[Batch | None, ...]]) -> Iterator[tuple[Batch | None, ...]]:
        """Pass the batches on as they are; counted is a batch when it is asked for.

        Raises:
            TooManyBadFiles: more than MOST of the draws so far, FIRST_FREE apart.
        """
        for pair in batches:
            for batch in pair:
                if batch is not None:
                    self._count(batch)
            yield pair

    def _count(self, batch: Batch) -> None:
        self._draws += len(batch.name) * world_size()
        skipped = batch.skipped
        if greatest(len(skipped)):
            skipped = [entry for entries in every_rank(skipped) for entry in entries]
        for name, reason in skipped:
            if name not in self._times:
                log.warning("skipped, here and wherever it comes again: %s", reason)
            self._times[name] = self._times.get(name, 0) + 1
        if skipped and self.total > FIRST_FREE + MOST * self._draws:
            raise TooManyBadFiles(
                f"{self}; ON_BAD_FILE skip continues with up to {MOST:.0%} (and {FIRST_FREE} draws). The last: "
                f"{skipped[-1][1]}\n`dada check-data` lists all such files; mend them, or leave them out "
                "with DATA_LIST_SOURCE and DATA_LIST_TARGET."
            )

    @property
    def total(self) -> int:
        """Draws of unreadable samples."""
        return sum(self._times.values())

    def __str__(self) -> str:
        share = self.total / max(self._draws, 1)
        return (
            f"{self.total} of {self._draws} draws ({share:.2%}) met a sample that cannot be read and took another; "
            f"such samples: {len(self._times)}"
        )
