"""Draw figures of checkpoints, test reports and logs, as PNG and PDF, in the sizes of a paper's columns.

dada visualize panels model_a.pth model_b.pth --names source-only adapted
"""

import argparse
import os
from functools import partial
from pathlib import Path

from dada.cli.shared import add_network_flags, network_flags, release_of


def add_flags(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")

    def add(name: str, meaning: str) -> argparse.ArgumentParser:
        kind = kinds.add_parser(name, help=meaning, description=meaning)
        default = [f"figures/{name}.png", f"figures/{name}.pdf"]
        kind.add_argument("--out", nargs="+", default=default, metavar="FILE", help="files to write (%(default)s)")
        return kind

    def add_names(kind: argparse.ArgumentParser) -> None:
        kind.add_argument("--names", nargs="+", default=[], help="what to call them; as their folders, if left out")

    def add_network(kind: argparse.ArgumentParser, several: bool = False) -> None:
        what = "snapshots, or published weights with --cfg" if several else "a snapshot, or published weights with --cfg"
        kind.add_argument(
            "checkpoints" if several else "checkpoint", nargs="+" if several else None, metavar="CHECKPOINT", help=what
        )
        add_network_flags(kind)

    for name, meaning in (
        ("cycles", "Cycles between a source and a target image as arrows."),
        ("maps", "All cycles that start at a class: where they start, turn around and end."),
    ):
        kind = add(name, meaning)
        add_network(kind)
        kind.add_argument(
            "--class", dest="of", default="", required=name == "maps", metavar="NAME", help="the class at their start"
        )
        kind.add_argument("--level", choices=("features", "classes"), default="features", help="what is associated (%(default)s)")
        kind.add_argument("--pair", type=int, metavar="N", help="number of the image pair, from 0, of ten spread over the data")
        if name == "cycles":
            kind.add_argument("--count", type=int, default=6, help="cycles to draw (%(default)s)")
    kind = add("features", "Features of both domains along two principal components, for one network or several.")
    add_network(kind, several=True)
    add_names(kind)
    kind.add_argument("--pairs", type=int, help="images of each domain (8, or as many as there are)")
    kind.add_argument("--per-class", type=int, default=40, help="pixels of a class and domain (%(default)s)")
    kind = add("panels", "Test images: image, label, predictions, errors.")
    add_network(kind, several=True)
    add_names(kind)
    kind.add_argument("--images", type=int, default=4, help="evenly spaced over the test (%(default)s)")
    kind = add("confusion", "The confusion matrix of a test.")
    kind.add_argument("report", help="test_<snapshot>.json, which a test writes")
    kind = add("classes", "IoU of every class, and the differences from the first report.")
    kind.add_argument("reports", nargs="+", help="test_<snapshot>.json files")
    add_names(kind)
    kind = add("curves", "Training curves, from the logs of train --tensorboard.")
    kind.add_argument("logs", nargs="+", help="folders of TensorBoard logs")
    kind.add_argument("--tags", nargs="+", default=["data/*", "eval/*"], help="names or patterns of scalars (%(default)s)")
    add_names(kind)


def main(args: argparse.Namespace) -> list[object]:
    from dada.commands import visualize
    from dada.figures.style import check_formats, save_figure
    from dada.segmenter import Segmenter

    given = {name: value for name, value in vars(args).items() if name not in ("kind", "out", "cfg", "set")}
    if "cfg" in args:
        given["read"] = partial(Segmenter.from_checkpoint, cfg=args.cfg, options=args.set)
    check_formats(args.out)  # before networks run
    save_figure(getattr(visualize, args.kind)(**given), *args.out)
    print(f"written: {', '.join(map(str, args.out))}")
    return _next(args)


def _next(args: argparse.Namespace) -> list[object]:
    """Figures of networks one after another, then a release of the last; after those of tests or logs, a report of their runs."""
    if args.kind in ("cycles", "maps"):
        return ["visualize", "features", args.checkpoint, *network_flags(args)]
    if args.kind == "features":
        return ["visualize", "panels", *args.checkpoints, *network_flags(args)]
    if args.kind == "panels":
        return release_of(args.checkpoints[-1], network_flags(args))
    if args.kind == "curves":  # logs/tensorboard/NAME is of snapshots/NAME
        return ["report", *(Path(os.path.abspath(log)).parents[2] / "snapshots" / Path(log).name for log in args.logs)]
    return ["report", *([args.report] if args.kind == "confusion" else args.reports)]
