"""Say which target images, and which regions of them, to label next.

    dada suggest --checkpoint model_3000.pth --count 4
    dada suggest --checkpoint model.safetensors --images photos/ --count 4 --exclude label_next.txt

Writes a list file that TARGET_LABELLED takes, and a page with the images, their predictions and the regions. It looks at no
label: images count that the network is unsure of, with many classes side by side, and unlike each other. Of several targets each
gets a list and a page of its own, label_next_CamVid.txt for example.
"""

import argparse
from pathlib import Path

from dada.cli.shared import add_cfg_flags, add_device_flag, load_cfg, one_or_list, photographs
from dada.config import cfg, cfg_from_list


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="a snapshot, or published weights with --cfg")
    parser.add_argument("--count", type=int, default=4, help="images to choose (%(default)s)")
    parser.add_argument("--images", metavar="FOLDER", help="photographs to choose from (the target's training split)")
    parser.add_argument(
        "--exclude", nargs="+", default=[], metavar="LIST", help="list of images that have labels; of several targets, one each"
    )
    parser.add_argument("--region", type=int, default=33, help="side of a region, in pixels that the network sees (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("label_next.txt"), help="list file to write (%(default)s)")
    parser.add_argument("--page", type=Path, metavar="FILE", help="page to write (the name of --out, with .html)")
    add_cfg_flags(parser, required=False)
    add_device_flag(parser)


def main(args: argparse.Namespace) -> list[object]:
    load_cfg(args, otherwise=[args.checkpoint])
    if args.images:
        args.set = [*photographs(args.images), *args.set]
        cfg_from_list(args.set)

    from dada.commands.suggest import suggest_each

    page = args.page or args.out.with_suffix(".html")
    exclude = [Path(name) if name else None for name in args.exclude]
    done = suggest_each(cfg, args.checkpoint, args.out, page, count=args.count, exclude=exclude, side=args.region)
    for out, page, found in done:
        for one in found:
            print(f"{one.score:.4f}  {one.path}")
        print(f"written: {out}, {page}")
    where = f", as train ids, each at its own path below {Path(args.images) / 'masks'}," if args.images else ""
    print(f"label these images{where} and train with them")
    files, labelled = args.cfg or [args.checkpoint], one_or_list([one.out for one in done])
    return ["train", "--cfg", *files, "--exp-suffix", "labelled", "--set", *args.set, f"TARGET_LABELLED={labelled}"]
