"""Draw docs/images/packages.png, the packages of `dada` and what imports what: python docs/draw_packages.py

The order of the packages stands here, once: tests/test_imports.py holds the code to it.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent

# From the top down. A package imports packages of lower layers only; packages of one layer know nothing of each other.
LAYERS = (
    ("__main__",),
    ("cli",),
    ("commands",),
    ("explorer", "report"),
    ("segmenter", "training"),
    ("figures",),
    ("evaluation", "publishing"),
    ("build", "runs"),
    ("domain_adaptation",),
    ("dataset", "model", "parallel"),
    ("label_sets",),
    ("config",),
    ("files", "matmul_precision", "normalization", "torchvision_compat"),
)
# The same inside the method.
METHOD_LAYERS = (
    ("objectives",),
    ("association_term", "adversarial", "self_training"),
    ("step",),
    ("cycle_association",),
    ("association",),
    ("contrastive_learning", "losses", "teacher"),
)
SENTENCES = {
    "__main__": "python -m dada",
    "cli": "the command dada: flags",
    "commands": "what each command does",
    "explorer": "a page to look at cycles",
    "report": "a page that compares runs",
    "segmenter": "a trained network as one object",
    "training": "a run: loop, optimizer, checkpoints, logs",
    "figures": "pictures for paper, screen, TensorBoard",
    "evaluation": "predict, measure, choose without labels",
    "publishing": "weights and model card for others",
    "build": "from a cfg to networks and loaders",
    "runs": "the folder of a run",
    "domain_adaptation": "the method: association, losses, terms",
    "dataset": "images, labels, transforms, order",
    "model": "networks and their weights",
    "parallel": "several processes as one run",
    "config": "every option; loading and checking",
    "files": "written whole or not at all",
    "label_sets": "classes: names, colours, ids",
    "matmul_precision": "float32, TF32 or less",
    "normalization": "of images, by network",
    "torchvision_compat": "builds without operators",
}


class Import(NamedTuple):
    """`importer` imports `imported`, both names of modules, in that line of the file."""

    importer: str
    imported: str
    line: int


def modules_of(root: Path = ROOT) -> dict[str, Path]:
    """Every module and package of `dada` by its dotted name."""
    found = {}
    for path in sorted((root / "dada").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(modules: Mapping[str, Path]) -> Iterator[Import]:
    """All imports between `modules`, also those inside functions and those for type checkers.

    Left out is the bare package `dada`, which Python loads before any of its modules: `from dada import __version__`.
    """
    for name, path in modules.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for node in _import_statements(path):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            else:
                above = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
                base = ".".join(filter(None, (above, node.module)))
                whole = [f"{base}.{alias.name}" for alias in node.names]
                targets = [full if full in modules else base for full in whole]
            for target in dict.fromkeys(targets):
                if target in modules and target not in ("dada", name):
                    yield Import(name, target, node.lineno)


@cache
def _import_statements(path: Path) -> list[ast.Import | ast.ImportFrom]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]


def package_of(module: str) -> str:
    """`training` of dada.training.loop; `dada` of the package itself."""
    return module.split(".")[1] if "." in module else module


def layer_of(layers: tuple[tuple[str, ...], ...]) -> dict[str, int]:
    return {package: depth for depth, layer in enumerate(layers) for package in layer}


def lines_of(modules: Mapping[str, Path]) -> dict[str, int]:
    """Lines of Python in each package."""
    lines: dict[str, int] = {}
    for name, path in modules.items():
        lines[package_of(name)] = lines.get(package_of(name), 0) + len(path.read_text(encoding="utf-8").splitlines())
    return lines


def arrows_between_packages(imports: Iterator[Import]) -> set[tuple[str, str]]:
    """Without those that follow from others: none from a to c where a imports b and b imports c."""
    arrows = {(package_of(i.importer), package_of(i.imported)) for i in imports}
    below: dict[str, set[str]] = {}
    for a, b in arrows:
        if a != b:
            below.setdefault(a, set()).add(b)

    def reached(start: str, seen: frozenset[str]) -> set[str]:
        direct = below.get(start, set()) - seen
        return direct.union(*(reached(b, seen | {b}) for b in direct)) if direct else set()

    return {
        (a, b)
        for a, direct in below.items()
        for b in direct
        if not any(b in reached(other, frozenset({other})) for other in direct - {b})
    }


WIDTH, HEIGHT, GAP_X, GAP_Y = 2.6, 0.62, 0.4, 0.62  # of a box, and between boxes
LANE = 0.14  # between arrows that run beside each other
# Fill and line of the boxes of a layer's group; an arrow has the colour of the package that it leads to.
COLOURS = {
    "__main__ cli commands explorer report": ("#DCE9F5", "#3B6EA5"),
    "segmenter training": ("#DDF0EE", "#2E7F78"),
    "figures evaluation publishing": ("#E4F1E4", "#4B8B4B"),
    "build runs": ("#FBEBD3", "#B9791F"),
    "domain_adaptation": ("#F6DDDD", "#B04545"),
    "dataset model parallel": ("#E9E3F2", "#7458A6"),
    "config": ("#E3EAF0", "#3F5A73"),
}
OTHERS = ("#EEEEEE", "#8A8A8A")


def colours_of(package: str) -> tuple[str, str]:
    return next((pair for names, pair in COLOURS.items() if package in names.split()), OTHERS)


def _places(layers: list[list[str]]) -> dict[str, tuple[float, int]]:
    """Middle and row of every package; the middle of the picture is 0."""
    place = {}
    for row, layer in enumerate(layers):
        for column, package in enumerate(layer):
            place[package] = ((column - (len(layer) - 1) / 2) * (WIDTH + GAP_X), row)
    return place


def _lanes(place: Mapping[str, tuple[float, int]], arrows: set[tuple[str, str]]) -> dict[str, float]:
    """Where arrows that pass by a row run down to a package: the nearest place without a box or another such lane."""
    taken: list[tuple[float, int, int]] = []
    lanes = {}
    for package, (middle, row) in sorted(place.items(), key=lambda item: item[1][1]):
        sources = [a for a, b in arrows if b == package and place[a][1] < row - 1]
        if not sources:
            continue
        top = min(place[a][1] for a in sources)
        wanted = [place[a][0] for a in sources] + [middle]

        def is_free(x: float, top: int = top, row: int = row) -> bool:
            boxes = [m for m, r in place.values() if top < r < row]
            beside = [other for other, first, last in taken if first < row and top < last]
            return all(abs(x - m) > WIDTH / 2 + LANE for m in boxes) and all(abs(x - o) > 0.9 * LANE for o in beside)

        candidates = [k * LANE / 2 for k in range(-100, 101)]
        lane = min((x for x in candidates if is_free(x)), key=lambda x: sum(abs(x - w) for w in wanted))
        lanes[package] = lane
        taken.append((lane, top, row))
    return lanes


def _paths(
    place: Mapping[str, tuple[float, int]], arrows: set[tuple[str, str]]
) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """Corners of every arrow. Those to one package join before they reach it."""
    lanes = _lanes(place, arrows)
    rows = max(row for _, row in place.values()) + 1
    tracks: dict[tuple[int, str], float] = {}
    for gap in range(rows):  # below row `gap`
        here = {b for a, b in arrows if place[a][1] == gap or place[b][1] == gap + 1}
        for k, package in enumerate(sorted(here, key=lambda b: (-place[b][1], place[b][0]))):
            tracks[gap, package] = -gap * (HEIGHT + GAP_Y) - 0.1 - (GAP_Y - 0.26) * (k + 0.5) / len(here)
    paths = {}
    for package, (middle, row) in place.items():
        targets = sorted((b for a, b in arrows if a == package), key=lambda b: lanes[b] if place[b][1] > row + 1 else place[b][0])
        for k, b in enumerate(targets):
            start = middle + (k - (len(targets) - 1) / 2) * min(0.3, (WIDTH - 0.4) / len(targets))
            end, below = place[b]
            first, last = tracks[row, b], tracks[below - 1, b]
            if len(targets) == 1 and below == row + 1 and abs(end - middle) < 0.01:
                start = end
            corners = [(start, -row * (HEIGHT + GAP_Y)), (start, first)]
            if below > row + 1:
                corners += [(lanes[b], first), (lanes[b], last)]
            paths[package, b] = [*corners, (end, last), (end, -below * (HEIGHT + GAP_Y) + HEIGHT)]
    return paths


def draw(out: Path) -> None:
    """Layers from the top down, a bar for the lines of code of each package, arrows from importer to imported."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import FancyBboxPatch, Rectangle

    modules = modules_of()
    lines = lines_of(modules)
    layers = [[package for package in layer if package in lines] for layer in LAYERS]
    place = _places([layer for layer in layers if layer])
    most = max(lines[package] for package in place)
    arrows = {(a, b) for a, b in arrows_between_packages(imports_of(modules)) if a in place and b in place}
    paths = _paths(place, arrows)
    xs = [x for corners in paths.values() for x, _ in corners] + [
        m + side * WIDTH / 2 for m, _ in place.values() for side in (-1, 1)
    ]
    rows = max(row for _, row in place.values()) + 1
    left, right, bottom = min(xs) - 0.15, max(xs) + 0.15, -(rows - 1) * (HEIGHT + GAP_Y) - 0.15
    figure = plt.figure(figsize=(right - left, HEIGHT + 0.15 - bottom))
    axis = figure.add_axes((0, 0, 1, 1), xlim=(left, right), ylim=(bottom, HEIGHT + 0.15), aspect="equal")
    axis.axis("off")
    for (_, b), corners in sorted(paths.items()):
        colour = colours_of(b)[1]
        axis.plot(*zip(*corners), color=colour, linewidth=1.3, solid_joinstyle="round", solid_capstyle="butt", zorder=1)
        axis.annotate(
            "",
            corners[-1],
            (corners[-1][0], corners[-1][1] + 0.12),
            zorder=2,
            arrowprops={"arrowstyle": "-|>", "color": colour, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 11},
        )
    for package, (middle, row) in place.items():
        x, y = middle - WIDTH / 2, -row * (HEIGHT + GAP_Y)
        fill, edge = colours_of(package)
        style = "round,pad=0,rounding_size=0.07"
        axis.add_patch(FancyBboxPatch((x, y), WIDTH, HEIGHT, boxstyle=style, facecolor=fill, edgecolor=edge, zorder=3))
        axis.text(x + 0.1, y + 0.43, package, fontsize=10, fontweight="bold", va="center", zorder=4)
        axis.text(
            x + WIDTH - 0.1, y + 0.43, f"{lines[package]:,}", fontsize=8, va="center", ha="right", color="#333333", zorder=4
        )
        axis.text(x + 0.1, y + 0.22, SENTENCES.get(package, ""), fontsize=7.5, va="center", color="#333333", zorder=4)
        axis.add_patch(Rectangle((x + 0.1, y + 0.07), (WIDTH - 0.2) * lines[package] / most, 0.035, color=edge, zorder=4))
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "packages.png", help="file to write (%(default)s)")
    args = parser.parse_args()
    draw(args.out)
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
