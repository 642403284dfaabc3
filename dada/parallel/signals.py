"""Signals that are handled at once, whatever the process is waiting for.

Python runs its handlers between two instructions of its own. One that waits for another process, inside of torch, may take for
ever; a thread is told of a signal meanwhile.
"""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def heard_at_once(act: Callable[[int], None]) -> Iterator[None]:
    """While the block runs, a thread calls `act` with the number of every signal that has a handler in Python.

    Inside of another such block it takes its place. Outside the main thread, where Python has no signals, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard, told = socket.socketpair()
    told.setblocking(False)  # as Python demands
    former = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(heard, act), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(former)
        told.close()  # which ends the thread


def _listen(heard: socket.socket, act: Callable[[int], None]) -> None:
    with heard:
        while number := heard.recv(1):
            act(number[0])
