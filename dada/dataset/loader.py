"""Loader processes that end with their run, and whose errors always reach it, since it would wait for them for ever."""

from __future__ import annotations

import ctypes
import errno
import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.queues import Queue
from typing import Any

from torch import Tensor
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

_PR_SET_PDEATHSIG = 1  # of Linux's prctl: the signal that a process gets when its parent dies
_SHARED_MEMORY = re.compile(r"unable to \w+ shared memory|</torch_\d|out of shared memory|Bus error")
_OPEN_FILES = re.compile(r"Too many open files|items of ancdata")


class HandoverError(OSError):
    """Loader processes cannot hand over what they have read; the message says what to change."""


class Loader(DataLoader):
    """A DataLoader whose processes start with `begin_loader`.

    Raises:
        HandoverError: during iteration.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, worker_init_fn=begin_loader, **options)

    def _get_iterator(self) -> Any:
        return _Processes(self) if self.num_workers else super()._get_iterator()

    def __iter__(self) -> Iterator[Any]:
        with _explained():
            batches = super().__iter__()  # the processes start now, not when the first batch is asked for
        return _each(batches)


class _Processes(_MultiProcessingDataLoaderIter):
    _shutdown = True  # until torch sets it: one that could not be built has nothing to shut down, and torch would complain


def _each(batches: Iterator[Any]) -> Iterator[Any]:
    try:
        with _explained():
            yield from batches
    except Exception:
        if isinstance(batches, _Processes):  # the error would keep them alive; a signal, not an Exception, cannot wait
            batches._shutdown_workers()
        raise


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:
        if reason := _reason(error):
            raise HandoverError(reason) from error
        raise


def _reason(error: OSError | RuntimeError) -> str:
    """Why nothing can be handed over, and what to do; "" if `error` is about something else."""
    text = str(error)
    if _OPEN_FILES.search(text):
        what = "too many open files: loader processes hand over each tensor as one. Raise the limit (ulimit -n)"
    elif _SHARED_MEMORY.search(text) or _is_of_a_lock(error):
        what = (
            f"/dev/shm{_size_of_shared_memory()} is too small for the batches that loader processes hand over in it. Give the "
            "container more (in Docker, --ipc=host or --shm-size=8g)"
        )
    else:
        return ""
    return f"{what}, or set NUM_WORKERS to 0, so that the run loads in its own process"


def _is_of_a_lock(error: BaseException) -> bool:
    """Whether the lock of a queue, which lies in shared memory too, could not be created."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__") == "multiprocessing.synchronize":
            return isinstance(error, OSError) and error.errno == errno.ENOSPC
        trace = trace.tb_next
    return False


def _size_of_shared_memory() -> str:
    return f" ({shutil.disk_usage('/dev/shm').total / 2**20:.3g} MB)" if os.path.isdir("/dev/shm") else ""


# ---- in a loader process -----------------------------------------------------------------------------------------------


def begin_loader(worker: int) -> None:
    """Keep a loader process alive when a scheduler, or Ctrl-C, asks all processes of a run to stop.

    The run still needs it to finish its iteration. The process ends when the run tells it to, and when the run is gone:
    otherwise the loader of a killed run would wait for ever to hand over its samples.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for name in ("SIGUSR1", "SIGINT"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # Linux; a handler would not be told who sent the signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_the_run_says_so, daemon=True).start()
    Queue._on_queue_feeder_error = _hand_over_the_error  # type: ignore[method-assign,assignment]


def _end_when_the_run_says_so() -> None:
    run = multiprocessing.parent_process().pid
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != run:
        pass
    os._exit(0)


def _hand_over_the_error(queue: Queue, error: BaseException, sent: Any) -> None:
    """A thread of the queue drops what it cannot hand over: give the run the error in its place."""
    if not isinstance(sent, tuple):  # not even that
        os._exit(1)  # which the run notices
    where = f"in DataLoader worker process {get_worker_info().id}"
    queue.put((sent[0], ExceptionWrapper((type(error), error, error.__traceback__), where)))


def end_with_the_run() -> None:
    """In a process started by "spawn": end when the process that started it ends, which nothing else would ensure."""

    def wait() -> None:
        if (run := multiprocessing.parent_process()) is not None:
            run.join()
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def shared(tensor: Tensor) -> Tensor:
    """`tensor`; in a loader process, moved to shared memory at once, rather than later by a thread that cannot raise errors."""
    return tensor if get_worker_info() is None else tensor.share_memory_()
