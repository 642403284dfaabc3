"""Runs that differ in their seed alone are seeds of one method; what differs between methods, and how they score."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from dada.config import flat_options
from dada.label_sets import LabelSet
from dada.report.run_records import RunRecord

_SEED = "TRAIN.RANDOM_SEED"


class Value(NamedTuple):
    """Of the seeds of a method: NaN where there is none, a standard deviation (N - 1) of NaN for one."""

    mean: float
    std: float
    count: int


@dataclass(frozen=True)
class Group:
    """A method: runs that differ in their seed alone."""

    name: str
    runs: tuple[RunRecord, ...]

    @property
    def options(self) -> dict[str, Any]:
        return comparable(self.runs[0])

    def score(self, name: str) -> Value:
        """IoU of a class, "mIoU 16", or of several targets "mIoU on A", in percent."""
        values = []
        for run in self.runs:
            if run.headline is not None:
                means = {**run.headline.means, **{f"on {name}": v for name, v in run.headline.datasets.items()}}
                scores = {**run.headline.iou, **{f"mIoU {name}": v for name, v in means.items()}}
                values.append(scores.get(name, np.nan))
        return value_of(values)


def value_of(values: Sequence[float | None]) -> Value:
    known = np.array([v for v in values if v is not None and not np.isnan(v)], dtype=float)
    if not len(known):
        return Value(np.nan, np.nan, 0)
    return Value(float(known.mean()), float(known.std(ddof=1)) if len(known) > 1 else np.nan, len(known))


def comparable(run: RunRecord) -> dict[str, Any]:
    """The options that may decide a result, without the seed. Files count by their name."""
    known, kept = flat_options(), {}
    for name, value in run.options.items():
        option = known.get(name)  # None: of another version
        if name != _SEED and (option is None or option.role in ("weights", "span", "score")):
            kept[name] = _file_names(value) if option and option.path else value
    return kept


def group_runs(runs: Sequence[RunRecord]) -> list[Group]:
    """Methods in the order in which they first come; a run without configuration is one of its own."""
    found: dict[str, list[RunRecord]] = {}
    for run in runs:
        key = f"{run.folder}/{run.name}"
        if run.options:
            tested = run.headline.name if run.headline else None
            key = json.dumps([comparable(run), tested or (run.weights and run.weights.stem)], sort_keys=True, default=str)
        members = found.setdefault(key, [])
        if any(other.seed == run.seed for other in members):  # the same again, under another name
            found[f"{key} {run.folder} {run.name}"] = [run]
        else:
            members.append(run)
    named: dict[str, Group] = {}
    for members in found.values():
        name = base = _without_seed(members)
        number = 2
        while name in named:
            name, number = f"{base} ({number})", number + 1
        named[name] = Group(name, tuple(members))
    return list(named.values())


def _without_seed(members: Sequence[RunRecord]) -> str:
    if len(members) == 1:
        return members[0].name
    names = {re.sub(rf"[_\-. ]?(seed)?[_\-]?{run.seed}(?!\d)", "", run.name, count=1, flags=re.IGNORECASE) for run in members}
    return names.pop() if len(names) == 1 else members[0].name


def defaults() -> dict[str, Any]:
    plain = {name: option.default for name, option in flat_options().items()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}


def differing_options(groups: Sequence[Group]) -> dict[str, list[Any]]:
    """Options in which a method differs from the first, with the value of each; an option that a file lacks has its default.

    Methods without configuration are None throughout.
    """
    usual = defaults()
    rows = {}
    for name in dict.fromkeys(n for g in groups for n in g.options):
        values = [g.options.get(name, usual.get(name)) if g.options else None for g in groups]
        known = [v for v, g in zip(values, groups) if g.options]
        if any(v != known[0] for v in known):
            rows[name] = values
    return rows


def common_options(groups: Sequence[Group]) -> dict[str, Any]:
    """Options that all methods share, and that are not the defaults."""
    usual, differing = defaults(), differing_options(groups)
    first = next((g.options for g in groups if g.options), {})
    return {n: v for n, v in first.items() if n not in differing and n in usual and v != usual[n]}


def differing_protocols(groups: Sequence[Group]) -> dict[str, list[Any]]:
    """Settings of the tests in which methods differ: their numbers are not comparable."""
    settings = [g.runs[0].headline.content["protocol"] if g.runs[0].headline else None for g in groups]
    known = [s for s in settings if s is not None]
    rows = {}
    for name in dict.fromkeys(n for s in known for n in s):
        values = [s.get(name) for s in known if name in s]  # older reports say less
        if name != "PROTOCOL" and any(v != values[0] for v in values):
            rows[name] = [None if s is None else s.get(name) for s in settings]
    return rows


def classes_of_groups(groups: Sequence[Group]) -> LabelSet | None:
    """The largest label set that is tested; None where nothing is."""
    tested = [run.headline.classes for g in groups for run in g.runs if run.headline]
    return max(tested, key=lambda c: c.num_classes, default=None)


def best(values: Sequence[Value]) -> int | None:
    """The place of the highest mean; None if fewer than two are known, or several share it as it is printed."""
    known = [round(v.mean, 1) for v in values if v.count]
    if len(known) < 2 or known.count(max(known)) > 1:
        return None
    return next(k for k, v in enumerate(values) if v.count and round(v.mean, 1) == max(known))


def _file_names(value: Any) -> str | list[str]:
    """Of a path, or of each of several."""
    return [_file_names(entry) for entry in value] if isinstance(value, (list, tuple)) else str(value).rpartition("/")[2]
