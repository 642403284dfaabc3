"""Curves of several methods as SVG, with their values for whoever points at them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np

from dada.figures.web import script_json
from dada.report.groups import Group

WIDTH, HEIGHT = 320, 190
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 8, 26
DASHES = ("", "7 3", "8 3 2 3", "2 3", "12 4", "4 2 1 2 1 2")


def tags_of(groups: Sequence[Group]) -> list[str]:
    """Losses and notes, rates, and evaluations that any run has logged; not the values of single classes."""
    there = dict.fromkeys(tag for g in groups for run in g.runs for tag in run.curves)
    order = ("eval/", "test/", "data/", "lr/")
    return [tag for start in order for tag in there if tag.startswith(start)]


def plot(tag: str, groups: Sequence[Group]) -> str:
    """A <figure>: a line for each method that has logged `tag`, a band of a standard deviation over its seeds."""
    lines = {k: curve for k, g in enumerate(groups) if (curve := g.curve(tag)) is not None}
    steps = np.concatenate([x for x, _, _ in lines.values()])
    # Numbers that are not finite stand for nothing that could be drawn.
    low = np.concatenate([(mean - std)[np.isfinite(mean - std)] for _, mean, std in lines.values()])
    high = np.concatenate([(mean + std)[np.isfinite(mean + std)] for _, mean, std in lines.values()])
    lowest, highest = (low.min(), high.max()) if len(low) else (0.0, 1.0)
    logarithmic = lowest > 0 and highest > 100 * lowest
    scale = np.log10 if logarithmic else np.asarray
    if lowest == highest:
        lowest, highest = lowest - (abs(lowest) or 1) / 2, highest + (abs(highest) or 1) / 2
    bottom, top = float(scale(lowest)), float(scale(highest))
    first, last = float(steps.min()), float(steps.max())

    def x_of(step: np.ndarray) -> np.ndarray:
        return LEFT + (np.asarray(step) - first) / ((last - first) or 1) * (WIDTH - LEFT - RIGHT)

    def y_of(value: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            share = (scale(np.asarray(value, dtype=float)) - bottom) / (top - bottom)
        return TOP + (1 - np.clip(share, 0, 1)) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for value in _ticks(lowest, highest, logarithmic):
        y = float(y_of(value))
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 4}" y="{y + 3:.1f}" text-anchor="end">{_short(value)}</text>')
    for step, anchor in ((first, "start"), (last, "end")):
        parts.append(f'<text x="{float(x_of(step)):.1f}" y="{HEIGHT - 10}" text-anchor="{anchor}">{step:g}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">iteration</text>')
    for k, (step, mean, std) in lines.items():
        x, keep = x_of(step), np.isfinite(mean)
        if std.any():
            upper, lower = y_of(mean + std), y_of(mean - std)
            ring = [*zip(x[keep], upper[keep]), *reversed([*zip(x[keep], lower[keep])])]
            parts.append(f'<polygon class="band run{k % 6}" points="{_points(ring)}"/>')
        dash = DASHES[k % len(DASHES)]
        style = f' stroke-dasharray="{dash}"' if dash else ""
        parts.append(f'<polyline class="line run{k % 6}"{style} points="{_points(zip(x[keep], y_of(mean)[keep]))}"/>')
    name = tag.removeprefix("data/")
    label = f"{name} of {', '.join(groups[k].name for k in lines)}"
    values = [
        {
            "name": groups[k].name,
            "run": k % 6,
            "x": _rounded(step),
            "y": _rounded(mean),
            "std": _rounded(std) if std.any() else None,
        }
        for k, (step, mean, std) in lines.items()
    ]
    axes = {"x": [first, last], "left": LEFT, "right": WIDTH - RIGHT, "top": TOP, "bottom": HEIGHT - BOTTOM}
    data = script_json({"lines": values, **axes})
    return (
        f'<figure class="plot" tabindex="0" data-tag="{escape(tag)}"><figcaption>{escape(name)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{"".join(parts)}'
        f'<line class="cursor" y1="{TOP}" y2="{HEIGHT - BOTTOM}" visibility="hidden"/></svg>'
        f'<output></output><script type="application/json">{data}</script></figure>'
    )


def swatch(k: int) -> str:
    """The line of method `k`, to stand beside its name."""
    dash = DASHES[k % len(DASHES)]
    style = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<svg class="swatch" viewBox="0 0 28 8" aria-hidden="true"><path class="line run{k % 6}" d="M0 4H28"{style}/></svg>'


def _points(pairs) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in pairs)


def _rounded(values: np.ndarray) -> list[float | None]:
    return [float(f"{v:.5g}") if np.isfinite(v) else None for v in values]


def _ticks(lowest: float, highest: float, logarithmic: bool) -> list[float]:
    if logarithmic:
        return [10.0**k for k in range(math.ceil(math.log10(lowest)), math.floor(math.log10(highest)) + 1)]
    step = 10 ** math.floor(math.log10((highest - lowest) / 2))
    step *= next((f for f in (5, 2, 1) if (highest - lowest) / (f * step) >= 2), 1)
    return [k * step for k in range(math.ceil(lowest / step - 1e-9), math.floor(highest / step + 1e-9) + 1)]


def _short(value: float) -> str:
    return f"{value:.3g}"
