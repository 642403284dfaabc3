"""Methods side by side: one source-only start for all, the same time from there, over seeds; resumable."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dada.build import eval_loader, on_device, source_loader
from dada.commands.bench_methods import (
    BENCHMARKS,
    CANDIDATES,
    FURTHER,
    LONGER,
    METHODS,
    ORACLE,
    PLAIN,
    START,
    START_LENGTH,
    STEPS,
    Method,
)
from dada.commands.bench_tables import DIAGNOSTICS, tables
from dada.commands.demo import CITY
from dada.commands.jobs import Job, run_all, train_unless_finished
from dada.config import plain_cfg
from dada.dataset.toycity import write_city
from dada.evaluation.cycle_closure import cycle_closure
from dada.evaluation.evaluator import to_json
from dada.evaluation.selection import judge
from dada.evaluation.tester import evaluate_run, load_predictor
from dada.files import write_whole
from dada.runs import file_hash, find_snapshots, run_of, versions
from dada.training.loop import Training

PAIRS = 8  # batches of source and test images whose cycles are followed
TIMED = 6  # iterations by which a method's pace is measured, after two that are not timed


class Entry(NamedTuple):
    """One run of the comparison."""

    benchmark: str
    method: str
    seed: int
    job: Job


class Plan(NamedTuple):
    """What is compared.

    Attributes:
        out: folder of everything that is written.
        camvid: folder of the CamVid dataset.
        start: iterations of the source-only start.
        further: iterations of the source alone that take the time every method gets from there.
        overrides: `KEY=value` pairs for all runs, for example NUM_WORKERS=0.
    """

    out: Path
    camvid: Path
    benchmarks: Sequence[str] = tuple(BENCHMARKS)
    methods: Sequence[str] = tuple(METHODS)
    seeds: Sequence[int] = (1, 2, 3)
    start: int = START_LENGTH
    further: int = FURTHER
    overrides: Sequence[str] = ()

    def methods_on(self, benchmark: str) -> list[str]:
        """Those that find what they read there."""
        has_depth = BENCHMARKS[benchmark].has_depth
        return [m for m in self.methods if has_depth or "USE_DEPTH=True" not in _method(m).options]

    def entry(self, benchmark: str, method: str, seed: int, name: str, options: Sequence[str], iterations: int) -> Entry:
        """A run of `iterations` on that benchmark, the options of which come after those of the benchmark."""
        city = self.out / "city"
        roots = {"ToyCity": (city / "SYNTHIA", city / "Cityscapes"), "CamVid day to dusk": (self.camvid, self.camvid)}
        source, target = roots[benchmark]
        if method == ORACLE:
            source, options = target, (*options, *BENCHMARKS[benchmark].oracle)
        fixed = [
            f"DATA_DIRECTORY_SOURCE={source}",
            f"DATA_DIRECTORY_TARGET={target}",
            *options,
            f"EXP_ROOT={self.out}",
            f"EXP_NAME={_slug(benchmark)}_{_slug(name)}_seed{seed}",
            f"TRAIN.RANDOM_SEED={seed}",
            f"TRAIN.MAX_ITERS={iterations}",
            f"TRAIN.SAVE_PRED_EVERY={iterations}",
            *self.overrides,
        ]
        return Entry(benchmark, method, seed, Job(BENCHMARKS[benchmark].config, tuple(fixed)))

    def starts(self) -> dict[tuple[str, int, tuple[str, ...]], Entry]:
        """The source-only runs that all others begin with, by benchmark, seed and `Method.start`."""
        found = {}
        for benchmark in self.benchmarks:
            for seed in self.seeds:
                for extra in dict.fromkeys(((), *(_method(m).start for m in self.methods_on(benchmark)))):
                    name = "_".join((START, *(o.partition("=")[0] for o in extra)))
                    label = START if not extra else f"{START} ({', '.join(extra)})"
                    options = (*PLAIN, *extra)
                    found[benchmark, seed, extra] = self.entry(benchmark, label, seed, name, options, self.start)
        return found

    def entries(self, paces: Mapping[str, Mapping[str, float]]) -> list[Entry]:
        """All runs from the starts on, those of one seed together, so that a comparison that is stopped has whole seeds."""
        return [
            self._from_start(benchmark, method, seed, self.iterations(paces[benchmark], method))
            for seed in self.seeds
            for benchmark in self.benchmarks
            for method in self.methods_on(benchmark)
        ]

    def iterations(self, paces: Mapping[str, float], method: str) -> int:
        """As many as take the time of `further` iterations of the source alone; `paces` are seconds an iteration."""
        return max(1, round(self.further * paces[LONGER] / paces[method]))

    def to_time(self, benchmark: str) -> list[Entry]:
        """Runs by which the pace of every method is measured; they write nothing."""
        methods = dict.fromkeys((LONGER, *self.methods_on(benchmark)))
        return [self._from_start(benchmark, method, self.seeds[0], self.further) for method in methods]

    def _from_start(self, benchmark: str, method: str, seed: int, iterations: int) -> Entry:
        start = run_of(self.starts()[benchmark, seed, _method(method).start].job.cfg())
        weights = f"TRAIN.RESTORE_FROM={start.snapshots / f'model_{self.start}.pth'}"
        return self.entry(benchmark, method, seed, method, (*_method(method).options, weights), iterations)


def compare(plan: Plan, processes: int = 0) -> list[dict[str, Any]]:
    """Train and test all runs of the plan; write `paces.json`, `results.json` and `tables.md` to its folder.

    What an earlier call has finished is used again; a run that it left half done goes on from its last checkpoint.

    Args:
        processes: at a time on a CPU; 0: one a core.

    Returns:
        One record a run: benchmark, method, seed, iterations, mIoU and IoU in percent, criteria and cycles as of `look_at`.

    Raises:
        FileNotFoundError, ValueError: a dataset is not there.
        RuntimeError: runs that failed, after all others have ended.
    """
    if "ToyCity" in plan.benchmarks:
        write_city(plan.out / "city", **CITY, workers=2)
    starts = list(plan.starts().values())
    results = run_all([entry.job for entry in starts], train_and_test, processes)
    paces = {benchmark: measured_paces(plan, benchmark, processes) for benchmark in plan.benchmarks}
    entries = plan.entries(paces)
    results += run_all([entry.job for entry in entries], train_and_test, processes)
    everything = [*starts, *entries]
    looked_at = run_all([entry.job for entry in everything], look_at, processes)
    records = [
        {
            "benchmark": e.benchmark,
            "method": e.method,
            "seed": e.seed,
            "iterations": r["cfg"]["TRAIN"]["MAX_ITERS"],
            **{k: r[k] for k in ("mIoU", "IoU", "protocol")},
            **{k: more[k] for k in ("criteria", "cycles")},
        }
        for e, r, more in zip(everything, results, looked_at)
    ]
    about = {"versions": versions(), "overrides": list(plan.overrides), "start": plan.start, "further": plan.further}
    write_whole(plan.out / "results.json", to_json({**about, "seconds an iteration": paces, "runs": records}))
    write_whole(plan.out / "tables.md", tables(records, STEPS).encode())
    return records


def measured_paces(plan: Plan, benchmark: str, processes: int = 0) -> dict[str, float]:
    """Seconds that an iteration of each method takes, from `paces.json`, or measured now and put there.

    They are measured as many side by side as the runs will be.
    """
    path = plan.out / "paces.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    entries = plan.to_time(benchmark)
    missing = [e for e in entries if e.method not in known.get(benchmark, {})]
    if missing:
        seconds = run_all([e.job for e in missing], seconds_per_iteration, processes)
        known.setdefault(benchmark, {}).update({e.method: s for e, s in zip(missing, seconds)})
        write_whole(path, to_json(known))
    return {e.method: known[benchmark][e.method] for e in entries}


def seconds_per_iteration(job: Job) -> float:
    """Median over the first iterations of a run, its data included; nothing is written."""
    cfg = job.cfg()
    with on_device(cfg, fixed_sizes=True):
        training = Training(cfg, run_of(cfg))
        times = [time.perf_counter() for _ in islice(training.iterations(), 2 + TIMED + 1)]
    return float(np.median(np.diff(times[2:])))


def _method(name: str) -> Method:
    return METHODS[name] if name in METHODS else CANDIDATES[name]


def _slug(text: str) -> str:
    return "_".join(text.lower().replace("á", "a").replace("+", "plus").replace(",", "").split())


def train_and_test(job: Job) -> dict[str, Any]:
    """The report of the last snapshot, as `test` writes it; an earlier one if weights and cfg are the same."""
    cfg = job.cfg()
    run = train_unless_finished(cfg)
    snapshot = find_snapshots(run.snapshots)[-1]
    report = run.snapshots / f"test_{snapshot.stem}.json"
    if report.is_file():
        earlier = json.loads(report.read_text())
        if earlier["cfg"] == plain_cfg(cfg) and earlier["checkpoints"][0]["sha256"] == file_hash(snapshot):
            return earlier
    evaluate_run(cfg, run)
    return json.loads(report.read_text())


def look_at(job: Job) -> dict[str, Any]:
    """Criteria without target labels, and the cycles to labelled test images, of the last snapshot; kept beside it.

    Returns:
        "criteria" of `judge`, and "cycles", the figures of a `Closure`.
    """
    cfg = job.cfg()
    snapshot = find_snapshots(run_of(cfg).snapshots)[-1]
    kept, checksum = snapshot.with_name(f"look_{snapshot.stem}.json"), file_hash(snapshot)
    if kept.is_file() and (earlier := json.loads(kept.read_text()))["sha256"] == checksum:
        return earlier
    criteria = judge(snapshot, [f"DEVICE={cfg.DEVICE}", f"GPU_ID={cfg.GPU_ID}"]).criteria
    cfg.TEST.BATCH_SIZE_TARGET = cfg.TRAIN.BATCH_SIZE_SOURCE
    with on_device(cfg) as device:
        network = load_predictor(cfg, [snapshot], device).networks[0]
        both = zip(source_loader(cfg, network.normalization, PAIRS), eval_loader(cfg, network.normalization))
        closure = cycle_closure(network, ((s.to(device), t.to(device)) for s, t in both), cfg.NUM_CLASSES, with_truth=True)
    found = {"sha256": checksum, "criteria": criteria, "cycles": {name: getattr(closure, name) for name in DIAGNOSTICS}}
    write_whole(kept, to_json(found))
    return found
