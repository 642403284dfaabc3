"""A CPU build of torch that believes it has one CUDA device, for tensors without values.

A small library, `device.cpp`, is put before torch: a device that does nothing, and what says that it is there.
Import this module before torch. No kernel exists, so that tensors on the device must be those of FakeTensorMode.
"""

from __future__ import annotations

import ctypes
import importlib.util
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().with_name("device.cpp")
TORCH = Path(importlib.util.find_spec("torch").origin).parent


def build(folder: Path) -> None:
    """Compile the library into `folder`, unless it is there.

    Raises:
        FileNotFoundError: there is no g++.
        CalledProcessError: it does not compile; `stderr` says why.
    """
    includes = [f"-I{TORCH}/include", f"-I{TORCH}/include/torch/csrc/api/include"]
    linked = [f"-L{TORCH}/lib", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{TORCH}/lib"]
    out, part = folder / "device.so", folder / "device.part.so"
    options = ["-shared", "-fPIC", "-std=c++20", *includes, str(SOURCE), "-o", str(part), *linked]
    if not out.exists():
        subprocess.run(["g++", *options], check=True, capture_output=True, text=True)
        part.rename(out)  # whole, or not there


def load(folder: Path) -> None:
    """Have this process believe it. torch must not be imported yet."""
    if "torch" in sys.modules:
        raise RuntimeError("torch was imported before fake CUDA")
    needed = sorted((TORCH / "lib").glob("libgomp*")) + sorted((TORCH.parent / "torch.libs").glob("*"))
    for library in [*needed, TORCH / "lib/libc10.so", TORCH / "lib/libtorch_cpu.so", folder / "device.so"]:
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
