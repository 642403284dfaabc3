"""Methods side by side: the same data, network, schedule and number of iterations; over seeds; resumable."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dada.config import cfg, plain_cfg
from dada.dataset.toycity import write_city
from dada.domain_adaptation.demo import CITY
from dada.domain_adaptation.evaluator import to_json
from dada.domain_adaptation.jobs import Job, run_all, train_unless_finished
from dada.domain_adaptation.runs import file_hash, find_snapshots, versions
from dada.domain_adaptation.tester import test
from dada.files import write_whole

PLAIN = ("CONTRASTIVE_LEARNING=False", "TRAIN.DA_METHOD=source_only", "TRAIN.LAMBDA_LOVASZ=0")
LOVASZ = ("CONTRASTIVE_LEARNING=False", "TRAIN.DA_METHOD=source_only")
ASSOCIATION = ("CONTRASTIVE_LEARNING=True", "TRAIN.LAMBDA_CONSISTENCY=0", "TRAIN.LAMBDA_ENTROPY=0")
PLCA = (*ASSOCIATION, "TRAIN.APPLY_MULTILAYER_ASSOCIATION=True")


class Method(NamedTuple):
    """What a method changes in the configuration of a benchmark."""

    options: tuple[str, ...]
    needs_depth: bool = False


METHODS = {
    "source-only": Method(PLAIN),
    "+ Lovász": Method(LOVASZ),
    "MinEnt": Method((*LOVASZ, "TRAIN.DA_METHOD=MinEnt")),
    "AdvEnt": Method((*LOVASZ, "TRAIN.DA_METHOD=AdvEnt")),
    "AdvEnt, two levels": Method((*LOVASZ, "TRAIN.DA_METHOD=AdvEnt", "TRAIN.MULTI_LEVEL=True")),
    "DADA": Method((*LOVASZ, "TRAIN.DA_METHOD=DADA", "USE_DEPTH=True"), needs_depth=True),
    "feature association": Method((*ASSOCIATION, "TRAIN.APPLY_MULTILAYER_ASSOCIATION=False")),
    "PLCA": Method(PLCA),
    "DADA + PLCA": Method((*PLCA, "TRAIN.DA_METHOD=DADA", "USE_DEPTH=True"), needs_depth=True),
    "ours": Method(("CONTRASTIVE_LEARNING=True",)),
    "oracle": Method(LOVASZ),
}


class Benchmark(NamedTuple):
    """A pair of domains on which all methods run."""

    config: str
    has_depth: bool
    oracle: tuple[str, ...]  # what makes the labelled target the source


BENCHMARKS = {
    "ToyCity": Benchmark("toycity.yml", True, ("SOURCE=Cityscapes", "TRAIN.SET_SOURCE=train")),
    "CamVid day to dusk": Benchmark("camvid_day2dusk.yml", False, ("TRAIN.SET_SOURCE=dusk",)),
}


class Entry(NamedTuple):
    """One run of the comparison."""

    benchmark: str
    method: str
    seed: int
    job: Job


def compare(
    out: Path,
    *,
    benchmarks: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    camvid: Path,
    overrides: Sequence[str] = (),
    processes: int = 0,
) -> list[dict[str, Any]]:
    """Train and test every method on every benchmark with every seed; write `results.json` and `tables.md` to `out`.

    What an earlier call has finished is used again; a run that it left half done goes on from its last checkpoint.

    Args:
        camvid: folder of the CamVid dataset.
        overrides: `KEY=value` pairs for all runs, for example TRAIN.MAX_ITERS=100.

    Returns:
        One record a run: benchmark, method, seed, mIoU and IoU in percent.

    Raises:
        FileNotFoundError, ValueError: a dataset is not there.
        RuntimeError: runs that failed, after all others have ended.
    """
    if "ToyCity" in benchmarks:
        write_city(out / "city", **CITY, workers=2)
    entries = entries_of(out, benchmarks, methods, seeds, camvid, overrides)
    results = run_all([entry.job for entry in entries], train_and_test, processes)
    records = [
        {"benchmark": e.benchmark, "method": e.method, "seed": e.seed, **{k: r[k] for k in ("mIoU", "IoU", "protocol")}}
        for e, r in zip(entries, results)
    ]
    write_whole(out / "results.json", to_json({"versions": versions(), "overrides": list(overrides), "runs": records}))
    write_whole(out / "tables.md", tables(records).encode())
    return records


def entries_of(
    out: Path,
    benchmarks: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    camvid: Path,
    overrides: Sequence[str] = (),
) -> list[Entry]:
    """All runs, those of one seed together, so that a comparison that is stopped has whole seeds."""
    places = {
        "ToyCity": (f"DATA_DIRECTORY_SOURCE={out / 'city' / 'SYNTHIA'}", f"DATA_DIRECTORY_TARGET={out / 'city' / 'Cityscapes'}"),
        "CamVid day to dusk": (f"DATA_DIRECTORY_SOURCE={camvid}", f"DATA_DIRECTORY_TARGET={camvid}"),
    }
    entries = []
    for seed in seeds:
        for benchmark in benchmarks:
            config, has_depth, oracle = BENCHMARKS[benchmark]
            for method in methods:
                if METHODS[method].needs_depth and not has_depth:
                    continue
                options = [*places[benchmark], *METHODS[method].options]
                if method == "oracle":
                    target = places[benchmark][1].replace("TARGET", "SOURCE")
                    options += [*oracle, target]
                name = f"{_slug(benchmark)}_{_slug(method)}_seed{seed}"
                options += [f"EXP_ROOT={out}", f"EXP_NAME={name}", f"TRAIN.RANDOM_SEED={seed}", *overrides]
                entries.append(Entry(benchmark, method, seed, Job(config, tuple(options))))
    return entries


def _slug(text: str) -> str:
    return "_".join(text.lower().replace("á", "a").replace("+", "plus").replace(",", "").split())


def train_and_test(job: Job) -> dict[str, Any]:
    """The report of the last snapshot, as `test` writes it; an earlier one if weights and cfg are the same."""
    run = train_unless_finished(job)
    snapshot = find_snapshots(run.snapshots)[-1]
    report = run.snapshots / f"test_{snapshot.stem}.json"
    if report.is_file():
        earlier = json.loads(report.read_text())
        if earlier["cfg"] == plain_cfg() and earlier["checkpoints"][0]["sha256"] == file_hash(snapshot):
            return earlier
    test(cfg, run)
    return json.loads(report.read_text())


# ---- tables --------------------------------------------------------------------------------------------------------


def tables(records: Sequence[dict[str, Any]]) -> str:
    """Markdown: for each benchmark the means over seeds, the gains over source-only seed by seed, and all classes."""
    parts = []
    for benchmark in dict.fromkeys(r["benchmark"] for r in records):
        own = [r for r in records if r["benchmark"] == benchmark]
        parts += [f"### {benchmark}", _means(own), _classes(own)]
    return "\n\n".join(parts) + "\n"


def _by_method(records: Sequence[dict[str, Any]]) -> dict[str, dict[int, dict[str, Any]]]:
    """Records by method and seed."""
    methods: dict[str, dict[int, dict[str, Any]]] = {}
    for record in records:
        methods.setdefault(record["method"], {})[record["seed"]] = record
    return methods


def _headline(record: dict[str, Any]) -> float:
    """mIoU over the classes of the label set, which come first."""
    return next(iter(record["mIoU"].values()))


def _means(records: Sequence[dict[str, Any]]) -> str:
    methods = _by_method(records)
    scores = {name: np.array([_headline(r) for r in runs.values()]) for name, runs in methods.items()}
    base, top = methods.get("source-only"), scores.get("oracle")
    lines = ["| method | mIoU | over source-only, by seed | share of the gap to the oracle |", "|---|---|---|---|"]
    for name, runs in methods.items():
        spread = f" ± {scores[name].std(ddof=1):.1f}" if len(runs) > 1 else ""
        gains = share = ""
        if base and name != "source-only":
            gains = ", ".join(f"{_headline(r) - _headline(base[seed]):+.1f}" for seed, r in runs.items() if seed in base)
            if top is not None and name != "oracle":
                floor = scores["source-only"].mean()
                share = f"{100 * (scores[name].mean() - floor) / (top.mean() - floor):.0f} %"
        lines.append(f"| {name} | {scores[name].mean():.1f}{spread} | {gains} | {share} |")
    return "\n".join(lines)


def _classes(records: Sequence[dict[str, Any]]) -> str:
    """IoU of every class, mean over seeds; a class that a test never saw is left out of its mean."""
    methods = _by_method(records)
    names = list(records[0]["IoU"])
    lines = ["| IoU | " + " | ".join(methods) + " |", "|---" * (len(methods) + 1) + "|"]
    for name in names:
        cells = []
        for runs in methods.values():
            seen = [r["IoU"][name] for r in runs.values() if r["IoU"][name] is not None]
            cells.append(f"{np.mean(seen):.1f}" if seen else "-")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def insert_tables(page: Path, text: str, name: str) -> None:
    """Replace what stands between `<!-- name -->` and `<!-- /name -->` in a page.

    Raises:
        ValueError: the page lacks one of the two marks.
    """
    content, start, end = page.read_text(encoding="utf-8"), f"<!-- {name} -->", f"<!-- /{name} -->"
    if start not in content or end not in content:
        raise ValueError(f"{page} lacks the lines {start} and {end}, between which the tables go")
    before, _, rest = content.partition(start)
    write_whole(page, f"{before}{start}\n{text}{end}{rest.partition(end)[2]}".encode())
