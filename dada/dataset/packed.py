"""A packed copy of a dataset: its pictures decoded, one after another in a file that is mapped into memory.

Most of the time of loading goes into decoding PNG. A copy made once (`dada pack-dataset`) saves it. It is a folder with

    packed.bin   the pixels, uncompressed
    packed.json  where each of the dataset's files is in it, its shape and its checksum, and how the copy was made

To a dataset the folder looks like the original (dada.dataset.storage), with the same files under the same names.
Files hold what dada.dataset.image_files makes of them before any class map is applied: colours of an image, ids or colours of
a label, distances of a depth file. Each may have been resized to the size that a training would resize it to anyway;
resizing it again changes nothing, so samples are the same to the last bit, and `check_use` refuses the copy to anything
that would resize differently.

The file is mapped when a process first reads from it; the pages belong to the system's cache, which all processes share.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

T = TypeVar("T")

INDEX, DATA = "packed.json", "packed.bin"
FORMAT, VERSION = "dada packed dataset", 1
AGAIN = "Make the copy again with `dada pack-dataset`."

IMAGE, IDS, COLORS, DEPTH = "image", "ids", "colors", "depth"  # kinds of pictures, as arrays below
WIDE_IDS = "wide ids"  # ids that do not fit into 8 bits
FILE = "file"  # any other file, byte by byte
BROKEN = "broken"  # a file that could not be read when the copy was made; kept for ON_BAD_FILE skip


def ids_kind(ids: Any) -> str:
    """The kind of a PIL image of ids, with their bits in the file, which matter to a label map."""
    bits = ids.info.get("bits", 8)
    return WIDE_IDS if ids.mode != "L" else IDS if bits >= 8 else f"{IDS} of {bits} bits"


def bits_of(kind: str) -> int:
    """How many bits a number has in the file that ids of this kind come from."""
    return {WIDE_IDS: 16, IDS: 8}.get(kind) or int(kind.split()[2])


class Entry(NamedTuple):
    """One file of the dataset."""

    kind: str
    offset: int = 0  # in packed.bin, bytes
    shape: tuple[int, ...] = ()
    crc: int = 0  # of the bytes
    size: tuple[int, int] | None = None  # (height, width) of the original, where it was resized
    message: str = ""  # of a BROKEN one: what is wrong with it

    @property
    def dtype(self) -> np.dtype:
        return np.dtype({DEPTH: "<u2", WIDE_IDS: "<i4"}.get(self.kind, "u1"))

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


class Part(NamedTuple):
    """One split of a dataset, with the names of all images that it had when it was packed."""

    dataset: str  # as SOURCE and TARGET write it
    split: str
    listed: bool  # a list file chose the images
    images: int
    names: str  # names_hash of them
    resized: tuple[str, int, int] | None  # rule of TrainTransform, width, height; None: not resized


def names_hash(names: Sequence[str]) -> str:
    """A hash of names in their order."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


class Pack:
    """A packed copy; `files` and `folders` are as those of an archive, see dada.dataset.storage.

    Raises:
        ValueError: it is damaged, cut short, or of a version that is not read here.
    """

    def __init__(self, folder: str) -> None:
        self.path = os.path.join(folder, DATA)
        index = os.path.join(folder, INDEX)
        content = _read_index(index)
        self.parts = [Part(*part[:-1], part[-1] and tuple(part[-1])) for part in content["parts"]]
        self.made_with: dict[str, str] = content["made_with"]
        self.files = {name: _entry(*fields) for name, fields in content["files"].items()}
        self.folders: dict[str, dict[str, bool]] = {"": {}}
        for name in self.files:
            add_to_folders(self.folders, name, is_folder=False)
        self._pixels: np.ndarray | None = None
        self._checked: set[str] = set()
        try:
            there = os.path.getsize(self.path)
        except FileNotFoundError:
            raise ValueError(f"{self.path}, which {index} belongs to, is missing: copy both. {AGAIN}") from None
        if there != content["bytes"]:
            raise ValueError(
                f"{self.path} has {there} bytes, but {index} says {content['bytes']}: it was not copied completely, "
                f"or the two belong to different copies. Copy both again. {AGAIN}"
            )

    def array(self, name: str, kind: str) -> np.ndarray:
        """Pixels of a picture, read-only: (H, W, 3) uint8 of IMAGE and COLORS, (H, W) uint8 of IDS, or int32, uint16 of DEPTH.

        Raises:
            ValueError: it is damaged, was packed as something else, or could not be read when the copy was made.
        """
        entry = self.files[name]
        if entry.kind == BROKEN:
            raise ValueError(entry.message)
        if entry.kind != kind and not (kind == IDS and IDS in entry.kind):
            raise ValueError(f"{name} was packed as {entry.kind} in {self.path}, and is read as {kind} now. {AGAIN}")
        return np.frombuffer(self._bytes(name), entry.dtype).reshape(entry.shape)

    def read(self, name: str) -> bytes:
        """The bytes of a file that is not a picture."""
        if self.files[name].kind != FILE:
            raise ValueError(f"{name} in {self.path} is decoded: there is no file to read. Use the original folder.")
        return self._bytes(name).tobytes()

    def size(self, name: str) -> int:
        """Bytes of the pixels."""
        return self.files[name].bytes

    def checksum(self, name: str) -> str:
        """The same for the same pixels; a file that could not be read is like no other."""
        entry = self.files[name]
        return f"{self.path} {name}" if entry.kind == BROKEN else f"{entry.kind} {entry.shape} {entry.crc}"

    def check(self) -> None:
        """Raise ValueError at the first file whose checksum is wrong."""
        for name in self.files:
            self._bytes(name)

    def _bytes(self, name: str) -> np.ndarray:
        entry = self.files[name]
        if self._pixels is None:
            self._pixels = np.memmap(self.path, dtype=np.uint8, mode="r") if os.path.getsize(self.path) else np.empty(0, "u1")
        found = self._pixels[entry.offset : entry.offset + entry.bytes]
        # Once per process is enough: what was right is in the system's cache, or comes from the same place again.
        if name not in self._checked:
            if zlib.crc32(found) != entry.crc:
                raise ValueError(f"{self.path} is damaged: {name} in it does not have its checksum. Copy it again. {AGAIN}")
            self._checked.add(name)
        return found

    def check_use(
        self, dataset: str, split: str, names: Sequence[str], resized: tuple[str, int, int] | None, *, listed: bool
    ) -> None:
        """Raise ValueError unless `dataset` finds here what it would find in the original.

        Args:
            names: of the images, in order.
            resized: how the transform resizes every image, see Part.
            listed: a list file chose the images.
        """
        folder = os.path.dirname(self.path)
        parts = [part for part in self.parts if (part.dataset, part.split) == (dataset, split)]
        if not parts:
            held = ", ".join(sorted({f"{part.dataset} {part.split!r}" for part in self.parts}))
            raise ValueError(f"{folder} is a packed copy of {held}, not of {dataset} {split!r}. {AGAIN}")
        part = parts[0]
        if part.listed and not listed:
            raise ValueError(
                f"{folder} is a packed copy of the images of {dataset} {split!r} that a list file named: give the list file "
                f"here too. {AGAIN}"
            )
        if not listed and part.names != names_hash(names):
            raise ValueError(
                f"{folder}: {len(names)} images of {dataset} {split!r} are found, but {part.images} were packed, or "
                f"their names differ. {AGAIN}"
            )
        if part.resized is not None and part.resized != resized:
            now = "at its own size or a random one" if resized is None else _rule(resized)
            raise ValueError(
                f"{folder} is a packed copy whose images of {dataset} {split!r} were resized ({_rule(part.resized)}), but "
                f"they are to be read {now}. {AGAIN} --original-size keeps them as they are, for any transform."
            )


def _rule(resized: tuple[str, int, int]) -> str:
    return f"{resized[0]} {resized[1]}x{resized[2]}"


def _entry(kind: str, *fields: Any) -> Entry:
    if kind == BROKEN:
        return Entry(BROKEN, message=fields[0])
    offset, shape, crc, size = fields
    return Entry(kind, offset, tuple(shape), crc, size and tuple(size))


def index_bytes(entries: Mapping[str, Entry], parts: Sequence[Part], size: int, made_with: Mapping[str, str]) -> bytes:
    """The content of packed.json."""
    files = {name: [BROKEN, e.message] if e.kind == BROKEN else e[:-1] for name, e in entries.items()}
    text = json.dumps({"bytes": size, "made_with": made_with, "parts": parts, "files": files})
    return json.dumps({"format": FORMAT, "version": VERSION, "checksum": _checksum(text), "content": text}).encode()


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _read_index(path: str) -> dict[str, Any]:
    try:
        outer = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError):
        raise ValueError(f"{path} is damaged: it is not valid JSON. Copy it again. {AGAIN}") from None
    if not isinstance(outer, dict) or outer.get("format") != FORMAT:
        raise ValueError(
            f"{path} is not the index of a packed copy made by `dada pack-dataset`: if the dataset has a file of this "
            "name, move it out of the dataset's folder"
        )
    if outer.get("version") != VERSION:
        raise ValueError(f"{path} has version {outer.get('version')!r}, this program reads {VERSION}. {AGAIN}")
    text = outer.get("content")
    if not isinstance(text, str) or outer.get("checksum") != _checksum(text):
        raise ValueError(f"{path} is damaged: its checksum is wrong. Copy it again. {AGAIN}")
    return json.loads(text)


_packs: dict[str, tuple[tuple[int, int], Pack]] = {}


def pack_in(folder: str) -> Pack | None:
    """The packed copy in a folder on disk, None where there is none; read once in a process, and again if it changed."""
    folder = os.path.normpath(folder)
    index = os.path.join(folder, INDEX)
    return unless_changed(_packs, folder, index, Pack) if os.path.exists(index) else None


def add_to_folders(folders: dict[str, dict[str, bool]], name: str, is_folder: bool) -> None:
    """Add a file or a folder, and the folders it lies in, to `folders`: for each, its names and whether they are folders."""
    folder, _, base = name.rpartition("/")
    if folder not in folders:
        folders[folder] = {}
        add_to_folders(folders, folder, is_folder=True)
    folders[folder][base] = is_folder


def unless_changed(known: dict[str, tuple[tuple[int, int], T]], place: str, file: str, read: Callable[[str], T]) -> T:
    """What `read(place)` gave the first time; called again if `file` has changed since."""
    state = os.stat(file)
    stamp = state.st_mtime_ns, state.st_size
    if place not in known or known[place][0] != stamp:
        known[place] = (stamp, read(place))  # two threads at once read it twice, which does no harm
    return known[place][1]
