"""Versions and the card, the most that it can do, and operators that a release of torch may lack on it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import subprocess
from datetime import date

import torch

from gpu_check.check import ROOT, Check
from gpu_check.measure import seconds, synchronize


def run(check: Check) -> None:
    check.note(environment=versions(check.device))
    n = 256 if check.small else 8192
    a, b = torch.randn(2, n, n, device=check.device)
    for precision in ("highest", "high", "medium"):
        torch.set_float32_matmul_precision(precision)
        _rate(check, f"product of float32, {precision}", 2 * n**3 / 1e12, "TFLOP/s", lambda: a @ b)
    torch.set_float32_matmul_precision("highest")
    c, d = a.bfloat16(), b.bfloat16()
    _rate(check, "product of bfloat16", 2 * n**3 / 1e12, "TFLOP/s", lambda: c @ d)
    x = torch.randn(2**20 if check.small else 2**28, device=check.device)
    y = torch.empty_like(x)
    _rate(check, "copy, read and written", 2 * x.nbytes / 1e12, "TB/s", lambda: y.copy_(x))
    few = a[0]
    with check.noting(what="launch of an operator", unit="us") as row:
        row["value"] = 1e3 * seconds(lambda: [few.add_(1) for _ in range(1000)], check.device)
    _operators(check)


def versions(device: str) -> dict[str, object]:
    """For the head of every table."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    found: dict[str, object] = {
        "date": date.today().isoformat(),
        "commit": commit.stdout.strip() or "unknown",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cores": len(os.sched_getaffinity(0)),
    }
    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        found |= {
            "card": card.name,
            "memory": f"{card.total_memory / 2**30:.0f} GiB",
            "capability": f"{card.major}.{card.minor}",
            "CUDA": torch.version.cuda,
            "cuDNN": torch.backends.cudnn.version(),
        }
    else:
        found["card"] = "none: the CPU"
    for package in ("triton", "timm", "torchvision"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _rate(check: Check, what: str, amount: float, unit: str, function) -> None:
    with check.noting(what=what, unit=unit) as row:
        row["value"] = amount / seconds(function, check.device)


def _operators(check: Check) -> None:
    """Operators that association chooses by what there is. That one is not there fails nothing."""
    halves = torch.randn(64, 64, device=check.device).bfloat16()
    total = torch.zeros(64, 64, device=check.device)
    flags = torch.zeros(2, 5, dtype=torch.bool, device=check.device)
    index = torch.zeros(2, 5, dtype=torch.long, device=check.device)
    aten = torch.ops.aten
    operators = {
        "addmm of halves to a float32 total": lambda: aten.addmm.dtype_out(total, halves, halves, torch.float32, out=total),
        "product of halves as float32": lambda: aten.mm.dtype_out(halves, halves, torch.float32, out=total),
        "scatter_reduce amax of bool": lambda: flags.scatter_reduce(1, index, flags, "amax"),
    }
    for name, function in operators.items():
        try:
            function()
            synchronize(check.device)
            answer = "yes"
        except (AttributeError, RuntimeError, NotImplementedError) as error:
            answer = f"no: {str(error).splitlines()[0][:120]}"
        check.note(what=name, value=answer)
