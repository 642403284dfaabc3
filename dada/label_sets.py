"""Which classes are trained, what they are called and coloured, and how each dataset's ids map to them.

There are five label sets, named by their number of classes:

    19  Cityscapes' own training classes
    16  the classes that SYNTHIA and Cityscapes share, the field's usual benchmark
    13  the 16 without wall, fence and pole, the field's second benchmark
     7  Cityscapes' categories: flat, construction, object, nature, sky, human, vehicle
    11  the classes of CamVid that SegNet chose

An id map is a vector of 256 uint8: the train id of every id that a label file can hold, IGNORE_LABEL for what
is not trained. Mapillary's maps are written in class names; they stand in mapillary.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from dada.config.option import shown

OTHER_LABEL = 254  # labelled, but with a class that the network does not have; 255 is not labelled

IGNORE_LABEL = 255

# The 19 classes: name, colour, Cityscapes labelId (GTA5 uses the same), SYNTHIA id, category, number in PLCA.
_TABLE = (
    ("road", (128, 64, 128), 7, 3, "flat", 2),
    ("sidewalk", (244, 35, 232), 8, 4, "flat", 3),
    ("building", (70, 70, 70), 11, 2, "construction", 1),
    ("wall", (102, 102, 156), 12, 21, "construction", 15),
    ("fence", (190, 153, 153), 13, 5, "construction", 4),
    ("pole", (153, 153, 153), 17, 7, "object", 6),
    ("light", (250, 170, 30), 19, 15, "object", 12),
    ("sign", (220, 220, 0), 20, 9, "object", 8),
    ("vegetation", (107, 142, 35), 21, 6, "nature", 5),
    ("terrain", (152, 251, 152), 22, 16, "nature", 16),
    ("sky", (70, 130, 180), 23, 1, "sky", 0),
    ("person", (220, 20, 60), 24, 10, "human", 9),
    ("rider", (255, 0, 0), 25, 17, "human", 13),
    ("car", (0, 0, 142), 26, 8, "vehicle", 7),
    ("truck", (0, 0, 70), 27, 18, "vehicle", 17),
    ("bus", (0, 60, 100), 28, 19, "vehicle", 14),
    ("train", (0, 80, 100), 31, 20, "vehicle", 18),
    ("motorcycle", (0, 0, 230), 32, 12, "vehicle", 11),
    ("bicycle", (119, 11, 32), 33, 11, "vehicle", 10),
)
# SegNet's classes of CamVid, in the order of their ids: name, colour. A bicyclist is rider and bicycle together, and
# signs include traffic lights, unlike the classes above.
_CAMVID = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "sidewalk": (0, 0, 192),
    "vegetation": (128, 128, 0),
    "sign": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "person": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}
_CATEGORIES: dict[str, tuple[int, int, int]] = {}  # name: colour, that of its first class
for _row in _TABLE:
    _CATEGORIES.setdefault(_row[4], _row[1])
# Ids that no fine class trains but that belong to a category. Cityscapes: parking and rail track; guard rail,
# bridge, tunnel; polegroup; caravan, trailer. SYNTHIA: parking slot and lane marking; road work has no
# counterpart.
_CITYSCAPES_ONLY_CATEGORY = {9: "flat", 10: "flat", **dict.fromkeys((14, 15, 16), "construction"), 18: "object"}
_CITYSCAPES_ONLY_CATEGORY |= {29: "vehicle", 30: "vehicle"}
_SYNTHIA_ONLY_CATEGORY = {13: "flat", 22: "flat"}
# The map behind the published SYNTHIA -> Mapillary and 7-class numbers: these ids were left out of it.
_SYNTHIA_7_GAPS = (12, 13, 16, 17, 18, 19, 20, 21)


@dataclass(frozen=True, eq=False)
class LabelSet:
    """The trained classes in the order of their train ids."""

    names: tuple[str, ...]
    palette: np.ndarray  # (K, 3) uint8 RGB, read-only

    def __post_init__(self) -> None:
        palette = np.array(self.palette, dtype=np.uint8)
        if palette.shape != (len(self.names), 3):
            raise ValueError(f"{len(self.names)} class names need a ({len(self.names)}, 3) palette, not {palette.shape}")
        palette.setflags(write=False)
        object.__setattr__(self, "palette", palette)

    @property
    def num_classes(self) -> int:
        return len(self.names)


def _fine_label_set(left_out: tuple[str, ...]) -> LabelSet:
    rows = [row for row in _TABLE if row[0] not in left_out]
    return LabelSet(tuple(row[0] for row in rows), np.array([row[1] for row in rows]))


_NOT_IN_16 = ("terrain", "truck", "train")
_NOT_IN_13 = (*_NOT_IN_16, "wall", "fence", "pole")

LABEL_SETS: dict[int, LabelSet] = {
    19: _fine_label_set(()),
    16: _fine_label_set(_NOT_IN_16),
    13: _fine_label_set(_NOT_IN_13),
    7: LabelSet(tuple(_CATEGORIES), np.array(list(_CATEGORIES.values()))),
    11: LabelSet(tuple(_CAMVID), np.array(list(_CAMVID.values()))),
}


def label_set(num_classes: int) -> LabelSet:
    """The label set of that many classes.

    Raises:
        ValueError: there is none.
    """
    if num_classes not in LABEL_SETS:
        valid = ", ".join(str(k) for k in LABEL_SETS)
        raise ValueError(f"NUM_CLASSES is {num_classes!r}; there are label sets of {valid} classes; name others in CLASSES.NAMES")
    return LABEL_SETS[num_classes]


def _id_map(ids: Iterable[int], only_category: dict[int, str], num_classes: int) -> np.ndarray:
    """`ids` are those of the 19 classes, in their order."""
    names = label_set(num_classes).names
    of_ids = {file_id: row[4] if num_classes == 7 else row[0] for file_id, row in zip(ids, _TABLE)}
    vector = np.full(256, IGNORE_LABEL, dtype=np.uint8)
    for file_id, name in {**of_ids, **(only_category if num_classes == 7 else {})}.items():
        if name in names:
            vector[file_id] = names.index(name)
    return vector


def cityscapes_id_map(num_classes: int) -> np.ndarray:
    """Ids of Cityscapes, which are those of GTA5 -> train ids, (256,) uint8. The 7 classes are Cityscapes' own categories."""
    return _id_map((row[2] for row in _TABLE), _CITYSCAPES_ONLY_CATEGORY, num_classes)


def train_id_map(num_classes: int) -> np.ndarray:
    """Train ids of the 19 classes -> train ids of that label set, (256,) uint8."""
    return _id_map(range(len(_TABLE)), {}, num_classes)


def wilddash_id_map(num_classes: int) -> np.ndarray:
    """Ids of WildDash 2 -> train ids, (256,) uint8: those of Cityscapes, and five more, as its own label policy maps them."""
    vector = cityscapes_id_map(num_classes)
    # Pickup, van, billboard, street light, road marking; a group of poles, too, is an object and none of the 19 classes.
    vector[[34, 35, 36, 37, 38]] = vector[[27, 26, 18, 18, 7]]
    return vector


def cityscapes_id_of_class(classes: LabelSet) -> np.ndarray:
    """The Cityscapes labelId of each class, (K,) uint8, as its benchmark takes predictions.

    Raises:
        ValueError: classes that Cityscapes lacks, the 7 categories among them.
    """
    ids = {row[0]: row[2] for row in _TABLE}
    if strange := [name for name in classes.names if name not in ids]:
        raise ValueError(
            f"there are no Cityscapes labelIds for the classes {', '.join(strange)}: its benchmark takes {', '.join(ids)}"
        )
    return np.array([ids[name] for name in classes.names], dtype=np.uint8)


def synthia_id_map(num_classes: int, published: bool = False) -> np.ndarray:
    """SYNTHIA ids -> train ids, (256,) uint8.

    Args:
        num_classes: 19, 16, 13 or 7.
        published: for 7 classes, take the map of DADA (Vu et al., ICCV 2019), which ignores motorcycle,
            parking, terrain, rider, truck, bus, train and wall. Numbers published with it need it; otherwise
            each belongs to its category.
    """
    vector = _id_map((row[3] for row in _TABLE), _SYNTHIA_ONLY_CATEGORY, num_classes)
    if published and num_classes == 7:
        vector[list(_SYNTHIA_7_GAPS)] = IGNORE_LABEL
    return vector


# Numberings by the names that LABEL_MAP knows: the ids that there are, and the map of them.
NAMED_IDS = {
    "cityscapes": (35, cityscapes_id_map),  # 34 is the licence plate
    "cityscapes_train_ids": (19, train_id_map),
    "synthia": (23, synthia_id_map),
    "wilddash": (39, wilddash_id_map),
}


def named_label_map(name: str, classes: LabelSet, ignore: str) -> dict[str, str]:
    """The class of each id of NAMED_IDS, as a LABEL_MAP holds them; `ignore` for classes of the 19 that are not among `classes`.

    Raises:
        ValueError: `classes` has none of theirs. The 7 categories are taken for what they are.
    """
    count, id_map = NAMED_IDS[name]
    categories = set(classes.names) == set(_CATEGORIES)
    names, train_ids = LABEL_SETS[7 if categories else 19].names, id_map(7 if categories else 19)
    if not set(names) & set(classes.names):
        raise ValueError(f"is {name}, but none of the classes {', '.join(classes.names)} is one of its, {', '.join(names)}")
    mapped = [names[t] if t < len(names) else ignore for t in train_ids[:count].tolist()]
    return {str(file_id): given if given in classes.names else ignore for file_id, given in enumerate(mapped)}


# Pixel-Level-Cycle-Association (Kang et al., NeurIPS 2020) numbers its 16 or 19 classes in another order. Entry i is the
# train id, in our set, of its class i: permute the classifier's output channels with it before loading its weights.
_NUMBER_IN_PLCA = {row[0]: row[5] for row in _TABLE}
PLCA_CLASSES: dict[int, tuple[int, ...]] = {
    count: tuple(np.argsort([_NUMBER_IN_PLCA[name] for name in LABEL_SETS[count].names]).tolist()) for count in (16, 19)
}


def subsets(classes: LabelSet) -> dict[str, list[int]]:
    """`classes` itself and the label sets whose classes are all among them: {"16": [...], "13": [...]} for 16.

    The lists are train ids of `classes`, so that the smaller set's mIoU follows from one confusion matrix.
    """
    names = classes.names
    found = {str(len(names)): list(range(len(names)))}
    for count, smaller in LABEL_SETS.items():
        if count < len(names) and set(smaller.names) <= set(names):
            found[str(count)] = [names.index(name) for name in smaller.names]
    return found


def category_of_class(classes: LabelSet) -> np.ndarray | None:
    """Each class's id in the 7-class set, (K,) uint8, to add confusion counts up to categories.

    None for a set that lacks classes of the 16, of which 7 categories would mean something else.
    """
    if not set(LABEL_SETS[16].names) <= set(classes.names) <= {row[0] for row in _TABLE}:
        return None
    by_name = {row[0]: LABEL_SETS[7].names.index(row[4]) for row in _TABLE}
    return np.array([by_name[name] for name in classes.names], dtype=np.uint8)


class LabelInfo(NamedTuple):
    """What an info file says: the classes, and the id map that leads to them."""

    label_set: LabelSet
    id_map: np.ndarray  # (256,) uint8


def label_set_from_info(path: str | Path) -> LabelInfo:
    """Read an info JSON as ADVENT and DADA ship it, for classes of one's own.

    Keys: `classes` (their number), `label` (their names), `palette` (RGB triples; more than `classes` are
    ignored), `label2train` (pairs of file id and train id, 255 = ignore; the file id -1 is in no file).

    Raises:
        FileNotFoundError, ValueError: the file is missing, not JSON, or a key is missing or does not fit the
        others.
    """
    path = Path(path)
    try:
        info = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise FileNotFoundError(f"label info file {path} not found; leave INFO_TARGET empty for the usual classes") from None
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, numbers of too many digits; nested too deep
        raise ValueError(f"label info file {path} is not valid JSON: {error}") from None
    needed = ("classes", "label", "palette", "label2train")
    missing = [key for key in needed if not isinstance(info, dict) or key not in info]
    if missing:
        raise ValueError(f"label info file {path} lacks {', '.join(missing)}; it needs the keys {', '.join(needed)}")
    count, names, palette, pairs = (info[key] for key in needed)

    def expect(fits: bool, what: str, expected: str) -> None:
        if not fits:
            raise ValueError(f"label info file {path}: {what}, {expected}")

    whole = type(count) is int and 1 <= count < IGNORE_LABEL
    expect(whole, f"classes is {shown(count)}", "expected a whole number from 1 to 254")
    for key, value in (("label", names), ("palette", palette), ("label2train", pairs)):
        expect(isinstance(value, list), f"{key} is {shown(value)}", "expected a list")
    enough = min(len(names), len(palette)) >= count
    expect(enough, f"{count} classes", f"but {len(names)} names in label and {len(palette)} colours in palette")
    for color in palette[:count]:
        fits = _is_ints(color, 3) and all(0 <= level <= 255 for level in color)
        expect(fits, f"palette holds {shown(color)}", "expected [red, green, blue], each from 0 to 255")
    vector = np.full(256, IGNORE_LABEL, dtype=np.uint8)
    for pair in pairs:
        fits = _is_ints(pair, 2) and -1 <= pair[0] <= 255 and (0 <= pair[1] < count or pair[1] == IGNORE_LABEL)
        last = f"expected [file id from -1 to 255, train id from 0 to {count - 1} or 255]"
        expect(fits, f"label2train holds {shown(pair)}", last)
        if pair[0] >= 0:
            vector[pair[0]] = pair[1]
    return LabelInfo(LabelSet(tuple(str(name) for name in names[:count]), np.array(palette[:count])), vector)


def _is_ints(value: object, length: int) -> bool:
    return isinstance(value, list) and len(value) == length and all(type(number) is int for number in value)


def colorize(label: np.ndarray | Tensor, classes: LabelSet) -> Image.Image:
    """Train ids (H, W) -> a paletted ("P") PIL image in the label set's colours; ids of no class are black."""
    if isinstance(label, Tensor):
        label = label.detach().cpu().numpy()
    if label.ndim != 2:
        raise ValueError(f"a label map is (H, W), got shape {tuple(label.shape)}")
    image = Image.fromarray(label.astype(np.uint8))
    palette = np.zeros((256, 3), dtype=np.uint8)
    palette[: classes.num_classes] = classes.palette
    image.putpalette(palette.tobytes())
    return image
