"""Signals that ask a run to stop: noted, and obeyed between two iterations."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from typing import TypeVar

from dada.parallel.ranks import world_size
from dada.parallel.signals import heard_at_once

# SIGTERM comes from schedulers and `kill`, SIGUSR1 from SLURM's --signal, SIGINT from Ctrl-C.
STOPPING = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name)]
PATIENCE = 8.0  # seconds after a signal for which images are waited for where an iteration may have begun
APART = 3.0  # seconds from which on a second SIGTERM is one: torchrun hands on those that its processes get from Slurm too

T = TypeVar("T")


class WaitEnded(BaseException):
    """A signal came while the run waited for its next iteration to begin. No Exception: no loader takes it for an error."""


class StopSignals:
    """While the block runs, `received` is the first of STOPPING that came, else None.

    A second SIGTERM ends the process at once, whatever it waits for; so does a second SIGINT a single one: several get two of
    each Ctrl-C, one of them from torchrun. Outside the main thread, where Python has no signals, nothing is noted.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._between_iterations = False
        self._terminated: float | None = None  # when the first SIGTERM came
        self._told = False
        self._waits_since: float | None = None  # for images
        self._over = threading.Event()
        self._cleanup = ExitStack()

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._cleanup.enter_context(heard_at_once(self._hear))
            for number in STOPPING:
                # None: set by something else than Python
                self._cleanup.callback(signal.signal, number, signal.signal(number, self._note) or signal.SIG_DFL)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._cleanup.close()

    def ending_waits(self, batches: Iterator[T], each: int) -> Iterator[T]:
        """`batches`, of which an iteration takes `each`.

        Raises:
            WaitEnded: a signal came while an iteration waited for its first one, with which it would begin. Among several
                processes, others may have begun: there, and within an iteration, the process ends after PATIENCE.
        """
        for taken in count():
            self._between_iterations = taken % each == 0 and world_size() == 1
            self._waits_since = time.monotonic()
            try:
                if self._between_iterations and self.received:
                    raise WaitEnded
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self._between_iterations, self._waits_since = False, None
            yield batch

    def _note(self, number: int, frame: object) -> None:
        """In the main thread, once Python comes to it."""
        if number == signal.SIGINT and self.received is not None and world_size() == 1:
            raise KeyboardInterrupt
        self.received = self.received or signal.Signals(number)
        if self._between_iterations:
            raise WaitEnded

    def _hear(self, number: int) -> None:
        """In a thread, at once. Not print, which must not be entered twice."""
        if number not in STOPPING:
            return
        name = signal.Signals(number).name
        if not self._told:
            self._told = True
            threading.Thread(target=self._end_a_long_wait, args=(number, time.monotonic()), daemon=True).start()
            os.write(2, f"\n{name}: the run stops after this iteration and its checkpoint\n".encode())
        if number != signal.SIGTERM:
            return
        now = time.monotonic()
        if self._terminated is None:
            self._terminated = now
        elif now - self._terminated >= APART:
            os.write(2, b"\na second SIGTERM: the run ends without a checkpoint\n")
            os._exit(128 + number)

    def _end_a_long_wait(self, number: int, heard: float) -> None:
        """In a thread of its own, from the first signal on: images that a file server never gives are not waited for."""
        while not self._over.wait(PATIENCE / 16):
            began = self._waits_since
            if began is not None and time.monotonic() - max(began, heard) >= PATIENCE:
                name = signal.Signals(number).name
                os.write(2, f"\n{name}, and no images for {PATIENCE:.0f} s: the run ends without a checkpoint\n".encode())
                os._exit(128 + number)
