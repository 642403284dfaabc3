"""Write a page that compares runs: options, curves, classes, pictures, cost.

    dada report experiments/snapshots/A experiments/snapshots/B --out report.html

It needs nothing but a browser. Runs that differ only in their seed are shown as one method, with their spread.
"""

import argparse

from dada.cli.shared import add_device_flag, add_set_flag


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="folders of snapshots, or of such, test_<snapshot>.json files, or weights beside one",
    )
    parser.add_argument("--out", default="report.html", metavar="FILE", help="file to write (%(default)s)")
    parser.add_argument("--images", type=int, default=3, help="test images with predictions, 0 for none (%(default)s)")
    add_set_flag(parser, "override options, DATA_DIRECTORY_TARGET for example")
    add_device_flag(parser)


def main(args: argparse.Namespace) -> list[object]:
    from dada.report.comparison_page import write_page

    groups = write_page(args.runs, args.out, args.images, args.set)
    for group in groups:
        print(f"{group.name}: {len(group.runs)} run{'s' * (len(group.runs) > 1)}")
    print(f"written: {args.out}, to open in a browser")
    weights = groups[-1].runs[0].weights
    if weights and weights.is_file():
        return ["explore", "--checkpoint", weights]
    tested = [run.headline.path for run in (group.runs[0] for group in groups) if run.headline]
    return ["visualize", "classes", *tested] if tested else ["test", "--cfg", groups[-1].runs[0].folder / "train_cfg.yml"]
