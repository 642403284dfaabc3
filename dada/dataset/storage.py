"""Files of datasets, whether they lie in folders, in zip archives, or in a packed copy.

Clusters limit the number of files, and a dataset has tens of thousands. So every path of a dataset may lead into an
archive. A path is looked up in this order:

1. On disk. If it exists there, nothing else is tried.
2. Otherwise the longest beginning of the path that exists on disk decides. If it is a zip archive, the rest of the path
   is a name inside it: `data/SYNTHIA.zip/RAND_CITYSCAPES/RGB`.
3. If it is a folder, the rest is looked up in all zip archives in this folder together: with
   leftImg8bit_trainvaltest.zip in `data/Cityscapes`, `data/Cityscapes/leftImg8bit/train` is a folder, and the ten
   archives of GTA5's images make one folder `images`. If several archives hold a name, the first of them in order of
   their own names wins. Archives that cannot be read are skipped; `unreadable_archives` lists them. If the folder is a
   packed copy (dada.dataset.packed), only that is searched.

An archive within an archive is a file like any other. All functions take str or Path. An archive is indexed and opened
once per process; a forked loader process shares the index and opens its own handle.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import posixpath
import re
import struct
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from dada.dataset.packed import Pack, add_to_folders, pack_in, unless_changed

# Other methods exist (deflate64, LZMA), but are rare in archives of pictures.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
MOST_BYTES = 1 << 30  # of one file in an archive
_DEEPEST = 100  # folders within folders in an archive
_ENCRYPTED = 0x1  # bit of a zip entry's flags


def is_file(path: str | Path) -> bool:
    """Whether there is a file of that name. A zip archive on disk is both a file and a folder."""
    return os.path.isfile(path) or any(inner in archive.files for archive, inner in _in_archives(path))


def is_dir(path: str | Path) -> bool:
    """Whether there is a folder of that name, or it is a zip archive."""
    return os.path.isdir(path) or any(inner in archive.folders for archive, inner in _in_archives(path))


def list_dir(path: str | Path) -> list[str]:
    """Names of the files and folders in a folder, sorted.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    return sorted(_scan(path))


def glob(pattern: str, root: str | Path) -> list[str]:
    """Files below `root` that match `pattern`, as sorted paths from there, with "/" between folders.

    `*`, `?` and `[abc]` stand for characters of one name, `**` for any number of folders; names that begin with a dot match
    only parts of the pattern that do too. Case matters. `**` follows links to folders, and enters each folder once.
    """
    parts = [part for part in pattern.split("/") if part not in ("", ".")]
    if parts and parts[-1] == "**":
        parts.append("*")
    found: set[str] = set()
    _find(str(root), "", tuple(parts), found, set())
    return sorted(found)


def read_bytes(path: str | Path) -> bytes:
    """The whole file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it lies in an archive that is damaged, encrypted or compressed by a method that is not read here.
    """
    try:
        with open(path, "rb") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except ValueError:  # a zero byte, which no name has
        raise FileNotFoundError(f"{str(path)!r} not found") from None
    for archive, inner in _in_archives(path):
        if inner in archive.files:
            return archive.read(inner)
    raise FileNotFoundError(f"{path} not found")


def same_files(files: Sequence[str], others: Sequence[str]) -> dict[str, str]:
    """Those of `files` that are among `others`, or have the content of one; with the other file, or itself if it is the same.

    Only files of equal size are read; of pictures in packed copies the checksums are compared.
    """
    places, sizes = {os.path.realpath(path) for path in others}, {path: _size(path) for path in files}
    lengths = set(sizes.values()) & set(map(_size, others))
    copies = {_content(path): path for path in others if _size(path) in lengths}
    found = {}
    for path, size in sizes.items():
        if os.path.realpath(path) in places:
            found[path] = path
        elif size in lengths and (other := copies.get(_content(path))):
            found[path] = other
    return found


def _size(path: str) -> int:
    """Bytes of the file, or of the pixels of a picture in a packed copy."""
    if os.path.isfile(path):
        return os.path.getsize(path)
    for archive, inner in _in_archives(path):
        if inner in archive.files:
            return archive.size(inner)
    raise FileNotFoundError(f"{path} not found")


def _content(path: str) -> str:
    """The same for files of the same content, and for pictures of packed copies with the same pixels."""
    place = in_pack(path)
    return place[0].checksum(place[1]) if place else hashlib.sha256(read_bytes(path)).hexdigest()


def decoded_pixels(path: str | Path, kind: str) -> np.ndarray | None:
    """The pixels of a picture in a packed copy, see Pack.array; None if `path` does not lead into one."""
    place = in_pack(path)
    return place and place[0].array(place[1], kind)


def original_size(path: str | Path) -> tuple[int, int] | None:
    """(height, width) of a picture before it was packed and resized; None if it was not."""
    place = in_pack(path)
    return place and place[0].files[place[1]].size


def unreadable_archives(folder: str | Path) -> dict[str, str]:
    """Zip archives in a folder on disk that cannot be read, by path, and what is wrong with each."""
    return _archives_in(str(folder))[1]


# ---- from paths to places


def in_pack(path: str | Path) -> tuple[Pack, str] | None:
    """The packed copy that holds the file, and the file's name in it; None if `path` does not lead into one."""
    places = _in_archives(path)
    return places[0] if places and isinstance(places[0][0], Pack) and places[0][1] in places[0][0].files else None


def _in_archives(path: str | Path) -> list[tuple[_Archive | Pack, str]]:
    """Archives to search for `path`, which is not on disk, with the name to look for in each."""
    on_disk, inner = os.path.normpath(path), ""
    while not os.path.lexists(on_disk or os.curdir):
        on_disk, name = os.path.split(on_disk)
        inner = f"{name}/{inner}" if inner else name
    if os.path.isdir(on_disk or os.curdir):
        if inner and (pack := pack_in(on_disk)):
            return [(pack, inner)]
        return [(archive, inner) for archive in _archives_in(on_disk)[0]] if inner else []
    return [(_archive(on_disk), inner)] if on_disk.lower().endswith(".zip") else []


def _archives_in(folder: str) -> tuple[list[_Archive], dict[str, str]]:
    """The archives in a folder on disk, and what is wrong with those that cannot be read, such as an unfinished download."""
    archives, reasons = [], {}
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        for path in sorted(os.path.join(folder, name) for name in os.listdir(folder or os.curdir)):
            if path.lower().endswith(".zip") and os.path.isfile(path):
                try:
                    archives.append(_archive(path))
                except ValueError as error:
                    reasons[path] = str(error)
    return archives, reasons


def _scan(path: str | Path) -> dict[str, bool]:
    """Name of each file and folder in a folder -> whether it is a folder."""
    if os.path.isdir(path):
        if pack := pack_in(str(path)):
            return pack.folders[""]
        with os.scandir(path) as entries:
            return {entry.name: _is_folder(entry) for entry in entries}
    places = [(archive, inner) for archive, inner in _in_archives(path) if inner in archive.folders]
    if not places:
        raise FileNotFoundError(f"there is no folder {path}")
    return {name: kind for archive, inner in reversed(places) for name, kind in archive.folders[inner].items()}


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads back to itself
        return False


def _find(root: str, folder: str, parts: tuple[str, ...], found: set[str], visited: set[tuple], start: str = "") -> None:
    """Add to `found` the files in root/folder that match the remaining parts of a pattern."""
    if (folder, parts) in visited:  # two ** reach a folder in several ways
        return
    visited.add((folder, parts))
    here, (part, *rest) = os.path.join(root, folder), parts
    if part == "**":
        _find(root, folder, tuple(rest), found, visited)
        start = start or here
        inside = [n for n, d in _scan(here).items() if d and not n.startswith(".")]
        names, rest = ((n, True) for n in inside if not _was_there(os.path.join(here, n), start, parts, visited)), parts
    elif re.search(r"[*?[]", part):
        fits = re.compile(fnmatch.translate(part)).match
        hidden = part.startswith(".")
        names = ((n, d) for n, d in _scan(here).items() if fits(n) and (hidden or not n.startswith(".")))
    else:
        there = (is_dir if rest else is_file)(os.path.join(here, part))
        names = iter([(part, bool(rest))] if there else [])
    for name, is_folder in names:
        path = posixpath.join(folder, name)
        if rest and is_folder:
            _find(root, path, tuple(rest), found, visited, start if part == "**" else "")
        elif not rest and not is_folder:
            found.add(path)


def _was_there(path: str, start: str, parts: tuple[str, ...], visited: set[tuple]) -> bool:
    """Whether a linked folder is one that `**`, which began at `start`, also reaches by its own name, or by an earlier link."""
    if not os.path.islink(path):
        return False
    real, begin = os.path.realpath(path), os.path.realpath(start)
    if begin == real or begin.startswith(real + os.sep):  # back to where it came from
        return True
    if real.startswith(begin + os.sep) and "/." not in real[len(begin) :].replace(os.sep, "/"):
        return True
    seen = (real, parts)
    before = seen in visited
    visited.add(seen)
    return before


# ---- archives


class _Archive:
    """Index of a zip archive: `files` by name, and in `folders` the names that each folder holds."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.files: dict[str, zipfile.ZipInfo] = {}
        self.folders: dict[str, dict[str, bool]] = {"": {}}
        # By process: after a fork, parent and child would move each other's position in a shared handle.
        self._opened: dict[int, zipfile.ZipFile] = {}
        try:
            self._opened[os.getpid()] = archive = zipfile.ZipFile(path)
        except Exception as error:
            raise ValueError(
                f"{path} is not a readable zip archive ({os.path.getsize(path)} bytes): {error}. It is cut short "
                "or damaged, often by an interrupted download: download it again, or unpack it by hand."
            ) from None
        for info in archive.infolist():
            # Archives from Windows may separate folders by backslashes.
            name = posixpath.normpath(info.filename.replace("\\", "/")).lstrip("/")
            if name == ".." or name.startswith("../") or name.count("/") > _DEEPEST:
                continue
            if not info.filename.endswith(("/", "\\")):
                self.files[name] = info
                add_to_folders(self.folders, name, is_folder=False)
            elif name != ".":
                self.folders.setdefault(name, {})
                add_to_folders(self.folders, name, is_folder=True)

    def size(self, name: str) -> int:
        return self.files[name].file_size

    def read(self, name: str) -> bytes:
        entry = self.files[name]
        if entry.flag_bits & _ENCRYPTED:
            raise ValueError(f"{self.path} is encrypted, cannot read {name} in it: unpack it with its password")
        if entry.compress_type not in _METHODS:
            method = zipfile.compressor_names.get(entry.compress_type, f"method {entry.compress_type}")
            raise ValueError(
                f"{self.path}: {name} is packed with {method}, which is not read in place. "
                "Unpack the archive, or pack it again with 'zip' (deflate or store)."
            )
        if entry.file_size > MOST_BYTES or entry.compress_size > os.path.getsize(self.path):
            raise ValueError(
                f"{self.path} is damaged, or not to be trusted: {name} in it claims to be {entry.file_size} bytes, "
                f"packed in {entry.compress_size}; expected at most {MOST_BYTES}, and no more than the archive has. "
                "Unpack it by hand."
            )
        process = os.getpid()
        archive = self._opened.get(process) or self._opened.setdefault(process, zipfile.ZipFile(self.path))
        try:
            with archive.open(entry) as file:
                # Without a limit it would unpack whatever comes: a few bytes may hold gigabytes.
                content = file.read(entry.file_size + 1)
            whole = len(content) == entry.file_size
        except (zipfile.BadZipFile, struct.error, zlib.error, OSError, ValueError, EOFError, NotImplementedError):
            whole = False
        if not whole:
            raise ValueError(
                f"{self.path} is damaged: {name} in it does not unpack to the {entry.file_size} bytes and the checksum "
                "that the archive states. Download the archive again."
            )
        return content


_archives: dict[str, tuple[tuple[int, int], _Archive]] = {}


def _archive(path: str) -> _Archive:
    """The archive's index, made on first use, and again if the file has changed since."""
    return unless_changed(_archives, path, path, _Archive)
