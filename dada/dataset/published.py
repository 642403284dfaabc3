"""What all kinds of datasets share: how they are asked for, scanned, listed and mapped to classes.

A dataset of this kind is a subclass that says where its files lie (`find`) and what its ids mean (`map_of`,
`num_ids`); see cityscapes.py for a short one. Most need no class, only an entry in street_table.py.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dada.dataset import image_files, storage
from dada.dataset.base import Item, SegmentationDataset
from dada.dataset.lists import Line, read_list
from dada.label_sets import IGNORE_LABEL, LabelInfo, label_set, label_set_from_info


class PublishedDataset(SegmentationDataset):
    """A dataset in the layout in which it is published; that of a user's own folder is a `Folder`.

    Args:
        root: its folder or zip archive.
        split: which part; empty for the usual one.
        num_classes: of one of `label_sets`; 0 for the first.
        transform: see SegmentationDataset.
        list_file: file that names the images to use; `{}` in its name stands for the split; "" scans the folders.
        with_labels: False: label files are never opened, and need not exist.
        with_depth: also read depth, if the dataset has any.
        seed: of the experiment.
        info: JSON file with an id map and your own classes; see label_set_from_info.
        role: "source" or "target", the domain whose settings the messages name; empty for the usual one.
        list_setting: the option that names `list_file`, for messages; empty for that of the role.
        labelled_only: leave out images without a label file.

    Raises:
        FileNotFoundError, ValueError: a folder, a list, an image or a label is missing, or the dataset has no such
        split, classes or depth; raised before any picture is opened.
    """

    title: str
    splits: tuple[str, ...] = ("all",)  # the usual one first; folders that are splits need not all be here
    usual_role = "source"
    num_ids: int = 256  # a label file may hold 0 to num_ids - 1, and 255 for unlabelled
    label_sets: tuple[int, ...] = (19, 16, 13, 7)  # numbers of classes, the usual one first
    has_depth = False
    usual_ids_above = 0  # nearly every label holds a larger id, so labels without any were converted; 0: unknown
    label_advice = ""  # what to do if labels are missing
    download: str  # where to get it, a sentence
    holds: str  # what the root must contain

    def __init__(
        self,
        root: str | Path,
        split: str = "",
        num_classes: int = 0,
        *,
        transform: Callable,
        list_file: str | Path = "",
        with_labels: bool = True,
        with_depth: bool = False,
        seed: int = 0,
        info: str | Path = "",
        role: str = "",
        list_setting: str = "",
        labelled_only: bool = False,
    ) -> None:
        if with_depth and not self.has_depth:
            raise ValueError(f"{self.title} has no depth here. Set USE_DEPTH to False, or take SYNTHIA as the source.")
        self.root, self.split = Path(root), split or self.splits[0]
        self.list_file, self.with_labels, self.with_depth = str(list_file).replace("{}", self.split), with_labels, with_depth
        self.labelled_only = labelled_only
        self.role = role or self.usual_role
        self.setting = f"DATA_DIRECTORY_{self.role.upper()}"
        self.list_setting = list_setting or f"DATA_LIST_{self.role.upper()}"
        items = self.find()
        if labelled_only:
            missing = image_files.missing_files({item.label for item in items if item.label})
            items = [item for item in items if item.label and item.label not in missing]
        self.check_files(items)
        num_classes = num_classes or self.label_sets[0]
        classes, id_map = self.classes_and_map(num_classes, info)
        defined, labelled = self.defined_and_labelled(num_classes)
        stream = self.title if self.role == self.usual_role else f"{self.title} as {self.role}"
        ids = {"id_map": id_map, "defined_ids": defined, "labelled_ids": labelled}
        super().__init__(self.title, items, classes=classes, **ids, transform=transform, seed=seed, stream=stream)

    # ---- what a dataset says of itself

    def find(self) -> list[Item]:
        """The files to read, in a fixed order."""
        raise NotImplementedError

    def map_of(self, num_classes: int) -> np.ndarray:
        """File ids -> train ids of that label set, (256,) uint8."""
        raise NotImplementedError

    def foreign_ids(self, ids: set[int]) -> str:
        others = ids - {0, IGNORE_LABEL}  # files that hold nothing else are void, not converted
        if not self.usual_ids_above or not others or max(others) > self.usual_ids_above:
            return ""
        void = ", and some hold 255" if IGNORE_LABEL in ids else ""
        return (
            f"no label of the {self.title} {self.role} that was read holds an id above {self.usual_ids_above}{void}: these look "
            f"like train ids of Cityscapes, but are read as ids of {self.title}, that is, as other classes. Take the original "
            f"labels, or read these with {self.role.upper()}=Folder (docs/datasets.md#train-ids)"
        )

    def classes_and_map(self, num_classes: int, info: str | Path) -> LabelInfo:
        """The classes to train and the id map that leads to them."""
        if info:
            return label_set_from_info(info)
        if num_classes not in self.label_sets:
            *others, last = map(str, sorted(self.label_sets, reverse=True))
            known = f"{', '.join(others)} or {last}" if others else last
            raise ValueError(f"NUM_CLASSES is {num_classes}, but {self.title} has {known} classes")
        return LabelInfo(label_set(num_classes), self.map_of(num_classes))

    def defined_and_labelled(self, num_classes: int) -> tuple[np.ndarray, np.ndarray | None]:
        """As of SegmentationDataset."""
        # The 7 categories leave no class out: what they ignore is not a class.
        finest = num_classes if num_classes == 7 else max(self.label_sets)
        ids = np.arange(256)
        return (ids < self.num_ids) | (ids == IGNORE_LABEL), self.map_of(finest) != IGNORE_LABEL

    def check_files(self, items: Sequence[Item]) -> None:
        """Raise FileNotFoundError unless all files of all items exist; it counts the missing ones, and shows a few of either."""
        release = f"The list file {self.list_setting} and the folder {self.setting} must be of one release of {self.title}."
        unpack = f"Unpack the labels again, or name in a list file ({self.list_setting}) only images that have one."
        for field, what, advice in (
            ("image", f"{self.title} images", release),
            ("label", f"labels of {self.title} images", self.label_advice or unpack),
            ("depth", f"depth files of {self.title} images", "Unpack the Depth folder again, or set USE_DEPTH to False."),
        ):
            paths = [path for item in items if (path := getattr(item, field)) is not None]
            image_files.require_files(paths, what=what, advice=advice)

    # ---- help for find()

    def require(self, folder: str, what: str, *, holds: str = "", download: str = "") -> None:
        """Raise FileNotFoundError, which says what is there and what to do, unless root/folder exists."""
        root, path = self.root, self.root / folder
        if storage.is_dir(path):
            return
        advice = ""
        if storage.is_dir(root):
            # The deepest folder on the way that exists, so that a wrong split name shows the right ones.
            there = next(parent for parent in path.parents if storage.is_dir(parent))
            found = storage.list_dir(there)
            seen = f"{there} exists and " + (f"contains: {image_files.first_few(found, 10)}" if found else "is empty")
            unreadable = storage.unreadable_archives(there)
            seen += "".join(f";\n  {reason}" for reason in unreadable.values())
            others = (root / name for name in storage.list_dir(root) if str(root / name) not in unreadable)
            if inside := next((other for other in others if storage.is_dir(other / folder)), None):
                advice = f" Did you mean '{inside}'?"
        elif root.is_file():
            seen = f"{root} is a file, neither a folder nor a .zip archive: unpack it, or pack it again as .zip"
        else:
            seen = f"{root} does not exist either"
        raise FileNotFoundError(
            f"{self.title} {what} not found: {path} does not exist\n  ({seen}).\n  Set {self.setting} to the folder that holds "
            f"{holds or self.holds}; it is now '{root}'.{advice}\n  {download or self.download}"
        )

    def scan(self, folder: str, *patterns: str) -> list[str]:
        """Sorted paths, from the root, of the files in root/folder that match one of the patterns; at least one."""
        found = {f"{folder}/{path}" for pattern in patterns for path in storage.glob(pattern, self.root / folder)}
        return self.some(sorted(found), folder, " or ".join(patterns))

    def some(self, found: list[str], folder: str, patterns: str, advice: str = "") -> list[str]:
        """What was `found` in root/folder, or FileNotFoundError, which says what is there, for nothing."""
        if found:
            return found
        there = image_files.first_few(storage.list_dir(self.root / folder), 10)
        raise FileNotFoundError(
            f"no {self.title} images in {self.root / folder}: no file matches {patterns} "
            f"({f'it contains: {there}' if there else 'it is empty'}).\n  "
            + (advice or f"Check that the archive was unpacked completely, and that {self.setting} is the right folder.")
        )

    def lines(self, folder: str, *patterns: str) -> list[Line]:
        """The images of the list file, with any labels that it names, or all in root/folder that match a pattern."""
        if not self.list_file:
            return [Line(image) for image in self.scan(folder, *patterns)]
        return read_list(Path(self.list_file), self.list_setting, self.root, lambda: self.scan(folder, *patterns))

    def item(self, line: Line, label: str, depth: str = "", name: str = "") -> Item:
        """The Item of an image, with what was asked for.

        Args:
            label, depth: where they lie, as paths from the root. A label of another name in the list takes precedence.
            name: of the sample; empty for that of the file.
        """
        if line.label and posixpath.basename(line.label) != posixpath.basename(label):
            label = line.label
        return Item(
            image=str(self.root / line.image),
            label=str(self.root / label) if self.with_labels else None,
            depth=str(self.root / depth) if self.with_depth else None,
            name=name or posixpath.basename(line.image),
        )

    def check_split(self) -> None:
        """Raise ValueError unless the split is one of `splits`."""
        if self.split not in self.splits:
            setting = "TRAIN.SET_SOURCE" if self.role == "source" else "TRAIN.SET_TARGET or TEST.SET_TARGET"
            raise ValueError(
                f"{self.title} has no split {self.split!r}, only {', '.join(map(repr, self.splits))}. "
                f"Correct {setting}, or name the images in a list file ({self.list_setting})."
            )
