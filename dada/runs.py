"""Where a run keeps its files, and the snapshots it writes there."""

from __future__ import annotations

import hashlib
import platform
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dada import __version__
from dada.config import in_words
from dada.files import whole_file
from dada.model.base_file import base_name, frozen_state, hash_of

BEST = "model_best.pth"  # see dada.training.validation


@dataclass(frozen=True)
class Run:
    """Name and folders of a run; nothing is created until something is written."""

    name: str
    snapshots: Path
    logs: Path


def run_of(cfg: Any, suffix: str = "") -> Run:
    """The run that `cfg` describes: EXP_NAME, else {SOURCE}2{TARGET}_{MODEL}_{DA_METHOD}, with `_suffix` appended."""
    name = cfg.EXP_NAME
    if not name:
        model = cfg.TRAIN.MODEL.replace(":", "-").replace("/", "-")
        method = cfg.TRAIN.DA_METHOD + ("_association" if cfg.CONTRASTIVE_LEARNING else "")
        name = f"{in_words(cfg.SOURCE)}2{in_words(cfg.TARGET)}_{model}_{method}"
    if suffix:
        name = f"{name}_{suffix}"
    root = Path(cfg.EXP_ROOT)
    return Run(name, root / "snapshots" / name, root / "logs" / "tensorboard" / name)


def versions() -> dict[str, str]:
    """What a result depends on besides the cfg."""
    # torch's version is an object of its own, which weights-only loading would refuse.
    return {"dada": __version__, "torch": str(torch.__version__), "python": platform.python_version()}


def save_snapshot(folder: Path, network: nn.Module, iteration: int, cfg: dict, name: str = "model") -> Path:
    """Write `{name}_{iteration}.pth` whole, see `snapshot`. Returns its path."""
    path = folder / f"{name}_{iteration}.pth"
    save_whole(path, snapshot(folder, network, iteration, cfg))
    return path


def snapshot(folder: Path, network: nn.Module, iteration: int, cfg: dict) -> dict[str, Any]:
    """Weights, iteration, plain cfg and versions, for a file in `folder`.

    Frozen weights are left out. `base` is their hash, and they themselves lie in a file beside, which is written if it is
    not there yet.
    """
    frozen = frozen_state(network)
    trained = {name: value for name, value in network.state_dict().items() if name not in frozen}
    content: dict[str, Any] = {"state_dict": trained, "iter": iteration, "cfg": cfg, "versions": versions()}
    if frozen:
        content["base"] = hash_of(frozen)
        base = folder / base_name(content["base"])
        if not base.exists():
            save_whole(base, {"state_dict": frozen})
    return content


def save_whole(path: Path, content: dict) -> None:
    """torch.save, so that `path` holds what it held before or all of `content`."""
    # Given a name instead of a file, torch.save would not say that the disk is full.
    with whole_file(path) as part, open(part, "wb") as file:
        torch.save(content, file)


def set_aside(folder: Path, after: int = 0, logs: Path | None = None) -> Path | None:
    """Move what an earlier run left in `folder` to `folder`/former_<n>, so that nothing takes it for the new run's.

    Args:
        logs: the folder of its curves. Those of a run that is continued stay: what it replaces in them is passed over.
        after: the iteration from which an earlier run is continued: what it wrote until then stays. 0: all goes.

    Returns:
        The folder moved to, or None if there was nothing but cfg and code, which every run writes anew.
    """
    patterns = ("model_*.pth", "teacher_*.pth", "checkpoint_*.pth", "post_mortem_*.pth", "test_*.json", "train_cfg.yml", "*.py")
    patterns += () if after else ("base-*.pth",)
    left = [p for pattern in patterns for p in sorted(folder.glob(pattern)) if not after or iteration_of(p) > after]
    if logs is not None and not after:
        left += sorted(logs.glob("events.out.tfevents.*"))
    if all(p.suffix in (".yml", ".py") for p in left):
        return None
    number = 1
    while (folder / f"former_{number}").exists():
        number += 1
    former = folder / f"former_{number}"
    former.mkdir()
    for path in left:
        shutil.move(path, former / path.name)  # logs may be on another disk
    return former


def iteration_of(path: Path) -> int:
    """The number at the end of a file's name; 0 if there is none."""
    number = re.search(r"_(\d+)$", path.stem)
    return int(number[1]) if number else 0


def snapshots_in(folder: Path) -> list[Path]:
    """Every `model_{iteration}.pth` of `folder`, in order of iteration; none if there is no such folder."""
    found = [(int(m[1]), p) for p in Path(folder).glob("model_*.pth") if (m := re.fullmatch(r"model_(\d+)", p.stem))]
    return [path for _, path in sorted(found)]


def find_snapshots(folder: Path) -> list[Path]:
    """The same, of a run that is to have some.

    Raises:
        FileNotFoundError: there is none.
    """
    if found := snapshots_in(folder):
        return found
    raise FileNotFoundError(
        f"no snapshot model_<iteration>.pth in {folder}. Train with the same --cfg, --set and --exp-suffix first, "
        "or name a file with TEST.RESTORE_FROM."
    )


def run_folders(path: Path, is_run: Callable[[Path], object] = snapshots_in) -> list[Path]:
    """The folders of runs that `path` means: itself, else those in its `snapshots`, else those in it; empty if none is one.

    `experiments/A` that is not there is `experiments/snapshots/A`, where training writes.

    Args:
        is_run: whether a folder is that of a run; by default, one that holds a snapshot.
    """
    if not path.exists():
        path = path.parent / "snapshots" / path.name
    if path.is_dir() and is_run(path):
        return [path]
    for place in (path / "snapshots", path):
        if place.is_dir() and (inside := [folder for folder in sorted(place.iterdir()) if folder.is_dir() and is_run(folder)]):
            return inside
    return []


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file, to say which weights gave a number."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
