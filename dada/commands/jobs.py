"""Many runs, side by side: what the demo and the comparison of methods share."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from easydict import EasyDict

from dada.config import cfg_from_file, cfg_from_list, default_cfg, read_cfg
from dada.config.option import shown
from dada.dataset.loader import end_with_the_run
from dada.parallel.device import choose_device
from dada.runs import Run, run_of
from dada.training.checkpoint import fixed_options
from dada.training.loop import is_finished, train

Result = TypeVar("Result")


@dataclass(frozen=True)
class Job:
    """One run: a configuration and the `KEY=value` pairs that are changed in it. EXP_NAME tells runs apart."""

    config: str
    options: tuple[str, ...]

    def cfg(self) -> EasyDict:
        return cfg_from_list(self.options, cfg_from_file(self.config, default_cfg()))


def train_unless_finished(cfg: Any, tensorboard: bool = False) -> Run:
    """Train the network of a job's cfg, or continue where an earlier call was interrupted; with logs, if wanted."""
    run = run_of(cfg)
    if is_finished(cfg, run):
        print(f"{run.name}: already trained with this configuration, {run.snapshots}")
    else:
        changed = _changed_since(run, cfg)
        resume = "auto" if changed == [] else ""
        if changed:
            print(f"{run.name}: trained anew, since what is there has other options: {'; '.join(changed)}")
        train(cfg, run, resume=resume, tensorboard=tensorboard, bar_position=_place())
    return run


def _changed_since(run: Run, cfg: Any) -> list[str] | None:
    """Options in which the training that the run's folder holds differs from this one, as old → new; None: there is none."""
    started = run.snapshots / "train_cfg.yml"
    if not started.is_file():
        return None
    before, now = fixed_options(read_cfg(started)), fixed_options(cfg)
    return [f"{n} {shown(before.get(n))} → {shown(now.get(n))}" for n in (before | now) if before.get(n) != now.get(n)]


def run_all(jobs: Sequence[Job], work: Callable[[Job], Result], processes: int = 0) -> list[Result]:
    """`work` of every job, in the order of `jobs`.

    On a CPU every job has a process of its own, with one thread: a second thread hardly speeds up a small network, a second
    process doubles the throughput, and one thread sums in a fixed order. On CUDA the jobs run one after the other. A SIGTERM ends
    the processes too, each after its iteration and a checkpoint.

    Args:
        work: a function of a module, which a new process can import.
        processes: at a time; 0: one a core.

    Raises:
        RuntimeError: jobs that failed, by name, after all others have ended; or a signal has stopped one, and so all.
    """
    if choose_device(jobs[0].cfg()).type == "cuda":
        outcomes = [_outcome(work, job) for job in jobs]
    else:
        context = multiprocessing.get_context("spawn")
        with _handing_on_sigterm(), ProcessPoolExecutor(processes or os.cpu_count(), context, initializer=_begin) as pool:
            try:
                outcomes = list(pool.map(partial(_outcome, work), jobs))
            except BrokenProcessPool:
                raise RuntimeError("a run was stopped from outside, and no other was begun; the same command continues") from None
    failed = [f"{run_of(job.cfg()).name}: {error}" for job, (_, error) in zip(jobs, outcomes) if error]
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(jobs)} runs failed:\n  " + "\n  ".join(failed))
    return [result for result, _ in outcomes]


def _outcome(work: Callable[[Job], Result], job: Job) -> tuple[Any, str]:
    """The result, or why there is none, so that one failed run does not lose the others."""
    try:
        return work(job), ""
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"
    except SystemExit as stopped:  # by a signal, which asks for no more runs
        if multiprocessing.parent_process() is None:
            raise
        os._exit(stopped.code)


def _begin() -> None:
    """In each process: one thread, and a log like that of the command."""
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    end_with_the_run()


@contextmanager
def _handing_on_sigterm() -> Iterator[None]:
    """While the block runs, a SIGTERM ends it, once the processes that this one has begun have ended of theirs."""

    def hand_on(number: int, frame: object) -> None:
        for process in multiprocessing.active_children():
            process.terminate()
        sys.exit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # where Python has no signals
        yield
        return
    former = signal.signal(signal.SIGTERM, hand_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former or signal.SIG_DFL)


def _place() -> int:
    """Line of the progress bar: the number of this process among its siblings."""
    identity = multiprocessing.current_process()._identity
    return identity[0] - 1 if identity else 0
