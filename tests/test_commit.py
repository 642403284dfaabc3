"""Which commit this code is: the clone's own, read by git, and never that of a repository it merely lies in."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
AUTHOR = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]


def git(folder: Path, *arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(folder), *AUTHOR, *arguments]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()


def committed(folder: Path, *paths: str) -> str:
    """Make `folder` a repository that tracks `paths`; its commit."""
    git(folder, "init", "--quiet")
    git(folder, "add", "--force", *paths)
    git(folder, "commit", "--quiet", "--message", "all")
    return git(folder, "rev-parse", "HEAD")


def said_by(folder: Path, **environment: str) -> list[str]:
    """Commit and number of changed files, as the package in `folder` tells them."""
    code = "from dada.publishing.commit import *; print(git_commit(), changed_files(), PACKAGE)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    *answers, package = done.stdout.split()
    assert package == str(folder / "dada")
    return answers


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A folder with the package in it, which no repository knows."""
    folder = tmp_path_factory.mktemp("copy").resolve()
    shutil.copytree(ROOT / "dada", folder / "dada", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_a_clone_says_its_commit_and_how_many_of_its_files_are_changed(copy, tmp_path):
    committed(copy, "dada")
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(copy), str(clone))
    head = git(clone, "rev-parse", "HEAD")
    assert said_by(clone) == [head, "0"]
    (clone / "dada/files.py").write_text("")
    (clone / "notes").write_text("")  # which git does not know
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").touch()
    assert committed(other, "file") != head
    assert said_by(clone, GIT_DIR=str(other / ".git")) == [head, "1"]  # as in a hook of another repository


@pytest.mark.parametrize("tracked", ["notes", "."], ids=["beside its files", "as part of them"])
def test_code_that_lies_in_the_repository_of_something_else_does_not_take_its_commit(copy, tmp_path, tracked):
    inside = tmp_path / "env/site-packages"
    shutil.copytree(copy / "dada", inside / "dada")
    (tmp_path / "notes").touch()
    committed(tmp_path, tracked)
    assert said_by(inside) == ["None", "None"]


def test_without_git_nothing_is_said(copy, tmp_path):
    assert said_by(copy, PATH=str(tmp_path)) == ["None", "None"]
