"""Compare runs on one page: python scripts/report.py experiments/snapshots/A experiments/snapshots/B --out report.html"""

import argparse

import _root  # noqa: F401

from dada.command_line import add_device_flag, run_script


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Write one HTML file that compares runs: options, curves, classes, pictures, cost. It needs nothing but a "
        "browser. Runs that differ in their seed alone are shown as one, with their spread."
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="folders of snapshots, folders of such folders, test_<snapshot>.json files, or weights with such a file beside them",
    )
    parser.add_argument("--out", default="report.html", metavar="FILE", help="file to write (%(default)s)")
    parser.add_argument("--images", type=int, default=3, help="test images with predictions, 0 for none (%(default)s)")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="override options, DATA_DIRECTORY_TARGET for example",
    )
    add_device_flag(parser)
    args = parser.parse_args()

    from dada.report.comparison_page import write_page

    groups = write_page(args.runs, args.out, args.images, args.set)
    for group in groups:
        print(f"{group.name}: {len(group.runs)} run{'s' * (len(group.runs) > 1)}")
    print(f"written: {args.out}")


if __name__ == "__main__":
    run_script(main)
