"""How products of float32 matrices are computed: chosen for a device, set for a block of work, and put back after it.

torch has one switch for the whole process, `torch.set_float32_matmul_precision`. On CUDA "high" gives TF32. On a CPU
"highest" hands products to MKL (or the BLAS that torch was built with) and "medium" to oneDNN, which rounds to bfloat16
where the CPU multiplies bfloat16 matrices, and computes in full float32 elsewhere. On AMD's CPUs MKL is slow: there
oneDNN is used for exact products, once its error in two of them has been shown to be that of float32. Vendor and error are
the same in every run on a machine; a timing would not be. Convolutions have switches of their own, which stay as they are.
"""

from __future__ import annotations

import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

# Relative, of a product in float32: sums in another order leave 2e-7 to 5e-7, factors in bfloat16 2e-3.
EXACT = 1e-6


class Products(NamedTuple):
    """A way to multiply float32 matrices on a device."""

    setting: str  # of torch's switch
    exact: str  # the setting under which nothing is rounded on that device
    name: str  # for logs, reports and checkpoints


PLAIN = Products("highest", "highest", "float32")


def products_of(choice: str, device: torch.device | str) -> Products:
    """What TRAIN.MATMUL_PRECISION means on a device.

    Args:
        choice: "highest", "high" or "medium" as torch has them; "" for TF32 on CUDA and for exact products elsewhere,
            which oneDNN does where it is the faster exact way.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        setting = choice or "high"
        return Products(setting, "highest", _name_on_cuda(setting, device))
    exact = "medium" if kind == "cpu" and choice != "highest" and onednn_is_the_exact_way() else "highest"
    setting = choice or exact
    if setting == exact:
        return Products(setting, exact, PLAIN.name if setting == "highest" else "float32 by oneDNN")
    return Products(setting, exact, f"what torch makes of {setting!r} on this {kind.upper()}")


def _name_on_cuda(setting: str, device: torch.device | str) -> str:
    if setting == "highest":
        return PLAIN.name
    has_tf32 = torch.cuda.get_device_capability(device)[0] >= 8
    name = "TF32" if has_tf32 else "float32 (this GPU has no TF32)"
    return name if setting == "high" else f"{name}, those of the association in bfloat16"


@contextmanager
def matmul_precision(choice: str, device: torch.device | str) -> Iterator[Products]:
    """Multiply float32 matrices on `device` as `products_of(choice, device)` says, within the block."""
    with _using(products_of(choice, device)) as products:
        yield products


@contextmanager
def full_float32_products() -> Iterator[None]:
    """Factors as they are, for products that decide an argmax: the exact way of the block that this lies in."""
    with _using(_now()._replace(setting=_now().exact)):
        yield


def products_in_use() -> str:
    """The name of the products here and now; outside of any block, of what torch's switch says."""
    if not _entered and (set_by_others := float32_precision()) != PLAIN.setting:
        return f"torch's {set_by_others!r}"
    return _now().name


def float32_precision() -> str:
    """torch's switch: "highest", "high" or "medium"; if its parts were set one by one, what its part for CUDA says."""
    return _overall() or torch.backends.cuda.matmul.fp32_precision


# --- which way is exact ---------------------------------------------------------------------------------------


@cache
def onednn_is_the_exact_way() -> bool:
    """Whether exact products on this CPU are for oneDNN: its maker is AMD, and oneDNN rounds no factor."""
    if cpu_vendor() != "AuthenticAMD" or not torch.backends.mkldnn.is_available():
        return False
    return error_of("medium") < EXACT


def cpu_vendor() -> str:
    """What the CPU says of its maker, "GenuineIntel" or "AuthenticAMD"; "" where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor().rpartition(", ")[2]  # on Windows "AMD64 Family 25 Model 33, AuthenticAMD"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")


def error_of(setting: str) -> float:
    """The larger relative error of two fixed products on the CPU, one of odd sizes, one of whole blocks, under a setting."""
    generator = torch.Generator().manual_seed(0)
    errors = []
    for m, k, n in ((37, 301, 53), (256, 384, 512)):
        a = torch.randn(k, m, generator=generator, device="cpu", dtype=torch.float32).T
        b = torch.randn(k, n, generator=generator, device="cpu", dtype=torch.float32)
        with _using(Products(setting, setting, "")):
            product = a @ b
        exact = a.double() @ b.double()
        errors.append(((product - exact).norm() / exact.norm()).item())
    return max(errors)


# --- torch's switch -------------------------------------------------------------------------------------------

# The switch is one for all threads, so blocks of several threads may overlap: the last that was entered holds, and when
# all are left, what was set before the first of them is back.
_lock = threading.Lock()
_entered: dict[object, Products] = {}
_before: dict[str, str | tuple[str, ...]] = {}


def _now() -> Products:
    return next(reversed(list(_entered.values())), PLAIN)


@contextmanager
def _using(products: Products) -> Iterator[Products]:
    block = object()
    with _lock:
        if not _entered:
            _before.update(overall=_overall(), parts=tuple(part.fp32_precision for part in _parts()))
        _entered[block] = products
        _set(products.setting)
    try:
        yield products
    finally:
        with _lock:
            del _entered[block]
            if _entered:
                _set(_now().setting)
            else:
                _put_back(**_before)
                _before.clear()


def _overall() -> str:
    """ "" if parts of the switch were set by their newer names, so that there is no answer for all."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return ""


def _parts() -> list:
    """What torch 2.9 and later set one by one."""
    parts = torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)
    return [part for part in parts if hasattr(part, "fp32_precision")]


def _set(setting: str) -> None:
    if _overall() != setting:
        torch.set_float32_matmul_precision(setting)


def _put_back(overall: str, parts: tuple[str, ...]) -> None:
    if overall:
        _set(overall)
    for part, precision in zip(_parts(), parts):
        if part.fp32_precision != precision:
            part.fp32_precision = precision
