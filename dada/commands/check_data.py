"""Read everything that a run would read, before it starts, and judge it."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from dada.build import files_of
from dada.commands import data_problems as kinds
from dada.commands.data_problems import Kind, Problem, read_pair, text_of
from dada.config import each_dataset, plain_cfg
from dada.dataset import IGNORE_LABEL, SegmentationDataset
from dada.dataset.conventions import several_whites
from dada.dataset.image_files import first_few
from dada.dataset.parallel_map import parallel_map
from dada.dataset.spread import spread
from dada.dataset.statistics import Overlap, class_overlap
from dada.dataset.synthia_release import EXPECTED, Release, guess_release
from dada.domain_adaptation.objectives import build_objective
from dada.model.weights import check_at_hand


@dataclass
class Domain:
    """What was found in one split of one dataset."""

    role: str  # "source", "target", "labelled" (images of it) or "test"; there may be several of each
    name: str  # as SOURCE or TARGET has it
    split: str
    root: str
    number: int = 0  # of several of a role, from 1 on; 0: there is one
    images: int = 0  # files of the split, as the next two
    labels: int = 0
    depths: int = 0
    checked: int = 0  # samples that were read
    classes: tuple[str, ...] = ()
    sizes: Counter = field(default_factory=Counter)  # (width, height) of images
    counts: np.ndarray | None = None  # (read labels, K) pixels of each class
    pixels: int = 0  # of these labels, with those that are ignored
    ids: Counter = field(default_factory=Counter)  # pixels of each id in the label files
    turned: Counter = field(default_factory=Counter)  # images that are stored turned, by their EXIF orientation
    whites: Counter = field(default_factory=Counter)  # images of more than 8 bits, by what was taken for white
    problems: list[Problem] = field(default_factory=list)
    release: Release | None = None  # which of SYNTHIA's archives it is, if SYNTHIA

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
        return [problem for problem in self.problems if not problem.kind.warning]

    def add(self, kind: Kind, message: str) -> None:
        """A problem of the whole."""
        self.problems.append(Problem(kind, self.root, message))

    def option(self, name: str) -> str:
        """Advice to set an option of its folder."""
        return f"set FOLDER_{'SOURCE' if self.role == 'source' else 'TARGET'}.{name}"


@dataclass
class Check:
    """The domains that a run reads, and the classes that source and test images share."""

    domains: list[Domain]
    problems: list[Problem]  # of the options, not of files
    overlap: Overlap | None
    cfg: dict[str, Any]  # plain
    no_weights: str = ""  # why training could not start from TRAIN.RESTORE_FROM, which is no fault of the data

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
        problems.append(Problem(kinds.UNUSABLE, "", str(error)))
    domains: list[Domain] = []
    for role in roles:
        try:
            several = each_dataset(cfg, "source" if role == "source" else "target")
        except ValueError as error:  # as many values as there are datasets
            problems += [Problem(kinds.UNUSABLE, "", str(error))] * (str(error) not in {problem.message for problem in problems})
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
    return Check(domains, problems, overlap, plain_cfg(cfg), _no_weights(cfg))


def _no_weights(cfg: Any) -> str:
    try:
        check_at_hand(cfg.TRAIN.RESTORE_FROM)
    except FileNotFoundError as error:
        return str(error)
    return ""


def _check_domain(cfg: Any, role: str, number: int, workers: int, limit: int) -> Domain:
    key = "SOURCE" if role == "source" else "TARGET"
    split, root = cfg["TEST" if role == "test" else "TRAIN"][f"SET_{key}"], cfg[f"DATA_DIRECTORY_{key}"]
    domain = Domain(role, cfg[key], split, root, number)
    if domain.name == "SYNTHIA":
        domain.release = guess_release(root)
        if not domain.release.fits:
            what = f"looks like {domain.release.name}" if domain.release.name else "is none of SYNTHIA's archives as downloaded"
            benchmarks = f"The benchmarks are made of the whole of {EXPECTED}."
            domain.add(kinds.RELEASE, f"{root} {what}: {domain.release.reason}. {benchmarks}")
    try:
        dataset = files_of(cfg, role)
    except Exception as error:
        domain.add(kinds.UNOPENED, text_of(error))
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
    if domain.role != "target" and not any(problem.kind == kinds.UNOPENED for problem in domain.problems):
        without = [items[i].image for i in indices if items[i].label is None]
        domain.problems += [Problem(kinds.MISSING, image, f"{image} has no label") for image in without]
    loader = parallel_map(partial(read_pair, dataset), indices, workers)
    bar = {"desc": f"{domain.role} {domain.split}", "unit": "image", "dynamic_ncols": True, "disable": None}
    found, palettes = [], defaultdict(set)
    for pair in tqdm(loader, total=len(indices), **bar):
        domain.problems += pair.problems
        domain.pixels += pair.pixels
        domain.ids.update(pair.ids)
        found += [pair.counts] if pair.counts is not None else []
        seen = pair.size, pair.facts.get("orientation"), pair.facts.get("white")
        for counter, value in zip((domain.sizes, domain.turned, domain.whites), seen):
            counter.update([value] if value else [])
        for index, color in pair.palette.items():
            palettes[index].add(color)
    _judge_images(dataset, domain)
    if domain.labels:
        domain.counts = np.stack(found) if found else np.zeros((0, dataset.num_classes), dtype=np.int64)
        _judge_labels(dataset, domain, palettes)


def _judge_images(dataset: SegmentationDataset, domain: Domain) -> None:
    """Add what looks suspicious about the image files as a whole."""
    if left_out := getattr(dataset, "left_out", 0):
        files = f"{left_out} file{'s' * (left_out > 1)}"
        domain.add(kinds.LEFT_OUT, f"{files} that IMAGES fits are left out, since LABELS or DEPTH fits them too")
    if len(domain.whites) > 1:
        domain.add(kinds.WHITES, several_whites(domain.whites, domain.option("WHITE")))


def _judge_labels(dataset: SegmentationDataset, domain: Domain, palettes: dict[int, set[tuple[int, int, int]]]) -> None:
    """Add what the labels as a whole lack, or what looks suspicious about them."""
    if text := dataset.foreign_ids(set(domain.ids)):
        domain.add(kinds.FOREIGN if IGNORE_LABEL in domain.ids else kinds.PERHAPS_FOREIGN, text)
    if several := {index: colors for index, colors in palettes.items() if len(colors) > 1}:
        index, colors = min(several.items())
        shown = f"index {index} has the colours {first_few(sorted(colors), 3)}: an index is another class from file to file"
        domain.add(kinds.PALETTES, f"{shown}. If colours are classes, {domain.option('LABEL_FORMAT')} to rgb")
    if set(domain.ids) == {0, IGNORE_LABEL} and dataset.id_map[IGNORE_LABEL] == IGNORE_LABEL and domain.name == "Folder":
        names = (*domain.classes[:2], "...")
        advice = f"If it is a class, {domain.option('LABEL_MAP')} to {{0: {names[0]}, 255: {names[1]}}}"
        domain.add(kinds.TWO_VALUES, f"label files hold 0 and 255 alone, and 255 is ignored. {advice}")
    totals = domain.counts.sum(axis=0)
    absent = [name for name, pixels in zip(domain.classes, totals) if not pixels]
    if not domain.counts.size or domain.role == "target" or not absent:
        return
    if not totals.any():
        ids = first_few(sorted(domain.ids), 8)
        held = f"; they hold ids {ids}" if ids else ""
        domain.add(kinds.NOTHING, f"{domain.checked} labels were read, and no pixel is of a trained class{held}")
    elif domain.role == "source" and domain.checked == domain.images:
        _add_absent(domain, absent)
    else:
        means = ": IoU says nothing about these classes" if domain.role == "test" else ""
        domain.add(kinds.FEWER, f"no label that was read holds {', '.join(absent)}{means}")


def _judge_together(cfg: Any, role: str, domains: list[Domain]) -> list[Problem]:
    """What several domains of a role lack together; of sources one may lack a class that another one has."""
    problems = []
    try:
        files_of(cfg, role)
    except Exception as error:
        text = text_of(error)
        if not any(text.endswith(problem.message) for domain in domains for problem in domain.problems):
            problems.append(Problem(kinds.UNUSABLE, "", text))
    present = {name for d in domains if d.counts is not None for name, n in zip(d.classes, d.counts.sum(axis=0)) if n}
    lacking = [domain for domain in domains if any(problem.kind == kinds.ABSENT for problem in domain.problems)]
    for domain in lacking:
        domain.problems = [problem for problem in domain.problems if problem.kind != kinds.ABSENT]
    if lacking and len(lacking) == len(domains) and (absent := [name for name in domains[0].classes if name not in present]):
        _add_absent(domains[0], absent)
    return problems


def _add_absent(domain: Domain, names: list[str]) -> None:
    advice = "Leave them out of the classes, or take images that hold them"
    domain.add(kinds.ABSENT, f"no label holds {', '.join(names)}: nothing teaches these classes. {advice}")
