"""Draw a small city, train a source-only and an adapted network on it, and compare them on the target.

dada demo [--seeds 1 2 3] [--out experiments/demo]
dada demo --quick       # a smaller city and a third of the iterations: shows how things work; its numbers say little
"""

import argparse
from pathlib import Path

from dada.cli.shared import add_device_flag, add_set_flag


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="train both networks once for each seed")
    parser.add_argument("--out", type=Path, help="folder for everything written (experiments/demo, or demo_quick)")
    parser.add_argument("--quick", action="store_true", help="table and picture in two minutes, of networks hardly trained")
    add_set_flag(parser, "as in train")
    add_device_flag(parser)


def main(args: argparse.Namespace) -> list[object]:
    from dada.commands.demo import CITY, METHODS, QUICK, QUICK_CITY, demo

    out = args.out or Path("experiments/demo_quick" if args.quick else "experiments/demo")
    city, options = (QUICK_CITY, QUICK) if args.quick else (CITY, ())
    demo(out, args.seeds, [*options, *args.set], city)
    runs = [out / "snapshots" / f"{method}_seed{seed}" for method in METHODS for seed in args.seeds]
    return ["report", *runs, "--out", out / "report.html"]
