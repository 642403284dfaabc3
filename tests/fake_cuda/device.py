"""Do all of gpu_work on the device that fake_cuda makes, and note what the host did meanwhile.

Tensors of the host are real. Those of the device have no values: where the host asks for some, that is noted, and the answer is
1: losses are finite. In functions of DENIES it is 0: predictions are not out of range.
"""

from __future__ import annotations

import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import torch
from gpu_work import Watch, fresh, works
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves

from dada.domain_adaptation.association import form
from dada.training import trainer

ROOT = Path(__file__).resolve().parents[2]
aten = torch.ops.aten
GPU = torch.device("cuda", 0)
DENIES = ("confusion_matrix",)
INDEXING = ("index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index_put")


class FakeGPU(Watch):
    """Runs what concerns the device without values, and notes where the host waits for it, and what it copies there."""

    def __init__(self) -> None:
        super().__init__()
        self._shapes = FakeTensorMode(allow_non_fake_inputs=True)
        self.waits: Counter[str] = Counter()  # for values of the device
        self.copies: Counter[str] = Counter()  # to the device, for whose end the host waits
        self.lines: dict[str, str] = {}

    def see(self, func, types, args, kwargs):
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        device = kwargs.get("device")
        if not any(map(on_device, tensors)) and (device is None or device.type == "cpu"):
            return func(*args, **kwargs)
        name = func._opname
        if name == "_local_scalar_dense":
            return self.answer(args[0]).item()
        if name == "_to_copy" and device is not None and device.type == "cpu":
            return self.answer(args[0]).to(kwargs.get("dtype") or args[0].dtype)
        if name == "copy_" and not on_device(args[0]):
            return args[0].copy_(self.answer(args[1]))
        if name == "nonzero":
            return self.sent(self.answer(args[0]).nonzero())
        if name == "bincount":  # looks for the largest
            self.note(self.waits)
            count = args[2] if len(args) > 2 else kwargs["minlength"]
            return self.sent(torch.zeros(count, dtype=torch.int64))
        if name in INDEXING:
            if any(x is not None and not on_device(x) and x.ndim for x in args[1]):
                self.note(self.copies)
            if any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1]):
                (mask,) = args[1]
                indices = [self.sent(i) for i in self.answer(mask).nonzero(as_tuple=True)]
                args = (args[0], indices, *args[2:])
        if name == "copy_" and args[1].ndim and not on_device(args[1]) and not (args[2:] and args[2]):
            self.note(self.copies)
        if name == "_to_copy" and not on_device(args[0]):
            if not kwargs.get("non_blocking"):
                self.note(self.copies)
            return self.sent(args[0], kwargs.get("dtype"))
        return self._shapes.__torch_dispatch__(func, types, args, kwargs)

    def answer(self, x: torch.Tensor) -> torch.Tensor:
        """What the host is told that the device holds."""
        function = self.note(self.waits)
        return torch.full(x.shape, function not in DENIES, dtype=x.dtype)

    def sent(self, x: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        """`x` as it is on the device: without its values."""
        with self._shapes:
            return torch.empty_strided(x.shape, x.stride(), dtype=dtype or x.dtype, device=GPU)

    def note(self, counter: Counter[str]) -> str:
        """Count one for the function of the project that asked. Returns its name."""
        frame, place = sys._getframe(), "torch"
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(ROOT / "dada") and not frame.f_code.co_name.startswith("<"):  # <listcomp> of old Pythons
                place = f"{path.relative_to(ROOT / 'dada')} {frame.f_code.co_name}"
                self.lines[place] = f"{path.relative_to(ROOT)}:{frame.f_lineno}"
                break
            frame = frame.f_back
        counter[place] += 1
        return place.rpartition(" ")[2]


def on_device(x: torch.Tensor) -> bool:
    return isinstance(x, FakeTensor)


def prepare_torch() -> None:
    """What a CPU build of torch would look up in a driver."""
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(x, device=...) then copies where a mode can see it
    torch.cuda._lazy_init = lambda: None
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.amp.autocast_mode.torch.cuda.is_bf16_supported = lambda *args, **options: True
    FakeTensor.tolist = lambda x: x.to("cpu").tolist()  # one copy, as of any tensor of a GPU
    torch.cuda.get_device_properties = lambda device: SimpleNamespace(major=9, minor=0)  # as an H100 says
    form.KERNEL_DEVICES = ()
    trainer.torch_rng_state = lambda device: {}


def report(name: str) -> dict:
    torch.manual_seed(0)
    with fresh(name), FakeGPU() as preparing:
        work = works()[name](GPU)
    watch = FakeGPU()
    watch._shapes = preparing._shapes
    try:
        with fresh(name), watch:
            work()
        error = ""
    except Exception:
        error = traceback.format_exc()
    return {"waits": watch.waits, "copies": watch.copies, "lines": watch.lines, "error": error}


def reports(names: list[str]) -> Iterator[tuple[str, dict]]:
    """Of each piece of work: `waits` and `copies` by function, `lines` of these, and the `error` that ended it."""
    prepare_torch()
    for name in names or works():
        yield name, report(name)
