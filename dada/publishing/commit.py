"""Which commit of the project this code is, to trace results and reported problems."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import dada

PACKAGE = Path(dada.__file__).resolve().parent


def git_commit() -> str | None:
    """The commit of the clone that this code lies in; None where it is not a clone, or there is no git."""
    # An environment may be installed within somebody else's repository, whose commit says nothing of this code.
    here = git("ls-files", "--full-name", "--error-unmatch", "__init__.py")
    return git("rev-parse", "HEAD") if here == f"{PACKAGE.name}/__init__.py" else None


def changed_files() -> int | None:
    """Files of the clone that differ from its commit; None where `git_commit` knows none."""
    changes = git("status", "--porcelain", "--untracked-files=no") if git_commit() else None
    return None if changes is None else len(changes.splitlines())


def git(*arguments: str) -> str | None:
    """What git answers in the folder of the package; None if it is not there, refuses, or takes too long."""
    # Git sets such variables for its hooks, and they would lead it to the repository of the hook.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(PACKAGE), *arguments]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
