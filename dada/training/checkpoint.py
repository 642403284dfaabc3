"""Checkpoints: all that a run needs to continue as if it had never stopped.

A checkpoint is a snapshot (`state_dict`, `iter`, `cfg`, `versions`; test.py reads it like one) plus what a test does not need:
optimizers, discriminators, the random generators, and which images the run reads. The order of samples and their augmentation are
functions of the seed and the iteration, the learning rates of the iteration; so the iteration is all that is kept of them.

On a CPU the resumed run gives the weights of the uninterrupted one bit for bit, with the same number of threads, the
same versions and the same way of products (dada/matmul_precision.py).
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from dada.config import flat_options, option_value
from dada.config.option import shown
from dada.config.removed_options import REMOVED, says_nothing
from dada.dataset.base import SegmentationDataset
from dada.matmul_precision import PLAIN, products_in_use
from dada.model.torch_files import UnreadableFile, read_torch_file
from dada.runs import iteration_of, save_whole, versions

log = logging.getLogger(__name__)

FORMAT = 1
KEYS = {
    "format": int,
    "iter": int,
    "cfg": dict,
    "versions": dict,
    "data": dict,
    "state_dict": dict,
    "discriminators": list,
    "optimizers": list,
    "rng": dict,
}


class DamagedCheckpoint(ValueError):
    """A file that is not a whole checkpoint."""


def save_checkpoint(
    folder: Path, iteration: int, state: Mapping[str, Any], *, cfg: dict, data: dict[str, str], keep: int
) -> Path:
    """Write `checkpoint_{iteration}.pth` whole, then remove all but the last `keep`. Returns its path.

    Args:
        state: of the trainer and the random generators.
        cfg: plain.
        data: what `fingerprint` says of every dataset that the run reads.
    """
    path = folder / f"checkpoint_{iteration}.pth"
    head = {"format": FORMAT, "iter": iteration, "cfg": cfg, "versions": _versions(), "data": data}
    save_whole(path, {**head, **state})
    for old in checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def checkpoints(folder: Path) -> list[Path]:
    """Every `checkpoint_{iteration}.pth` of `folder`, in order of iteration."""
    found = (p for p in folder.glob("checkpoint_*.pth") if re.fullmatch(r"checkpoint_\d+", p.stem))
    return sorted(found, key=iteration_of)


def find_checkpoint(folder: Path, which: str) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint that a run goes on from, and its content.

    Args:
        folder: of the run's snapshots.
        which: "auto" for the newest of `folder` that can be read, with a warning for every one that cannot;
            else the path of a file.

    Returns:
        None if `which` is "auto" and the folder holds no checkpoint.

    Raises:
        FileNotFoundError: no such file.
        DamagedCheckpoint: the named file, or every file of the folder, cannot be read.
    """
    if which != "auto":
        return Path(which), read_checkpoint(Path(which))
    found = checkpoints(folder)
    for path in reversed(found):
        try:
            return path, read_checkpoint(path)
        except DamagedCheckpoint as error:
            log.warning("%s; trying the one before", error)
    if found:
        raise DamagedCheckpoint(
            f"none of the {len(found)} checkpoints in {folder} can be read. Start again without --resume: what is in "
            f"that folder will be kept in {folder / 'former_<n>'}."
        )
    return None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, tensors on the CPU; no code of the file is run.

    Raises:
        FileNotFoundError: no such file.
        DamagedCheckpoint: cut off, changed on the disk, or no checkpoint; the message names the file and the reason.
    """
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist; --resume takes the path of a checkpoint, or auto")
    try:
        content = read_torch_file(path)
    except (UnreadableFile, OSError) as error:
        raise DamagedCheckpoint(f"checkpoint {path} is damaged ({error})") from error
    if not isinstance(content, Mapping) or "format" not in content:
        raise DamagedCheckpoint(
            f"{path} is not a checkpoint; those are the files checkpoint_<iteration>.pth. A file of weights alone goes "
            "into TRAIN.RESTORE_FROM."
        )
    if type(content["format"]) is not int or content["format"] != FORMAT:
        raise DamagedCheckpoint(
            f"checkpoint {path} has format {shown(content['format'])}; this is dada {versions()['dada']}, "
            f"which reads format {FORMAT}"
        )
    if missing := KEYS.keys() - set(content):
        raise DamagedCheckpoint(f"checkpoint {path} lacks {', '.join(sorted(missing))}")
    for key, kind in KEYS.items():
        if not isinstance(content[key], kind):
            raise DamagedCheckpoint(f"checkpoint {path}: {key} is a {type(content[key]).__name__}, expected a {kind.__name__}")
    for key in ("versions", "data"):
        if not all(isinstance(value, str) for value in content[key].values()):
            raise DamagedCheckpoint(f"checkpoint {path}: {key} holds {shown(content[key])}, expected text only")
    return content


@contextmanager
def must_fit(path: Path) -> Iterator[None]:
    """Turn every way in which the content of the checkpoint `path` does not fit what it is put into into one error."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        raise DamagedCheckpoint(
            f"checkpoint {path} does not fit the run, although its cfg does ({type(error).__name__}: {reason}): another "
            "program, or another version of this one, has written it"
        ) from error


def fixed_options(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a cfg, plain or not, that decide the weights, by dotted name: a run that goes on cannot change them.

    One that the cfg lacks was introduced after it was written, and has its default, which is what the program did before.
    One that has been removed since is there if it was set.
    """
    fixed = {}
    for name, option in flat_options().items():
        if option.role == "weights":
            value = option_value(cfg, name, option.default)
            try:
                value = option.read(value)
            except ValueError:  # of another version, or of no version: it differs from all that are valid
                value = shown(value)
            fixed[name] = list(value) if isinstance(value, tuple) else value
    removed = {name: option_value(cfg, name, default) for name, default in REMOVED.items()}
    return fixed | {name: shown(value) for name, value in removed.items() if not says_nothing(name, value)}


def check_unchanged(path: Path, saved: Mapping[str, Any], now: Mapping[str, Any], owner: str) -> None:
    """Raise ValueError that names every entry in which the checkpoint `path` differs from `owner`."""
    saved = {str(name)[:200]: value for name, value in saved.items()}
    names = [*saved, *(name for name in now if name not in saved)]
    changed = [
        f"  {name}: checkpoint has {shown(saved.get(name))}, {owner} has {shown(now.get(name))}"
        for name in names
        if saved.get(name) != now.get(name)
    ]
    if changed:
        raise ValueError(
            f"cannot resume from {path}, since this has changed:\n" + "\n".join(changed) + "\n"
            "Set it back, or start a new run: without --resume, or under another EXP_NAME."
        )


def check_versions(path: Path, saved: Mapping[str, str]) -> None:
    """Warn if the checkpoint was written by another version of anything, or with other products of float32 matrices."""
    saved = {"products": PLAIN.name, **saved}  # an older checkpoint names none, and there were no others
    for name, version in _versions().items():
        if saved.get(name) != version:
            log.warning(
                "%s was written with %s %s, this is %s: the last bits may differ from those of an uninterrupted run",
                path,
                name,
                saved.get(name),
                version,
            )


def _versions() -> dict[str, str]:
    return {**versions(), "products": products_in_use()}


def fingerprint(loader: DataLoader) -> str:
    """Number of images that a loader reads, and a hash of their names in order."""
    dataset: SegmentationDataset = loader.dataset
    names = hashlib.sha256("\n".join(item.name for item in dataset.items).encode())
    return f"{len(dataset)} images, names {names.hexdigest()[:12]}"
