"""Read everything that a run would read, before it starts, and report what is wrong and what is in it."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from dada.build import files_of
from dada.config import each_dataset, plain_cfg
from dada.dataset import IGNORE_LABEL, SegmentationDataset, image_files
from dada.dataset.packed import IDS as IDS_KIND
from dada.dataset.parallel_map import parallel_map
from dada.dataset.spread import spread
from dada.dataset.statistics import Overlap, class_frequencies, class_overlap
from dada.dataset.synthia_release import EXPECTED, Release, guess_release
from dada.domain_adaptation.objectives import build_objective

T = TypeVar("T")

# Kinds of problems. Errors stop a run when it meets the file; warnings do not.
UNOPENED = "dataset cannot be opened"
UNUSABLE = "options cannot be used"
IMAGE, LABEL, DEPTH = "unreadable image", "unreadable label", "unreadable depth"
SIZE, IDS, MISSING = "sizes differ", "label ids outside the map", "image without label"
BLANK, ABSENT, RELEASE = "no trained class in the label", "classes in no label", "unusual archive"
NOTHING, FEWER = "no labelled pixel", "classes not in all that was read"
FOREIGN, PERHAPS_FOREIGN, TWO_VALUES = "ids of another numbering", "perhaps ids of another numbering", "255 is ignored"
FLAT, PAGES, WHITES = "nearly all one value", "several pictures in a file", "several whites"
TURNED, PALETTES, LEFT_OUT = "turned by EXIF", "palettes differ", "masks among the images"
WARNINGS = (BLANK, FEWER, RELEASE, PERHAPS_FOREIGN, TWO_VALUES, FLAT, PAGES, WHITES, TURNED, PALETTES, LEFT_OUT)
OF_ALL = (
    UNOPENED,
    RELEASE,
    ABSENT,
    NOTHING,
    FEWER,
    FOREIGN,
    PERHAPS_FOREIGN,
    TWO_VALUES,
    WHITES,
    PALETTES,
    LEFT_OUT,
)  # not of single files
FLAT_SHARE = 0.99


@dataclass(frozen=True)
class Problem:
    kind: str
    file: str
    message: str


@dataclass(frozen=True)
class Pair:
    """What was found in the files of one sample."""

    problems: list[Problem]
    size: tuple[int, int] | None  # (width, height) of the image
    counts: np.ndarray | None  # (K,) pixels of each class; None without labels
    pixels: int = 0  # of the label
    ids: dict[int, int] = field(default_factory=dict)  # pixels of each id in the label file
    palette: dict[int, tuple[int, int, int]] = field(default_factory=dict)  # colours of the indices that occur in it
    facts: dict[str, Any] = field(default_factory=dict)  # what else stands in the image file, see image_files.read_image


@dataclass
class Domain:
    """What was found in one split of one dataset.

    Args:
        role: "source", "target", "labelled" (images of it) or "test"; there may be several of each.
        number: of several of a role, from 1 on; 0: there is one.
        name: as SOURCE or TARGET names it.
        split, root: as the cfg gives them.
        images, labels, depths: how many files the split has; `checked` how many of its samples were read.
        sizes: (width, height) of images, counted.
        counts: (read labels, K) pixels of each class.
        pixels: of these labels, with those that are ignored.
        ids: pixels of each id in the label files.
        turned: images by their EXIF orientation, of those that are stored turned.
        whites: images of more than 8 bits, by what was taken for white.
        release: which of SYNTHIA's archives it is, if SYNTHIA.
    """

    role: str
    name: str
    split: str
    root: str
    number: int = 0
    images: int = 0
    labels: int = 0
    depths: int = 0
    checked: int = 0
    classes: tuple[str, ...] = ()
    sizes: Counter = field(default_factory=Counter)
    counts: np.ndarray | None = None
    pixels: int = 0
    ids: Counter = field(default_factory=Counter)
    turned: Counter = field(default_factory=Counter)
    whites: Counter = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)
    release: Release | None = None

    @property
    def who(self) -> str:
        """ "test", or "test 2" of several."""
        return f"{self.role} {self.number}" if self.number else self.role

    @property
    def ignored(self) -> float:
        """Share of the labels' pixels that belong to no trained class, 0..1."""
        return 1 - self.counts.sum() / self.pixels if self.counts is not None and self.pixels else 0.0

    @property
    def errors(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.kind not in WARNINGS]


@dataclass
class Check:
    """The domains that a run reads, and the classes that source and test images share."""

    domains: list[Domain]
    problems: list[Problem]  # of the options, not of files
    overlap: Overlap | None
    cfg: dict[str, Any]  # plain

    @property
    def trainable(self) -> bool:
        return not self.problems and not any(d.errors for d in self.domains if d.role != "test")

    @property
    def testable(self) -> bool:
        return not any(d.errors for d in self.domains if d.role == "test")


def check_data(cfg: Any, workers: int = 0, limit: int = 0) -> Check:
    """Read every file of the source, the target and the test split that `cfg` would have a run read.

    Labels of the target's training split are not opened: training does without them. A run without a term on the
    target does not read that split, and nor does the check. Whatever is wrong with a file or a dataset becomes a Problem; nothing
    raises.

    Args:
        workers: processes that read; 0 reads in this one.
        limit: read only so many samples of each split, evenly spaced; 0 reads all.
    """
    problems, roles = [], ["source", "target", *["labelled"] * bool(cfg.TARGET_LABELLED), "test"]
    try:
        objective = build_objective(cfg, torch.device("cpu"))
        roles = ["source", *["target"] * objective.uses_target, *["labelled"] * objective.uses_labelled, "test"]
    except ValueError as error:
        problems.append(Problem(UNUSABLE, "", str(error)))
    domains: list[Domain] = []
    for role in roles:
        try:
            several = each_dataset(cfg, "source" if role == "source" else "target")
        except ValueError as error:  # as many values as there are datasets
            problems += [Problem(UNUSABLE, "", str(error))] * (str(error) not in {problem.message for problem in problems})
            continue
        found = []
        for number, one in enumerate(several, start=1):
            if role != "labelled" or one.TARGET_LABELLED:
                found.append(_check_domain(one, role, number if len(several) > 1 else 0, workers, limit))
        if len(several) > 1:
            problems += _judge_together(cfg, role, found)
        domains += found
    overlap = None
    counts = {role: [d.counts for d in domains if d.role == role and d.counts is not None] for role in ("source", "test")}
    if all(counts.values()) and len({found.shape[1] for several in counts.values() for found in several}) == 1:
        source, test = (np.concatenate(several) for several in counts.values())
        overlap = class_overlap(source, test) if len(source) and len(test) else None
    return Check(domains, problems, overlap, plain_cfg(cfg))


def _judge_together(cfg: Any, role: str, domains: list[Domain]) -> list[Problem]:
    """What several domains of a role lack together; of sources one may lack a class that another one has."""
    problems = []
    try:
        files_of(cfg, role)
    except Exception as error:
        text = _text(error)
        if not any(text.endswith(problem.message) for domain in domains for problem in domain.problems):
            problems.append(Problem(UNUSABLE, "", text))
    present = {name for d in domains if d.counts is not None for name, n in zip(d.classes, d.counts.sum(axis=0)) if n}
    lacking = [domain for domain in domains if any(problem.kind == ABSENT for problem in domain.problems)]
    for domain in lacking:
        domain.problems = [problem for problem in domain.problems if problem.kind != ABSENT]
    if lacking and len(lacking) == len(domains) and (absent := [name for name in domains[0].classes if name not in present]):
        domains[0].problems.append(Problem(ABSENT, domains[0].root, _absent(absent)))
    return problems


def _check_domain(cfg: Any, role: str, number: int, workers: int, limit: int) -> Domain:
    key = "SOURCE" if role == "source" else "TARGET"
    split, root = cfg["TEST" if role == "test" else "TRAIN"][f"SET_{key}"], cfg[f"DATA_DIRECTORY_{key}"]
    domain = Domain(role, cfg[key], split, root, number)
    if domain.name == "SYNTHIA":
        domain.release = guess_release(root)
        if not domain.release.fits:
            what = f"looks like {domain.release.name}" if domain.release.name else "is none of SYNTHIA's archives as downloaded"
            message = f"{root} {what}: {domain.release.reason}. The benchmarks are made of the whole of {EXPECTED}."
            domain.problems.append(Problem(RELEASE, root, message))
    try:
        dataset = files_of(cfg, role)
    except Exception as error:
        domain.problems.append(Problem(UNOPENED, root, _text(error)))
        if role == "labelled":  # which images those are is not known
            return domain
        try:  # labels that do not pair are no reason not to look at the images
            dataset = files_of(cfg, role, images_only=True)
        except Exception:
            return domain
    _read(dataset, domain, workers, limit)
    return domain


def _read(dataset: SegmentationDataset, domain: Domain, workers: int, limit: int) -> None:
    """Add what is in the files of `dataset` to `domain`."""
    items, domain.classes = dataset.items, dataset.classes.names
    domain.images = len(items)
    domain.labels = sum(item.label is not None for item in items)
    domain.depths = sum(item.depth is not None for item in items)
    indices = spread(len(items), limit or len(items))
    domain.checked = len(indices)
    if domain.role != "target" and not any(problem.kind == UNOPENED for problem in domain.problems):
        domain.problems += [
            Problem(MISSING, items[i].image, f"{items[i].image} has no label") for i in indices if items[i].label is None
        ]
    loader = parallel_map(partial(read_pair, dataset), indices, workers)
    found, palettes = [], defaultdict(set)
    for pair in tqdm(
        loader, desc=f"{domain.role} {domain.split}", total=len(indices), unit="image", dynamic_ncols=True, disable=None
    ):
        domain.problems += pair.problems
        if pair.size is not None:
            domain.sizes[pair.size] += 1
        if pair.counts is not None:
            found.append(pair.counts)
        domain.pixels += pair.pixels
        domain.ids.update(pair.ids)
        domain.turned.update(key for key in (pair.facts.get("orientation"),) if key)
        domain.whites.update(key for key in (pair.facts.get("white"),) if key)
        for index, color in pair.palette.items():
            palettes[index].add(color)
    _judge_images(dataset, domain)
    if domain.labels:
        domain.counts = np.stack(found) if found else np.zeros((0, dataset.num_classes), dtype=np.int64)
        _judge_labels(dataset, domain, palettes)


def _judge_images(dataset: SegmentationDataset, domain: Domain) -> None:
    """Add what looks suspicious about the image files as a whole."""

    def add(kind: str, message: str) -> None:
        domain.problems.append(Problem(kind, domain.root, message))

    if left_out := getattr(dataset, "left_out", 0):
        add(LEFT_OUT, f"{_number(left_out, 'file')} that IMAGES fits are left out, since LABELS or DEPTH fits them too")
    if len(domain.whites) > 1:
        whites = ", ".join(f"{white:g} ({count})" for white, count in sorted(domain.whites.items()))
        add(WHITES, f"in images of more than 8 bits different numbers were taken for white, {whites}: {_option(domain, 'WHITE')}")


def _judge_labels(dataset: SegmentationDataset, domain: Domain, palettes: dict[int, set[tuple[int, int, int]]]) -> None:
    """Add what the labels as a whole lack, or what looks suspicious about them."""

    def add(kind: str, message: str) -> None:
        domain.problems.append(Problem(kind, domain.root, message))

    if text := dataset.foreign_ids(set(domain.ids)):
        add(FOREIGN if IGNORE_LABEL in domain.ids else PERHAPS_FOREIGN, text)
    several = {index: colors for index, colors in palettes.items() if len(colors) > 1}
    if several:
        index, colors = min(several.items())
        shown = image_files.first_few(sorted(colors), 3)
        advice = f"If colours are classes, {_option(domain, 'LABEL_FORMAT')} to rgb"
        add(PALETTES, f"index {index} has the colours {shown}: an index is another class from file to file. {advice}")
    if set(domain.ids) == {0, IGNORE_LABEL} and dataset.id_map[IGNORE_LABEL] == IGNORE_LABEL and domain.name == "Folder":
        names = (*domain.classes[:2], "...")
        advice = f"{_option(domain, 'LABEL_MAP')} to {{0: {names[0]}, 255: {names[1]}}}"
        add(TWO_VALUES, f"label files hold 0 and 255 alone, and 255 is ignored. If it is a class, {advice}")
    totals = domain.counts.sum(axis=0)
    absent = [name for name, pixels in zip(domain.classes, totals) if not pixels]
    if not domain.counts.size or domain.role == "target" or not absent:
        return
    if not totals.any():
        ids = image_files.first_few(sorted(domain.ids), 8)
        held = f"; they hold ids {ids}" if ids else ""
        add(NOTHING, f"{domain.checked} labels were read, and no pixel is of a trained class{held}")
    elif domain.role == "source" and domain.checked == domain.images:
        add(ABSENT, _absent(absent))
    else:
        means = ": IoU says nothing about these classes" if domain.role == "test" else ""
        add(FEWER, f"no label that was read holds {', '.join(absent)}{means}")


def _absent(names: list[str]) -> str:
    advice = "Leave them out of the classes, or take images that hold them"
    return f"no label holds {', '.join(names)}: nothing teaches these classes. {advice}"


def _option(domain: Domain, name: str) -> str:
    return f"set FOLDER_{'SOURCE' if domain.role == 'source' else 'TARGET'}.{name}"


def read_pair(dataset: SegmentationDataset, index: int) -> Pair:
    """Read all files of one sample as training does, and say what is wrong with them; never raises for a file."""
    item, problems = dataset.items[index], []

    def attempt(kind: str, path: str, read: Callable[[], T]) -> T | None:
        try:
            return read()
        except Exception as error:
            problems.append(Problem(IDS if isinstance(error, image_files.LabelIdError) else kind, path, _text(error)))
            return None

    ids = None if item.label is None else attempt(LABEL, item.label, lambda: dataset.read_ids(index))
    label = None if ids is None else attempt(LABEL, item.label, lambda: dataset.train_ids(ids, item.label))
    depth = None if item.depth is None else attempt(DEPTH, item.depth, lambda: image_files.read_inverse_depth(item.depth))
    image = attempt(IMAGE, item.image, lambda: dataset.read_image(index, ids, depth))
    facts = {} if image is None else image.info
    others = {item.label: ids and ids.size, item.depth: None if depth is None else depth.shape[::-1]}
    for path, size in others.items():
        if image is not None and size is not None and size != image.size:
            (w, h), (width, height) = size, image.size
            turned = f", and is stored turned (EXIF orientation {facts['orientation']})" if "orientation" in facts else ""
            problems.append(Problem(SIZE, path, f"{path} is {w}x{h}, its image {item.image} is {width}x{height}{turned}"))
    if image is not None:
        problems += [Problem(kind, item.image, f"{item.image} {text}") for kind, text in _oddities(image, item.label is not None)]
    if ids is not None and ids.info.get("pages", 1) > 1:
        problems.append(Problem(PAGES, item.label, f"{item.label} holds {ids.info['pages']} pictures; the first is read"))
    counts = None
    if label is not None:
        counts = np.array(label.histogram()[: dataset.num_classes], dtype=np.int64)
        if not counts.any():
            problems.append(Problem(BLANK, item.label, f"{item.label} holds no pixel of a trained class"))
    held = {} if ids is None or dataset.label_kind != IDS_KIND else _counted(ids)
    colors = [] if ids is None else ids.info.get("palette", [])
    palette = {k: tuple(colors[3 * k : 3 * k + 3]) for k in held if len(colors) >= 3 * k + 3}
    size, pixels = (None if image is None else image.size), (0 if label is None else label.width * label.height)
    return Pair(problems, size, counts, pixels, held, palette, facts)


def _counted(ids: Image.Image) -> dict[int, int]:
    """Pixels of each id."""
    if ids.mode == "L":
        return {k: count for k, count in enumerate(ids.histogram()) if count}
    return dict(zip(*(found.tolist() for found in np.unique(np.asarray(ids), return_counts=True))))


def _oddities(image: Image.Image, labelled: bool) -> Iterator[tuple[str, str]]:
    """Kinds and descriptions of what looks suspicious in an image."""
    bands = np.array(image.histogram()).reshape(3, 256) / (image.width * image.height)
    if (np.lib.stride_tricks.sliding_window_view(bands, 3, axis=1).sum(axis=2).max(axis=1) >= FLAT_SHARE).all():
        values = ", ".join(str(level) for level in bands.argmax(axis=1))
        yield FLAT, f"is nearly all of one colour ({values}, of 255), once read"
    if (pages := image.info.get("pages", 1)) > 1:
        yield PAGES, f"holds {pages} pictures; the first is read"
    if labelled and "orientation" in image.info and not image.info["decided"]:
        turned = "turned upright" if image.info["upright"] else "read as it is stored"
        number = image.info["orientation"]
        yield (
            TURNED,
            f"is stored turned (EXIF orientation {number}) and was {turned}; the size of its label does not tell on which of "
            "the two that lies: FOLDER_SOURCE.ORIENTATION or FOLDER_TARGET.ORIENTATION says",
        )


def _text(error: Exception) -> str:
    known = isinstance(error, (ValueError, OSError))
    return str(error) if known and str(error) else f"{type(error).__name__}: {error}"


# ---- what is printed and saved


def report(check: Check) -> str:
    """As text: a line for each split, one for each kind of problem with the first files, a table of classes."""
    lines = [_domain_line(domain) for domain in check.domains]
    lines += ["", *_problem_lines(check)]
    lines += ["", *_class_lines(check)] if any(d.counts is not None for d in check.domains) else []
    train, test = (
        f"{what} would {'work' if fine else 'fail'}"
        for what, fine in (("training", check.trainable), ("testing", check.testable))
    )
    return "\n".join([*lines, "", f"{train}; {test}"])


def _domain_line(domain: Domain) -> str:
    text = f"{domain.who:<7} {domain.name} {domain.split} in {domain.root}: "
    if not domain.images:
        return text + "not opened"
    sizes = [f"{w}x{h}" + (f" ({n})" if len(domain.sizes) > 1 else "") for (w, h), n in domain.sizes.most_common()]
    parts = [f"{domain.images} images of {image_files.first_few(sizes, 3) or 'unknown size'}"]
    parts.append(f"{domain.labels} labels" if domain.role != "target" else "labels are not read in training")
    parts += [f"{100 * domain.ignored:.1f} % of label pixels ignored"] if domain.pixels else []
    parts += [f"{sum(domain.turned.values())} stored turned (EXIF)"] if domain.turned else []
    parts += [f"{domain.depths} depth files"] if domain.depths else []
    parts += [f"{domain.checked} of them read"] if domain.checked < domain.images else []
    parts += [f"{domain.release.name}: {domain.release.reason}"] if domain.release and domain.release.fits else []
    return text + ", ".join(parts)


def _problem_lines(check: Check) -> list[str]:
    lines = [f"error    {problem.kind}: {problem.message}" for problem in check.problems]
    for domain in check.domains:
        by_kind: dict[str, list[Problem]] = defaultdict(list)
        for problem in domain.problems:
            by_kind[problem.kind].append(problem)
        for kind, found in by_kind.items():
            weight = "warning" if kind in WARNINGS else "error"
            if kind in OF_ALL:
                lines.append(f"{weight:<8} {domain.who}: {kind}: {found[0].message}")
                continue
            names = image_files.first_few([_below(p.file, domain.root) for p in found], 3)
            lines.append(f"{weight:<8} {domain.who}: {kind}, {_number(len(found), 'file')}: {names}")
            if kind != BLANK:
                lines.append(f"{'':<10}{found[0].message}")
    return lines or ["no problem found"]


def _number(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


def _below(path: str, root: str) -> str:
    return os.path.relpath(path, root) if Path(path).is_relative_to(root) else path


def _class_lines(check: Check) -> list[str]:
    """Frequencies of each domain with labels, and the overlap; in percent."""
    labelled = [d for d in check.domains if d.counts is not None]
    head, units, columns = [], [], []
    for domain in labelled:
        shares = class_frequencies(domain.counts)
        head.append(f"{domain.who:>20}")
        units.append(f"{'pixels':>11}{'images':>9}")
        columns.append([f"{100 * p:>11.3f}{100 * i:>9.2f}" for p, i in zip(shares.pixels, shares.images)])
    if check.overlap is not None:
        o = check.overlap
        head.append(f"{'pairs with the class in':>37}")
        units.append(f"{'source only':>15}{'test only':>11}{'both':>11}")
        columns.append(
            [f"{100 * s:>15.2f}{100 * t:>11.2f}{100 * b:>11.2f}" for s, t, b in zip(o.source_only, o.target_only, o.both)]
        )
    names = max((d.classes for d in labelled), key=len)
    width = max(14, *(len(name) for name in names))
    lines = [f"{'in %':<{width}}" + "".join(head), f"{'':<{width}}" + "".join(units)]
    for k, name in enumerate(names):
        cells = (column[k] if k < len(column) else " " * len(column[0]) for column in columns)
        lines.append(f"{name:<{width}}" + "".join(cells))
    if check.overlap is not None:
        lines += [
            f"Of all pairs of a source with a test image, {100 * o.any_source_only:.1f} % have a class in the source image "
            f"only, {100 * o.any_target_only:.1f} % one in the test image only.",
            "Pairs are of whole images; the test split stands for the target, whose training labels are not read.",
        ]
    return lines


def as_dict(check: Check) -> dict[str, Any]:
    """For JSON: everything, each file with a problem by name; shares in 0..1."""
    overlap = check.overlap
    names = next((d.classes for d in check.domains if d.counts is not None), ())
    return {
        "training_would_work": check.trainable,
        "testing_would_work": check.testable,
        "option_problems": [vars(problem) for problem in check.problems],
        "domains": [_domain_dict(domain) for domain in check.domains],
        "overlap": None
        if overlap is None
        else {
            "any_source_only": overlap.any_source_only,
            "any_test_only": overlap.any_target_only,
            "classes": {
                name: {"source_only": float(s), "test_only": float(t), "both": float(b)}
                for name, s, t, b in zip(names, overlap.source_only, overlap.target_only, overlap.both)
            },
        },
        "cfg": check.cfg,
    }


def _domain_dict(domain: Domain) -> dict[str, Any]:
    result = {key: getattr(domain, key) for key in ("role", "name", "split", "root", "images", "labels", "depths", "checked")}
    result["sizes"] = {f"{w}x{h}": count for (w, h), count in domain.sizes.most_common()}
    result["ignored"] = float(domain.ignored)
    result["ids"] = {str(key): count for key, count in sorted(domain.ids.items())}
    result["turned"] = {str(key): count for key, count in sorted(domain.turned.items())}
    result["release"] = None if domain.release is None else domain.release._asdict()
    result["problems"] = [{**vars(p), "error": p.kind not in WARNINGS} for p in domain.problems]
    if domain.counts is not None:
        shares, pixels = class_frequencies(domain.counts), domain.counts.sum(axis=0)
        result["classes"] = {
            name: {"pixels": int(n), "share_of_pixels": float(p), "share_of_images": float(i)}
            for name, n, p, i in zip(domain.classes, pixels, shares.pixels, shares.images)
        }
    return result
