"""What a run has found, as the tables of docs/performance.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Row = dict[str, Any]
VARIANT_COLUMNS = ("images/s", "waiting", "peak MB", "time ratio", "memory ratio")


def markdown(rows: Sequence[Row]) -> str:
    """All tables for which there are rows, under one line with the card, versions, date and commit."""
    parts = [
        head(rows),
        ceilings(rows),
        correct(rows),
        association(rows),
        steps(rows),
        evaluation(rows),
        loading(rows),
        camvid(rows),
        ends(rows),
    ]
    return "\n\n".join(part for part in parts if part)


def head(rows: Sequence[Row]) -> str:
    found = next((row["environment"] for row in rows if "environment" in row), {})
    small = any(row.get("small") for row in rows if row["section"] == "run")
    text = ", ".join(f"{name} {value}" for name, value in found.items() if value is not None)
    return f"Measured by `make gpu`: {text or 'on an unknown machine'}." + (" **Tiny sizes: not for figures.**" if small else "")


def ceilings(rows: Sequence[Row]) -> str:
    return table(("what", "value", "unit"), (r for r in rows if r["section"] == "environment" and "what" in r))


def correct(rows: Sequence[Row]) -> str:
    """How many tests passed, and by how much the worst one of each kind differs from its reference."""
    parts = []
    for section in dict.fromkeys(row["section"] for row in rows if "test" in row):
        outcomes = [row["outcome"] for row in rows if row["section"] == section and "test" in row]
        parts.append({"tests": section} | {state: outcomes.count(state) for state in ("passed", "failed", "skipped")})
    text = table(("tests", "passed", "failed", "skipped"), parts)
    worst: dict[tuple[str, str], float] = {}
    for row in rows:
        kind = str(row.get("test", "")).rpartition("::")[2].partition("[")[0]
        for name, value in row.items():
            if kind and name.startswith(("error", "distance", "share")) and isinstance(value, (int, float)):
                worst[kind, name] = max(value, worst.get((kind, name), 0.0))
    errors = [{"test": kind, "what": name, "worst": value} for (kind, name), value in worst.items()]
    return "\n\n".join(filter(None, [text, table(("test", "what", "worst"), errors)]))


def association(rows: Sequence[Row]) -> str:
    """Whole losses beside the published form, then steps by kernels beside tiles."""
    mine = [row for row in rows if row["section"] in ("association", "other libraries")]
    columns = ("metric", "channels", "batch", "precision", "impl", "ms", "ms ratio", "MB", "MB ratio")
    step_columns = ("metric", "channels", "batch", "step", "kernels ms", "tiles ms")
    parts = table(columns, (row for row in mine if "impl" in row)), table(step_columns, (row for row in mine if "step" in row))
    return "\n\n".join(part for part in parts if part)


def steps(rows: Sequence[Row]) -> str:
    found = [
        {"network": row["section"], "precision": row["precision"]} | one
        for row in rows
        if "precision" in row
        for one in row.get("steps", ())
    ]
    return table(("network", "precision", "variant", *VARIANT_COLUMNS), found)


def evaluation(rows: Sequence[Row]) -> str:
    found = (row for row in rows if row["section"] == "evaluation" and ("way" in row))
    return table(("network", "images", "labels", "way", "images/s"), found)


def loading(rows: Sequence[Row]) -> str:
    found = [{"cores": row["cores"]} | one for row in rows for one in row.get("loading", ())]
    return table(("cores", "variant", "workers", "images/s", "time ratio", "peak MB"), found)


def camvid(rows: Sequence[Row]) -> str:
    found = [row | {"mIoU": ", ".join(f"{v:.1f}" for v in row["mIoU"].values())} for row in rows if "mIoU" in row]
    return table(("from", "iterations", "training s", "test s", "mIoU"), found)


def ends(rows: Sequence[Row]) -> str:
    """How each section ended: a table that is not whole shows it here."""
    return table(("section", "ended", "seconds", "reason"), (row for row in rows if "ended" in row))


def table(columns: Sequence[str], rows: Iterable[Row]) -> str:
    """Markdown; a row that failed says why in its last column. Empty without rows."""
    lines = []
    for row in rows:
        cells = [_cell(row.get(column)) for column in columns]
        why = row.get("failed", row.get("cannot"))
        if isinstance(why, str):
            cells[-1] = why.replace("|", "\\|")[:80]
        lines.append(f"| {' | '.join(cells)} |")
    if not lines:
        return ""
    return "\n".join([f"| {' | '.join(columns)} |", "|" + "---|" * len(columns), *lines])


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return str(value).replace("|", "\\|")
