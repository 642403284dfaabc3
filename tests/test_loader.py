"""Loader processes hand over what they read, or the reason why not: nothing is lost, and nobody waits for it."""

import ctypes
import errno
import multiprocessing
import os
import signal
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import random_batch, tiny_options
from torch.utils.data import Dataset

from dada.cli import main
from dada.dataset import loader as loader_module
from dada.dataset.loader import HandoverError, Loader, end_with_the_run
from dada.dataset.parallel_map import parallel_map
from dada.dataset.sample import Sample, collate


class CannotBeSent:
    """What fails when it is pickled, as tensors do for which there is no shared memory."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __reduce__(self):
        raise self.error


FULL = RuntimeError("unable to allocate shared memory(shm) for file </torch_7_1_0>: No space left on device (28)")
OPEN = RuntimeError("unable to open shared memory object </torch_7_1_0> in read-write mode: Too many open files (24)")


@pytest.mark.parametrize(
    "error, kind, words",
    [
        (FULL, HandoverError, r"^/dev/shm \(.* MB\) is too small.*--ipc=host or --shm-size.*NUM_WORKERS to 0"),
        (OPEN, HandoverError, r"^too many open files.*ulimit -n.*NUM_WORKERS to 0"),
        (OSError(errno.EMFILE, "Too many open files"), HandoverError, "ulimit"),
        (TypeError("cannot pickle 'module' object"), TypeError, "cannot pickle 'module' object"),
    ],
)
def test_what_cannot_be_handed_over_is_an_error_and_not_waited_for(error, kind, words):
    with pytest.raises(kind, match=words):
        list(parallel_map(CannotBeSent, [error], num_workers=1))


class Raises(Dataset):
    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int):
        raise self.error


@pytest.mark.parametrize("error", [FULL, RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. ")])
def test_a_process_that_finds_no_shared_memory_for_a_batch_says_so(error):
    with pytest.raises(HandoverError, match="--shm-size"):
        list(Loader(Raises(error), batch_size=1, num_workers=1))


def test_locks_that_find_no_shared_memory_are_told_from_a_full_disk(monkeypatch):
    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(multiprocessing.synchronize._multiprocessing, "SemLock", full)
    with pytest.raises(HandoverError, match="--shm-size"):
        list(parallel_map(int, ["1"], num_workers=1))
    monkeypatch.undo()
    with pytest.raises(OSError, match="No space left on device") as error:
        list(Loader(Raises(OSError(errno.ENOSPC, "No space left on device")), batch_size=1))
    assert not isinstance(error.value, HandoverError)


def test_a_batch_is_in_shared_memory_before_it_leaves_its_process(monkeypatch):
    batch = random_batch()
    samples = [Sample(batch.image[k], batch.label[k], batch.depth[k], batch.name[k], batch.size[k]) for k in range(2)]
    assert not collate(samples).image.is_shared()
    monkeypatch.setattr(loader_module, "get_worker_info", object)
    found = collate(samples)
    assert all(tensor.is_shared() for tensor in (found.image, found.label, found.depth))
    assert torch.equal(found.image, batch.image)


CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000  # of sched.h


def with_little_shared_memory(size: str, errors: Path, command: list[str]) -> None:
    """Run a command of `dada` where /dev/shm is as small as a container may have it; exit code 77 where that cannot be."""
    libc, user, group = ctypes.CDLL(None), os.getuid(), os.getgid()
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNS):
        os._exit(77)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        Path("/proc/self", name).write_text(text)
    if libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, f"size={size}".encode()):
        os._exit(77)
    sys.stderr = open(errors, "w", buffering=1)  # noqa: SIM115
    main(command)


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/shm is Linux's")
def test_a_training_in_a_container_with_little_shared_memory_ends_with_one_message(city, tmp_path):
    options = [*tiny_options(city, tmp_path), "NUM_WORKERS=1", "TRAIN.DA_METHOD=source_only", "TRAIN.RESTORE_FROM=random"]
    arguments = "64k", tmp_path / "errors", ["train", "--cfg", "toycity.yml", "--set", *options]
    process = multiprocessing.get_context("fork").Process(target=with_little_shared_memory, args=arguments)
    process.start()
    process.join(600)
    if process.exitcode == 77:
        pytest.skip("needs user namespaces")
    assert process.exitcode == 1
    said = (tmp_path / "errors").read_text()
    assert said.strip().splitlines()[-1].startswith("error: /dev/shm (0.0625 MB) is too small")
    assert "Traceback" not in said and not (tmp_path / "snapshots").exists()


def test_a_process_that_was_begun_anew_ends_with_the_one_that_began_it(monkeypatch):
    gone, ended = threading.Event(), threading.Event()
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: SimpleNamespace(join=gone.wait))
    monkeypatch.setattr(os, "kill", lambda pid, number: ended.set() if (pid, number) == (os.getpid(), signal.SIGTERM) else None)
    end_with_the_run()
    assert not ended.is_set()
    gone.set()
    assert ended.wait(60)
