"""Write a snapshot with batch-norm statistics of the target's training images, without their labels (AdaBN).

    dada adapt-bn --checkpoint model_3000.pth --out model_3000_adabn.pth

train and test read the file like any other. TRAIN.ADABN_IMAGES does it in training.
"""

import argparse

from dada.cli.shared import add_cfg_flags, add_device_flag, load_cfg
from dada.config import cfg


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="a snapshot, or published weights with --cfg")
    parser.add_argument("--out", required=True, metavar="FILE", help="file to write, ending in .pth")
    parser.add_argument("--images", type=int, default=200, help="how many target images to take the statistics of (200)")
    add_cfg_flags(parser, required=False)
    add_device_flag(parser)


def main(args: argparse.Namespace) -> list[str]:
    load_cfg(args, otherwise=[args.checkpoint])

    from dada.training.adabn import adapt_snapshot

    adapt_snapshot(cfg, args.checkpoint, args.out, args.images)
    print(f"written: {args.out}")
    return ["test", "--cfg", *(args.cfg or [args.out]), "--set", *args.set, f"TEST.RESTORE_FROM={args.out}"]
