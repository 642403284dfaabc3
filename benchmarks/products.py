"""Speed and error of products of float32 matrices, in every precision that torch has for them.

    python benchmarks/products.py
    python benchmarks/products.py --device cuda

The shapes are those of the association (features of 92x92 pixels, a stripe of 2112 of them) and of a layer of a vision
transformer. The precisions take turns, so that a busy minute hits all of them; the error is relative, beside float64.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from dada.matmul_precision import matmul_precision, products_of

PRECISIONS = ("highest", "high", "medium")
SHAPES = {"association": (8464, 512, 2112), "ViT": (1369, 384, 1536)}  # (M, K) @ (K, N)


def measure(name: str, device: torch.device, repeat: int) -> None:
    m, k, n = SHAPES[name]
    torch.manual_seed(0)
    a, b = torch.randn(k, m).to(device).T, torch.randn(k, n).to(device)
    want = a.double() @ b.double()
    seconds: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
    errors = {}
    for _ in range(repeat + 1):  # the first is not counted
        for precision in PRECISIONS:
            with matmul_precision(precision, device):
                _wait_for(device)
                start = time.perf_counter()
                product = a @ b
                _wait_for(device)
                seconds[precision].append(time.perf_counter() - start)
            if precision not in errors:
                errors[precision] = ((product - want).norm() / want.norm()).item()
    for precision, times in seconds.items():
        speed = 2e-9 * m * k * n / statistics.median(times[1:])
        print(f"{name:<13}{precision:<9}{speed:>9.0f} GFLOP/s   error {errors[precision]:.1e}", flush=True)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--repeat", type=int, default=15, help="runs of which the median is taken (%(default)s)")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("not measured: torch finds no CUDA device")
        return
    print(f"TRAIN.MATMUL_PRECISION='' takes: {products_of('', args.device).name}")
    for name in SHAPES:
        measure(name, torch.device(args.device), args.repeat)


if __name__ == "__main__":
    main()
