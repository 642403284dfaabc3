"""Progress of a run: a bar of at most 80 columns in a terminal, else a line in the log every so many iterations."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Mapping

from tqdm import tqdm

log = logging.getLogger(__name__)

COLUMNS = 79
BAR = "{desc} {n_fmt}/{total_fmt} {bar} {postfix[0]}{rate_fmt} {remaining} left"


class Progress:
    """From iteration `start` to `stop` of the run `name`; a context manager. Says nothing in `quiet` processes.

    Args:
        place: line of the bar, for trainings that run side by side.
    """

    def __init__(self, name: str, start: int, stop: int, place: int = 0, quiet: bool = False) -> None:
        terminal = sys.stderr.isatty()
        self._name, self._start, self._stop, self._since = name, start, stop, time.monotonic()
        self._every = 0 if quiet or terminal else (10 if stop <= 1000 else 100)
        width = min(COLUMNS, shutil.get_terminal_size().columns)
        options = {"bar_format": BAR, "ncols": width, "unit": "it", "postfix": [""], "position": place}
        short = name[-max(6, 20 - 2 * len(str(stop))) :]  # its end, where seeds differ; numbers need the rest of the line
        self._bar = tqdm(desc=short, total=stop, initial=start, disable=quiet or not terminal, **options)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()  # on the way out of an error too, so that the message starts on a line of its own

    def show(self, done: int, values: Mapping[str, float]) -> None:
        """Of an iteration: the loss, and where cycles are followed, the share that closes and what they cover."""
        said = [f"loss {values['loss']:.3g}"] if "loss" in values else []
        said += [f"{what} {100 * values[f'fass/{what}']:.0f}%" for what in ("closed", "covered") if f"fass/{what}" in values]
        if not self._bar.disable:
            self._bar.postfix[0] = "".join(f"{text} " for text in said)
            self._bar.update()
        if self._every and (done % self._every == 0 or done == self._stop):
            pace = (time.monotonic() - self._since) / (done - self._start)
            left = tqdm.format_interval(pace * (self._stop - done))
            log.info("%s %d of %d: %s, %.2f s/it, %s left", self._name, done, self._stop, ", ".join(said), pace, left)
