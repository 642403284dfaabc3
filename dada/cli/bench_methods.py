"""Compare methods on three shifts: same start and network, equal iterations and equal time, several seeds.

    dada bench-methods --camvid data/CamVid --idd data/IDD
    dada bench-methods --benchmarks ToyCity --methods "source-only, longer" PLCA ours --seeds 1
    dada bench-methods --labelled --benchmarks "CamVid to IDD-lite" --out experiments/bench_labelled

Writes results.json and tables.md to --out. If interrupted, repeat the command: it continues where it stopped.
"""

import argparse
from pathlib import Path

from dada.cli.shared import add_device_flag, add_set_flag
from dada.commands import bench_methods as known


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("experiments/bench"), help="folder to work in (%(default)s)")
    parser.add_argument(
        "--benchmarks",
        nargs="+",
        default=list(known.BENCHMARKS),
        choices=list(known.BENCHMARKS),
        metavar="NAME",
        help=f"of {', '.join(known.BENCHMARKS)} (all)",
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        default=list(known.METHODS),
        choices=[*known.METHODS, *known.CANDIDATES, *known.LABELLED],
        metavar="NAME",
        help=f"of {', '.join(known.METHODS)} (all of these); and of {', '.join(known.CANDIDATES)}",
    )
    parser.add_argument(
        "--labelled",
        action="store_true",
        help=f"in place of --methods: ours with {', '.join(map(str, known.LABELS))} labelled target images, drawn by the seed "
        "and suggested by ours, beside the source alone and the oracle, in equal iterations",
    )
    parser.add_argument("--seeds", nargs="+", type=int, help="(1 2 3; with --labelled 1 2 3 4 5)")
    parser.add_argument("--camvid", type=Path, default=Path("data/CamVid"), help="folder of CamVid (%(default)s)")
    parser.add_argument("--idd", type=Path, default=Path("data/IDD"), help="folder of IDD-lite (%(default)s)")
    add_set_flag(parser, "options for all runs")
    add_device_flag(parser)
    parser.add_argument("--processes", type=int, default=0, help="runs at a time on a CPU (one per core)")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the tables between the bench marks of this page")
    parser.add_argument("--start", type=int, default=known.START_LENGTH, help="iterations of the source-only start (%(default)s)")
    parser.add_argument(
        "--further",
        type=int,
        default=known.FURTHER,
        help="iterations from there, in equal time of the source alone (%(default)s)",
    )
    parser.add_argument("--budgets", nargs="+", default=list(known.BUDGETS), choices=list(known.BUDGETS), help="(%(default)s)")


def main(args: argparse.Namespace) -> list[object]:
    from dada.commands.bench import compare
    from dada.commands.bench_plan import Plan
    from dada.commands.bench_tables import insert_tables, tables

    if args.labelled:
        args.methods, args.budgets = [known.LONGER, "ours", *known.LABELLED, known.ORACLE], ["iterations"]
    args.seeds = args.seeds or ([1, 2, 3, 4, 5] if args.labelled else [1, 2, 3])
    folders = {"camvid": args.camvid, "idd": args.idd}
    plan = Plan(args.out, folders, args.benchmarks, args.methods, args.seeds, args.start, args.further, args.budgets, args.set)
    records = compare(plan, args.processes)
    print(tables(records, known.STEPS))
    print(f"written: {args.out / 'results.json'}, {args.out / 'tables.md'}")
    if args.write:
        insert_tables(args.write, tables(records, known.STEPS), "bench")
    return ["report", args.out / "snapshots"]
