"""What the Triton kernels of the association take on a GPU: compiled for one, which need not be there.

    pip install triton==3.8.0
    python benchmarks/kernels.py

For each kernel, GPU and configuration: registers of a thread, bytes that spill out of them, shared memory of a block, and
which instructions multiply. An A100 (sm_80) has 163 KB of shared memory for a block, an H100 (sm_90) 227.
"""

from __future__ import annotations

import argparse
import itertools
import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from dada.domain_adaptation.association import argmax_kernel, pull_kernel, softmax_kernel, stripe_kernel

GPUS = (80, 90)
CHANNELS = 32  # of a block that holds all: 19 classes
# Arguments that are not named here, and that no flag leaves out, are pointers to float32.
PLACES = "best_of_row_ptr", "best_of_column_ptr", "chosen_ptr", "back_chosen_ptr"
INTEGERS = dict.fromkeys(PLACES, "*i64") | dict.fromkeys("CNM", "i32")
SOFTMAX, PULL = softmax_kernel.softmax_kernel, pull_kernel.pull_kernel
PLAIN = {"CHANNELS": CHANNELS, "EPS": 1e-10}
STRIPE = {"EPS": 1e-10, "ROUNDING": stripe_kernel.ROUNDING}
ONE_WAY = dict.fromkeys(x for x in stripe_kernel.stripe_kernel.arg_names if x.startswith(("weight", "back"))) | {"BOTH": False}
KERNELS = (
    ("argmax", argmax_kernel.most_similar_kernel, argmax_kernel.CONFIGS, {"COLUMNS_TOO": True}),
    *(
        (f"stripe, {name}", stripe_kernel.stripe_kernel, stripe_kernel.CONFIGS, STRIPE | flags)
        for name, flags in (
            ("statistics", {"TILE": False, **ONE_WAY}),
            ("softmax", {"TILE": True, **ONE_WAY}),
            ("gradient", {"TILE": True, "BOTH": True}),
        )
    ),
    (
        "softmax, mixing",
        SOFTMAX,
        softmax_kernel.CONFIGS,
        {"CONTRAST": False, "VALUES": True, "mean_ptr": None, "rounding_ptr": None, **PLAIN},
    ),
    ("softmax", SOFTMAX, softmax_kernel.CONFIGS, {"CONTRAST": True, "VALUES": False, "value_ptr": None, **PLAIN}),
    *(
        (f"gradient, {'rows' if rows else 'columns'}{', mixing' if values else ''}", PULL, softmax_kernel.CONFIGS, flags)
        for values in (True, False)
        for rows in (True, False)
        for flags in [
            {"OWN_ARE_ROWS": rows, "VALUES": values, "CHANNELS": CHANNELS}
            | ({"chosen_ptr": None} if values else {"own_value_ptr": None, "other_value_ptr": None})
        ]
    ),
)


def compiled(kernel: triton.JITFunction, config: triton.Config, flags: dict, gpu: int) -> CompiledKernel:
    constants, names = flags | config.kwargs, list(kernel.arg_names)
    types = {name: "constexpr" if name in constants else INTEGERS.get(name, "*fp32") for name in names}
    source = ASTSource(
        fn=kernel,
        signature=types,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if types[name] != "constexpr"},
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", nargs="+", default=[name for name, *_ in KERNELS], metavar="NAME", help="only these")
    chosen = parser.parse_args().kernels
    print(f"{'kernel':<26}{'GPU':<7}{'configuration':<24}{'registers':>10}{'spilled':>9}{'shared KB':>11}  products")
    for (name, kernel, configs, flags), gpu in itertools.product((kernel for kernel in KERNELS if kernel[0] in chosen), GPUS):
        for config in configs:
            made = compiled(kernel, config, flags, gpu)
            used, stack = registers(made)
            found = {instruction: made.asm["ptx"].count(instruction) for instruction in ("wgmma.mma_async", "mma.sync")}
            products = ", ".join(f"{count} {instruction}" for instruction, count in found.items() if count)
            blocks = "x".join(map(str, config.kwargs.values())) + f" {config.num_warps} warps"
            figures = f"{used:>10}{stack:>9}{made.metadata.shared / 1024:>11.0f}"
            print(f"{name:<26}sm_{gpu:<4}{blocks:<24}{figures}  {products}", flush=True)


if __name__ == "__main__":
    main()
