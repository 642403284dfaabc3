"""Make a packed copy of a dataset, which loads without decoding.

    dada pack-dataset --cfg FILE --role source --out DIR

Set DATA_DIRECTORY_SOURCE or DATA_DIRECTORY_TARGET to its folder: a run gets the same samples, to the last bit. If the run shrinks
all its training images to one size, the copy holds them at that size. Of several sources or targets each becomes a folder in DIR.
docs/performance.md says how large copies are, and how much time they save.
"""

import argparse
import os

from dada.cli.shared import add_cfg_flags, cfg_flags, load_cfg, one_or_list
from dada.config import cfg


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_cfg_flags(parser, required=False)
    parser.add_argument("--role", choices=("source", "target"), help="which domain of the run")
    parser.add_argument("--out", metavar="DIR", help="folder to make")
    parser.add_argument(
        "--splits",
        nargs="+",
        choices=("train", "test"),
        default=["train", "test"],
        help="of the target: what training reads, what the test reads, or both",
    )
    parser.add_argument("--original-size", action="store_true", help="never resize, for runs with other sizes")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that read (one per CPU)")
    parser.add_argument("--overwrite", action="store_true", help="replace a packed copy that is there")
    parser.add_argument("--check", metavar="DIR", help="only compare all checksums of a packed copy")


def main(args: argparse.Namespace) -> list[str]:
    if args.workers < 0:
        raise ValueError(f"--workers {args.workers} must not be negative")

    from dada.commands.pack_dataset import check, pack_each

    if args.check:
        found = check(args.check)
        print(f"{args.check}: {len(found.files)} files, all checksums right")
        return ["train", *cfg_flags(args)] if args.cfg else ["env"]
    missing = [flag for flag in ("cfg", "role", "out") if not getattr(args, flag)]
    if missing:
        raise ValueError(f"give {', '.join(f'--{flag}' for flag in missing)}, or --check DIR")
    load_cfg(args)

    options = {name: getattr(args, name) for name in ("splits", "original_size", "workers", "overwrite")}
    copies = pack_each(cfg, args.role, args.out, **options)
    for done in copies:
        for part in done.parts:
            how = f"resized: {part.resized[0]} {part.resized[1]}x{part.resized[2]}" if part.resized else "at their own size"
            print(f"{part.dataset} {part.split}: {part.images} images, {how}")
        unreadable = f", {done.broken} files kept as unreadable" if done.broken else ""
        print(f"{done.folder}: {done.bytes / 1e6:.1f} MB, from files of {done.from_bytes / 1e6:.1f} MB{unreadable}")
    args.set.append(f"DATA_DIRECTORY_{args.role.upper()}={one_or_list([done.folder for done in copies])}")
    return ["train", *cfg_flags(args)]
