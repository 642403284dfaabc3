"""Files are written whole or not at all."""

import errno
import os

import pytest

from dada.files import remove_parts, whole_file, write_whole


def test_a_file_appears_with_its_content_and_its_folder_is_made(tmp_path):
    write_whole(tmp_path / "a" / "b" / "file.txt", b"content")
    assert (tmp_path / "a" / "b" / "file.txt").read_bytes() == b"content"
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["file.txt"]


def test_the_old_file_stays_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with whole_file(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_a_failure_keeps_the_old_file_and_leaves_no_part(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), whole_file(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("wrapped", [False, True], ids=["as the system says it", "inside an error of a library"])
def test_a_full_disk_is_told_with_file_and_free_space(tmp_path, wrapped):
    path = tmp_path / "file.txt"
    path.write_text("old")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    told = rf"no space left to write {path} .*\d+ MB free, 2 MB written so far"
    with pytest.raises(OSError, match=told), whole_file(path) as part:
        part.write_bytes(bytes(2 * 10**6))
        if wrapped:
            raise RuntimeError("unexpected pos") from full
        raise full
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_file_and_folder_reach_the_disk(tmp_path, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(os.fstat(handle).st_ino), fsync(handle)))
    write_whole(tmp_path / "file.txt", b"content")
    assert synced == [(tmp_path / "file.txt").stat().st_ino, tmp_path.stat().st_ino]


def test_parts_of_killed_writers_are_removed_and_nothing_else(tmp_path):
    for name in (".model_1.pth.abc.part", "model_1.pth", "a.part"):
        (tmp_path / name).touch()
    remove_parts(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"model_1.pth", "a.part"}


def test_a_part_that_is_being_written_is_left_alone(tmp_path):
    with whole_file(tmp_path / "long.mp4", ".mp4") as part:
        (tmp_path / ".other.mp4.abc.part.mp4").touch()
        part.write_bytes(b"first frames")
        remove_parts(tmp_path)
        assert list(tmp_path.iterdir()) == [part]
        part.write_bytes(b"all frames")
    assert (tmp_path / "long.mp4").read_bytes() == b"all frames"


def test_others_may_read_what_the_umask_allows(tmp_path):
    old = os.umask(0o027)
    try:
        write_whole(tmp_path / "file.txt", b"")
        assert (tmp_path / "file.txt").stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(old)
