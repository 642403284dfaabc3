"""Make a packed copy of what a run reads of one domain; dada.dataset.packed says what it is and who reads it."""

from __future__ import annotations

import itertools
import logging
import os
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import PIL
from tqdm import tqdm

from dada.build import files_of
from dada.config import each_dataset, in_file_names, names_apart, naming_one
from dada.dataset import SegmentationDataset, image_files, packed, storage
from dada.dataset.packed import BROKEN, COLORS, DATA, DEPTH, FILE, IMAGE, INDEX, Entry, Part
from dada.dataset.parallel_map import parallel_map
from dada.files import remove_parts, whole_file, write_whole
from dada.runs import versions
from dada.training.lock import lock

log = logging.getLogger(__name__)

ALIGNMENT = 64  # bytes; pictures begin at multiples of it
MOST_BESIDE = 1 << 20  # bytes of a JSON file beside the folders that is taken along
SPLITS = ("train", "test")


class Packed(NamedTuple):
    """What was made."""

    folder: Path
    parts: list[Part]
    bytes: int  # of packed.bin
    from_bytes: int  # of the files that were packed
    broken: int  # files that could not be read, and are kept as that


class _Picture(NamedTuple):
    """A file of the dataset, ready to be written."""

    name: str
    kind: str
    pixels: np.ndarray | None
    size: tuple[int, int] | None  # (height, width) before it was resized
    message: str
    from_bytes: int


def pack_each(cfg: Any, role: str, out: str | Path, *, overwrite: bool = False, **how: Any) -> list[Packed]:
    """`pack` for each dataset of the role, one after the other: of several, each into a folder of `out` that has its name.

    Raises:
        FileNotFoundError, ValueError, FileExistsError, OSError: as `pack`, and say which of several they are about.
    """
    several, done = each_dataset(cfg, role), []
    folders = [Path(out)] if len(several) == 1 else [Path(out) / in_file_names(name) for name in names_apart(cfg, role)]
    for number, folder in enumerate(folders, start=1):
        with naming_one(several, number, role):
            _check_free(folder, overwrite)
    for number, (one, folder) in enumerate(zip(several, folders), start=1):
        with naming_one(several, number, role):
            done.append(pack(one, role, folder, overwrite=overwrite, **how))
    return done


def pack(
    cfg: Any,
    role: str,
    out: str | Path,
    *,
    splits: Sequence[str] = SPLITS,
    original_size: bool = False,
    workers: int = 0,
    overwrite: bool = False,
) -> Packed:
    """Pack the files that training, and for the target the test, read as `cfg` says. Every one is checked as they check it.

    Nothing is in `out` before all of it is: a run that was stopped is started again.

    Args:
        role: "source" or "target".
        out: folder to make.
        splits: of the target, "train" (without labels, which training never reads), "test" (with them), or both.
        original_size: do not resize, though training would resize all images to one size.
        workers: processes that read; 0 reads in this one.
        overwrite: replace a packed copy that is there.

    Raises:
        FileNotFoundError, ValueError: as of the datasets; an unreadable file, unless ON_BAD_FILE is skip.
        FileExistsError: `out` holds something.
        OSError: the disk is full, or another process packs into `out`.
    """
    out = Path(out)
    key = role.upper()
    cfg, *others = each_dataset(cfg, role)
    if others:
        raise ValueError(f"{key} names {1 + len(others)} datasets: pack each of them by itself, see each_dataset")
    root = Path(cfg[f"DATA_DIRECTORY_{key}"])
    if storage.is_dir(root) and packed.pack_in(str(root)):
        raise ValueError(f"{root} is a packed copy: set DATA_DIRECTORY_{key} to the original folder")
    datasets = {s: files_of(cfg, "test" if s == "test" else role) for s in (splits if role == "target" else ("train",))}
    _check_free(out, overwrite)
    # What draws samples by their classes counts pixels of the whole labels.
    original_size = original_size or bool(cfg.TRAIN.RARE_CLASS_TEMPERATURE)
    jobs = _jobs(datasets, root, original_size)
    with lock(out):
        remove_parts(out)
        return _write(cfg, role, out, root, datasets, jobs, workers)


def _check_free(out: Path, overwrite: bool) -> None:
    """Raise FileExistsError unless `out` is new, holds what an interrupted run has left, or may be replaced."""
    if not out.exists():
        return
    if not out.is_dir():
        raise FileExistsError(f"{out} is a file, expected a folder to make; choose another --out")
    names = {path.name for path in out.iterdir()}
    strangers = sorted(name for name in names - {INDEX, DATA, "run.lock"} if not name.endswith(".part"))
    if strangers:
        raise FileExistsError(
            f"{out} holds {image_files.first_few(strangers, 3)}: choose an empty folder, or a new one, for --out"
        )
    if INDEX in names and not overwrite:
        raise FileExistsError(f"{out} holds a packed copy: choose another --out, or add --overwrite to replace it")


class _Job(NamedTuple):
    """A sample whose files are to be packed, each under its path from the root, once."""

    dataset: SegmentationDataset
    index: int
    names: tuple[str, str | None, str | None]  # of image, label and depth; None where there is none, or it was packed
    resize: bool


def _jobs(datasets: dict[str, SegmentationDataset], root: Path, original_size: bool) -> list[_Job]:
    # An image that two splits read, one of them at its own size, is kept at that.
    times = Counter(item.image for dataset in datasets.values() for item in dataset.items)
    jobs, seen = [], set()
    for split, dataset in datasets.items():
        resize = split == "train" and not original_size and dataset.transform.fixed_resize is not None
        for index, item in enumerate(dataset.items):
            names = tuple(None if path in (None, *seen & {path}) else _below(path, root) for path in item[:3])
            seen.update(item[:3])
            jobs.append(_Job(dataset, index, names, resize and times[item.image] == 1))
    return jobs


def _below(path: str, root: Path) -> str:
    name = os.path.relpath(path, root).replace(os.sep, "/")
    if name.startswith("../"):
        raise ValueError(f"{path} does not lie in {root}, and cannot be found in a copy of it: leave it out of the list file")
    return name


def _write(
    cfg: Any, role: str, out: Path, root: Path, datasets: dict[str, SegmentationDataset], jobs: list[_Job], workers: int
) -> Packed:
    entries: dict[str, Entry] = {}
    from_bytes = 0
    loader = parallel_map(partial(_pictures, cfg.ON_BAD_FILE == "skip"), jobs, workers)
    with whole_file(out / DATA) as part:
        with open(part, "wb") as file:
            progress = tqdm(loader, desc=f"packing {role}", unit="image", disable=None, dynamic_ncols=True)
            for pictures in itertools.chain([_beside(root)], progress):
                for picture in pictures:
                    entries[picture.name] = _append(file, picture)
                    from_bytes += picture.from_bytes
            size = file.tell()
        (out / INDEX).unlink(missing_ok=True)  # that of an older copy; from here on the folder is none
    resized = any(entry.size is not None for entry in entries.values())
    parts = [_part(cfg, role, split, dataset, resized) for split, dataset in datasets.items()]
    made_with = {**versions(), "Pillow": PIL.__version__, "numpy": np.__version__}
    write_whole(out / INDEX, packed.index_bytes(entries, parts, size, made_with))
    broken = sum(entry.kind == BROKEN for entry in entries.values())
    return Packed(out, parts, size, from_bytes, broken)


def _part(cfg: Any, role: str, split: str, dataset: SegmentationDataset, resized: bool) -> Part:
    key = role.upper()
    return Part(
        dataset=cfg[key],
        split=cfg[split.upper()][f"SET_{key}"],
        listed=bool(cfg[f"DATA_LIST_{key}"]),
        images=len(dataset),
        names=packed.names_hash([item.name for item in dataset.items]),
        resized=dataset.transform.fixed_resize if split == "train" and resized else None,
    )


def _append(file: BinaryIO, picture: _Picture) -> Entry:
    if picture.pixels is None:
        log.warning("kept as unreadable: %s", picture.message)
        return Entry(BROKEN, message=picture.message)
    file.write(bytes(-file.tell() % ALIGNMENT))
    offset, content = file.tell(), np.ascontiguousarray(picture.pixels)
    file.write(content.data)
    return Entry(picture.kind, offset, content.shape, zlib.crc32(content), picture.size)


def _beside(root: Path) -> Iterator[_Picture]:
    """JSON files beside the folders, which datasets read too, as Mapillary's names of classes."""
    for name in storage.list_dir(root):
        if name.endswith(".json") and storage.is_file(root / name):
            content = storage.read_bytes(root / name)
            if len(content) <= MOST_BESIDE:
                yield _Picture(name, FILE, np.frombuffer(content, np.uint8), None, "", 0)


def _pictures(keep_broken: bool, job: _Job) -> list[_Picture]:
    dataset, item = job.dataset, job.dataset.items[job.index]
    try:
        image, _, _ = dataset._read(job.index)  # every check that training makes, before anything is resized
        label = dataset.read_ids(job.index)
        depth = None if item.depth is None else image_files.read_distances(item.depth)
    except (ValueError, OSError) as error:
        if not keep_broken:
            raise
        named = [(name, path) for name, path in zip(job.names, item[:3]) if name is not None]
        return [_Picture(name, BROKEN, None, None, str(error), _bytes_of(path)) for name, path in named]
    label_kind = COLORS if dataset.label_kind == COLORS else packed.ids_kind(label) if label is not None else ""
    whole: tuple[int, int] | None = None
    if job.resize:
        smaller, *others = dataset.transform.resized(image, label, depth)
        # Enlarging it can as well be left to the training, which then reads less.
        if smaller.width * smaller.height < image.width * image.height:
            whole = image.height, image.width
            image, (label, depth) = smaller, others
    found = []
    for name, path, held, picture in zip(job.names, item[:3], (IMAGE, label_kind, DEPTH), (image, label, depth)):
        if name is not None and picture is not None:
            pixels = np.asarray(picture, dtype=Entry(held).dtype)
            found.append(_Picture(name, held, pixels, whole, "", _bytes_of(path)))
    return found


def _bytes_of(path: str) -> int:
    return len(storage.read_bytes(path)) if not os.path.isfile(path) else os.path.getsize(path)


def check(folder: str | Path) -> packed.Pack:
    """Read a packed copy from one end to the other and compare all checksums. Returns it.

    Raises:
        FileNotFoundError: `folder` holds none.
        ValueError: it is damaged; the message names the file.
    """
    found = packed.pack_in(str(folder))
    if found is None:
        raise FileNotFoundError(f"{folder} holds no packed copy: there is no {INDEX} in it")
    found.check()
    return found
