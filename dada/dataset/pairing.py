"""Which label or depth file belongs to which image, by patterns for their names.

A pattern is a path with wildcards: `*`, `?` and `[abc]` stand for characters of one name, `**` for any folders. What
the wildcards stand for is the file's key, and files with the same key belong together: `photos/**/img_*.jpg` gives
`photos/farm/img_007.jpg` the key `farm/007`, as `masks/**/lab_*.png` does for `masks/farm/lab_007.png`. The extension
is not part of the key, and its case does not matter; if the pattern leaves it open, only pictures match.
"""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import Path

from dada.dataset import image_files, storage

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm")
_WILD = re.compile(r"(?:\*|\?|\[[^]]+])+")


class Pattern:
    """A pattern for files below a root; `setting` is the option that holds it.

    Raises:
        ValueError: it is an absolute path.
    """

    def __init__(self, text: str, setting: str) -> None:
        if text.startswith("/"):
            raise ValueError(f"{setting} is {text!r}, an absolute path; give it relative to the dataset's folder")
        self.text = posixpath.normpath(text)
        self.setting = setting
        *self.folders, name = self.text.split("/")
        self.stem, self.extension = posixpath.splitext(name)
        self.open_extension = not self.extension or _WILD.search(self.extension) is not None
        folders = "".join("((?:[^/]+/)*)" if f == "**" else f"{_regex(f, capture=True)}/" for f in self.folders)
        end = f"(?i:{_regex(self.extension, capture=False)})"
        self._fits = re.compile(folders + _regex(self.stem, capture=True) + end).fullmatch

    @property
    def fixed_folder(self) -> str:
        """The folders before the first wildcard."""
        wild = [k for k, folder in enumerate(self.folders) if _WILD.search(folder)]
        return "/".join(self.folders[: wild[0]] if wild else self.folders)

    def wildcards(self, path: str) -> tuple[str, ...] | None:
        """What each run of wildcards stands for in `path`; None if it does not match."""
        match = self._fits(path)
        return match and match.groups()

    def filled(self, values: tuple[str, ...]) -> str:
        """The path that has `values` in place of the runs of wildcards."""
        rest = iter(values)
        return _WILD.sub(lambda _: next(rest), self.text)

    def key(self, path: str) -> str | None:
        """What the wildcards stand for in `path`; None if it does not match."""
        match = self._fits(path if self.extension else posixpath.splitext(path)[0])
        if match is None or (self.open_extension and not path.lower().endswith(PICTURES)):
            return None
        return "/".join(part.strip("/") for part in match.groups() if part)

    def find(self, root: str | Path) -> list[str]:
        """Files below `root` that match, as sorted paths from there."""
        head = self.text.removesuffix(self.extension)
        either = "".join(f"[{c.lower()}{c.upper()}]" if c.isalpha() and "[" not in self.extension else c for c in self.extension)
        return [path for path in storage.glob(head + either, root) if self.key(path) is not None]

    def with_stem(self, before: str, after: str) -> Pattern:
        """The pattern with `before` and `after` around the last `*` of the name."""
        head, _, tail = self.stem.rpartition("*")
        stem = f"{head}{before}*{after}{tail}"
        return Pattern("/".join([*self.folders, stem + self.extension]), self.setting)

    def __str__(self) -> str:
        return f"{self.setting} '{self.text}'"


def _regex(name: str, *, capture: bool) -> str:
    """A regular expression for one name; adjacent wildcards are one group."""
    expression, end = "", 0
    for run in _WILD.finditer(name):
        inner = "".join(
            "[^/]*" if one == "*" else "[^/]" if one == "?" else "[^" + one[2:] if one.startswith("[!") else one
            for one in re.findall(r"\*|\?|\[[^]]+]", run[0])
        )
        expression += re.escape(name[end : run.start()]) + (f"({inner})" if capture else inner)
        end = run.end()
    return expression + re.escape(name[end:])


def paired(
    images: Sequence[str],
    image_pattern: Pattern,
    pattern: Pattern,
    root: str | Path,
    *,
    what: str,
    list_setting: str,
    some: bool = False,
) -> list[str | None]:
    """The file that belongs to each image, as paths from `root`; with `some`, None for images that have none.

    Args:
        images: paths from `root`.
        what: the files that are looked for, for example "label".
        list_setting: the option that could name fewer images, for messages.

    Raises:
        FileNotFoundError: images have no such file; the message counts them and proposes a change of the patterns.
        ValueError: two files, or two images, have the same key.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for path in pattern.find(root):
        found[pattern.key(path)].append(path)
    keys = [image_pattern.key(image) for image in images]
    strange = [image for image, key in zip(images, keys) if key is None]
    if strange:
        raise ValueError(
            f"{len(strange)} of {len(images)} images that {list_setting} names have no {what} in the list and do not "
            f"match {image_pattern}: {image_files.first_few(strange)}.\n"
            f"  Write the {what} after each image, separated by a tab, or correct the pattern."
        )
    missing = [image for image, key in zip(images, keys) if key not in found]
    if missing and not some:
        key = image_pattern.key(missing[0])
        none = f"{len(missing)} of {len(images)} images have no {what}: {image_files.first_few(missing)}.\n"
        rule = f"  An image and its {what} are paired by what * and ** stand for: {key!r} for {missing[0]} in {image_pattern}"
        if not found:
            raise FileNotFoundError(f"{none}{rule}; but no file in {root} matches {pattern}.")
        names = image_files.first_few([repr(name) for name in sorted(found)], 3)
        if better := _better(key, keys, list(found), image_pattern, pattern):
            change = f"Did you mean {' and '.join(map(str, better))}?"
        else:
            change = f"Correct the patterns, add the files, or name the images that have one in a list file ({list_setting})."
        raise FileNotFoundError(f"{none}{rule}; {names} for the {what}s in {pattern}.\n  {change}")
    owner: dict[str, str] = {}
    for image, key in zip(images, keys):
        if key not in found:
            continue
        if len(found[key]) > 1:
            raise ValueError(
                f"{len(found[key])} {what}s match the image {image}: {image_files.first_few(found[key])}. "
                f"Narrow {pattern} until only one does."
            )
        if owner.setdefault(key, image) != image:
            raise ValueError(
                f"the {what} {found[key][0]} matches two images, {owner[key]} and {image}. "
                f"Narrow {image_pattern} until only one is left, or add ** to both patterns to tell folders apart."
            )
    return [found[key][0] if key in found else None for key in keys]


def _better(key: str, keys: Sequence[str], found: Sequence[str], image_pattern: Pattern, pattern: Pattern) -> list[Pattern]:
    """Patterns that pair every image, if keys differ only in what surrounds the part that they share."""
    if "*" not in image_pattern.stem or "*" not in pattern.stem:
        return []
    for other in sorted(found)[:10]:
        one, two = posixpath.basename(key), posixpath.basename(other)
        common = SequenceMatcher(None, one, two, autojunk=False).find_longest_match(0, len(one), 0, len(two))
        around_one = one[: common.a], one[common.a + common.size :]
        around_two = two[: common.b], two[common.b + common.size :]
        stripped_keys = {_stripped(k, *around_one) for k in keys}
        stripped_found = {_stripped(k, *around_two) for k in found}
        if common.size and None not in stripped_keys and stripped_keys <= stripped_found:
            changes = ((image_pattern, around_one), (pattern, around_two))
            return [p.with_stem(*around) for p, around in changes if any(around)]
    return []


def _stripped(key: str, before: str, after: str) -> str | None:
    """The key without the text around its name; None if that text is missing."""
    folder, name = posixpath.split(key)
    if not (name.startswith(before) and name.endswith(after) and len(name) > len(before) + len(after)):
        return None
    return posixpath.join(folder, name[len(before) : len(name) - len(after)])
