"""Make a toy city: street scenes in the folder layouts of SYNTHIA and Cityscapes, nothing to download.

dada make-toycity --out data/toycity
"""

import argparse
import os


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, help="folder to make; gets SYNTHIA/ and Cityscapes/")
    parser.add_argument("--source", type=int, default=400, help="SYNTHIA pictures (default: %(default)s)")
    parser.add_argument("--target", type=int, default=300, help="Cityscapes pictures, train and val together (%(default)s)")
    parser.add_argument("--val", type=int, help="how many of the target's are val (default: a third)")
    parser.add_argument("--size", default="512x256", help="width x height in pixels (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same files (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one per CPU)")
    parser.add_argument("--overwrite", action="store_true", help="replace a toy city that is there")


def main(args: argparse.Namespace) -> list[str]:
    from dada.dataset.toycity import parse_size, write_city

    args.size = parse_size(args.size)
    out = write_city(**vars(args))
    print(f"{out}: {args.source} source and {args.target} target pictures")
    folders = f"DATA_DIRECTORY_SOURCE={out}/SYNTHIA", f"DATA_DIRECTORY_TARGET={out}/Cityscapes"
    return ["train", "--cfg", "toycity.yml", "--set", *folders]
