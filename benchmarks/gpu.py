"""All that a GPU has to show, in under nine minutes on one card: python benchmarks/gpu.py, or `make gpu`.

    make gpu                                             # on the GPU
    make gpu ARGS="--device cpu --small"                 # the same program at tiny sizes, where there is none
    python benchmarks/gpu.py --tables gpu/results.jsonl  # the tables of docs/performance.md from what a run has found

Every section is a process of its own with a limit of its own, and all end within --total seconds: what was skipped is said,
and what a section had found when its time was over is kept. Nothing is taken from the network. Sections whose packages are
not installed are skipped; --wheels DIR installs the wheels in a folder into a temporary one for the run.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(Path(__file__).resolve().parent))

from gpu_check import plan, runner, tables
from gpu_check.check import RESULTS, ROOT, Check, Skip, append, read


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(["sections:", *(f"  {s.name:<20}{s.about}, at most {s.seconds} s" for s in plan.SECTIONS)]),
    )
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--small", action="store_true", help="tiny sizes: does it run; not for figures")
    names = [section.name for section in plan.SECTIONS]
    parser.add_argument("--sections", nargs="+", default=[], choices=names, metavar="NAME", help="only these")
    parser.add_argument("--total", type=float, default=plan.TOTAL, help="seconds for all (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "experiments" / "gpu", help="folder of the results")
    parser.add_argument("--camvid", type=Path, help="folder of CamVid; without it that section is skipped")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install for this run")
    parser.add_argument("--tables", type=Path, metavar="FILE", help="print the tables of a results.jsonl; runs nothing")
    parser.add_argument("--section", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0, nothing failed; 1, a section has; 2, there is no such device."""
    args = parsed(arguments)
    if args.tables:
        print(tables.markdown(read(args.tables)))
        return 0
    args.out = args.out.resolve()
    if args.section:
        return run_section(args)
    start = time.monotonic()
    if args.device == "cuda" and not _cuda():
        print("torch finds no CUDA device; --device cpu --small runs the program itself on the CPU")
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / RESULTS).unlink(missing_ok=True)
    append(args.out, {"section": "run", "device": args.device, "small": args.small})
    with tempfile.TemporaryDirectory() as work:
        paths = [str(ROOT), str(ROOT / "tests"), *([_installed(args.wheels, work)] if args.wheels else [])]
        sys.path[1:1] = paths  # where the runner looks for what a section needs
        os.environ["PYTHONPATH"] = os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])

        def command(section: plan.Section, seconds: float) -> list[str]:
            flags = ["--device", args.device, *(["--small"] if args.small else []), "--out", str(args.out)]
            flags += ["--camvid", str(args.camvid.resolve())] if args.camvid else []
            inner = ["--section", section.name, "--work", work, "--seconds", f"{seconds:.0f}"]
            return [sys.executable, str(Path(__file__).resolve()), *flags, *inner]

        left = args.total - (time.monotonic() - start)
        sections = plan.chosen(args.sections)
        if args.small:  # times nothing
            sections = [section._replace(together=section.name != "toy city") for section in sections]
        if args.device == "cpu":  # whose speed nobody knows: only the total ends it
            sections = [section._replace(seconds=int(args.total)) for section in sections]
        ended = runner.run_sections(sections, command, args.out, left)
    text = tables.markdown(read(args.out / RESULTS))
    (args.out / "tables.md").write_text(text + "\n", encoding="utf-8")
    print(f"{time.monotonic() - start:.0f} s; {args.out / RESULTS}, {args.out / 'tables.md'}")
    return int("failed" in ended.values())


def run_section(args: argparse.Namespace) -> int:
    """One section, in this process."""
    section = next(s for s in plan.SECTIONS if s.name == args.section)
    check = Check(section.name, args.device, args.small, args.out, args.work, args.seconds, args.camvid)
    try:
        importlib.import_module(f"gpu_check.{section.module}").run(check)
    except Skip as reason:
        print(reason)
        return runner.SKIPPED
    return int(any("failed" in row for row in read(args.out / RESULTS) if row["section"] == section.name))


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _installed(wheels: Path, work: str) -> str:
    """Install all wheels of a folder into one below `work`, which is gone after the run."""
    files = sorted(map(str, wheels.glob("*.whl")))
    if not files:
        raise SystemExit(f"no wheels in {wheels}")
    target = str(Path(work, "packages"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", target, *files]
    subprocess.run(pip, check=True)
    return target


if __name__ == "__main__":
    sys.exit(main())
