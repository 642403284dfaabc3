"""Average trained networks into one, or give one network batch-norm statistics of the target.

    dada merge a/model_300.pth a/model_600.pth --out both.pth                 # snapshots of a run, or runs of several seeds
    dada merge run_1/model_600.pth run_2/model_600.pth --how greedy --out best.pth
    dada merge model_600.pth --refresh-bn 200 --out adabn.pth                 # AdaBN; --bn-share 0.5 mixes (UBNA)

All without labels. The file is a snapshot like any other, with the cfg of the first network, and says what it is made of.
"""

import argparse

from dada.cli.shared import add_cfg_flags, add_device_flag, load_cfg, photographs
from dada.config import cfg
from dada.evaluation.criterion_names import CLOSURE, MEANINGS


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("networks", nargs="+", metavar="NET", help="snapshots or releases of one kind; other weights with --cfg")
    parser.add_argument("--out", required=True, metavar="FILE", help="file to write, ending in .pth")
    parser.add_argument(
        "--how",
        default="uniform",
        choices=("uniform", "greedy", "layers"),
        help="uniform: the average of all; greedy: of those that do not make the criterion worse; layers: each group of layers "
        "averaged, or of the network that makes the criterion better (%(default)s)",
    )
    criteria = [name for name in MEANINGS if name != CLOSURE]  # which would read the source, too
    parser.add_argument("--by", default=criteria[0], choices=criteria, help="criterion, as in select (%(default)s)")
    parser.add_argument("--images", metavar="FOLDER", help="photographs to measure and refresh with (the target of the cfg)")
    parser.add_argument("--judge-images", type=int, default=64, metavar="N", help="images for the criterion (%(default)s)")
    refresh = "take batch-norm statistics from N target images (200)"
    parser.add_argument("--refresh-bn", type=int, nargs="?", const=200, default=0, metavar="N", help=refresh)
    share = "their share; the rest is what the average has (%(default)s)"
    parser.add_argument("--bn-share", type=float, default=1.0, metavar="S", help=share)
    add_cfg_flags(parser, required=False)
    add_device_flag(parser)


def main(args: argparse.Namespace) -> list[str]:
    load_cfg(args, otherwise=args.networks[:1])

    from dada.commands.merge import merge

    target = photographs(args.images) if args.images else ()
    options = {"how": args.how, "by": args.by, "images": args.judge_images, "refresh": args.refresh_bn, "share": args.bn_share}
    said = merge(cfg, args.networks, args.out, **options, target=target)
    for tried, score in said.get("scores", ()):
        print(f"{tried:<30} {args.by} {score:.4f}")
    for part, chosen in said["parts"].items():
        print(f"{part}: {', '.join(args.networks[k] for k in chosen)}")
    print(f"written: {args.out}")
    return ["test", "--cfg", *(args.cfg or [args.out]), "--set", *args.set, f"TEST.RESTORE_FROM={args.out}"]
