"""Mapillary Vistas (Neuhold et al., ICCV 2017): streets of the whole world, from cameras of all kinds.

Its classes have names like `construction--flat--road`; the config file that comes with the labels says which id each
has. The two maps below are written in these names, so they hold for both v1.2 (66 classes) and v2.0 (124).
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

import numpy as np

from dada.dataset import storage
from dada.dataset.base import Item
from dada.dataset.published import PublishedDataset
from dada.label_sets import IGNORE_LABEL, LABEL_SETS, LabelInfo


def _names(group: str, ends: str) -> tuple[str, ...]:
    return tuple(f"{group}--{end}" for end in ends.split())


# Names in the order of v1.2's ids, for copies without a config file.
NAMES_OF_V1_2 = (
    *_names("animal", "bird ground-animal"),
    *_names("construction--barrier", "curb fence guard-rail other-barrier wall"),
    *_names(
        "construction--flat", "bike-lane crosswalk-plain curb-cut parking pedestrian-area rail-track road service-lane sidewalk"
    ),
    *_names("construction--structure", "bridge building tunnel"),
    *_names("human", "person rider--bicyclist rider--motorcyclist rider--other-rider"),
    *_names("marking", "crosswalk-zebra general"),
    *_names("nature", "mountain sand sky snow terrain vegetation water"),
    *_names(
        "object", "banner bench bike-rack billboard catch-basin cctv-camera fire-hydrant junction-box mailbox manhole phone-booth"
    ),
    *_names("object", "pothole street-light support--pole support--traffic-sign-frame support--utility-pole traffic-light"),
    *_names("object", "traffic-sign--back traffic-sign--front trash-can"),
    *_names("object--vehicle", "bicycle boat bus car caravan motorcycle on-rails other-vehicle trailer truck wheeled-slow"),
    *_names("void", "car-mount ego-vehicle unlabeled"),
)

# Class -> names, each of which also stands for all that continue it with "--". The longest match decides.
_SEVEN = {  # DADA's (Vu et al., ICCV 2019); unlike Cityscapes', terrain is flat and a curb is construction
    "flat": ("construction--flat", "marking", "marking-only", "nature--terrain"),
    "construction": ("construction",),
    "object": ("object--pothole", "object--street-light", "object--support", "object--traffic-light", "object--traffic-sign"),
    "nature": ("nature--vegetation",),
    "sky": ("nature--sky",),
    "human": ("human",),
    "vehicle": ("object--vehicle",),
}
_NINETEEN = {  # by the definitions of Cityscapes' classes; anything else is left out
    "road": _names("construction--flat", "road bike-lane crosswalk-plain service-lane")
    + _names("object", "catch-basin manhole pothole")
    + ("marking", "marking-only"),
    "sidewalk": _names("construction--flat", "sidewalk curb-cut pedestrian-area traffic-island")
    + ("construction--barrier--curb",),
    "building": _names("construction--structure", "building garage"),
    "wall": ("construction--barrier--wall",),
    "fence": ("construction--barrier--fence",),
    "pole": _names("object--support", "pole utility-pole traffic-sign-frame") + ("object--street-light",),
    "light": ("object--traffic-light",),
    "sign": _names("object--traffic-sign", "front direction-front information-parking temporary-front"),
    **{name: (f"nature--{name}",) for name in ("vegetation", "terrain", "sky")},
    **{name: (f"human--{name}",) for name in ("person", "rider")},
    **{name: (f"object--vehicle--{name}",) for name in ("car", "truck", "bus", "motorcycle", "bicycle")},
    "train": ("object--vehicle--on-rails",),
}

# Version of the labels -> folders below a split where they may lie, and config files that name their ids.
_VERSIONS = {
    "v1.2": (("labels", "v1.2/labels"), ("config_v1.2.json", "config.json")),
    "v2.0": (("v2.0/labels", "labels"), ("config_v2.0.json",)),
}


class Mapillary(PublishedDataset):
    """<split>/images/<name>.jpg with labels <split>/labels/<name>.png, or <split>/v1.2/labels, <split>/v2.0/labels.

    Labels in <split>/labels are of v1.2, unless config_v2.0.json is the only config file beside the splits.

    Splits: "training", "validation" or "testing" (which has no labels); "train" and "val" stand for the first two if there
    are no folders of that name. A list file has one image per line, `<name>.jpg` (DADA).

    Args:
        version: "v1.2" or "v2.0"; empty: v1.2 if its labels exist, else v2.0.
        options: of PublishedDataset. `info` may also be a config file of the dataset, as DADA ships it, which then names
            the ids.
    """

    title = "Mapillary"
    splits = ("training", "validation", "testing")
    usual_role = "target"
    label_sets = (7, 19, 16, 13)
    mixed_shapes = True
    holds = "training/ and validation/"
    download = "Mapillary Vistas is at https://www.mapillary.com/dataset/vistas."

    def __init__(self, root: str | Path, split: str = "", num_classes: int = 0, *, version: str = "", **options) -> None:
        if version not in ("", *_VERSIONS):
            raise ValueError(f"version must be 'v1.2' or 'v2.0', or empty, not {version!r}")
        self.version, self.class_names = version, ()
        super().__init__(root, split, num_classes, **options)

    def find(self) -> list[Item]:
        folder = self.split
        if not storage.is_dir(self.root / folder):
            folder = {"train": "training", "val": "validation"}.get(folder, folder)
        self.require(f"{folder}/images", f"images for split {self.split!r}")
        lines = self.lines(f"{folder}/images", "*.jpg")
        version, labels = self._version_and_folder(folder)
        if self.with_labels:
            self.require(f"{folder}/{labels}", f"labels for split {self.split!r}")
        self.version = version
        return [self.item(line, f"{folder}/{labels}/{PurePosixPath(line.image).stem}.png") for line in lines]

    def classes_and_map(self, num_classes: int, info: str | Path) -> LabelInfo:
        own_map = info and "labels" not in _read_json(Path(info))
        self.class_names = self._names_of_ids("" if own_map else info)
        self.num_ids = len(self.class_names)
        return super().classes_and_map(num_classes, info if own_map else "")

    def map_of(self, num_classes: int) -> np.ndarray:
        return mapillary_id_map(self.class_names, num_classes)

    def _version_and_folder(self, split: str) -> tuple[str, str]:
        """The version to read and the folder of its labels, whether or not it is there."""
        wanted = {self.version: _VERSIONS[self.version]} if self.version else self._by_config()
        for version, (folders, _) in wanted.items():
            for folder in folders:
                if storage.is_dir(self.root / split / folder):
                    return version, folder
        version = next(iter(wanted))
        return version, wanted[version][0][-1 if version == "v1.2" else 0] if self.version else "labels"

    def _by_config(self) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
        """_VERSIONS, in the order in which to look for them: if only the config of v2.0 exists, labels/ belongs to v2.0."""
        there = {v: any(storage.is_file(self.root / name) for name in names) for v, (_, names) in _VERSIONS.items()}
        return dict(sorted(_VERSIONS.items(), key=lambda item: there["v2.0"] and not there[item[0]]))

    def _names_of_ids(self, config: str | Path) -> tuple[str, ...]:
        """The class names in the order of their ids, from `config` or else from the file beside the images."""
        files = [Path(config)] if config else [self.root / name for name in _VERSIONS[self.version][1]]
        found = [file for file in files if storage.is_file(file)]
        if found:
            return _names_in(found[0])
        if self.version == "v1.2":
            return NAMES_OF_V1_2
        raise FileNotFoundError(
            f"{files[0]} not found: it names the ids of {self.title} {self.version}, and comes in the same archive as "
            f"the images. Put it into {self.setting}."
        )


def mapillary_id_map(names: tuple[str, ...], num_classes: int) -> np.ndarray:
    """Ids of the classes with these names, in this order -> train ids, (256,) uint8.

    Args:
        names: `construction--flat--road` and so on.
        num_classes: 19, 16, 13 (by Cityscapes' definitions) or 7 (DADA's map).
    """
    classes = LABEL_SETS[num_classes].names
    train_ids = {
        begin: classes.index(name)
        for name, begins in (_SEVEN if num_classes == 7 else _NINETEEN).items()
        if name in classes
        for begin in begins
    }
    vector = np.full(256, IGNORE_LABEL, dtype=np.uint8)
    for file_id, name in enumerate(names):
        fits = [begin for begin in train_ids if name == begin or name.startswith(begin + "--")]
        if fits:
            vector[file_id] = train_ids[max(fits, key=len)]
    return vector


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(storage.read_bytes(path))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} not found; leave INFO_TARGET empty for the file that comes with the images") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold an object, but holds a {type(content).__name__}")
    return content


def _names_in(path: Path) -> tuple[str, ...]:
    """The names under `labels` of a config file of the dataset, in the order of their ids."""
    labels = _read_json(path).get("labels")
    names = [isinstance(label, dict) and label.get("name") for label in labels] if isinstance(labels, list) else []
    if not any(names) and len(names) == len(NAMES_OF_V1_2):
        return NAMES_OF_V1_2  # a list of readable names only, which are in the same order
    if not 1 <= len(names) <= IGNORE_LABEL or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"{path} does not name the classes: expected a list `labels` whose entries have a `name`, as in the "
            "config.json of Mapillary Vistas"
        )
    return tuple(names)
