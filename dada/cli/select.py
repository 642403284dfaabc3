"""Rank trained networks without target labels.

    dada select experiments/snapshots/A experiments/snapshots/B     # the last snapshot of each run
    dada select experiments                                         # of all runs in experiments/snapshots
    dada select experiments/snapshots/A --every                     # all snapshots of one run
    dada select ... --with-labels      # beside the mIoU of earlier tests: how good are the criteria?

Each snapshot is judged on unlabelled images of the target's training split, as the configuration in it says.
"""

import argparse
from pathlib import Path

from dada.cli.shared import add_device_flag, add_set_flag, release_of
from dada.evaluation.criterion_names import MEANINGS
from dada.files import write_whole


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="snapshots, folders of snapshots, or folders of such")
    parser.add_argument("--every", action="store_true", help="every snapshot of a folder, not only its last")
    parser.add_argument("--by", default="information", choices=tuple(MEANINGS), help="the criterion that decides (%(default)s)")
    parser.add_argument("--images", type=int, default=64, help="target images to judge on (%(default)s)")
    parser.add_argument("--pairs", type=int, default=8, help="pairs of batches whose cycles are followed (%(default)s)")
    add_set_flag(parser, "options over those in the snapshots")
    add_device_flag(parser)
    parser.add_argument("--with-labels", action="store_true", help="show the mIoU of earlier tests, and rank correlations")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")


def main(args: argparse.Namespace) -> list[object]:
    from dada.evaluation.evaluator import to_json
    from dada.evaluation.selection import as_record, candidates_of, judge, ranking, report

    found = [judge(path, args.set, args.images, args.pairs) for path in candidates_of(args.runs, args.every)]
    print(report(found, args.by, args.with_labels))
    print(f"best by {args.by}: {ranking(found, args.by)[0].path}")
    if args.json:
        write_whole(args.json, to_json({"runs": [as_record(c) for c in ranking(found, args.by)]}))
    return release_of(ranking(found, args.by)[0].path)
