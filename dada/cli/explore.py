"""Write a page that shows cycles in a browser.

    dada explore --checkpoint model_3000.pth --pairs 2 --out explorer.html

It shows which target pixel each source pixel is associated with, where the cycle returns to, and the similarities behind it. It
needs nothing but a browser. Images are those of the cfg's datasets.
"""

import argparse

from dada.cli.shared import add_cfg_flags, add_device_flag, load_cfg, network_flags
from dada.config import cfg


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="a snapshot, or published weights with --cfg")
    parser.add_argument("--out", default="explorer.html", metavar="FILE", help="file to write (%(default)s)")
    parser.add_argument("--pairs", type=int, default=2, help="image pairs, evenly spread over the data (%(default)s)")
    parser.add_argument("--megabytes", type=float, default=8.0, help="largest size of the file, in MB (%(default)s)")
    parser.add_argument(
        "--with-target-labels",
        action="store_true",
        help="take the test's images and labels, to see which cycles turn around in their class",
    )
    add_cfg_flags(parser, required=False)
    add_device_flag(parser)


def main(args: argparse.Namespace) -> list[str]:
    load_cfg(args, otherwise=[args.checkpoint])

    from dada.explorer.cycle_page import explore

    explore(cfg, args.checkpoint, args.out, args.pairs, args.megabytes, args.with_target_labels)
    print(f"written: {args.out}, to open in a browser")
    return ["visualize", "cycles", args.checkpoint, *network_flags(args)]
