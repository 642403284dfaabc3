"""What exists of a run: its configuration, test reports, logs and weights; any of them may be missing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dada.config import flat_options, read_cfg
from dada.config.removed_options import says_nothing
from dada.evaluation.reports import EvalReport, read_report
from dada.figures.scalars import Curve, has_logs, read_scalars
from dada.model.weight_files import read_weights
from dada.runs import iteration_of, run_folders

WEIGHTS = (".pth", ".safetensors")
_NO_PARAMETERS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class RunRecord:
    """One training, or published weights with their test."""

    name: str
    folder: Path
    tests: tuple[EvalReport, ...] = ()  # by iteration; the last is the headline
    weights: Path | None = None  # the last snapshot, or what was tested
    stored: Mapping[str, Any] = field(default_factory=dict)  # the cfg, nested

    @property
    def headline(self) -> EvalReport | None:
        return self.tests[-1] if self.tests else None

    @cached_property
    def options(self) -> dict[str, Any]:
        """The cfg by dotted names, without removed options that say nothing of it; empty where none is stored."""
        return {name: value for name, value in _flat(self.stored).items() if not says_nothing(name, value)}

    @property
    def seed(self) -> int | None:
        said = self.headline.content.get("seed") if self.headline else None
        return self.options.get("TRAIN.RANDOM_SEED", said)

    @property
    def iterations(self) -> int | None:
        return (iteration_of(self.weights) or None) if self.weights else None

    @cached_property
    def parameters(self) -> int | None:
        """Of the network, frozen ones among them; None where the weights are not there."""
        if self.weights is None or not self.weights.is_file():
            return None
        try:
            state = read_weights(self.weights).state
        except FileNotFoundError:  # the frozen ones are elsewhere
            return None
        return sum(value.numel() for name, value in state.items() if not name.endswith(_NO_PARAMETERS))

    @cached_property
    def curves(self) -> dict[str, Curve]:
        """Logged scalars, and the mIoU of the test reports where there are several."""
        places = [self.folder, self.folder.parent.parent / "logs" / "tensorboard" / self.folder.name]
        found = next((read_scalars(place) for place in places if has_logs(place)), {})
        tested = [t for t in self.tests if iteration_of(t.path)]
        if len(tested) > 1:
            steps = np.array([iteration_of(t.path) - 1 for t in tested], dtype=float)
            for count in tested[0].means:
                values = np.array([t.means.get(count, np.nan) for t in tested])
                found[f"test/mIoU {count}"] = Curve(steps, values, np.full(len(steps), np.nan))
        return found

    @property
    def seconds_per_iteration(self) -> float | None:
        """Median over the log; None where there is none."""
        gaps = self._gaps()
        return float(np.median(gaps)) if len(gaps) else None

    @property
    def wall_seconds(self) -> float | None:
        """Of all logged iterations, without the time between a stop and going on."""
        gaps = self._gaps()
        if not len(gaps):
            return None
        ran = gaps[gaps < 100 * np.median(gaps)]
        return float(ran.sum() * (len(gaps) + 1) / len(ran))

    @property
    def images_per_second(self) -> float | None:
        """Source images, of which each iteration sees BATCH_SIZE_SOURCE x ITER_SIZE."""
        batch, passes = (self.options.get(f"TRAIN.{key}") for key in ("BATCH_SIZE_SOURCE", "ITER_SIZE"))
        if not self.seconds_per_iteration or not batch or not passes:
            return None
        return batch * passes / self.seconds_per_iteration

    @property
    def peak_memory(self) -> float | None:
        """GB, as logged."""
        curve = self.curves.get("cost/peak memory (GB)")
        return None if curve is None else float(curve.value.max())

    def _gaps(self) -> np.ndarray:
        curve = next((c for tag, c in self.curves.items() if tag.startswith("data/")), None)
        if curve is None or len(curve.step) < 3:
            return np.array([])
        return np.maximum(np.diff(curve.seconds) / np.maximum(np.diff(curve.step), 1), 1e-9)


def find_runs(paths: Sequence[str | Path]) -> list[RunRecord]:
    """The runs that `paths` name, each once: folders of a run's snapshots, folders of such folders, test reports, or weights.

    `experiments/A` is also found as `experiments/snapshots/A`, where training writes.

    Raises:
        FileNotFoundError: a path is not there, or holds no run.
        ValueError: a file that is no test report.
    """
    found: dict[tuple, RunRecord] = {}
    for text in paths:
        for run in _runs_at(Path(text)):
            found.setdefault((run.folder.resolve(), run.name), run)
    return list(found.values())


def _runs_at(path: Path) -> list[RunRecord]:
    if path.is_file():
        return [_of_file(path)]
    if folders := run_folders(path, _is_run):
        return [run for folder in folders for run in _of_folder(folder)]
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist; give folders of runs (EXP_ROOT/snapshots/<name>), test reports, or weights"
        )
    raise FileNotFoundError(
        f"{path} holds no run: neither train_cfg.yml, nor test_<snapshot>.json, nor model_<iteration>.pth, here or in the "
        "folders in it; give EXP_ROOT/snapshots/<name>"
    )


def _is_run(folder: Path) -> bool:
    return any(any(folder.glob(pattern)) for pattern in ("train_cfg.yml", "test_*.json", "model_*.pth"))


def _of_folder(folder: Path) -> list[RunRecord]:
    """The run; or, where there are only tests of other weights than a training's, one for each of them."""
    tests = [read_report(path) for path in sorted(folder.glob("test_*.json"))]
    numbered = sorted((t for t in tests if re.fullmatch(r"model_\d+", t.name)), key=lambda t: iteration_of(t.path))
    snapshots = sorted((p for p in folder.glob("model_*.pth") if iteration_of(p)), key=iteration_of)
    if not numbered and not snapshots and not (folder / "train_cfg.yml").is_file():
        return [_of_file(t.path) for t in tests]
    kept = numbered or [t for t in tests if not t.name.startswith("teacher")][-1:]
    weights = (_weights_of(kept[-1]) if kept else None) or (snapshots[-1] if snapshots else None)
    return [RunRecord(folder.name, folder, tuple(kept), weights, _cfg_of(folder, kept))]


def _of_file(path: Path) -> RunRecord:
    folder = path.absolute().parent
    if path.suffix in WEIGHTS:
        beside = folder / f"test_{path.stem}.json"
        tests = (read_report(beside),) if beside.is_file() else ()
        stored = tests[-1].content.get("cfg") if tests else read_weights(path).cfg
        return RunRecord(_name(path), folder, tests, path, stored or {})
    report = read_report(path)
    return RunRecord(_name(path), folder, (report,), _weights_of(report), report.content.get("cfg") or {})


def _name(path: Path) -> str:
    stem = path.stem.removeprefix("test_")
    return f"{path.absolute().parent.name}/{stem}" if re.fullmatch(r"(model|teacher)_(\d+|best)", stem) else stem


def _weights_of(report: EvalReport) -> Path | None:
    """Where the tested file is; beside the report if the folder was moved."""
    files = [Path(c["file"]) for c in report.content["checkpoints"]]
    if len(files) != 1:  # an ensemble
        return None
    places = [report.path.parent / files[0].name, files[0]]
    return next((place for place in places if place.is_file()), places[0])


def _cfg_of(folder: Path, tests: Sequence[EvalReport]) -> Mapping[str, Any]:
    """As training wrote it; else as the test did."""
    path = folder / "train_cfg.yml"
    if path.is_file():
        return read_cfg(path)
    return (tests[-1].content.get("cfg") if tests else None) or {}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    known, flat = flat_options(), {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and name not in known:
            flat.update(_flat(value, f"{name}."))
        else:
            flat[name] = list(value) if isinstance(value, tuple) else value
    return flat
