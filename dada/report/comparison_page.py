"""The report's file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from dada.figures.curves import draw_curves
from dada.figures.meanings import meaning
from dada.figures.style import COLOURS
from dada.figures.web import inline_svg, page_part
from dada.files import write_whole
from dada.label_sets import LabelSet
from dada.report.groups import (
    Group,
    Value,
    best,
    classes_of_groups,
    common_options,
    defaults,
    differing_options,
    differing_protocols,
    group_runs,
    value_of,
)
from dada.report.prediction_grid import Column, columns
from dada.report.run_records import find_runs

NONE = "–"
LONG = 50  # letters of a cell from which on it has several lines
PLOT = 2.6  # inches: the letters of a plot are then nearly as large as those beside it


def write_page(paths: Sequence[str | Path], out: str | Path, images: int = 3, overrides: Sequence[str] = ()) -> list[Group]:
    """Compare the runs that `paths` name in one HTML file. Returns the methods that were found.

    Args:
        paths: see `find_runs`; the first run is what the others are compared with.
        images: test images with predictions; 0: none.
        overrides: `KEY=value` pairs over the cfgs, to find the data, for example.

    Raises:
        FileNotFoundError, ValueError: see `find_runs`; `out` is no page.
    """
    if Path(out).suffix not in (".html", ".htm"):
        raise ValueError(f"the report is a page, but --out is {str(out)!r}; expected a name that ends in .html")
    groups = group_runs(find_runs(paths))
    panels = columns(groups, images, overrides) if images else ([], [])
    write_whole(out, page(groups, *panels).encode())
    return groups


def page(groups: Sequence[Group], names: Sequence[str] = (), panels: Sequence[Column] = ()) -> str:
    """The whole document."""
    sections = {
        "Score": _answer(groups) + _pictures(groups, names, panels, slice(0, 1)),
        "Curves": _curves(groups),
        "Classes": _classes(groups),
        "Pictures": _pictures(groups, names, panels, slice(1, None)) if len(names) > 1 else "",
        "Options": _options(groups),
        "Cost": _cost(groups),
        "Origin": _origin(groups),
    }
    sections = {name: content for name, content in sections.items() if content}
    title = f"Comparison of {', '.join(g.name for g in groups)}" if len(groups) > 1 else groups[0].name
    links = "".join(f'<a href="#{name.lower()}">{name}</a>' for name in sections)
    body = "".join(f'<section id="{n.lower()}"><h2>{n}</h2>{content}</section>' for n, content in sections.items())
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{page_part(__package__, 'report.css')}</style></head><body>"
        f"<h1>{escape(title)}</h1><nav>{links}</nav>{body}"
        "<footer>Differences are from the first method. ± is the standard deviation over seeds (N - 1).</footer></body></html>\n"
    )


def _table(head: Sequence[str], rows: Sequence[str]) -> str:
    cells = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    return f'<div class="wide"><table><thead><tr>{cells}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _heads(groups: Sequence[Group]) -> list[str]:
    return [f"{_swatch(k)}{escape(g.name)}" for k, g in enumerate(groups)]


def _swatch(k: int) -> str:
    """The line of method `k` in the plots, to stand beside its name."""
    dash = ("", "7 3", "8 3 2 3", "2 3", "12 4", "4 2 1 2 1 2")[k % len(COLOURS)]
    style = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<svg class="swatch" viewBox="0 0 28 8" aria-hidden="true"><path class="run{k % 6}" d="M0 4H28"{style}/></svg>'


def _row(name: str, cells: Sequence[str], kind: str = "") -> str:
    return f'<tr{kind and f" class={kind!r}"}><th scope="row">{name}</th>{"".join(cells)}</tr>'


def _answer(groups: Sequence[Group]) -> str:
    """The answer in one sentence, its caveats, and a bar for each method."""
    means = _means(groups)
    if not means:
        return '<p class="note">No run was tested; dada test writes the reports that this page reads.</p>'
    notes = []
    if different := differing_protocols(groups):
        what = "; ".join(f"{name}: {', '.join(_shown(v) for v in values)}" for name, values in different.items())
        notes.append(
            f'<p class="warn">These tests were made differently, so their numbers are not comparable: {escape(what)}.</p>'
        )
    for g in groups:
        if any(run.headline and run.headline.content.get("chosen") for run in g.runs):
            notes.append(f'<p class="warn">{escape(g.name)}: a snapshot chosen among others, not the last one.</p>')
    values = [g.score(f"mIoU {means[0]}") for g in groups]
    winner, sentence = best(values), ""
    if winner is not None:
        first = (
            f", {values[winner].mean - values[0].mean:.1f} above {escape(groups[0].name)}" if winner and values[0].count else ""
        )
        over = _covered(groups, means[0])
        sentence = f"<b>{escape(groups[winner].name)}</b> is best: {values[winner].mean:.1f} % mIoU over {over} classes{first}."
        spreads = [v.std for v in (values[winner], values[0]) if v.count > 1]
        if winner and spreads and values[winner].mean - values[0].mean <= max(spreads):
            sentence += " Seeds differ by as much."
    several = any(v.count > 1 for v in values)
    spread = "Lines are standard deviations over seeds." if several else "One run each, so how much seeds differ is not known."
    longest = max((v.mean + (v.std if v.count > 1 else 0) for v in values if v.count), default=1) or 1
    bars = "".join(_bar(k, g.name, v, values[0], longest, len(g.runs)) for k, (g, v) in enumerate(zip(groups, values)))
    return f'<p class="answer">{sentence} <span class="note">{spread}</span></p>{"".join(notes)}<div class="bars">{bars}</div>'


def _bar(k: int, name: str, value: Value, first: Value, longest: float, runs: int) -> str:
    def share(x: float) -> str:
        return f"{max(0.0, min(100.0, 100 * x / longest)):.1f}%"

    who = f'<span class="who">{escape(name)}</span>'
    if not value.count:
        return f'<div class="bar">{who}<span class="note">not tested</span></div>'
    interval = ""
    if not math.isnan(value.std):
        left, right = share(value.mean - value.std), share(value.mean + value.std)
        interval = f'<b style="left:{left};right:calc(100% - {right})"></b>'
    seeds = f"<small>{runs} seed{'s' * (runs > 1)}</small>"
    return (
        f'<div class="bar">{who}<span class="track run{k % 6}"><i style="width:{share(value.mean)}"></i>{interval}</span>'
        f"<span>{_number(value, first if k else None)} {seeds}</span></div>"
    )


def _number(value: Value, first: Value | None) -> str:
    """Mean, spread, and the difference from `first`."""
    spread = "" if math.isnan(value.std) else f" ± {value.std:.1f}"
    change = f" <small>{value.mean - first.mean:+.1f}</small>" if first and first.count else ""
    return f"{value.mean:.1f}{spread}{change}"


def _means(groups: Sequence[Group]) -> list[str]:
    return list(dict.fromkeys(c for g in groups for run in g.runs if run.headline for c in run.headline.means))


def _scores(values: Sequence[Value]) -> list[str]:
    winner, firsts = best(values), [None, *[values[0]] * (len(values) - 1)]
    return [
        f"<td{' class=best' if k == winner else ''}>{_number(value, first)}</td>" if value.count else _cell(NONE)
        for k, (value, first) in enumerate(zip(values, firsts))
    ]


def _cell(text: str, left: bool = False) -> str:
    kind = ' class="text long"' if len(text) > LONG else " class=text"
    return f"<td{kind if left else ''}>{escape(text)}</td>"


def _shown(value: Any) -> str:
    if value is None:
        return NONE
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(str, value))}]"
    return str(value) if value != "" else "(empty)"


def _options(groups: Sequence[Group]) -> str:
    usual, parts = defaults(), []
    rows = [
        _row(escape(name), [_cell(_shown(usual.get(name)), True), *(_cell(_shown(v), True) for v in values)])
        for name, values in differing_options(groups).items()
    ]
    if rows:
        parts.append(_table(["option", "default", *_heads(groups)], rows))
    elif len(groups) > 1:
        parts.append('<p class="note">No option that could decide a result differs.</p>')
    for g in groups:
        if not g.options:
            parts.append(f'<p class="note">The configuration of {escape(g.name)} is not known.</p>')
    if common := common_options(groups):
        rows = [_row(escape(n), [_cell(_shown(usual[n]), True), _cell(_shown(v), True)]) for n, v in common.items()]
        which = "all share" if len(groups) > 1 else "are set"
        parts.append(
            f"<details><summary>{len(rows)} other options that {which} differ from the defaults</summary>"
            f"{_table(['option', 'default', 'here'], rows)}</details>"
        )
    return "".join(parts)


def _curves(groups: Sequence[Group]) -> str:
    there = dict.fromkeys(tag for g in groups for run in g.runs for tag in run.curves)
    # Evaluations, losses and notes, and rates, but not the values of single classes.
    tags = [tag for start in ("eval/", "test/", "data/", "lr/") for tag in there if tag.startswith(start)]
    if not tags:
        return '<p class="note">No run has logs; train with --tensorboard.</p>'
    legend = "".join(f"<span>{head}</span>" for head in _heads(groups))
    runs, plots = {g.name: [run.curves for run in g.runs] for g in groups}, []
    for tag in tags:
        name = escape(tag.removeprefix("data/"))
        who = ", ".join(g.name for g in groups if any(tag in run.curves for run in g.runs))
        svg = inline_svg(draw_curves(runs, [tag], width=PLOT), f"{tag} of {who}")
        plots.append(f"<figure><figcaption><b>{name}</b> {escape(meaning(tag))}</figcaption>{svg}</figure>")
    return (
        f'<div class="legend">{legend}</div><p class="note">Lines are means over a tenth of what was logged, around each '
        "iteration; pale is what was logged, or, of several seeds, a standard deviation to either side.</p>"
        f'<div class="plots">{"".join(plots)}</div>'
    )


def _classes(groups: Sequence[Group]) -> str:
    classes = classes_of_groups(groups)
    if classes is None:
        return '<p class="note">No run was tested.</p>'
    extra = {n: "" for g in groups for run in g.runs if run.headline for n in run.headline.iou if n not in classes.names}
    rows = [
        _row(patch + escape(name), _scores([g.score(name) for g in groups]))
        for name, patch in {**_patches(classes), **extra}.items()
    ]
    for k, count in enumerate(_means(groups)):
        covered = _covered(groups, count)
        name = f"mIoU {count}" + ("" if covered == count else f", over {covered} classes")
        rows.append(_row(name, _scores([g.score(f"mIoU {count}") for g in groups]), "mean" if k == 0 else ""))
    for of in dict.fromkeys(of for g in groups for run in g.runs if run.headline for of in run.headline.datasets):
        rows.append(_row(escape(f"mIoU on {of}"), _scores([g.score(f"mIoU on {of}") for g in groups])))
    return _table(["IoU (%)", *_heads(groups)], rows)


def _covered(groups: Sequence[Group], count: str) -> str:
    """ "16", or "15 of 16" where the means of some runs are over fewer classes than there are."""
    runs = [run.headline for g in groups for run in g.runs if run.headline]
    found = sorted({run.covered.get(count, int(count)) for run in runs} or {int(count)})
    return count if found == [int(count)] else f"{' or '.join(map(str, found))} of {count}"


def _patches(classes: LabelSet) -> dict[str, str]:
    """A square in the colour of each class, by its name."""
    colours = (f"#{r:02x}{g:02x}{b:02x}" for r, g, b in classes.palette.tolist())
    return {name: f'<span class="patch" style="background:{colour}"></span>' for name, colour in zip(classes.names, colours)}


def _pictures(groups: Sequence[Group], names: Sequence[str], panels: Sequence[Column], rows: slice) -> str:
    """The test images of `rows`; what is to be said of all of them stands with the first."""
    notes, shown = "", [c for c in panels if c.pictures]
    if not rows.start:
        notes = "".join(f'<p class="note">No pictures of {escape(c.title)}: {escape(c.note)}</p>' for c in panels if c.note)
    parts = []
    for row, name in list(enumerate(names))[rows] if shown else ():
        pictures = "".join(
            f'<figure><img {c.pictures[row]} alt="{escape(f"{c.title}, {name}")}">'
            f"<figcaption>{escape(c.title)}</figcaption></figure>"
            for c in shown
        )
        parts.append(f'<div class="panels" style="--columns:{len(shown)}">{pictures}</div><p class="note">{escape(name)}</p>')
    classes = classes_of_groups(groups)
    if parts and classes is not None and not rows.start:
        legend = "".join(f"<span>{patch}{escape(name)}</span>" for name, patch in _patches(classes).items())
        chosen = "The first of the test images below" if len(names) > 1 else "A test image"
        parts.append(f'<div class="classes">{legend}</div><p class="note">{chosen}; evenly spaced, not chosen; first seeds.</p>')
    return notes + "".join(parts)


def _cost(groups: Sequence[Group]) -> str:
    def row(name: str, attribute: str, form: str, factor: float = 1.0) -> str:
        values = [value_of([getattr(run, attribute) for run in g.runs]) for g in groups]
        if not any(v.count for v in values):
            return ""
        return _row(name, [_cell(form.format(v.mean * factor) if v.count else "not logged") for v in values])

    rows = [
        row("iterations", "iterations", "{:.0f}"),
        row("parameters (million)", "parameters", "{:.2f}", 1e-6),
        row("training time (minutes)", "wall_seconds", "{:.1f}", 1 / 60),
        row("seconds an iteration", "seconds_per_iteration", "{:.2f}"),
        row("source images a second", "images_per_second", "{:.2f}"),
        row("peak memory (GB)", "peak_memory", "{:.2f}"),
    ]
    note = "Times and memory are from the logs (train --tensorboard), means over seeds; none includes loading the weights."
    return _table(["", *_heads(groups)], rows) + f'<p class="note">{note}</p>' if any(rows) else ""


def _origin(groups: Sequence[Group]) -> str:
    rows = []
    for g in groups:
        for run in g.runs:
            content = run.headline.content if run.headline else {}
            versions = ", ".join(f"{k} {v}" for k, v in content.get("versions", {}).items())
            hashes = ", ".join(f"{Path(c['file']).name} {c['sha256'][:12]}" for c in content.get("checkpoints", ()))
            protocol = content.get("protocol", {}).get("PROTOCOL", "")
            weights = hashes or (run.weights.name if run.weights else NONE)
            cells = (g.name, _shown(run.seed), weights, versions or NONE, protocol or NONE)
            place = run.folder if run.folder.name == run.name else run.folder / run.name
            rows.append(_row(escape(str(place)), [_cell(cell, True) for cell in cells]))
    return _table(["run", "method", "seed", "weights, SHA-256", "versions", "protocol"], rows)
