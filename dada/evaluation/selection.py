"""Rank trained networks without target labels and, where labels are known, say how good that ranking is."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dada.build import on_device, source_loader, target_images, target_loader
from dada.config import cfg_from_dict, cfg_from_list, default_cfg
from dada.evaluation.criteria import label_free_criteria
from dada.evaluation.criterion_names import CLOSURE, MEANINGS
from dada.evaluation.cycle_closure import cycle_closure
from dada.evaluation.tester import load_predictor
from dada.model.weight_files import read_weights
from dada.runs import run_folders, snapshots_in

log = logging.getLogger(__name__)


class Candidate(NamedTuple):
    """A snapshot with its criteria; `miou` is that of its own test report, None where there is none."""

    path: Path
    criteria: dict[str, float]
    miou: float | None


def candidates_of(paths: Sequence[Path], every: bool = False) -> list[Path]:
    """Snapshot files as they are; of a run's folder, or of each run in a folder, the last snapshot, or `every` one.

    Raises:
        FileNotFoundError: a path does not exist, or holds no snapshot.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_file():
            found.append(path)
            continue
        if not (folders := run_folders(path)):
            what = "holds no snapshot model_<iteration>.pth, nor do the folders in it" if path.exists() else "does not exist"
            raise FileNotFoundError(
                f"{path} {what}; give snapshots (.pth), or folders of runs (EXP_ROOT/snapshots/<name>, or EXP_ROOT for all)"
            )
        for folder in folders:
            found += snapshots_in(folder)[None if every else -1 :]
    return found


def judge(path: Path, overrides: Sequence[str] = (), images: int = 64, pairs: int = 8) -> Candidate:
    """All criteria of one snapshot, on the data that the cfg in it names. With TRAIN.SOURCE_FREE the closure is NaN.

    Args:
        overrides: `KEY=value` pairs over that cfg, for example DATA_DIRECTORY_TARGET=...
        images: of the target's training split, evenly spread over it.
        pairs: batches of both domains whose cycles are followed.

    Raises:
        ValueError: the file holds no cfg, or there is no image.
    """
    stored = read_weights(str(path)).cfg
    if not stored:
        raise ValueError(f"{path} holds no configuration, so its data are unknown; give a snapshot that training wrote")
    cfg = cfg_from_list(overrides, cfg_from_dict(stored, str(path), default_cfg()))
    with on_device(cfg) as device:
        predictor = load_predictor(cfg, [path], device)
        network = predictor.networks[0]
        criteria = label_free_criteria(predictor, target_images(cfg, network.normalization, max(1, images)), device)
        if cfg.TRAIN.SOURCE_FREE:  # it may not be here, and cycles begin there
            return Candidate(path, {**criteria._asdict(), CLOSURE: math.nan}, _tested(path))
        both = zip(source_loader(cfg, network.normalization, pairs), target_loader(cfg, network.normalization, pairs))
        moved = ((s.to(device, non_blocking=True), t.to(device, non_blocking=True)) for s, t in both)
        closure = cycle_closure(network, moved, cfg.NUM_CLASSES)
    return Candidate(path, {**criteria._asdict(), CLOSURE: closure.balanced}, _tested(path))


def _tested(path: Path) -> float | None:
    report = path.parent / f"test_{path.stem}.json"
    if not report.is_file():
        return None
    return next(iter(json.loads(report.read_text())["mIoU"].values()))


def ranking(candidates: Sequence[Candidate], by: str) -> list[Candidate]:
    """Best first; of equals the one named first.

    Raises:
        ValueError: a network has no value of the criterion.
    """
    if without := [str(c.path) for c in candidates if math.isnan(c.criteria[by])]:
        raise ValueError(f"{without[0]} was adapted without its source, where cycles begin, and has no {by}: take another --by")
    return sorted(candidates, key=lambda c: -c.criteria[by])


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's: Pearson's correlation of the ranks, equals sharing theirs; NaN where all values of one are equal."""

    def ranks(values: Sequence[float]) -> np.ndarray:
        _, place, count = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
        return (np.cumsum(count) - (count - 1) / 2)[place]

    a, b = ranks(x), ranks(y)
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / scale) if scale else float("nan")


def report(candidates: Sequence[Candidate], by: str, with_labels: bool = False) -> str:
    """A table, best first, and what the criteria mean.

    Args:
        with_labels: add the mIoU of the test reports, and how well each criterion orders it: for judging the criteria, not
            for choosing a network.
    """
    width = max(len(str(c.path)) for c in candidates)
    names = list(MEANINGS)
    head = f"{'snapshot':<{width}}" + "".join(f"{name:>15}" for name in names)
    lines = [head + f"{'mIoU':>8}" if with_labels else head]
    for c in ranking(candidates, by):
        row = f"{str(c.path):<{width}}" + "".join(f"{c.criteria[name]:>15.4f}" for name in names)
        lines.append(row + (f"{'-' if c.miou is None else f'{c.miou:.2f}':>8}" if with_labels else ""))
    tested = [c for c in candidates if c.miou is not None]
    if with_labels and len(tested) > 1:
        truth = [c.miou for c in tested]
        cells = "".join(f"{rank_correlation([c.criteria[n] for c in tested], truth):>15.2f}" for n in names)
        lines.append(f"{'rank correlation with mIoU':<{width}}{cells}")
    lines += ["", *(f"{name}: {MEANINGS[name]}" for name in names)]
    return "\n".join(lines)


def as_record(candidate: Candidate) -> dict[str, Any]:
    return {"snapshot": str(candidate.path), **candidate.criteria, "mIoU": candidate.miou}
