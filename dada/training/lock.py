"""One process at a time in the folder of a run."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger(__name__)

NAME = "run.lock"


class RunInUse(OSError):
    """Another process trains in the folder."""


@contextmanager
def lock(folder: str | Path) -> Iterator[None]:
    """Hold `folder`/run.lock, which names host and process, while the block runs.

    A lock whose process was on this host and has ended is taken over, with a message; so is one of an earlier start
    of the same Slurm job, on any host, which Slurm has ended before it started the job again. Folders that were made
    for the lock go with it while they are empty, so that a run that fails at its start leaves nothing behind.

    Raises:
        RunInUse: the process that holds the lock is alive, or cannot be asked because it is on another host.
    """
    folder = Path(folder)
    path = folder / NAME
    made = [p for p in (folder, *folder.parents) if not p.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _take(path)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        for new in made:
            try:
                new.rmdir()
            except OSError:  # not empty: the run has written something
                break


def _take(path: Path) -> None:
    """Create the file, or raise RunInUse."""
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid()), **_slurm_job()}
    while True:
        try:
            with open(path, "x", encoding="utf-8") as file:
                try:
                    json.dump(mine, file)
                    file.flush()
                except BaseException:  # an empty lock would name nobody
                    path.unlink()
                    raise
            return
        except FileExistsError:
            pass
        try:
            said = path.read_text(encoding="utf-8")
            owner = json.loads(said)
            host, pid, started = owner["host"], owner["pid"], owner["started"]
        except FileNotFoundError:
            continue  # given back meanwhile
        except (ValueError, KeyError, TypeError) as error:
            raise RunInUse(f"{path} does not say which process trains there. If none does, delete that file.") from error
        if not _requeued(owner, mine) and (host != mine["host"] or _alive(pid, started)):
            raise RunInUse(
                f"process {pid} on host {host} trains in {path.parent}. Wait for it, or choose another EXP_NAME or "
                f"--exp-suffix. If that process is gone, delete {path}."
            )
        log.warning("the process that locked %s, %d on host %s, is gone: its lock is taken over", path.parent, pid, host)
        _remove(path, said)


def _remove(path: Path, said: str) -> None:
    """Remove the lock that says so, if it is still there.

    Several processes may have read it: one of them at a time looks again, and removes nothing that another has put there. What
    lets only one look is a lock too, which is taken over in the same way if its process ends.
    """
    looking = path.with_name(f".{path.name}.{hashlib.sha256(said.encode()).hexdigest()[:16]}.part")
    _take(looking)
    try:
        with suppress(FileNotFoundError):
            if path.read_text(encoding="utf-8") == said:
                path.unlink()
    finally:
        looking.unlink(missing_ok=True)


def _slurm_job() -> dict[str, str | int]:
    """Which job of Slurm this is, and how often it has been started again; nothing outside of Slurm."""
    if not (job := os.environ.get("SLURM_JOB_ID")):
        return {}
    # Each cluster counts its jobs; the name keeps those of two clusters with one file system apart.
    name = f"{os.environ.get('SLURM_CLUSTER_NAME', '')} {job}"
    return {"slurm_job": name, "slurm_restarts": int(os.environ.get("SLURM_RESTART_COUNT") or 0)}


def _requeued(owner: dict, mine: dict) -> bool:
    """Whether the owner of a lock was an earlier start of the Slurm job that this process is in.

    After the failure of a node its lock names a host that nobody can ask.
    """
    job = mine.get("slurm_job")
    return bool(job) and owner.get("slurm_job") == job and owner["slurm_restarts"] < mine["slurm_restarts"]


def _alive(pid: int, started: str) -> bool:
    if os.name != "posix":  # there, asking would end it
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return _started(pid) == started


def _started(pid: int) -> str:
    """When a process started, in ticks since boot; "" where the system does not say, or when it has ended.

    Numbers of processes are used again, in a container even for every run; the two together are not.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]
