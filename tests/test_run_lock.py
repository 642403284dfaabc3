"""One process at a time in the folder of a run, and nobody waits for one that is gone."""

import errno
import json
import os
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from dada.training import lock as lock_module
from dada.training.lock import RunInUse, lock


def write_lock(folder: Path, **values) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.lock"
    with lock(folder):
        mine = json.loads(path.read_text())
    path.write_text(json.dumps({**mine, **values}))
    return path


def test_the_lock_of_a_process_that_is_gone_is_taken_over(tmp_path, caplog):
    gone = subprocess.Popen(["true"])
    gone.wait()
    for values in ({"pid": gone.pid}, {"started": "1"}):  # the second: its number belongs to another process now
        path = write_lock(tmp_path, **values)
        with lock(tmp_path):
            assert json.loads(path.read_text())["pid"] == os.getpid()
        assert not path.exists()
        assert "is gone: its lock is taken over" in caplog.text
        caplog.clear()


def test_of_two_that_find_a_dead_lock_the_second_does_not_remove_the_first_ones(tmp_path, monkeypatch):
    path = write_lock(tmp_path, started="1")
    holder = ExitStack()
    alive, asked = lock_module._alive, []

    def first_comes_between(pid, started):
        """What the second has read is judged dead, but before it acts the first has taken the lock over."""
        found = alive(pid, started)
        asked.append(found)
        if len(asked) == 1:
            holder.enter_context(lock(tmp_path))
        return found

    monkeypatch.setattr(lock_module, "_alive", first_comes_between)
    with holder:
        with pytest.raises(RunInUse, match=f"process {os.getpid()} on host"), lock(tmp_path):
            pass
        assert json.loads(path.read_text())["pid"] == os.getpid() and asked == [False, False, True]
    assert not list(tmp_path.iterdir())


def test_a_process_that_ended_while_it_took_a_lock_over_does_not_keep_others_from_it(tmp_path, monkeypatch):
    path = write_lock(tmp_path, started="1")

    def end(looking):
        looking.write_text(path.read_text())  # as a process that is gone by now would leave it
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        original = lock_module._take
        patched.setattr(lock_module, "_take", lambda p: original(p) if p == path else end(p))
        with pytest.raises(KeyboardInterrupt), lock(tmp_path):
            pass
    assert len(list(tmp_path.iterdir())) == 2
    with lock(tmp_path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_a_lock_of_another_host_is_not_ours_to_judge(tmp_path):
    path = write_lock(tmp_path, host="elsewhere", pid=1)
    with pytest.raises(RunInUse, match=f"process 1 on host elsewhere .* delete {path}"), lock(tmp_path):
        pass
    assert path.exists()
    path.write_text("")
    with pytest.raises(RunInUse, match="run.lock does not say which process trains there"), lock(tmp_path):
        pass


def test_a_requeued_job_takes_over_the_lock_that_its_earlier_start_left_on_another_host(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    path = write_lock(tmp_path, host="elsewhere", pid=1)
    with pytest.raises(RunInUse, match="host elsewhere"), lock(tmp_path):  # another process of the same start
        pass
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    with pytest.raises(RunInUse, match="host elsewhere"), lock(tmp_path):
        pass
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with lock(tmp_path):
        assert json.loads(path.read_text())["slurm_restarts"] == 1
    assert not path.exists()


def test_the_lock_leaves_no_folder_that_was_not_there_and_no_empty_file(tmp_path, monkeypatch):
    with lock(tmp_path / "a" / "b"):
        pass
    assert list(tmp_path.iterdir()) == []

    def disk_full(*_):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(json, "dump", disk_full)
    with pytest.raises(OSError, match="full"), lock(tmp_path / "a"):
        pass
    assert list(tmp_path.iterdir()) == []
