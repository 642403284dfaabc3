"""Matrix products of maps and tiles, in the precision that is set for float32 (dada/matmul_precision.py).

"medium" permits operands rounded to bfloat16. On CUDA they are rounded here, a map once for all its tiles, and the
results and sums stay float32. With "high" CUDA takes TF32 by itself, and a CPU does by itself what it can. float64 is
never rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from dada.matmul_precision import float32_precision


def rounded_to_half(x: Tensor) -> bool:
    """Whether products with `x` as it is take bfloat16 operands."""
    if x.dtype is torch.bfloat16:
        return True
    return x.is_cuda and x.dtype is torch.float32 and float32_precision() == "medium"


def operand(x: Tensor) -> Tensor:
    """`x` as it enters the products: to be kept where several products share it."""
    return x.to(operand_type(x))


def operand_type(x: Tensor) -> torch.dtype:
    return torch.bfloat16 if rounded_to_half(x) else x.dtype


def mm(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """(M, K) @ (K, N), in float32 unless both are float64."""
    if not (rounded_to_half(a) or rounded_to_half(b)):
        return torch.mm(a, b, out=out)
    a, b = a.bfloat16(), b.bfloat16()
    if not _gives_float32(_half_mm, a.device):
        return torch.mm(a.float(), b.float(), out=out)  # the same numbers; of bfloat16, TF32 loses nothing
    out = torch.empty(a.shape[0], b.shape[1], dtype=torch.float32, device=a.device) if out is None else out
    return _half_mm(out, a, b)


def addmm_(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """total += a @ b, in the precision of `total`."""
    if not (rounded_to_half(a) or rounded_to_half(b)):
        return total.addmm_(a, b)
    a, b = a.bfloat16(), b.bfloat16()
    if not _gives_float32(_half_addmm, a.device):
        return total.addmm_(a.float(), b.float())
    return _half_addmm(total, a, b)


def _half_mm(out: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.ops.aten.mm.dtype_out(a, b, torch.float32, out=out)


def _half_addmm(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.ops.aten.addmm.dtype_out(total, a, b, torch.float32, out=total)


@cache
def _gives_float32(product: Callable[[Tensor, Tensor, Tensor], Tensor], device: torch.device) -> bool:
    """Whether this product of bfloat16 has its result in float32 here: tried once, in a case that bfloat16 would round.

    To look whether torch has the operator is not enough: 2.8 and 2.9 have that of addmm, and refuse to run it.
    """
    side, value = 16, 1 + 2**-7  # side * value**2 has 14 bits
    with suppress(Exception), aside(device):  # not there, not for this device, not for these types
        x = torch.full((side, side), value, dtype=torch.bfloat16, device=device)
        out = torch.zeros(side, side, dtype=torch.float32, device=device)
        return bool((product(out, x, x) == side * value**2).all())
    return False


@contextmanager
def aside(device: torch.device) -> Iterator[None]:
    """As outside of every mode: the first call may come from a training step, from prediction, or on fake tensors."""
    with (
        _disable_current_modes(),
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(device.type, enabled=False),
        device,  # as the default, which may be another
    ):
        yield
