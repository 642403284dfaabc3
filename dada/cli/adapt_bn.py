"""Old name of `dada merge NET --refresh-bn N --out FILE`, and gone in the next version.

dada adapt-bn --checkpoint model_3000.pth --out model_3000_adabn.pth
"""

import argparse
import logging

from dada.cli import merge
from dada.cli.shared import add_cfg_flags, add_device_flag

log = logging.getLogger(__name__)


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="a snapshot, or published weights with --cfg")
    parser.add_argument("--out", required=True, metavar="FILE", help="file to write, ending in .pth")
    parser.add_argument("--images", type=int, default=200, help="how many target images to take the statistics of (200)")
    add_cfg_flags(parser, required=False)
    add_device_flag(parser)


def main(args: argparse.Namespace) -> list[str]:
    log.warning(
        "dada adapt-bn is now `dada merge %s --refresh-bn %d --out %s`; this name goes in the next version",
        args.checkpoint,
        args.images,
        args.out,
    )
    now = {"networks": [args.checkpoint], "how": "uniform", "by": "information", "images": "", "judge_images": 64}
    return merge.main(argparse.Namespace(**{**vars(args), **now, "refresh_bn": args.images, "bn_share": 1.0}))
