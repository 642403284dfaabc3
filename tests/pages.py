"""What the pages tell a reader to type, and how a test types it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

from dada import config

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[str]:
    """The commands of its ```bash blocks, one string each, comments and line ends taken out."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    split = [shlex.join(shlex.split(line, comments=True)) for line in lines]
    return [line for line in split if line]


def run_here(command: str, more: list[str], run_script: Callable[..., None]) -> None:
    """Run `python scripts/NAME.py ...` in this process and folder; flags of `more` replace those of the command, --set adds.

    Raises:
        AssertionError: it is no such command, or it ends with an error.
    """
    python, script, *flags = shlex.split(command)
    assert python == "python" and script.startswith("scripts/"), command
    try:
        run_script(script.removeprefix("scripts/"), *without(flags, more), *more)
    except SystemExit as end:
        assert not end.code, f"{command}: {end.code}"
    finally:
        config.reset()


def without(flags: list[str], more: list[str]) -> list[str]:
    """`flags` without those that `more` gives too, which counts for --set alone."""
    replaced = {flag for flag in more if flag.startswith("--") and flag != "--set"}
    kept, dropping = [], False
    for flag in flags:
        dropping = flag in replaced or (dropping and not flag.startswith("--"))
        if not dropping:
            kept.append(flag)
    return kept
