"""Say what this machine has for a run: python scripts/env.py [--cfg synthia2cityscapes.yml] [--json FILE]

Put what it prints into every report of a problem. With --cfg, images of its datasets are read and decoded as well.
"""

import argparse

import _root  # noqa: F401

from dada.command_line import add_cfg_flags, add_device_flag, load_cfg, run_script


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_cfg_flags(parser, required=False)
    add_device_flag(parser)
    parser.add_argument("--images", type=int, default=20, metavar="N", help="images of each dataset to read (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="also write it as JSON")
    args = parser.parse_args()
    if args.images < 1:
        raise ValueError(f"--images is {args.images}, expected at least 1")
    measured = bool(args.cfg)
    args.cfg = args.cfg or []
    load_cfg(args)

    from dada.commands.environment import environment, report
    from dada.config import cfg
    from dada.evaluation.evaluator import to_json
    from dada.files import write_whole

    found = environment(cfg, args.images if measured else 0)
    print(report(found))
    if args.json:
        write_whole(args.json, to_json(found))
        print(f"written: {args.json}")


if __name__ == "__main__":
    run_script(main)
