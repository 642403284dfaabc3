"""How fast training samples load: from files as the published code reads them, from files as we do, and from a packed copy.

    python benchmarks/data_loading.py --cfg toycity.yml --set DATA_TRANSFORM.COLOR_JITTER=0
    python benchmarks/data_loading.py --cfg camvid_day2dusk.yml --role target --workers 0 --repeat 9

A round loads a number of samples in each variant, one after the other; each is a process of its own (see turns.py).
Ratios are medians over the rounds of the quotient within a round. The copy is made for the run, in a temporary folder,
unless --packed names one. All files come from the system's cache: what a disk adds is not measured. `peak` is that of the process
that receives the batches; pages of a packed copy that the system caches count in it as far as that process read them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from turns import Variants, answer, median, peak, ratio, restart_peak, wait_for

from dada.cli.shared import add_cfg_flags, load_cfg, reporting_errors

VARIANTS = ("published", "files", "packed")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_cfg_flags(parser)
    parser.add_argument("--role", choices=("source", "target"), default="source", help="with labels, or without")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where batches go")
    parser.add_argument("--repeat", type=int, default=5, help="rounds (default: %(default)s)")
    parser.add_argument("--images", type=int, default=24, help="samples a round (default: %(default)s)")
    parser.add_argument("--workers", type=int, nargs="+", default=[0], help="numbers of loader processes to try")
    parser.add_argument("--packed", metavar="DIR", help="a packed copy that is there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    return parser.parse_args()


def run_variant(args: argparse.Namespace) -> None:
    """One variant in this process: batches of one sample, from a loader that never ends."""
    from published import pillow_loader

    from dada.build import source_loader, target_loader
    from dada.config import cfg
    from dada.normalization import CAFFE_BGR

    torch.set_num_threads(1)
    of_source, steps = args.role == "source", 10**6
    name, workers = args.variant.split("-")
    cfg.NUM_WORKERS, cfg.DEVICE = int(workers), args.device
    if name == "packed":
        cfg["DATA_DIRECTORY_SOURCE" if of_source else "DATA_DIRECTORY_TARGET"] = args.packed
    cfg.TRAIN.BATCH_SIZE_SOURCE = cfg.TRAIN.BATCH_SIZE_TARGET = 1
    device = torch.device(args.device)
    loader = (source_loader if of_source else target_loader)(cfg, CAFFE_BGR, steps=steps)
    if name == "published":
        loader = pillow_loader(loader, cfg, tuple(cfg.TRAIN.INPUT_SIZE_SOURCE if of_source else cfg.TRAIN.INPUT_SIZE_TARGET))
    batches = iter(loader)

    def turn() -> dict:
        restart_peak(torch.device("cpu"))
        start = time.perf_counter()
        for _ in range(args.images):
            for value in next(batches):
                if isinstance(value, torch.Tensor):
                    value.to(device, non_blocking=name != "published")
        wait_for(device)
        return {"seconds": (time.perf_counter() - start) / args.images, "peak": peak(torch.device("cpu"))}

    turn()
    answer({"shape": list(next(batches)[0].shape)}, turn)


def main() -> None:
    args = parsed()
    load_cfg(args)
    if args.variant:
        run_variant(args)
        return
    from dada.commands.pack_dataset import pack
    from dada.config import cfg

    if args.device == "cuda" and not torch.cuda.is_available():
        print("not measured: torch finds no CUDA device")
        return
    with contextlib.ExitStack() as stack:
        arguments = sys.argv[1:]
        if not args.packed:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "packed"
            start = time.perf_counter()
            made = pack(cfg, args.role, folder, splits=("train",))
            print(
                f"packed {made.parts[0].images} images in {time.perf_counter() - start:.1f} s: {made.from_bytes / 1e6:.1f} MB "
                f"of files became {made.bytes / 1e6:.1f} MB ({made.bytes / made.from_bytes:.2f})"
            )
            arguments += ["--packed", str(folder)]
        rows = []
        print(f"{'variant':<14}{'workers':>8}{'images/s':>10}{'ms':>8}{'time ratio':>12}{'peak MB':>9}")
        for workers in args.workers:
            variants = Variants([f"{name}-{workers}" for name in VARIANTS], arguments)
            rounds = variants.rounds(args.repeat)
            variants.close()
            base = rounds[f"published-{workers}"]
            for name in VARIANTS:
                mine = rounds[f"{name}-{workers}"]
                seconds = median(mine, "seconds")
                rows.append(
                    {
                        "variant": name,
                        "workers": workers,
                        "images/s": 1 / seconds,
                        "ms": 1000 * seconds,
                        "time ratio": ratio(mine, base, "seconds"),
                        "peak MB": median(mine, "peak") / 1e6,
                    }
                )
                row = rows[-1]
                print(
                    f"{name:<14}{workers:>8}{row['images/s']:>10.1f}{row['ms']:>8.1f}{row['time ratio']:>12.2f}"
                    f"{row['peak MB']:>9.0f}",
                    flush=True,
                )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    reporting_errors(main)
