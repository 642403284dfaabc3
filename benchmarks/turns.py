"""Variants that take turns: each in a process of its own, all alive at once, so that a busy minute hits all of them.

A process of its own gives each variant its own peak of memory; staying alive, it starts and warms up once. A benchmark
runs itself with `--variant NAME`; that process calls `answer`, the first one `Variants`. While others have their turn, a
process keeps weights and states alone on a GPU: what a turn needed besides goes back to the device at its end, so that one
variant at a time has to fit.
"""

from __future__ import annotations

import gc
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def answer(ready: dict[str, Any], turn: Callable[[], dict[str, Any]]) -> None:
    """Say that this process is `ready`, then take a turn for every line on standard input, and tell what it gave."""
    _release()
    print(json.dumps(ready), flush=True)
    for _ in sys.stdin:
        given = turn()
        _release()
        print(json.dumps(given), flush=True)


def _release() -> None:
    """Give the GPU what this process holds of it without a tensor in it."""
    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


class Variants:
    """The processes, started one after the other so that none warms up while another does."""

    def __init__(self, names: list[str], arguments: list[str]) -> None:
        self.ready: dict[str, dict] = {}
        self._processes: dict[str, subprocess.Popen] = {}
        for name in names:
            command = [sys.executable, sys.argv[0], *arguments, "--variant", name]
            self._processes[name] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            self.ready[name] = self._line(name)

    def _line(self, name: str) -> dict:
        line = self._processes[name].stdout.readline()
        if not line:
            self.close()
            raise SystemExit(f"variant {name} ended; what it wrote above says why")
        return json.loads(line)

    def rounds(self, number: int) -> dict[str, list[dict]]:
        """What each variant gave in each of so many rounds, in which all take one turn."""
        given: dict[str, list[dict]] = {name: [] for name in self._processes}
        for _ in range(number):
            for name, process in self._processes.items():
                process.stdin.write("\n")
                process.stdin.flush()
                given[name].append(self._line(name))
        return given

    def close(self) -> None:
        for process in self._processes.values():
            process.stdin.close()
            process.wait()


def median(rounds: list[dict], key: str) -> float:
    return statistics.median(one[key] for one in rounds)


def ratio(rounds: list[dict], base: list[dict], key: str) -> float:
    """Median over the rounds of the quotient within a round: what slows a whole round down cancels out."""
    return statistics.median(a[key] / b[key] for a, b in zip(rounds, base))


def restart_peak(device: torch.device) -> None:
    """Count the peak of memory from here on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # Linux; VmHWM starts anew


def peak(device: torch.device) -> int:
    """Bytes: what the process held at most, its libraries included; on a GPU what its tensors took."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
