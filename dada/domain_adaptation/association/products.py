"""Matrix products of maps and tiles, in the precision that is set for float32 (dada/matmul_precision.py).

"medium" permits operands rounded to bfloat16. On CUDA they are rounded here, a map once for all its tiles, and the
results and sums stay float32. With "high" CUDA takes TF32 by itself, and a CPU does by itself what it can. float64 is
never rounded.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dada.matmul_precision import float32_precision

# Products of bfloat16 that are handed out in float32 came with torch 2.8.
_GIVES_FLOAT32 = "dtype_out" in torch.ops.aten.mm.overloads() and "dtype_out" in torch.ops.aten.addmm.overloads()


def rounded_to_half(x: Tensor) -> bool:
    """Whether products with `x` as it is take bfloat16 operands."""
    if x.dtype is torch.bfloat16:
        return True
    return x.is_cuda and x.dtype is torch.float32 and float32_precision() == "medium"


def operand(x: Tensor) -> Tensor:
    """`x` as it enters the products: to be kept where several products share it."""
    return x.bfloat16() if rounded_to_half(x) else x


def mm(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """(M, K) @ (K, N), in float32 unless both are float64."""
    if not (rounded_to_half(a) or rounded_to_half(b)):
        return torch.mm(a, b, out=out)
    a, b = a.bfloat16(), b.bfloat16()
    if not (a.is_cuda and _GIVES_FLOAT32):
        return torch.mm(a.float(), b.float(), out=out)  # the same numbers; of bfloat16, TF32 loses nothing
    out = torch.empty(a.shape[0], b.shape[1], device=a.device) if out is None else out
    return torch.ops.aten.mm.dtype_out(a, b, torch.float32, out=out)


def addmm_(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """total += a @ b, in the precision of `total`."""
    if not (rounded_to_half(a) or rounded_to_half(b)):
        return total.addmm_(a, b)
    a, b = a.bfloat16(), b.bfloat16()
    if not (a.is_cuda and _GIVES_FLOAT32):
        return total.addmm_(a.float(), b.float())
    return torch.ops.aten.addmm.dtype_out(total, a, b, torch.float32, out=total)
