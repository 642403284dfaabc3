"""A source whose labels say nothing trains nothing, with losses of 0 that look like success."""

from __future__ import annotations

import logging

from torch import Tensor

from dada.label_sets import IGNORE_LABEL

log = logging.getLogger(__name__)

STEPS = 10


class LabelledPixels:
    """Looks at the labels of the first steps, and logs a warning if no pixel of them is labelled.

    Args:
        steps: how many there will be; of at most STEPS labels are looked at.
        what: whose labels they are.
    """

    def __init__(self, steps: int, what: str = "the source") -> None:
        self._what = what
        self._left = min(STEPS, steps)
        self._looked = self._left
        self._labelled: Tensor | None = None

    def look(self, label: Tensor) -> None:
        """(B, H, W) train ids of a step. The host waits for the device once, at the last of these steps."""
        if not self._left:
            return
        labelled = (label != IGNORE_LABEL).any()
        self._labelled = labelled if self._labelled is None else self._labelled | labelled
        self._left -= 1
        if not self._left and not self._labelled.item():
            log.warning(
                "not one pixel of %s was labelled with a trained class in %d steps, so that its losses are 0 and nothing "
                "is learnt: `dada check-data` shows which ids the label files hold, and which of them are ignored",
                self._what,
                self._looked,
            )
