"""Adapt batch norm to the target: python scripts/adapt_bn.py --checkpoint model_3000.pth --out model_3000_adabn.pth"""

import argparse

import _root  # noqa: F401

from dada.command_line import add_cfg_flags, add_device_flag, load_cfg, run_script


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Write a snapshot with batch-norm statistics of the target's training images, without their labels (AdaBN); "
        "train.py and test.py read the file like any other. TRAIN.ADABN_IMAGES does it in training."
    )
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="a snapshot, or published weights with --cfg")
    parser.add_argument("--out", required=True, metavar="FILE", help="file to write, ending in .pth")
    parser.add_argument("--images", type=int, default=200, help="how many target images to take the statistics of (200)")
    add_cfg_flags(parser, required=False)
    add_device_flag(parser)
    args = parser.parse_args()
    args.cfg = args.cfg or [args.checkpoint]
    load_cfg(args)

    from dada.config import cfg
    from dada.training.adabn import adapt_snapshot

    adapt_snapshot(cfg, args.checkpoint, args.out, args.images)
    print(f"written: {args.out}")


if __name__ == "__main__":
    run_script(main)
