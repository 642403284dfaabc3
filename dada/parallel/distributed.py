"""Several processes as one run: how they find each other, add up their gradients, agree, and end together.

`processes` belongs around a whole training or test. Started by torchrun, or as the tasks of `srun`, the processes then form
a group; alone, a process goes on as if nothing of this existed. `ranks.py` has what losses and counters need; the network knows
nothing of it.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dada.parallel.device import choose_device
from dada.parallel.place import Place, place
from dada.parallel.ranks import every_rank, joint_max, world_size

log = logging.getLogger(__name__)

TIMEOUT = timedelta(minutes=30)  # for one that waits for another: it must outlast the start of the data and a checkpoint
PATIENCE = 5.0  # seconds in which the reason of a failure should be known everywhere
SILENCE = 300  # seconds without a sign of life after which a process is taken for dead; a debugger may need as long


class Failed(OSError):
    """Another process of the run has failed, so this one cannot go on."""


@contextmanager
def processes(cfg: Any) -> Iterator[None]:
    """While the block runs, the processes that were started together form one group; nothing if there is one only.

    Each takes its device first, see `choose_device`. They talk through NCCL where that is a GPU, else through gloo. When one of
    them fails, all end: the others raise `Failed` with its message, and one that hangs in a call that cannot be broken off is
    ended. An error that all have is told once.

    Raises:
        ValueError: see `place` and `choose_device`.
        OSError: the processes do not find each other.
        Failed: another process has failed.
    """
    where = place()
    if where is None:
        yield
        return
    if where.rank > 0:  # what all would say, the first one says
        logging.getLogger().setLevel(logging.ERROR)
    store = _meet(where)
    watch = _Watch(store, where)
    try:
        _join(where, store, choose_device(cfg, where.local_rank))
        yield
        _leave_together(watch)
    except SystemExit:  # a signal has stopped all of them
        _leave_together(watch)
        raise
    except BaseException as error:
        watch.done.set()
        raise _reason(store, where, error) from error
    dist.destroy_process_group()  # not after an error: the connections end with the process, a farewell could hang


def _meet(where: Place) -> dist.Store:
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = where.address, str(where.port)
    with _meeting(where):
        store, _, _ = next(dist.rendezvous("env://", where.rank, where.world_size, timeout=TIMEOUT))
    return store


def _join(where: Place, store: dist.Store, device: torch.device) -> None:
    """Form the group. NCCL is told the device, or it would guess one from the rank in its first call."""
    if device.type == "mps":
        raise ValueError("device mps is for one process: a machine has one, and gloo cannot read its memory")
    cuda = device.type == "cuda"
    options = {"backend": "cpu:gloo,cuda:nccl", "device_id": device} if cuda else {"backend": "gloo"}
    with _meeting(where):
        dist.init_process_group(**options, store=store, rank=where.rank, world_size=where.world_size, timeout=TIMEOUT)
    if where.rank == 0:
        log.info("%d processes, through %s", where.world_size, "NCCL" if cuda else "gloo")


@contextmanager
def _meeting(where: Place) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise OSError(
            f"process {where.rank} of {where.world_size} cannot join the others at {where.address}:{where.port}: {error}\n"
            "Is that the node of the first process, and the port free there? Set MASTER_ADDR and MASTER_PORT to others."
        ) from error


def _leave_together(watch: _Watch) -> None:
    """The first process holds the store through which all talk: it must not leave before the others are done."""
    watch.done.set()
    every_rank(None)


def _reason(store: dist.Store, where: Place, error: BaseException) -> BaseException:
    """Why this process ends. The first one to fail leaves its message in the store."""
    mine = f"{type(error).__name__}: {error}"
    lost_touch = isinstance(error, RuntimeError) and re.search("gloo|NCCL|Connection (closed|reset) by peer", str(error))
    try:
        if not lost_touch:
            first = _post(store, where.rank, mine)
            _wait_for_others(store, where)
            # Most errors, such as a folder that does not exist, are those of all.
            return SystemExit(1) if first[0] != where.rank and first[1] == mine else error
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and not store.check([FAILED]):
            time.sleep(0.1)
        number, message = _post(store, where.rank, mine)
    except RuntimeError:  # the first process, and the store with it, has ended
        return Failed("the first process of the run has ended: its message says why") if lost_touch else error
    if number != where.rank:
        return Failed(f"process {number} of {where.world_size} has failed: {message}")
    return Failed(f"another process of the run has ended without a message, or cannot be reached: {error}")


def _wait_for_others(store: dist.Store, where: Place) -> None:
    """The store ends with the first process: others that fail of the same cause learn from it that this has been told."""
    ended = store.add("ended by themselves", 1)
    until = time.monotonic() + PATIENCE
    while where.rank == 0 and ended < where.world_size and time.monotonic() < until:
        time.sleep(0.05)
        ended = store.add("ended by themselves", 0)


FAILED = "failed"  # key in the store: rank and message of the first process that has


def _post(store: dist.Store, rank: int, message: str) -> tuple[int, str]:
    """Enter a failure unless there is one already. Returns the one that is there."""
    number, _, text = store.compare_set(FAILED, "", f"{rank} {message}").decode().partition(" ")
    return int(number), text


class _Watch:
    """Ends this process when another one has failed while it waits for it in a call that cannot be broken off.

    Each process shows once a second that it is there, and looks after the next one. One that was killed, or whose node was
    lost, cannot leave a message: after SILENCE it is left for it.
    """

    def __init__(self, store: dist.Store, where: Place) -> None:
        self.done = threading.Event()
        self._store, self._where = store, where
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        rank, other = self._where.rank, (self._where.rank + 1) % self._where.world_size
        heard, silence = 0, 0
        while not self.done.wait(1.0):
            try:
                self._store.add(f"beats of {rank}", 1)
                now = self._store.add(f"beats of {other}", 0)
                # Counted and not timed: a run that was suspended as a whole has not been silent.
                heard, silence = now, silence + 1 if now == heard else 0
                if silence == SILENCE:
                    _post(self._store, other, f"it has given no sign of life for {SILENCE} s")
                failed = self._store.check([FAILED]) and self._store.get(FAILED).decode()
            except RuntimeError:
                failed = "0 its message says why"  # the store is gone, and so is the process that held it
            if failed and not self.done.wait(2 * PATIENCE):
                number, _, message = failed.partition(" ")
                os.write(2, f"error: process {number} of {self._where.world_size} has failed: {message}\n".encode())
                os._exit(1)


# ---- gradients ---------------------------------------------------------------------------------------------------------


class _Losses(nn.Module):
    """The objective as one forward pass of one module, however often it runs the network: what DDP is made for."""

    def __init__(self, network: nn.Module, objective: Callable) -> None:
        super().__init__()
        self.network = network
        self._objective = objective

    def forward(self, *step: Any) -> Any:
        return self._objective(*step)


def with_joint_gradients(objective: Callable, network: nn.Module) -> Callable:
    """`objective`, or, among several processes, the same with gradients of `network` that are summed over all ranks.

    A sum and not DDP's mean, because every rank back-propagates its part of the joint loss (see `ranks.py`).
    """
    if world_size() == 1:
        return objective
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer releases call broadcast_buffers by another name
        losses = DistributedDataParallel(
            _Losses(network, objective),
            broadcast_buffers=False,  # the statistics are joint, and so the same everywhere
            find_unused_parameters=True,  # heads without a loss, batch norms of a domain that is not read yet
            gradient_as_bucket_view=True,
        )
    losses.register_comm_hook(None, _sum_hook)
    return losses


def _sum_hook(state, bucket):  # DDP looks at annotations, and finds them to be text
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda done: done.value()[0])


def accumulating(losses: Callable, more: bool) -> AbstractContextManager:
    """While the block runs, the gradients of `with_joint_gradients` stay with their rank, if `more` are to be added to them."""
    return losses.no_sync() if more and isinstance(losses, DistributedDataParallel) else nullcontext()


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace the gradients of parameters that `with_joint_gradients` does not know by their sums over all ranks.

    For small networks, whose backward pass hides no communication. Every rank must have gradients for the same ones.
    """
    if world_size() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    if gradients:
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        for gradient, total in zip(gradients, flat.split([g.numel() for g in gradients])):
            gradient.copy_(total.view_as(gradient))


# ---- agreement ---------------------------------------------------------------------------------------------------------


def greatest(number: int) -> int:
    """The greatest of the numbers of all ranks."""
    return number if world_size() == 1 else int(joint_max(torch.tensor(number)))


def share_of(batch: int, option: str) -> int:
    """How many of the `batch` images that `option` sets for a step are this rank's.

    Raises:
        ValueError: it cannot be divided evenly.
    """
    processes = world_size()
    if batch % processes:
        raise ValueError(
            f"{option} is {batch}, the images of a step over all {processes} processes: they must get equally many. Set it to "
            f"{-(-batch // processes) * processes}, or start another number of processes."
        )
    return batch // processes
