"""Compare methods on the embedded city and on CamVid, day to dusk: same start, network and time from there, several seeds.

    python scripts/bench_methods.py --camvid data/CamVid
    python scripts/bench_methods.py --benchmarks ToyCity --methods source-only PLCA ours --seeds 1

Writes results.json and tables.md to --out. Called again, it goes on where it was stopped.
"""

import argparse
from pathlib import Path

import _root  # noqa: F401

from dada.command_line import add_device_flag, run_script
from dada.commands.bench import BENCHMARKS, CANDIDATES, METHODS, STEPS, Plan, compare
from dada.commands.bench_tables import insert_tables, tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("experiments/bench"), help="folder to work in (%(default)s)")
    parser.add_argument(
        "--benchmarks",
        nargs="+",
        default=list(BENCHMARKS),
        choices=list(BENCHMARKS),
        metavar="NAME",
        help=f"of {', '.join(BENCHMARKS)} (all)",
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        default=list(METHODS),
        choices=[*METHODS, *CANDIDATES],
        metavar="NAME",
        help=f"of {', '.join(METHODS)} (all of these); and of {', '.join(CANDIDATES)}",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="(1 2 3)")
    parser.add_argument("--camvid", type=Path, default=Path("data/CamVid"), help="folder of CamVid (%(default)s)")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=value", help="options for all runs", dest="options"
    )
    add_device_flag(parser, dest="options")
    parser.add_argument("--processes", type=int, default=0, help="runs at a time on a CPU (one a core)")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the tables between the bench marks of this page")
    parser.add_argument(
        "--start", type=int, default=Plan._field_defaults["start"], help="iterations of the source-only start (%(default)s)"
    )
    parser.add_argument(
        "--further",
        type=int,
        default=Plan._field_defaults["further"],
        help="each method gets the time in which the source alone makes so many iterations more (%(default)s)",
    )
    args = parser.parse_args()
    plan = Plan(args.out, args.camvid, args.benchmarks, args.methods, args.seeds, args.start, args.further, args.options)
    records = compare(plan, args.processes)
    print(tables(records, STEPS))
    print(f"written: {args.out / 'results.json'}, {args.out / 'tables.md'}")
    if args.write:
        insert_tables(args.write, tables(records, STEPS), "bench")


if __name__ == "__main__":
    run_script(main)
