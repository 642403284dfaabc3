"""Tables of a comparison of methods, in Markdown, from the records that `bench.compare` makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dada.commands.bench_intervals import Bootstrap, counts_by_method, spoken
from dada.commands.bench_methods import BUDGETS, LABELS, LONGER, ORACLE, START, labelled
from dada.evaluation.criterion_names import MEANINGS
from dada.evaluation.selection import rank_correlation
from dada.files import write_whole

DIAGNOSTICS = {
    "closed": "share of the labelled source pixels whose cycle through a test image returns to their class",
    "balanced": "the same, mean over the classes",
    "correct": "share of the closed cycles that turn around at a pixel which really is of their class",
    "covered": "share of the target pixels on closed cycles",
}
PUBLISHED = "PLCA"  # the best of the published methods, to which each is compared
Records = Sequence[Mapping[str, Any]]


def tables(records: Records, steps: Sequence[str] = ()) -> str:
    """For each benchmark and budget: scores with intervals, the ablation, all classes, cycles, criteria.

    Args:
        records: as of `bench.compare`; "counts", "source counts", "cycles" and "criteria" may be missing from some.
        steps: methods each of which adds one part to the one before.
    """
    parts = []
    for benchmark in dict.fromkeys(r["benchmark"] for r in records):
        for budget in dict.fromkeys(budget for r in records for budget in r["budgets"]):
            alike = [r for r in records if r["benchmark"] == benchmark and budget in r["budgets"]]
            methods = _by_method(alike)
            parts += [
                f"### {benchmark}, {BUDGETS[budget]}",
                _scores(methods, alike),
                _labels(methods, alike),
                _ablation(methods, steps),
                _classes(methods),
                _cycles(methods),
                _criteria(methods),
            ]
    return "\n\n".join(part for part in parts if part) + "\n"


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


Methods = Mapping[str, Mapping[int, Mapping[str, Any]]]  # records by method and seed


def _by_method(records: Records) -> Methods:
    methods: dict[str, dict[int, Mapping[str, Any]]] = {}
    for record in records:
        methods.setdefault(record["method"], {})[record["seed"]] = record
    return methods


def _headline(record: Mapping[str, Any]) -> float:
    """mIoU over the classes of the label set, which come first."""
    return next(iter(record["mIoU"].values()))


def _spread(values: Sequence[float], form: str) -> str:
    """Mean ± standard deviation over seeds, or the one value."""
    deviation = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):{form}}{deviation}"


def _scores(methods: Methods, records: Records) -> str:
    """Means over seeds on target and source, gains over the source alone and over PLCA, and how much of the gap is closed.

    The gap is from the source alone, with or without the further training, whichever is better, to the oracle. Bounds are
    those of 95 % of the draws of a `Bootstrap`, where the counts of every test image are known.
    """
    without = max((name for name in (START, LONGER) if name in methods), key=lambda name: _mean(methods[name]), default="")
    columns: dict[str, Callable[[str], str]] = {
        "iterations": lambda name: "/".join(map(str, dict.fromkeys(r["iterations"] for r in methods[name].values()))),
        "mIoU": lambda name: _spread([_headline(r) for r in methods[name].values()], ".1f"),
    }
    for of in records[0].get("datasets", ()):  # each of several targets
        columns[f"on {of}"] = lambda name, of=of: _spread([_headline(r["datasets"][of]) for r in methods[name].values()], ".1f")
    if all(r.get("counts") is not None for r in records):
        rule = records[0].get("protocol", {}).get("CLASS_RULE", "ignore")
        target = Bootstrap(counts_by_method(records), rule)
        source = Bootstrap(counts_by_method(records, "source counts"), rule)
        columns["mIoU"] = lambda name: spoken(target.miou(name))
        for base in (without, PUBLISHED):
            if base in methods:
                columns[f"over {base}"] = lambda name, base=base: "" if name == base else spoken(target.gain(name, base), "+.1f")
        if without and ORACLE in methods:
            shares = [name for name in methods if name not in (START, LONGER, ORACLE)]
            columns["of the gap closed"] = lambda name: (
                spoken(target.share(name, without, ORACLE), ".0f", " %") if name in shares else ""
            )
        columns["on the source"] = lambda name: spoken(source.miou(name))
    return _table(["method", *columns], [[name, *(column(name) for column in columns.values())] for name in methods])


def _labels(methods: Methods, records: Records) -> str:
    """Ours with a few labelled images: what it scores by how many, and how they were chosen."""
    known = [n for n in LABELS if {labelled(n, how) for how in ("random", "suggested")} <= set(methods)]
    if not known or any(r.get("counts") is None for r in records):
        return ""
    scores = Bootstrap(counts_by_method(records), records[0].get("protocol", {}).get("CLASS_RULE", "ignore"))
    rows = [["0", spoken(scores.miou("ours")), "", ""]] if "ours" in methods else []
    for n in known:
        random, suggested = labelled(n, "random"), labelled(n, "suggested")
        gain = spoken(scores.gain(suggested, random), "+.1f")
        rows.append([str(n), spoken(scores.miou(random)), spoken(scores.miou(suggested)), gain])
    return _table(["labelled images", "at random", "suggested", "suggested over random"], rows)


def _mean(runs: Mapping[int, Mapping[str, Any]]) -> float:
    return float(np.mean([_headline(r) for r in runs.values()]))


def _ablation(methods: Methods, steps: Sequence[str]) -> str:
    """What every step adds to the one before it, seed by seed."""
    present = [name for name in steps if name in methods]
    if len(present) < 2:
        return ""
    rows = []
    for before, name in zip([None, *present], present):
        base = methods[before] if before else {}
        gains = [_headline(r) - _headline(base[seed]) for seed, r in methods[name].items() if seed in base]
        cells = (_spread(gains, "+.1f"), ", ".join(f"{gain:+.1f}" for gain in gains)) if gains else ("", "")
        rows.append([name, _spread([_headline(r) for r in methods[name].values()], ".1f"), *cells])
    return _table(["one part at a time", "mIoU", "over the row above", "by seed"], rows)


def _classes(methods: Methods) -> str:
    """IoU of every class, mean over seeds; a class that a test never saw is left out of its mean."""
    names = next(iter(next(iter(methods.values())).values()))["IoU"]
    return _grid("IoU", methods, names, lambda record, name: record["IoU"][name])


def _cycles(methods: Methods) -> str:
    """Cycles between source images and labelled test images, in percent."""
    judged = {name: runs for name, runs in methods.items() if all(r.get("cycles") for r in runs.values())}
    if not judged:
        return ""
    legend = "; ".join(f"{name}: {meaning}" for name, meaning in DIAGNOSTICS.items())
    return f"{_grid('cycles, %', judged, DIAGNOSTICS, lambda record, name: 100 * record['cycles'][name])}\n\n({legend}.)"


def _grid(title: str, methods: Methods, names: Sequence[str], value: Callable[[Mapping[str, Any], str], float | None]) -> str:
    def cell(runs: Mapping[int, Mapping[str, Any]], name: str) -> str:
        seen = [v for v in (value(r, name) for r in runs.values()) if v is not None]
        return f"{np.mean(seen):.1f}" if seen else "-"

    return _table([title, *methods], [[name, *(cell(runs, name) for runs in methods.values())] for name in names])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" if row else "|---" * len(head) + "|" for row in (head, (), *rows))


def _criteria(methods: Methods) -> str:
    """How well criteria without target labels order methods: of the means over seeds, and of the methods of each seed."""
    usable = {name: runs for name, runs in methods.items() if name != ORACLE and all(r.get("criteria") for r in runs.values())}
    if len(usable) < 3:
        return ""
    seeds = sorted(set.intersection(*(set(runs) for runs in usable.values())))
    scores = {name: _mean(runs) for name, runs in usable.items()}
    rows = []
    for criterion in MEANINGS:
        judged = {name: np.mean([r["criteria"][criterion] for r in runs.values()]) for name, runs in usable.items()}
        of_means = rank_correlation(list(judged.values()), list(scores.values()))
        of_seeds = []
        for s in seeds:
            alike = [runs[s] for runs in usable.values()]
            of_seeds.append(rank_correlation([r["criteria"][criterion] for r in alike], [_headline(r) for r in alike]))
        chosen = max(judged, key=judged.get)
        below = f"{max(scores.values()) - scores[chosen]:.1f}"
        rows.append([criterion, f"{of_means:+.2f}", ", ".join(f"{r:+.2f}" for r in of_seeds), chosen, below])
    correlations = ["rank correlation with mIoU, of means", "of the methods of each seed"]
    return _table(["criterion", *correlations, "it chooses", "mIoU of that, below the best"], rows)
