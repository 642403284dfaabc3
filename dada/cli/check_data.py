"""Check the data of a run before it starts.

    dada check-data --cfg synthia2cityscapes.yml

Reads every image, label and depth file that training and testing would read. Exit code 0 says that training would work with
these data, 1 that it would not. Starting weights (TRAIN.RESTORE_FROM) that are missing are named in the last line.
"""

import argparse
import os
import sys

from dada.cli.shared import add_cfg_flags, cfg_flags, load_cfg
from dada.config import cfg


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_cfg_flags(parser)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that read (one per CPU)")
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="read only N samples of each split")
    parser.add_argument("--json", metavar="FILE", help="also write everything that was found")


def main(args: argparse.Namespace) -> list[str]:
    if args.workers < 0 or args.limit < 0:
        raise ValueError(f"--workers {args.workers} and --limit {args.limit} must not be negative")
    load_cfg(args)

    from dada.commands.check_data import check_data
    from dada.commands.data_report import as_dict, report
    from dada.evaluation.evaluator import to_json
    from dada.files import write_whole

    check = check_data(cfg, args.workers, args.limit)
    print(report(check))
    if args.json:
        write_whole(args.json, to_json(as_dict(check)))
        print(f"written: {args.json}")
    if not check.trainable:
        sys.exit(1)
    return ["train", *cfg_flags(args)]
