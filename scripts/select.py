"""Rank trained networks without target labels.

    python scripts/select.py experiments/snapshots/A experiments/snapshots/B     # the last snapshot of each run
    python scripts/select.py experiments/snapshots/A --every                     # all snapshots of one run
    python scripts/select.py ... --with-labels      # beside the mIoU that test.py has measured: how good are the criteria?

Each snapshot is judged on unlabelled images of the target's training split, as the configuration in it says.
"""

import sys

if __name__ == "select":  # Python looks for its own module of that name, and was started in this folder
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec
    from os.path import abspath, dirname

    spec = PathFinder.find_spec("select", [p for p in sys.path if abspath(p) != dirname(abspath(__file__))])
    sys.modules["select"] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules["select"])

import argparse
from pathlib import Path

import _root  # noqa: F401

from dada.command_line import add_device_flag, run_script


def main() -> None:
    from dada.evaluation.evaluator import to_json
    from dada.evaluation.selection import CHOICES, as_record, candidates_of, judge, ranking, report
    from dada.files import write_whole

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="snapshot files, or folders of snapshots")
    parser.add_argument("--every", action="store_true", help="every snapshot of a folder, not only its last")
    parser.add_argument("--by", default="information", choices=CHOICES, help="the criterion that decides (%(default)s)")
    parser.add_argument("--images", type=int, default=64, help="target images to judge on (%(default)s)")
    parser.add_argument("--pairs", type=int, default=8, help="pairs of batches whose cycles are followed (%(default)s)")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="options over those in the snapshots"
    )
    add_device_flag(parser)
    parser.add_argument("--with-labels", action="store_true", help="show the mIoU of earlier tests, and rank correlations")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    args = parser.parse_args()
    found = [judge(path, args.set, args.images, args.pairs) for path in candidates_of(args.runs, args.every)]
    print(report(found, args.by, args.with_labels))
    print(f"best by {args.by}: {ranking(found, args.by)[0].path}")
    if args.json:
        write_whole(args.json, to_json({"runs": [as_record(c) for c in ranking(found, args.by)]}))


if __name__ == "__main__":
    run_script(main)
