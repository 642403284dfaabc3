"""The whole thing on an embedded city: write it, train a source-only and an adapted network, compare them on the target.

python scripts/demo.py [--seeds 1 2 3] [--out experiments/demo]
"""

import argparse
from pathlib import Path

import _root  # noqa: F401

from dada.command_line import add_device_flag, run_script


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="train both networks once for each seed")
    parser.add_argument("--out", type=Path, default=Path("experiments/demo"), help="folder for everything written")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="as in train.py")
    add_device_flag(parser)
    args = parser.parse_args()

    from dada.commands.demo import demo

    demo(args.out, args.seeds, args.set)


if __name__ == "__main__":
    run_script(main)
