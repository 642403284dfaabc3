"""Tests on the device: those marked `gpu`, in three sections, and losses and association of the suite."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from gpu_check.check import ROOT, Check

SUITE = ("losses", "losses_golden", "cycle_association", "contrastive_learning_golden", "streaming_association", "kernels")
SMALL = "highest and streaming or MinEnt and cpu or predictions and flip or process or SIGKILL"


def run(check: Check) -> None:
    import pytest

    os.environ["DADA_TEST_DEVICE"] = check.device
    arguments = ["-p", "no:cacheprovider", "--rootdir", str(ROOT), "-rfE", "--tb=short"]
    if check.section == "suite":
        arguments += [str(ROOT / "tests" / f"test_{name}.py") for name in (SUITE[:1] if check.small else SUITE)]
    else:
        mine = [file for file in gpu_files() if section_of(file) == check.section]
        arguments += ["-m", "gpu", *(["-k", SMALL] if check.small else []), *mine]
    code = pytest.main(arguments, plugins=[Rows(check)])
    if code:
        sys.exit(f"pytest ended with {int(code)}")


def section_of(file: str) -> str:
    """The section that runs a file of tests: they run side by side, and these two take the longest."""
    return next((f"{part} tests" for part in ("association", "resume") if part in Path(file).name), "other tests")


def gpu_files() -> list[str]:
    """Test files that have a test marked `gpu`: to collect all takes longer than to run these."""
    files = sorted((ROOT / "tests").glob("test_*.py"))
    return [str(file) for file in files if "mark.gpu\n" in file.read_text(encoding="utf-8")]


class Rows:
    """A pytest plugin that notes what each test found, as it ends."""

    def __init__(self, check: Check) -> None:
        self._check = check

    def pytest_runtest_logreport(self, report) -> None:
        if report.when != "call" and report.passed:
            return
        row = {"test": report.nodeid.removeprefix("tests/"), "outcome": report.outcome, "seconds": round(report.duration, 2)}
        if report.skipped:
            row["reason"] = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        elif report.failed:
            row["failed"] = str(report.longreprtext).strip().splitlines()[-1][:400] if report.longreprtext else report.when
        self._check.note(**row, **dict(report.user_properties))
