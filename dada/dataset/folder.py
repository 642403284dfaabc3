"""A folder of your own pictures, with masks and depth maps if there are any."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from dada.dataset import image_files, packed, storage
from dada.dataset.base import Item, SegmentationDataset
from dada.dataset.lists import read_list
from dada.dataset.masks import Color, MappedIds, color_numbers, parse_color, positions_of_colors, read_colors
from dada.dataset.own_classes import IGNORE
from dada.dataset.pairing import Pattern, paired
from dada.label_sets import IGNORE_LABEL, LabelSet, label_set, label_set_from_info, named_label_map


class Folder(SegmentationDataset):
    """Images, masks and depth maps, found by patterns; dada.dataset.pairing says what these are and how they pair files.

    Args:
        root: the folder or zip archive that the patterns start from.
        split: stands for `{split}` in the patterns.
        num_classes: size of a built-in label set, if `classes` is None.
        transform: see SegmentationDataset.
        list_file: names the images to use, instead of all that match `images`: one per line, alone or with its label
            after a tab, as paths from the root; `{}` in the name of the file stands for the split.
        with_labels: False: label files are never opened, and need not exist.
        with_depth: read 16-bit PNG of distances in centimetres; see image_files.read_inverse_depth.
        info: JSON file with your own id map and classes; see label_set_from_info.
        role: "source" or "target", the domain whose settings the messages name.
        list_setting: the option that names `list_file`, for messages; empty for that of the role.
        labelled_only: leave out images without a label file.
        classes: names and colours of the train ids.
        images, labels, depth: patterns, from the root. A file that matches `labels` or `depth` is not an image.
        white, orientation: of image files, see image_files.read_image.
        label_format: "ids", one number per pixel, or "rgb", colours.
        label_map: a class name, or "ignore", for each id or colour. Empty: ids are train ids, and colours those of the
            classes. A name in dada.label_sets.NAMED_IDS: ids of that numbering.
        default: what to do with ids and colours outside label_map, "error" or "ignore". The id 255 is ignored unless mapped.

    Raises:
        FileNotFoundError, ValueError: nothing matches a pattern, files cannot be paired, or the map does not suit the
            classes; raised before any file is opened.
    """

    mixed_shapes = True  # photographs are taken upright and sideways; no effect if all have the shape of the input size
    size_advice = "Export the labels again at the size of the images."

    def __init__(
        self,
        root: str | Path,
        split: str = "",
        num_classes: int = 16,
        *,
        transform: Callable,
        list_file: str | Path = "",
        with_labels: bool = True,
        with_depth: bool = False,
        seed: int = 0,
        info: str | Path = "",
        role: str = "source",
        list_setting: str = "",
        labelled_only: bool = False,
        classes: LabelSet | None = None,
        images: str = "{split}/images/**/*.*",
        labels: str = "{split}/masks/**/*.*",
        depth: str = "",
        white: float = 0,
        orientation: str = "auto",
        label_format: str = "ids",
        label_map: Mapping[str, str] | str | None = None,
        default: str = "error",
    ) -> None:
        self.root, self.split, self.role = Path(root), split, role
        self.setting, self.list_setting = f"FOLDER_{role.upper()}", list_setting or f"DATA_LIST_{role.upper()}"
        self.labelled_only = labelled_only
        self.white, self.orientation = white, orientation
        self._beside, self.left_out = ((labels, "LABELS"), (depth, "DEPTH")), 0
        self.strict = default == "error"
        self.colors: list[Color] | None = None
        self.ids: MappedIds | None = None
        self.wide = False  # whether the map names ids that do not fit into 8 bits
        id_map = np.full(256, IGNORE_LABEL, dtype=np.uint8)
        if info:
            if label_map or label_format != "ids":
                raise ValueError(f"{info} holds an id map, and {self.setting} gives another one: leave one of them out")
            classes, id_map = label_set_from_info(info)
            known = np.arange(256)
        else:
            classes = classes or label_set(num_classes)
            if isinstance(label_map, str):
                label_map = self._named_map(label_map, classes, label_format)
            keys, targets = self._map(classes, label_format, label_map or {})
            self.wide = label_format == "ids" and not all(0 <= key <= 255 for key in keys)
            if label_format == "rgb":
                self.colors, codes = keys, list(range(len(keys)))
            else:
                codes = targets if self.wide else keys
                self.ids = MappedIds(keys, codes)
            self.codes = list(zip(keys, codes)) if self.wide or self.colors else ()
            id_map[codes] = targets
            known = np.array(codes)
        defined = np.full(256, not self.strict)
        defined[known] = True
        defined[IGNORE_LABEL] = True
        super().__init__(
            f"{role} folder",
            self._items(str(list_file), images, labels if with_labels else None, depth if with_depth else None),
            classes=classes,
            id_map=id_map,
            defined_ids=defined,
            transform=transform,
            seed=seed,
        )

    def read_ids(self, index: int) -> Image.Image | None:
        """What the label file of sample `index` holds: ids, or colours; None where labels are not read."""
        path = self.items[index].label
        if path is None or self.colors is None:
            advice = f"Set {self.setting}.LABEL_FORMAT to rgb if its colours are classes."
            return path and image_files.read_label_ids(path, advice)
        return read_colors(path)

    def train_ids(self, ids: Image.Image, path: str) -> Image.Image:
        """What `read_ids` returned -> train ids; `path` for the message."""
        setting = f"{self.setting}.LABEL_MAP"
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

    @property
    def label_kind(self) -> str:
        return packed.IDS if self.colors is None else packed.COLORS

    def _named_map(self, name: str, classes: LabelSet, label_format: str) -> dict[str, str]:
        setting = f"{self.setting}.LABEL_MAP"
        if label_format != "ids":
            raise ValueError(
                f"{setting} is {name}, which numbers classes, but LABEL_FORMAT is {label_format!r}. Leave {setting} empty: "
                f"colours are then those of the classes; and set {self.setting}.DEFAULT to ignore, for the others."
            )
        try:
            return named_label_map(name, classes, IGNORE)
        except ValueError as error:
            raise ValueError(f"{setting} {error}") from None

    def _map(self, classes: LabelSet, label_format: str, label_map: Mapping[str, str]) -> tuple[list, list[int]]:
        """Ids or colours in the files, and the train id of each."""
        setting = f"{self.setting}.LABEL_MAP"
        if not label_map:
            targets = list(range(classes.num_classes))
            return ([tuple(c) for c in classes.palette.tolist()] if label_format == "rgb" else targets), targets
        keys, targets = [], []
        for text, name in label_map.items():
            try:
                key = _parse_id(text) if label_format == "ids" else parse_color(text)
            except ValueError as error:
                raise ValueError(f"{setting} with LABEL_FORMAT {label_format!r}: {error}") from None
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
        if len(keys) > IGNORE_LABEL and label_format == "rgb":
            raise ValueError(f"{setting} holds {len(keys)} colours, at most {IGNORE_LABEL} are possible")
        return keys, targets

    def _items(self, list_file: str, images: str, labels: str | None, depth: str | None) -> list[Item]:
        """The files that a list or the pattern `images` names, with those of the other patterns; None: not needed."""
        image_pattern = self._pattern(images, "IMAGES")
        if list_file:
            path = Path(list_file.replace("{}", self.split))
            lines = read_list(path, self.list_setting, self.root, lambda: image_pattern.find(self.root))
            found, in_list = [line.image for line in lines], [line.label for line in lines if line.label]
        else:
            found, in_list = self._find(image_pattern), []
            masks = [self._pattern(text, key) for text, key in self._beside if text and text != images]
            pictures = [path for path in found if all(mask.key(path) is None for mask in masks)]
            if pictures and len(pictures) < len(found):  # masks that lie beside the images
                self.left_out = len(found) - len(pictures)
                found = pictures

        def partners(text: str, key: str, what: str, otherwise: str, some: bool = False) -> list[str | None]:
            if not text:
                raise ValueError(f"{self.setting}.{key} is empty, but {what}s are needed here: {otherwise}")
            pattern = self._pattern(text, key)
            return paired(found, image_pattern, pattern, self.root, what=what, list_setting=self.list_setting, some=some)

        if in_list and len(in_list) != len(found) and not self.labelled_only:
            raise ValueError(
                f"{self.list_setting} names a label for {len(in_list)} of {len(found)} images; name one for all, or for none"
            )
        label_paths: list[str | None] = [None] * len(found)
        depth_paths: list[str | None] = [None] * len(found)
        if labels is not None:
            why = "training reads those of the source, a test those of the target"
            named = [line.label for line in lines] if in_list else None
            label_paths = named or partners(labels, "LABELS", "label", why, self.labelled_only)
        if depth is not None:
            why = "give the pattern, or set USE_DEPTH to False"
            depth_paths = partners(depth, "DEPTH", "depth file", why)
        if list_file:
            image_files.require_files(
                [str(self.root / path) for path in (*found, *label_paths) if path is not None],
                what=f"files that {self.list_setting} names",
                advice=f"Its paths start from {self.root}.",
            )
        root = self.root
        return [
            Item(str(root / image), label and str(root / label), distance and str(root / distance), image)
            for image, label, distance in zip(found, label_paths, depth_paths)
            if label or not self.labelled_only
        ]

    def _pattern(self, text: str, key: str) -> Pattern:
        return Pattern(text.replace("{split}", self.split or "."), f"{self.setting}.{key}")

    def _find(self, pattern: Pattern) -> list[str]:
        root, setting = self.root, f"DATA_DIRECTORY_{self.role.upper()}"
        splits = f"TRAIN.SET_{self.role.upper()}" + (" (in a test, TEST.SET_TARGET)" if self.role == "target" else "")
        folder = root / pattern.fixed_folder
        image_files.require_folder(
            folder,
            root,
            what=f"images for split {self.split!r}",
            setting=setting,
            holds=pattern.text,
            source=f"Or correct {self.setting}.IMAGES, where {{split}} is {splits}.",
        )
        found = pattern.find(root)
        if not found:
            there = storage.list_dir(folder)
            raise FileNotFoundError(
                f"no images: no file below {root} matches {pattern}\n"
                f"  ({folder} {'contains: ' + image_files.first_few(there, 10) if there else 'is empty'}).\n"
                f"  Correct the pattern, {setting}, or the split, {splits}."
            )
        return found


def _parse_id(text: str) -> int:
    if not (text.isascii() and text.removeprefix("-").isdecimal() and len(text) <= 10 and abs(int(text)) < 2**31):
        raise ValueError(f"{text!r} is not an id; ids are whole numbers, 0 to 255 in most files")
    return int(text)
