"""Files are written whole or not at all."""

import os

import pytest

from dada.files import whole_file, write_whole


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


def test_others_may_read_what_the_umask_allows(tmp_path):
    old = os.umask(0o027)
    try:
        write_whole(tmp_path / "file.txt", b"")
        assert (tmp_path / "file.txt").stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(old)
