"""Runs sections: each in a process of its own, none longer than it may, and no more than the total."""

from __future__ import annotations

import importlib.util
import itertools
import os
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from gpu_check.check import ROOT, append
from gpu_check.plan import Section

SHORTEST = 5  # seconds: with less left, a section is not begun
SKIPPED = 64  # exit code of a section that cannot run here
Command = Callable[[Section, float], list[str]]


def run_sections(sections: list[Section], command: Command, out: Path, total: float) -> dict[str, str]:
    """How each section ended: "passed", "failed", "out of time", "skipped". Says so as they end, and in the results.

    Args:
        command: gives the command line of a section that may take so many seconds.
        total: seconds for all of them.
    """
    end = time.monotonic() + total
    ended: dict[str, str] = {}

    def one(section: Section) -> None:
        start = time.monotonic()
        state, reason = _run(section, command, out, min(section.seconds, end - start))
        seconds = round(time.monotonic() - start, 1)
        ended[section.name] = state
        append(out, {"section": section.name, "ended": state, "reason": reason, "seconds": seconds})
        print(f"{section.name:<20}{state:<12}{seconds:>6.1f} s  {reason}", flush=True)

    for together, group in itertools.groupby(sections, key=lambda section: section.together):
        with ThreadPoolExecutor(max(2, len(os.sched_getaffinity(0))) if together else 1) as pool:
            list(pool.map(one, group))
    return ended


def _run(section: Section, command: Command, out: Path, seconds: float) -> tuple[str, str]:
    missing = [name for name in section.needs if importlib.util.find_spec(name) is None]
    if missing:
        return "skipped", f"not installed: {', '.join(missing)}; --wheels DIR installs from files"
    if seconds < SHORTEST:
        return "skipped", "no time left"
    log = out / f"{section.name.replace(' ', '_')}.txt"
    with open(log, "w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command(section, seconds),
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            start_new_session=True,
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return "out of time", f"after {seconds:.0f} s; what it had found is kept"
        finally:
            _end(process)
    last = (log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""])[-1][:300]
    if code == SKIPPED:
        return "skipped", last
    return ("passed", "") if code == 0 else ("failed", f"{last}; see {log}")


def _end(process: subprocess.Popen) -> None:
    """End the section and what it started: they share a session."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
