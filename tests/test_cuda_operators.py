"""Every operator that the project calls exists on CUDA for the dtypes that it is called with, by torch's own table.

Torch tests its operators on every device from a table of what each supports. So a machine without a GPU can tell whether CUDA
has a kernel. Tensors without values, on "meta" or in FakeTensorMode, cannot: they refuse nothing.
"""

from __future__ import annotations

import sys
import warnings
from collections import defaultdict
from unittest import mock

import pytest
import torch
from gpu_work import Watch, fresh, works

CPU = torch.device("cpu")

# Operators that the table has under another name, and the one of its variants that is meant.
TABLE_NAMES = {
    "__and": ("bitwise_and", ""),
    "_fft_c2r": ("fft_irfft2", ""),
    "_fft_r2c": ("fft_rfft2", ""),
    "_local_scalar_dense": ("item", ""),
    "_native_batch_norm_legit_no_training": ("native_batch_norm", ""),
    "_scaled_dot_product_flash_attention_for_cpu": ("scaled_dot_product_attention", ""),  # CUDA has others of its kind
    "_to_copy": ("to", ""),
    "_unsafe_index": ("__getitem__", ""),
    "_unsafe_view": ("view", ""),
    "_upsample_bicubic2d_aa": ("interpolate", "bicubic"),
    "convolution": ("conv2d", ""),
    "copy": ("to", ""),
    "index": ("__getitem__", ""),
    "max_pool2d_with_indices": ("max_pool2d", ""),
    "nll_loss2d": ("nll_loss", ""),
    "reflection_pad2d": ("pad", "reflect"),
    "upsample_bilinear2d": ("interpolate", "bilinear"),
    "upsample_nearest2d": ("interpolate", "nearest"),
    "zero": ("fill", ""),
}
# Operators that the table lacks, and why CUDA has them.
NOT_IN_TABLE = {
    "alias": "another name of the same memory, on any device",
    "detach": "another name of the same memory, on any device",
    "detach_": "forgets how it was computed: nothing that a device would do",
    "lift_fresh": "marks what torch.tensor made, on the CPU",
}
# Arguments that say where, not what: CUDA takes the dtypes that the CPU takes.
PLACES = {"index", "indices", "mask", "condition", "target", "info"}


class Record(Watch):
    """Calls of operators: name, strings among the arguments, and the dtypes that are computed with."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: set[tuple[str, tuple[str, ...], torch.dtype]] = set()

    def see(self, func, types, args, kwargs):
        given = dict(zip((a.name for a in func._schema.arguments), args), **kwargs)
        texts = tuple(value for value in given.values() if isinstance(value, str))
        values = [value for name, value in given.items() if name not in PLACES]
        tensors = [t for v in values for t in (v if isinstance(v, (list, tuple)) else [v]) if isinstance(t, torch.Tensor)]
        cast = given.get("dtype")  # before anything is computed
        self.calls |= {(func._opname, texts, t.dtype if cast is None else cast) for t in tensors}
        return func(*args, **kwargs)


@pytest.fixture(scope="module")
def table() -> dict[str, dict[str, set[torch.dtype]]]:
    """By operator and variant, the dtypes that torch tests on CUDA."""
    pytest.importorskip("expecttest", reason="torch's table of operators needs the package expecttest")
    # Otherwise nobody in this process could set the switches of cuDNN from then on, and it would import from torch's folders.
    leave = mock.patch("torch.backends.disable_global_flags"), mock.patch.object(sys, "path", sys.path[:])
    with warnings.catch_warnings(), leave[0], leave[1]:
        warnings.simplefilter("ignore")
        from torch.testing._internal import common_methods_invocations as tests_of_torch
    lists = ("op_db", *(f"foreach_{kind}_op_db" for kind in ("unary", "binary", "pointwise", "reduce", "other")))
    found: dict[str, dict[str, set[torch.dtype]]] = defaultdict(dict)
    for entry in (entry for name in lists for entry in getattr(tests_of_torch, name)):
        for name in {entry.aten_name or entry.name, entry.name.rpartition(".")[2], entry.name.replace(".", "_")}:
            found[name].setdefault(entry.variant_test_name, set()).update(entry.dtypesIfCUDA)
    return found


def listed(table, operator: str, texts: tuple[str, ...]) -> set[torch.dtype] | None:
    """Dtypes of an operator on CUDA; None if the table does not know it."""
    stem = operator.rstrip("_")
    for ending in ("_backward_data", "_backward", "_forward"):
        stem = stem.removesuffix(ending)
    name, variant = TABLE_NAMES.get(stem, (stem, ""))
    for known in (name, name.lstrip("_")):  # of _softmax, _log_softmax
        if known in table:
            variants = table[known]
            wanted = [v for v in (*texts, variant) if v in variants]
            return variants[wanted[0]] if wanted else set().union(*variants.values())
    return None


@pytest.mark.parametrize("name", works())
def test_cuda_has_every_operator_and_dtype_that_is_called(name, table):
    with fresh(name):
        work, record = works()[name](CPU), Record()
        with record:
            work()
    missing = []
    for operator, texts, dtype in sorted(record.calls, key=str):
        known = listed(table, operator, texts)
        if known is None and operator not in NOT_IN_TABLE:
            missing.append(f"{operator} is not in torch's table: say in NOT_IN_TABLE why CUDA has it")
        elif known is not None and dtype not in known:
            missing.append(f"{operator}{list(texts) or ''} has no CUDA kernel for {dtype}")
    assert not missing, "\n".join(missing)
