"""Signals that end a wait: in a process of its own each time, which is a copy of this one."""

import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable

import pytest
from torch.distributed import TCPStore

from dada.cli import main
from dada.training import stopping
from dada.training.stopping import StopSignals


def wait_for_another_process() -> None:
    TCPStore("localhost", 0, is_master=True, wait_for_workers=False).get("what nobody says")


def wait_in_the_middle_of_an_iteration() -> None:
    while True:
        time.sleep(1000)


def waits(wait: Callable[[], None], said: int) -> None:
    os.dup2(said, 2)
    with StopSignals():
        os.write(2, b"waits\n")
        wait()


@pytest.mark.parametrize("wait", [wait_for_another_process, wait_in_the_middle_of_an_iteration, threading.Event().wait])
def test_a_second_sigterm_ends_any_wait(wait, monkeypatch):
    monkeypatch.setattr(stopping, "APART", 0.0)
    heard, said = os.pipe()
    process = multiprocessing.get_context("fork").Process(target=waits, args=(wait, said))
    process.start()
    with open(heard, "rb") as lines:
        for line in (b"waits", b"SIGTERM: the run stops after"):
            while not lines.readline().startswith(line):
                pass
            assert process.is_alive()
            os.kill(process.pid, signal.SIGTERM)
        process.join(100)
    os.close(said)
    assert process.exitcode == 143


def waits_for_images_in_an_iteration(said: int, taken: int, processes: int) -> None:
    """An iteration takes two batches, of which so many come."""
    os.dup2(said, 2)
    stopping.world_size = lambda: processes

    def batches():
        yield from range(taken)
        os.write(2, b"waits\n")
        time.sleep(1000)

    with StopSignals() as signals:
        list(signals.ending_waits(batches(), 2))


@pytest.mark.parametrize("taken, processes", [(1, 1), (2, 2)])
def test_images_that_never_come_are_not_waited_for_where_an_iteration_may_have_begun(taken, processes, monkeypatch):
    monkeypatch.setattr(stopping, "PATIENCE", 0.1)
    heard, said = os.pipe()
    arguments = said, taken, processes
    process = multiprocessing.get_context("fork").Process(target=waits_for_images_in_an_iteration, args=arguments)
    process.start()
    os.close(said)
    with open(heard, "rb") as lines:
        while not lines.readline().startswith(b"waits"):
            pass
        os.kill(process.pid, signal.SIGTERM)
        told = lines.read()
    process.join(100)
    assert process.exitcode == 143 and b"no images for" in told


def test_a_signal_ends_the_wait_for_the_other_processes(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as never_answers:
        where = {
            "RANK": 1,
            "WORLD_SIZE": 2,
            "LOCAL_RANK": 1,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": never_answers.getsockname()[1],
        }
        for key, value in where.items():
            monkeypatch.setenv(key, str(value))
        command = ["train", "--cfg", "toycity.yml", "--device", "cpu"]
        process = multiprocessing.get_context("fork").Process(target=main, args=(command,))
        process.start()
        with never_answers.accept()[0]:  # so it waits
            os.kill(process.pid, signal.SIGTERM)
            process.join(100)
        assert process.exitcode == 75
