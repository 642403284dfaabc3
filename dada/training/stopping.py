"""Signals that ask a run to stop: they are noted, and obeyed between two iterations."""

from __future__ import annotations

import os
import signal
import threading

from dada.parallel.ranks import world_size

# SIGTERM comes from schedulers and `kill`, SIGUSR1 from SLURM's --signal, SIGINT from Ctrl-C.
STOPPING = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name)]


class StopSignals:
    """While the block runs, `received` is the first of STOPPING that came, else None.

    A second SIGINT ends a single process at once; several get two of each Ctrl-C, one of them from torchrun. Outside
    the main thread, where Python has no signals, nothing is noted.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._former: dict = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._note) for number in STOPPING}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: set by something else than Python

    def _note(self, number: int, frame: object) -> None:
        if number == signal.SIGINT and self.received is not None and world_size() == 1:
            raise KeyboardInterrupt
        self.received = self.received or signal.Signals(number)
        # Not print, which must not be entered twice, as it would if the signal came during a print.
        os.write(2, f"\n{self.received.name}: the run stops after this iteration and its checkpoint\n".encode())
