"""Methods side by side: one source-only start for all, the same iterations or the same time from there, over seeds; resumable."""

from __future__ import annotations

import hashlib
import json
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dada.build import eval_loader, on_device, source_loader
from dada.commands.bench_methods import LABELS, STEPS
from dada.commands.bench_plan import Plan, list_of
from dada.commands.bench_tables import DIAGNOSTICS, tables
from dada.commands.demo import CITY
from dada.commands.jobs import Job, run_all, train_unless_finished
from dada.commands.suggest import as_list, suggest
from dada.config import each_dataset, plain_cfg
from dada.dataset.toycity import write_city
from dada.evaluation.cycle_closure import cycle_closure
from dada.evaluation.evaluator import confusions, to_json
from dada.evaluation.selection import judge
from dada.evaluation.tester import evaluate_run, load_predictor, protocol
from dada.files import whole_file, write_whole
from dada.runs import file_hash, find_snapshots, run_of, versions
from dada.training.loop import Training

PAIRS = 8  # batches of source and test images whose cycles are followed
HELD_OUT = {**CITY, "source": 80, "target": 0, "val": 0, "seed": 1}  # a city that nothing is trained on
TIMED = 6  # iterations by which a method's pace is measured, after two that are not timed


def compare(plan: Plan, processes: int = 0) -> list[dict[str, Any]]:
    """Train and test all runs of the plan; write `paces.json`, `results.json` and `tables.md` to its folder.

    What an earlier call has finished is used again; a run left half done continues from its last checkpoint.

    Args:
        processes: at a time on a CPU; 0: one a core.

    Returns:
        One record a run: benchmark, method, seed, budgets, iterations, mIoU and IoU in percent, criteria, cycles and counts as of
        `look_at`.

    Raises:
        FileNotFoundError, ValueError: a dataset is not there.
        RuntimeError: runs that failed, after all others have ended.
    """
    if "ToyCity" in plan.benchmarks:
        write_city(plan.out / "city", **CITY, workers=2)
        write_city(plan.out / "held_out", **HELD_OUT, workers=2)
    starts = list(plan.starts().values())
    results = run_all([entry.job for entry in starts], train_and_test, processes)
    if suggesting := [entry.job for entry in plan.suggesting()]:
        run_all(suggesting, train_and_test, processes)
        run_all(suggesting, suggest_labels, processes)
    timed = plan.benchmarks if "time" in plan.budgets else ()
    paces = {benchmark: measured_paces(plan, benchmark, processes) for benchmark in timed}
    entries = plan.entries(paces)
    results += run_all([entry.job for entry in entries], train_and_test, processes)
    everything = [*starts, *entries]
    looked_at = run_all([entry.job for entry in everything], look_at, processes)
    counts = run_all([entry.job for entry in everything], counts_of, processes)
    of_source = run_all([plan.on_the_source(entry) for entry in everything], counts_of, processes)
    records = [
        {
            **{key: getattr(e, key) for key in ("benchmark", "method", "seed", "budgets")},
            "iterations": r["cfg"]["TRAIN"]["MAX_ITERS"],
            **{k: r[k] for k in ("mIoU", "IoU", "datasets", "protocol") if k in r},
            **{k: more[k] for k in ("criteria", "cycles")},
        }
        for e, r, more in zip(everything, results, looked_at)
    ]
    about = {"versions": versions(), "overrides": list(plan.overrides), "start": plan.start, "further": plan.further}
    write_whole(plan.out / "results.json", to_json({**about, "seconds an iteration": paces, "runs": records}))
    records = [{**r, "counts": t, "source counts": s} for r, t, s in zip(records, counts, of_source)]
    write_whole(plan.out / "tables.md", tables(records, STEPS).encode())
    return records


def measured_paces(plan: Plan, benchmark: str, processes: int = 0) -> dict[str, float]:
    """Seconds per iteration of each method, from `paces.json`, or measured now and stored there, with as many processes side by
    side as the runs will have.
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


def _last(job: Job) -> tuple[Any, Path, str]:
    """The cfg of a finished run, its last snapshot, and the checksum of that."""
    cfg = job.cfg()
    snapshot = find_snapshots(run_of(cfg).snapshots)[-1]
    return cfg, snapshot, file_hash(snapshot)


def suggest_labels(job: Job) -> None:
    """Write the lists of what the last snapshot suggests to label, see `list_of`; those of the same weights stay."""
    cfg, snapshot, checksum = _last(job)
    marker = list_of(job, 0).with_name("label_next.sha256")
    if marker.is_file() and marker.read_text() == checksum:
        return
    most = list_of(job, max(LABELS))
    found = suggest(cfg, snapshot, most, most.with_suffix(".html"), count=max(LABELS))
    for count in LABELS:  # each choice begins with the smaller ones
        write_whole(list_of(job, count), as_list(found[:count]).encode())
    write_whole(marker, checksum.encode())


def counts_of(job: Job) -> list[np.ndarray]:
    """Of each target (N, K, K) or (N, K + 1, K): the confusion matrix of each test image under the last snapshot; kept beside it.

    If weights or images have changed, they are counted again.
    """
    cfg, snapshot, checksum = _last(job)
    cfg.TEST.BATCH_SIZE_TARGET = 1
    return [_counts_on(one, snapshot, checksum) for one in each_dataset(cfg, "target")]


def _counts_on(cfg: Any, snapshot: Path, checksum: str) -> np.ndarray:
    tested = {"sha256": checksum, "root": cfg.DATA_DIRECTORY_TARGET, "protocol": protocol(cfg)}
    key = hashlib.sha256(to_json(tested)).hexdigest()[:16]
    kept = snapshot.with_name(f"counts_{snapshot.stem}_{key}.npy")
    if kept.is_file():
        return np.load(kept)
    with on_device(cfg) as device:
        predictor = load_predictor(cfg, [snapshot], device)
        loader = eval_loader(cfg, predictor.networks[0].normalization)
        counts = torch.stack(list(confusions(predictor, loader, cfg.NUM_CLASSES, device, cfg.TEST.CLASS_RULE))).numpy()
    with whole_file(kept, ".npy") as part:
        np.save(part, counts)
    return counts


def look_at(job: Job) -> dict[str, Any]:
    """Criteria without target labels, and the cycles to labelled test images, of the last snapshot; kept beside it.

    Returns:
        "criteria" of `judge`, and "cycles", the figures of a `Closure`.
    """
    cfg, snapshot, checksum = _last(job)
    kept = snapshot.with_name(f"look_{snapshot.stem}.json")
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
