"""Draw a small city, train a source-only and an adapted network on it, and compare them on the target.

dada demo [--seeds 1 2 3] [--out experiments/demo]
"""

import argparse
from pathlib import Path

from dada.cli.shared import add_device_flag, add_set_flag


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="train both networks once for each seed")
    parser.add_argument("--out", type=Path, default=Path("experiments/demo"), help="folder for everything written")
    add_set_flag(parser, "as in train")
    add_device_flag(parser)


def main(args: argparse.Namespace) -> None:
    from dada.commands.demo import demo

    demo(args.out, args.seeds, args.set)
