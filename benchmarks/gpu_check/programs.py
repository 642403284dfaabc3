"""Programs of the project as a section starts them. What they print goes to the section's log."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from gpu_check.check import ROOT, Check


def script(check: Check, name: str, *arguments: str, seconds: float | None = None) -> int:
    """Run a script of the project and return its exit code; stopped with SIGTERM after `seconds`, if given.

    Raises:
        RuntimeError: it failed by itself.
    """
    process = subprocess.Popen([sys.executable, name, *arguments], cwd=ROOT)
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.terminate()
        return process.wait()
    if code:
        raise RuntimeError(f"{name} ended with {code}")
    return code


def benchmark(check: Check, name: str, *arguments: str) -> list[dict]:
    """The rows of one of the benchmarks, which it writes to a file."""
    rows = check.work / f"{os.getpid()}_{name}.json"
    script(check, f"benchmarks/{name}.py", "--device", check.device, "--json", str(rows), *arguments)
    return json.loads(rows.read_text(encoding="utf-8"))


def city_options(check: Check) -> list[str]:
    return [f"DATA_DIRECTORY_SOURCE={check.city}/SYNTHIA", f"DATA_DIRECTORY_TARGET={check.city}/Cityscapes"]
