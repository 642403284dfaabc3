"""What the Triton kernels of the association take on a GPU: compiled for one, which need not be there.

    pip install triton==3.8.0
    python benchmarks/kernels.py

For each kernel, GPU and configuration: registers of a thread, bytes that spill out of them, shared memory of a block, and
which instructions multiply. An A100 (sm_80) has 163 KB of shared memory for a block, an H100 (sm_90) 227.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from dada.domain_adaptation.association import argmax_kernel

GPUS = (80, 90)
WIDE = "row_ptr", "column_ptr", "row_unit_ptr", "column_unit_ptr"


def compiled(config: triton.Config, gpu: int) -> CompiledKernel:
    kernel = argmax_kernel.most_similar_kernel
    constants = {"COLUMNS_TOO": True, **config.kwargs}
    types = dict.fromkeys(WIDE, "*fp32") | dict.fromkeys(("best_of_row_ptr", "best_of_column_ptr"), "*i64")
    types |= dict.fromkeys("CNM", "i32") | dict.fromkeys(constants, "constexpr")
    names = list(kernel.arg_names)
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if types[name] != "constexpr"}
    source = ASTSource(
        fn=kernel,
        signature={name: types[name] for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs=aligned,
    )
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    return triton.compile(source, target=GPUTarget("cuda", gpu, 32), options=options)


def registers(kernel: CompiledKernel) -> tuple[int, int]:
    """Of a thread, and the bytes of its stack: what the assembler of NVIDIA says that comes with triton."""
    assembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        said = subprocess.run([assembler, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return tuple(int(re.search(rf"{name}:(\d+)", said)[1]) for name in ("REG", "STACK"))


def main() -> None:
    print(f"{'GPU':<7}{'configuration':<24}{'registers':>10}{'spilled':>9}{'shared KB':>11}  products")
    for gpu in GPUS:
        for config in argmax_kernel.CONFIGS:
            kernel = compiled(config, gpu)
            used, stack = registers(kernel)
            found = {name: kernel.asm["ptx"].count(name) for name in ("wgmma.mma_async", "mma.sync")}
            products = ", ".join(f"{count} {name}" for name, count in found.items() if count)
            blocks = "x".join(map(str, config.kwargs.values())) + f" {config.num_warps} warps"
            print(f"sm_{gpu:<4}{blocks:<24}{used:>10}{stack:>9}{kernel.metadata.shared / 1024:>11.0f}  {products}", flush=True)


if __name__ == "__main__":
    main()
