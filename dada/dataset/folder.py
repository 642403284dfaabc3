"""A folder of your own pictures, with masks and depth maps if there are any."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dada.dataset import image_files, packed
from dada.dataset.base import Item
from dada.dataset.lists import read_list
from dada.dataset.masks import Color, MappedIds, color_numbers, parse_color, positions_of_colors, read_colors
from dada.dataset.own_classes import IGNORE
from dada.dataset.pairing import Pattern, paired
from dada.dataset.published import PublishedDataset
from dada.label_sets import IGNORE_LABEL, LabelInfo, LabelSet, label_set, label_set_from_info, named_label_map


class Folder(PublishedDataset):
    """Images, masks and depth maps, found by patterns; dada.dataset.pairing says what these are and how they pair files.

    Args:
        split: stands for `{split}` in the patterns.
        num_classes: size of a built-in label set, if `classes` is None.
        classes: names and colours of the train ids.
        images, labels, depth: patterns, from the root. A file that matches `labels` or `depth` is not an image. Depth is 16-bit
            PNG of distances in centimetres; see image_files.read_inverse_depth.
        white, orientation: of image files, see image_files.read_image.
        label_format: "ids", one number per pixel, or "rgb", colours.
        label_map: a class name, or "ignore", for each id or colour. Empty: ids are train ids, and colours those of the
            classes. A name in dada.label_sets.NAMED_IDS: ids of that numbering.
        default: what to do with ids and colours outside label_map, "error" or "ignore". The id 255 is ignored unless mapped.
        options: of PublishedDataset.

    Raises:
        FileNotFoundError, ValueError: nothing matches a pattern, files cannot be paired, or the map does not suit the
            classes; raised before any file is opened.
    """

    splits = ("",)
    has_depth = True
    mixed_shapes = True  # photographs are taken upright and sideways; no effect if all have the shape of the input size
    size_advice = "Export the labels again at the size of the images."

    def __init__(
        self,
        root: str | Path,
        split: str = "",
        num_classes: int = 16,
        *,
        role: str = "source",
        classes: LabelSet | None = None,
        images: str = "{split}/images/**/*.*",
        labels: str = "{split}/masks/**/*.*",
        depth: str = "",
        white: float = 0,
        orientation: str = "auto",
        label_format: str = "ids",
        label_map: Mapping[str, str] | str | None = None,
        default: str = "error",
        **options: Any,
    ) -> None:
        self.title, self.usual_role, self.section = f"{role} folder", role, f"FOLDER_{role.upper()}"
        self.white, self.orientation = white, orientation
        self.patterns, self.left_out = {"IMAGES": images, "LABELS": labels, "DEPTH": depth}, 0
        self.named, self.label_format, self.label_map, self.strict = classes, label_format, label_map or {}, default == "error"
        self.colors: list[Color] | None = None
        self.ids: MappedIds | None = None
        self.wide = False  # whether the map names ids that do not fit into 8 bits
        self.label_kind = packed.COLORS if label_format == "rgb" else packed.IDS
        super().__init__(root, split, num_classes, role=role, **options)

    def classes_and_map(self, num_classes: int, info: str | Path) -> LabelInfo:
        self.defined = np.full(256, not self.strict)
        self.defined[IGNORE_LABEL] = True
        if info:
            if self.label_map or self.label_kind == packed.COLORS:
                raise ValueError(f"{info} holds an id map, and {self.section} gives another one: leave one of them out")
            self.defined[:] = True
            return label_set_from_info(info)
        classes = self.named or label_set(num_classes)
        keys, targets = self._map(classes)
        if self.label_kind == packed.COLORS:
            self.colors, codes = keys, list(range(len(keys)))
        else:
            self.wide = not all(0 <= key <= 255 for key in keys)
            codes = targets if self.wide else keys
            self.ids = MappedIds(keys, codes)
        self.codes = list(zip(keys, codes)) if self.wide or self.colors else ()
        id_map = np.full(256, IGNORE_LABEL, dtype=np.uint8)
        id_map[codes] = targets
        self.defined[codes] = True
        return LabelInfo(classes, id_map)

    def defined_and_labelled(self, num_classes: int) -> tuple[np.ndarray, None]:
        return self.defined, None

    def read_ids(self, index: int) -> Image.Image | None:
        """What the label file of sample `index` holds: ids, or colours; None where labels are not read."""
        path = self.items[index].label
        if path is None or self.colors is None:
            advice = f"Set {self.section}.LABEL_FORMAT to rgb if its colours are classes."
            return path and image_files.read_label_ids(path, advice)
        return read_colors(path)

    def train_ids(self, ids: Image.Image, path: str) -> Image.Image:
        """What `read_ids` returned -> train ids; `path` for the message."""
        setting = f"{self.section}.LABEL_MAP"
        advice = f"Add the id to {setting}, with a class or 'ignore', or set DEFAULT there to ignore."
        if self.colors is not None:
            where = f"the colours of {setting} or CLASSES"
            ids = positions_of_colors(color_numbers(ids), self.colors, path, setting=where, strict=self.strict)
        elif self.ids is not None:
            bits = ids.info.get("bits", 8)
            if bits < 8:
                advice = f"A number in the file has {bits} bit{'s' * (bits > 1)}: white is {2**bits - 1}. {advice}"
            if self.wide or bits < 8 or ids.mode != "L":
                return self.ids.train_ids(ids, path, self.id_map, self.title, advice, self.strict)
        return image_files.to_train_ids(ids, path, self.id_map, self.defined_ids, self.title, advice)

    def _map(self, classes: LabelSet) -> tuple[list, list[int]]:
        """Ids or colours in the files, and the train id of each."""
        setting, label_map, colors = f"{self.section}.LABEL_MAP", self.label_map, self.label_kind == packed.COLORS
        if isinstance(label_map, str):
            if colors:
                raise ValueError(
                    f"{setting} is {label_map}, which numbers classes, but LABEL_FORMAT is {self.label_format!r}. Leave "
                    f"{setting} empty: colours are then those of the classes; set {self.section}.DEFAULT to ignore for others."
                )
            try:
                label_map = named_label_map(label_map, classes, IGNORE)
            except ValueError as error:
                raise ValueError(f"{setting} {error}") from None
        if not label_map:
            targets = list(range(classes.num_classes))
            return ([tuple(c) for c in classes.palette.tolist()] if colors else targets), targets
        keys, targets = [], []
        for text, name in label_map.items():
            try:
                key = parse_color(text) if colors else _parse_id(text)
            except ValueError as error:
                raise ValueError(f"{setting} with LABEL_FORMAT {self.label_format!r}: {error}") from None
            if key in keys:
                raise ValueError(f"{setting} holds {text!r} twice")
            if name != IGNORE and name not in classes.names:
                near = difflib.get_close_matches(name, [*classes.names, IGNORE], n=1, cutoff=0.0)[0]
                raise ValueError(
                    f"{setting} maps {text} to {name!r}, which is not a class; the nearest is {near!r}. "
                    f"The classes are {', '.join(classes.names)}, and 'ignore'."
                )
            keys.append(key)
            targets.append(IGNORE_LABEL if name == IGNORE else classes.names.index(name))
        if len(keys) > IGNORE_LABEL and colors:
            raise ValueError(f"{setting} holds {len(keys)} colours, at most {IGNORE_LABEL} are possible")
        return keys, targets

    def find(self) -> list[Item]:
        """The files that a list or the pattern of the images names, with those of the other patterns."""
        images = self._pattern("IMAGES")
        if self.list_file:
            lines = read_list(Path(self.list_file), self.list_setting, self.root, lambda: images.find(self.root))
            found, in_list = [line.image for line in lines], [line.label for line in lines if line.label]
        else:
            found, in_list = self._find(images), []
            masks = [self._pattern(key) for key in ("LABELS", "DEPTH") if self.patterns[key] not in ("", self.patterns["IMAGES"])]
            pictures = [path for path in found if all(mask.key(path) is None for mask in masks)]
            if pictures and len(pictures) < len(found):  # masks that lie beside the images
                self.left_out = len(found) - len(pictures)
                found = pictures

        def partners(key: str, what: str, otherwise: str, some: bool = False) -> list[str | None]:
            if not self.patterns[key]:
                raise ValueError(f"{self.section}.{key} is empty, but {what}s are needed here: {otherwise}")
            names = {"what": what, "list_setting": self.list_setting}
            return paired(found, images, self._pattern(key), self.root, **names, some=some)

        if in_list and len(in_list) != len(found) and not self.labelled_only:
            raise ValueError(
                f"{self.list_setting} names a label for {len(in_list)} of {len(found)} images; name one for all, or for none"
            )
        labels: list[str | None] = [None] * len(found)
        depths: list[str | None] = [None] * len(found)
        if self.with_labels and in_list:
            labels = [line.label for line in lines]
        elif self.with_labels:
            why = "training reads those of the source, a test those of the target"
            labels = partners("LABELS", "label", why, self.labelled_only)
        if self.with_depth:
            depths = partners("DEPTH", "depth file", "give the pattern, or set USE_DEPTH to False")
        paths = ([path and str(self.root / path) for path in files] for files in zip(found, labels, depths))
        items = [Item(*files, image) for files, image in zip(paths, found)]
        if self.list_file:
            named = [path for item in items for path in (item.image, item.label) if path is not None]
            advice = f"Its paths start from {self.root}."
            image_files.require_files(named, what=f"files that {self.list_setting} names", advice=advice)
        return items

    def check_files(self, items: Sequence[Item]) -> None:
        """They were found, or checked, by `find`, before any without a label is left out: what a list names must be there."""

    def _pattern(self, key: str) -> Pattern:
        return Pattern(self.patterns[key].replace("{split}", self.split or "."), f"{self.section}.{key}")

    def _find(self, pattern: Pattern) -> list[str]:
        splits = f"TRAIN.SET_{self.role.upper()}" + (" (in a test, TEST.SET_TARGET)" if self.role == "target" else "")
        advice = f"Or correct {self.section}.IMAGES, where {{split}} is {splits}."
        folder = pattern.fixed_folder
        self.require(folder, f"images for split {self.split!r}", holds=pattern.text, download=advice)
        return self.some(
            pattern.find(self.root), folder, str(pattern), f"Correct the pattern, {self.setting}, or the split, {splits}."
        )


def _parse_id(text: str) -> int:
    if not (text.isascii() and text.removeprefix("-").isdecimal() and len(text) <= 10 and abs(int(text)) < 2**31):
        raise ValueError(f"{text!r} is not an id; ids are whole numbers, 0 to 255 in most files")
    return int(text)
