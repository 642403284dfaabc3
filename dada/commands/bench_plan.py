"""Which runs a comparison of methods is made of: a start for each seed, and from there each method at each of its lengths."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from dada.commands import bench_methods as known
from dada.commands.jobs import Job
from dada.config import flat_options, option_value, plain_cfg
from dada.runs import run_of


class Entry(NamedTuple):
    """One run of the comparison."""

    benchmark: str
    method: str
    seed: int
    job: Job
    budgets: tuple[str, ...] = tuple(known.BUDGETS)  # in whose tables it stands


class Plan(NamedTuple):
    """What is compared.

    Attributes:
        out: folder of everything that is written.
        folders: of the datasets that are not drawn, "camvid" and "idd".
        start: iterations of the source-only start.
        further: iterations of each method from there, or, in equal time, of the source alone in the time that every method gets.
        budgets: "iterations", "time" or both.
        overrides: `KEY=value` pairs for all runs, for example NUM_WORKERS=0.
    """

    out: Path
    folders: Mapping[str, Path]
    benchmarks: Sequence[str] = tuple(known.BENCHMARKS)
    methods: Sequence[str] = tuple(known.METHODS)
    seeds: Sequence[int] = (1, 2, 3)
    start: int = known.START_LENGTH
    further: int = known.FURTHER
    budgets: Sequence[str] = tuple(known.BUDGETS)
    overrides: Sequence[str] = ()

    def methods_on(self, benchmark: str) -> list[str]:
        """Those that find what they read there."""
        has_depth = known.BENCHMARKS[benchmark].has_depth
        return [m for m in self.methods if has_depth or "USE_DEPTH=True" not in _method(m).options]

    def folder(self, name: str) -> Path:
        """Where a dataset is: given, or drawn into `out`."""
        return self.folders[name] if name in self.folders else self.out / name

    def entry(self, benchmark: str, method: str, seed: int, name: str, options: Sequence[str], iterations: int) -> Entry:
        """A run of `iterations` on that benchmark, the options of which come after those of the benchmark."""
        config, source, target, *_ = known.BENCHMARKS[benchmark]
        given = [f"DATA_DIRECTORY_SOURCE={self.folder(source)}", f"DATA_DIRECTORY_TARGET={self.folder(target)}"]
        if method == known.ORACLE:
            options = (*options, *in_place_of("TARGET", "SOURCE", Job(config, (*given, *options, *self.overrides)).cfg()))
        fixed = [
            *given,
            *options,
            f"EXP_ROOT={self.out}",
            f"EXP_NAME={_slug(benchmark)}_{_slug(name)}_{iterations}_seed{seed}",
            f"TRAIN.RANDOM_SEED={seed}",
            f"TRAIN.MAX_ITERS={iterations}",
            f"TRAIN.SAVE_PRED_EVERY={iterations}",
            *self.overrides,
        ]
        return Entry(benchmark, method, seed, Job(config, tuple(fixed)))

    def on_the_source(self, entry: Entry) -> Job:
        """The run of `entry`, tested on labelled images of the source that no training sees."""
        benchmark = known.BENCHMARKS[entry.benchmark]
        plain = Job(entry.job.config, (f"DATA_DIRECTORY_SOURCE={self.folder(benchmark.held_out_folder or benchmark.source)}",))
        swapped = in_place_of("SOURCE", "TARGET", plain.cfg())
        return Job(entry.job.config, (*entry.job.options, *swapped, *benchmark.held_out, "TARGET_LABELLED="))

    def starts(self) -> dict[tuple[str, int, tuple[str, ...]], Entry]:
        """The source-only runs that all others begin with, by benchmark, seed and `Method.start`."""
        found = {}
        for benchmark in self.benchmarks:
            for seed in self.seeds:
                for extra in dict.fromkeys(((), *(_method(m).start for m in self.methods_on(benchmark)))):
                    name = "_".join((known.START, *(o.partition("=")[0] for o in extra)))
                    label = known.START if not extra else f"{known.START} ({', '.join(extra)})"
                    options = (*known.PLAIN, *extra)
                    start = self.entry(benchmark, label, seed, name, options, self.start)
                    found[benchmark, seed, extra] = start._replace(budgets=tuple(self.budgets))
        return found

    def entries(self, paces: Mapping[str, Mapping[str, float]]) -> list[Entry]:
        """All runs from the starts on, those of one seed together, so that a comparison that is stopped has whole seeds."""
        found = []
        for seed in self.seeds:
            for benchmark in self.benchmarks:
                for method in self.methods_on(benchmark):
                    lengths: dict[int, tuple[str, ...]] = {}  # a run that is as long under both budgets is made once
                    for budget in self.budgets:
                        length = self.iterations(paces.get(benchmark, {}), method, budget)
                        lengths[length] = (*lengths.get(length, ()), budget)
                    for length, budgets in lengths.items():
                        found.append(self._from_start(benchmark, method, seed, length)._replace(budgets=budgets))
        return found

    def iterations(self, paces: Mapping[str, float], method: str, budget: str) -> int:
        """`further`, or as many as take the time of so many of the source alone; `paces` are seconds an iteration."""
        return self.further if budget == "iterations" else max(1, round(self.further * paces[known.LONGER] / paces[method]))

    def suggesting(self) -> list[Entry]:
        """The runs of `ours` whose networks suggest images for a method of the plan."""
        wanted = [benchmark for benchmark in self.benchmarks if any(_method(m).suggested for m in self.methods_on(benchmark))]
        return [self._from_start(benchmark, "ours", seed, self.further) for benchmark in wanted for seed in self.seeds]

    def to_time(self, benchmark: str) -> list[Entry]:
        """Runs by which the pace of every method is measured; they write nothing."""
        methods = dict.fromkeys((known.LONGER, *self.methods_on(benchmark)))
        return [self._from_start(benchmark, method, self.seeds[0], self.further) for method in methods]

    def _from_start(self, benchmark: str, method: str, seed: int, iterations: int) -> Entry:
        start = run_of(self.starts()[benchmark, seed, _method(method).start].job.cfg())
        options = (*_method(method).options, f"TRAIN.RESTORE_FROM={start.snapshots / f'model_{self.start}.pth'}")
        if count := _method(method).suggested:
            ours = self._from_start(benchmark, "ours", seed, self.further)
            options = (*options, f"TARGET_LABELLED={list_of(ours.job, count)}")
        return self.entry(benchmark, method, seed, method, options, iterations)


def list_of(job: Job, count: int) -> Path:
    """Where the `count` images stand that the network of a run suggests to label."""
    return run_of(job.cfg()).snapshots / f"label_next_{count}.txt"


def in_place_of(role: str, other: str, cfg: Any) -> tuple[str, ...]:
    """Options that make the dataset of one role, "SOURCE" or "TARGET", that of the other as well."""
    options, plain = flat_options(), plain_cfg(cfg)
    names = {name: name.replace(role, other) for name, option in options.items() if option.each == role.lower()}
    return tuple(f"{new}={_written(option_value(plain, name))}" for name, new in names.items() if new in options)


def _written(value: Any) -> str:
    """As `--set` reads it."""
    return value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True, width=math.inf).strip()


def _method(name: str) -> known.Method:
    return {**known.METHODS, **known.CANDIDATES, **known.LABELLED}[name]


def _slug(text: str) -> str:
    return "_".join(text.lower().replace("á", "a").replace("+", "plus").replace(",", "").split())
