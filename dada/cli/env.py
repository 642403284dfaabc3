"""Say what this machine offers a run.

    dada env [--cfg synthia2cityscapes.yml] [--json FILE]

Include its output when you report a problem. With --cfg, images of its datasets are read and decoded as well.
"""

import argparse

from dada.cli.shared import add_cfg_flags, add_device_flag, cfg_flags, load_cfg
from dada.config import cfg


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_cfg_flags(parser, required=False)
    add_device_flag(parser)
    parser.add_argument("--images", type=int, default=20, metavar="N", help="images of each dataset to read (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="also write it as JSON")


def main(args: argparse.Namespace) -> list[str]:
    if args.images < 1:
        raise ValueError(f"--images is {args.images}, expected at least 1")
    load_cfg(args)

    from dada.commands.environment import environment, report
    from dada.evaluation.evaluator import to_json
    from dada.files import write_whole

    found = environment(cfg, args.images if args.cfg else 0)
    print(report(found))
    if args.json:
        write_whole(args.json, to_json(found))
        print(f"written: {args.json}")
    return ["check-data", *cfg_flags(args)] if args.cfg else ["demo", "--quick"]
