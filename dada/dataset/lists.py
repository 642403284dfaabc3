"""List files: which images to use, one per line, in the forms that datasets and annotation tools write.

    images/000.png                      a path from the dataset's folder; ./ in front and \\ between folders do no harm
    images/000.png<TAB>masks/000.png    with its label; blanks separate them too, unless the line as a whole is a file
    "IMG 0.png" "masks/IMG 0.png"       in quotes, as Datumaro and CVAT write names that contain blanks
    IMG 000 (copy).png                  a line that is a file is one image, blanks and all
    2007_000033                         a name alone, with or without its extension, as in Pascal VOC
    /SegNet/CamVid/train/a.png          with folders of another machine

A name that is not a path from the dataset's folder is looked up among the images of the split. If these lie in one folder,
only the name counts; if they lie in several, the folders in the line must match.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from dada.dataset import storage

_QUOTED = re.compile(r'"([^"]+)"(?:\s+"([^"]+)"|\s+(\S+))?')


class Line(NamedTuple):
    """An image, and its label if the line names one, as paths from the dataset's folder; they need not exist."""

    image: str
    label: str | None = None


def read_list(path: Path, setting: str, root: Path, images: Callable[[], Sequence[str]]) -> list[Line]:
    """The lines of a list file, without blank ones and # comments.

    Args:
        setting: the option that names the list, for messages.
        root: the dataset's folder.
        images: returns the images of the split, as paths from `root`; called if a line is not the path of a file.

    Raises:
        FileNotFoundError, ValueError: the list does not exist or is empty; a line cannot be read, or matches several images.
    """
    known, lines = _Known(root, images), []
    for number, text in lines_of(path, setting):
        try:
            lines.append(_read(text, known))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    return lines


def lines_of(path: Path, setting: str) -> Iterator[tuple[int, str]]:
    """Number and text of each line that is not blank or a comment; raises as `read_list`."""
    try:
        lines = storage.read_bytes(path).decode("utf-8-sig").splitlines()
    except FileNotFoundError:
        raise FileNotFoundError(f"list file {path} not found. Correct {setting}, or leave it empty.") from None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"list file {path} is not text in UTF-8 ({error.reason} at byte {error.start}): save it again as UTF-8"
        ) from None
    said = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    said = [(number, line) for number, line in said if not line.startswith("#")]
    if not said:
        raise ValueError(f"list file {path} names no image. Correct {setting}, or leave it empty.")
    for number, line in said:
        if "\0" in line:
            raise ValueError(f"{path}, line {number} holds a zero byte, which no file name can: {line[:200]!r}")
        yield number, line


def _read(text: str, known: _Known) -> Line:
    quoted = _QUOTED.fullmatch(text)
    if "\t" in text or quoted:
        fields = [field for field in quoted.groups() if field] if quoted else [field.strip() for field in text.split("\t")]
        if len(fields) > 2:
            raise ValueError(f"{len(fields)} fields, expected an image, or an image and its label: {text[:200]!r}")
        return known.line(*fields)
    if whole := known.exactly(text):
        return Line(whole)
    pairs = [(text[: blank.start()], text[blank.end() :]) for blank in re.finditer(r"\s+", text)]
    fitting = [pair for pair in pairs if known.image(pair[0])]
    fitting = [pair for pair in fitting if known.file(pair[1])] or fitting
    if fitting or not pairs or known.image(text):
        return known.line(*fitting[0]) if fitting else known.line(text)
    if len(pairs) == 1:
        return known.line(*pairs[0])
    raise ValueError(
        f"{len(pairs) + 1} fields, expected an image, or an image and its label, separated by a tab if a name holds blanks: "
        f"{text[:200]!r}"
    )


class _Known:
    """What exists: the files below a folder, and the images of a split."""

    def __init__(self, root: Path, images: Callable[[], Sequence[str]]) -> None:
        self.root, self._images = root, images
        self._roots = (os.path.abspath(root), os.path.realpath(root))
        self._listed: dict[str, set[str]] = {}

    def line(self, image: str, label: str = "") -> Line:
        named = self.file(label) or _clean(label) if label else None
        if found := self.image(image):
            return Line(found, named)
        missing = _clean(image)  # where it would lie, for the message that counts what is missing
        folders, _, _ = self._split
        return Line(missing if "/" in missing or len(folders) != 1 else f"{min(folders)}/{missing}", named)

    def exactly(self, name: str) -> str | None:
        """`name` as a path from the root; None: there is no such file."""
        path = _clean(name)
        if not self._is_file(path):
            return None
        return next((path[len(root) + 1 :] for root in self._roots if path.startswith(f"{root}/")), path)

    def file(self, name: str) -> str | None:
        """The same; if there is no such file, leading folders are dropped until there is."""
        parts = _clean(name).strip("/").split("/")
        tails = ("/".join(parts[first:]) for first in range(max(1, len(parts) - 1)))
        return self.exactly(name) or next((tail for tail in tails if self._is_file(tail)), None)

    def image(self, name: str) -> str | None:
        """The image that `name` stands for, as a path from the root; None if there is none, ValueError if several match."""
        if path := self.file(name):
            return path
        folder, base = posixpath.split(_clean(name))
        stem = posixpath.splitext(base)[0]
        folders, by_name, by_stem = self._split
        found = by_name.get(base) or by_stem.get(base) or by_stem.get(stem, [])
        if len(folders) > 1:
            found = [image for image in found if _agree(folder, posixpath.dirname(image))]
        if len(found) > 1:
            raise ValueError(
                f"{name!r} matches {len(found)} images, such as {found[0]} and {found[1]}: write it with its folder and extension"
            )
        return found[0] if found else None

    def _is_file(self, path: str) -> bool:
        folder, name = os.path.split(os.path.join(self.root, path))
        if folder not in self._listed:  # once: asking for 9400 files one by one takes minutes on a network disk
            self._listed[folder] = set(storage.list_dir(folder)) if storage.is_dir(folder) else set()
        return name in self._listed[folder] and ("." in name or storage.is_file(os.path.join(folder, name)))

    @cached_property
    def _split(self) -> tuple[set[str], dict[str, list[str]], dict[str, list[str]]]:
        """Folders of the images of the split, and the images by their names, with and without extension."""
        folders, by_name, by_stem = set(), defaultdict(list), defaultdict(list)
        with suppress(FileNotFoundError):  # a list may name images of other splits only
            for image in self._images():
                folder, base = posixpath.split(image)
                folders.add(folder)
                by_name[base].append(image)
                by_stem[posixpath.splitext(base)[0]].append(image)
        return folders, by_name, by_stem


def _clean(name: str) -> str:
    path = posixpath.normpath(name.strip().replace("\\", "/"))
    return "/" + path.lstrip("/") if path.startswith("/") else path


def _agree(one: str, other: str) -> bool:
    """Whether one folder ends with the other: "" and "a" and "x/a" agree with "a"."""
    parts, others = ([part for part in folder.split("/") if part] for folder in (one, other))
    count = min(len(parts), len(others))
    return count == 0 or parts[-count:] == others[-count:]
