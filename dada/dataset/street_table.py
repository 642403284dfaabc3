"""Street datasets whose layout takes a few lines: where the files lie, what the ids mean, which splits there are.

To add one, add an entry to TABLE. Patterns are those of dada.dataset.pairing: `*` stands for the same text in the path of an
image and in that of its label. `{split}` is the folder of the split, `{name}` its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from dada.dataset import image_files, storage
from dada.dataset.base import Item
from dada.dataset.lists import Line
from dada.dataset.pairing import Pattern
from dada.dataset.published import PublishedDataset
from dada.label_sets import NAMED_IDS, train_id_map


class Ids(NamedTuple):
    """What label files hold: ids from 0 to count - 1, and their train ids in the label set of so many classes."""

    count: int
    map_of: Callable[[int], np.ndarray]


LABEL_IDS, TRAIN_IDS, WILDDASH_IDS = (Ids(*NAMED_IDS[name]) for name in ("cityscapes", "cityscapes_train_ids", "wilddash"))


class Layout(NamedTuple):
    """Patterns of images, all of which count, and of labels, the first of which with any files counts, with what they hold."""

    images: tuple[str, ...]
    labels: tuple[tuple[str, Ids], ...]


class Entry(NamedTuple):
    """One dataset.

    Args:
        about: its authors, what it shows, and the devkit or loader that the layout was taken from; the docstring of its class.
        layouts: the first whose images exist counts.
        splits: the folder that `{split}` stands for, by name; the usual one first.
        download: where to get it, and what to do before it can be read.
    """

    title: str
    about: str
    layouts: tuple[Layout, ...]
    splits: Mapping[str, str]
    download: str
    usual_role: str = "target"
    mixed_shapes: bool = False
    size_advice: str = ""


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


_ANONYMOUS = Layout(  # of ACDC and DarkZurich
    ("rgb_anon/{split}/*/*_rgb_anon.png",),
    (("gt/{split}/*/*_gt_labelIds.png", LABEL_IDS), ("gt/{split}/*/*_gt_labelTrainIds.png", TRAIN_IDS)),
)

TABLE = (
    Entry(
        "GTA5",
        """"Playing for Data" (Richter et al., ECCV 2016): 24966 frames of a game, labels as paletted PNG.

        Layout: https://download.visinf.tu-darmstadt.de/data/from_games/; ids: read_mapping.zip there, those of Cityscapes.
        """,
        (Layout(("images/*.png",), (("labels/*.png", LABEL_IDS),)),),
        {"all": ""},
        "Images and labels, ten archives each, are at https://download.visinf.tu-darmstadt.de/data/from_games/.",
        usual_role="source",
        size_advice="A few pairs of GTA5 were published like this. Name the others in a list file (DATA_LIST_SOURCE); "
        "`dada check-data` tells which they are.",
    ),
    Entry(
        "UrbanSyn",
        """Gómez et al., arXiv:2312.12176: 7539 rendered streets. 19 is unlabelled.

        Layout and ids: the dataset card at https://huggingface.co/datasets/UrbanSyn/UrbanSyn.
        """,
        (Layout(("rgb/rgb_*.png",), (("ss/ss_*.png", Ids(20, train_id_map)),)),),
        {"all": ""},
        "The folders rgb and ss are at https://huggingface.co/datasets/UrbanSyn/UrbanSyn.",
        usual_role="source",
    ),
    Entry(
        "Synscapes",
        """Wrenninge and Unger, arXiv:1810.08705: 25000 rendered streets. The images of img/rgb-2k have no label of their size.

        Layout and ids: https://synscapes.on.liu.se/features.html and the devkit, github.com/7dlabs/synscapes-utils.
        """,
        (Layout(("img/rgb/*.png",), (("img/class/*.png", LABEL_IDS),)),),
        {"all": ""},
        "Request it at https://synscapes.on.liu.se/download.html.",
        usual_role="source",
    ),
    Entry(
        "ACDC",
        """Sakaridis et al., ICCV 2021: streets in fog, at night, in rain and snow. `fog_train` is the fog of `train`, and so on.

        Layout: the README of github.com/lhoyer/DAFormer, and its own, flat one that it asks for, with train ids.
        """,
        (_ANONYMOUS, Layout(("rgb_anon/{name}/*_rgb_anon.png",), (("gt/{name}/*_gt_labelTrainIds.png", TRAIN_IDS),))),
        {
            split if sky == "*" else f"{sky}_{split}": f"{sky}/{split}"
            for sky in ("*", "fog", "night", "rain", "snow")
            for split in ("train", "val", "test")
        },
        "rgb_anon_trainvaltest.zip and gt_trainval.zip are at https://acdc.vision.ee.ethz.ch/download.",
    ),
    Entry(
        "DarkZurich",
        """Sakaridis et al., ICCV 2019: Zurich at night, 50 images of val with labels; by day and twilight without.

        Layout: the README and dark_zurich.py of github.com/lhoyer/DAFormer and github.com/open-mmlab/mmsegmentation.
        """,
        (_ANONYMOUS,),
        {
            **{split: f"{split}/night" for split in ("train", "val", "test")},
            "train_twilight": "train/twilight",
            "train_day": "train/day",
        },
        "Dark_Zurich_train_anon.zip and Dark_Zurich_val_anon.zip are at https://www.trace.ethz.ch/publications/2019/GCMA_UIoU/.",
    ),
    Entry(
        "BDD100K",
        """Yu et al., CVPR 2020: 10000 images from cars in the USA, or the older release with seg/ in its paths.

        Layout and ids: github.com/open-mmlab/mmsegmentation, projects/bdd100k_dataset; the older: github.com/AutoNUE/public-code.
        """,
        (
            Layout(("images/10k/{split}/*.jpg",), (("labels/sem_seg/masks/{split}/*.png", TRAIN_IDS),)),
            Layout(("seg/images/{split}/*.jpg",), (("seg/labels/{split}/*_train_id.png", TRAIN_IDS),)),
        ),
        _same("train", "val", "test"),
        "The 10K images and the labels of semantic segmentation are at https://bdd-data.berkeley.edu.",
    ),
    Entry(
        "IDD",
        """Varma et al., WACV 2019: streets of India, parts I (PNG) and II (JPEG); labels are drawn from polygons by its devkit.

        Layout and ids: the README, helpers/anue_labels.py and preperation/createLabels.py of github.com/AutoNUE/public-code. Its
        csTrainId calls non-drivable fallback terrain, its csId leaves it out; level3Ids join classes that others keep apart.
        """,
        (
            Layout(
                ("leftImg8bit/{split}/*/*_leftImg8bit.png", "leftImg8bit/{split}/*/*_leftImg8bit.jpg"),
                (
                    ("gtFine/{split}/*/*_gtFine_labelcsIds.png", LABEL_IDS),
                    ("gtFine/{split}/*/*_gtFine_labelcsTrainIds.png", TRAIN_IDS),
                ),
            ),
        ),
        _same("train", "val", "test"),
        "IDD segmentation is at https://idd.insaan.iiit.ac.in. Draw its labels with github.com/AutoNUE/public-code: "
        "`python preperation/createLabels.py --datadir IDD --id-type csId`.",
        mixed_shapes=True,
    ),
    Entry(
        "KITTI",
        """Alhaija et al., IJCV 2018: 200 labelled images of the semantic benchmark. `train` and `test` stand for its folders.

        Layout and ids: the readme of devkit_semantics at https://www.cvlibs.net/datasets/kitti/eval_semantics.php.
        """,
        (Layout(("{split}/image_2/*.png",), (("{split}/semantic/*.png", LABEL_IDS),)),),
        {**_same("training", "testing"), "train": "training", "test": "testing"},
        "data_semantics.zip is at https://www.cvlibs.net/datasets/kitti/eval_semantics.php.",
        mixed_shapes=True,
    ),
    Entry(
        "FoggyCityscapes",
        """Sakaridis et al., IJCV 2018: Cityscapes with simulated fog, the thickest of three, and the labels of Cityscapes.

        Layout: its README, github.com/sakaridis/fog_simulation-SFSU_synthetic; Foggy Cityscapes-DBF where that alone is there.
        """,
        tuple(
            Layout(
                (f"{folder}/{{split}}/*/*_leftImg8bit_foggy_beta_0.02.png",),
                (("gtFine/{split}/*/*_gtFine_labelIds.png", LABEL_IDS),),
            )
            for folder in ("leftImg8bit_foggy", "leftImg8bit_foggyDBF")
        ),
        _same("train", "val", "test"),
        "leftImg8bit_trainvaltest_foggy.zip and gtFine_trainvaltest.zip are at https://www.cityscapes-dataset.com/downloads/.",
    ),
    Entry(
        "WildDash",
        """Zendel et al., CVPR 2022: 4256 hard scenes of the whole world, wd_public_02. Pickups are trucks, vans are cars.

        Layout and ids: github.com/ozendelait/wilddash_scripts, whose wd2_unified_label_policy.json gives the classes (`cs_name`).
        Labels as its pano2sem.py writes them are read too, while their ids are at most 38.
        """,
        (Layout(("images/*.jpg",), (("labels/*.png", WILDDASH_IDS), ("labels/*_labelIds.png", WILDDASH_IDS))),),
        {"all": ""},
        "wd_public_02.zip is, with an account, at https://wilddash.cc/download.",
    ),
)


class TableDataset(PublishedDataset):
    """A dataset of an Entry; see dataset_class."""

    entry: Entry

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by its entry, for loader processes, since its class is not in any module."""
        return _restored, (self.entry, self.__dict__)

    def find(self) -> list[Item]:
        if not (self.list_file and len(self.splits) == 1):
            self.check_split()
        layouts = self._layouts(self.split)
        present = (layout for layout in layouts if any(Pattern(text, "").find(self.root) for text in layout.images))
        layout = layouts[0] if len(layouts) == 1 else next(present, layouts[0])
        folder = Pattern(layout.images[0], "").fixed_folder
        self.require(folder, f"images for split {self.split!r}")
        lines = self.lines(folder, *(text[len(folder) + 1 :] for text in layout.images))
        labels, self.ids = self._labels(layout, lines)
        self.num_ids = self.ids.count
        self.usual_ids_above = 0 if self.ids.map_of is train_id_map else 18  # vegetation, sky and cars
        above = Pattern(self.entry.layouts[0].images[0].replace("{split}", "*"), "").fixed_folder
        names = [line.image.removeprefix(f"{above}/") for line in lines]
        return [self.item(line, label, name=name) for line, label, name in zip(lines, labels, names)]

    def map_of(self, num_classes: int) -> np.ndarray:
        return self.ids.map_of(num_classes)

    def _labels(self, layout: Layout, lines: list[Line]) -> tuple[list[str], Ids]:
        """The label of each image, and what they hold: the kind that a list names, or else the first that exists."""
        patterns = [Pattern(text, "") for text, _ in layout.labels]
        named = {k for line in lines if line.label for k, p in enumerate(patterns) if p.wildcards(line.label) is not None}
        if len(named) > 1:
            raise ValueError(
                f"{self.list_setting} names labels of several kinds, {' and '.join(patterns[k].text for k in sorted(named))}, "
                "whose ids differ: name labels of one kind"
            )
        kinds = sorted(named) or range(len(patterns))
        settled = not self.with_labels or bool(named) or all(line.label for line in lines)
        partners = self._partners(lines)
        for kind in kinds:
            labels, ids = [found[min(kind, len(found) - 1)] for found in partners], layout.labels[kind][1]
            paths = {str(self.root / label) for label in labels}
            if settled or len(image_files.missing_files(paths)) < len(paths):
                break
        else:
            self._refuse_labels(layout, labels[0])
        return labels, ids

    def _refuse_labels(self, layout: Layout, first: str) -> None:
        """Raise FileNotFoundError, which says what labels were looked for, and what is there in place of the first."""
        self.require(Pattern(layout.labels[0][0], "").fixed_folder, f"labels for split {self.split!r}")
        there = (self.root / first).parent
        seen = image_files.first_few(storage.list_dir(there)) if storage.is_dir(there) else ""
        raise FileNotFoundError(
            f"labels of {self.title} images for split {self.split!r} not found: no file matches "
            f"{' or '.join(text for text, _ in layout.labels)}\n"
            f"  ({there} {'contains: ' + seen if seen else 'is empty or does not exist'}).\n  {self.download}"
        )

    def _layouts(self, split: str) -> list[Layout]:
        """The layouts with the folder and the name of a split filled in."""

        def of_split(text: str) -> str:
            return text.replace("{split}", self.entry.splits.get(split, split)).replace("{name}", split)

        return [
            Layout(tuple(map(of_split, images)), tuple((of_split(text), ids) for text, ids in labels))
            for images, labels in self.entry.layouts
        ]

    def _partners(self, lines: list[Line]) -> list[list[str]]:
        """Where the label of each image lies, for every kind; a list may name images of other splits, whose labels lie there."""
        layouts = [layout for split in dict.fromkeys((self.split, *self.entry.splits)) for layout in self._layouts(split)]
        pairs = [
            (Pattern(text, ""), [Pattern(label, "") for label, _ in layout.labels])
            for layout in layouts
            for text in layout.images
        ]

        def of(line: Line) -> list[str]:
            for image, labels in pairs:
                if (found := image.wildcards(line.image)) is not None:
                    return [label.filled(found) for label in labels]
            if line.label or not self.with_labels:
                return [line.label or ""]
            raise FileNotFoundError(
                f"{self.title} image {line.image} of {self.list_setting} does not match {' or '.join(layouts[0].images)}, so "
                "its label is not known: write it after the image, separated by a tab"
            )

        return [of(line) for line in lines]


def dataset_class(entry: Entry) -> type[TableDataset]:
    """The dataset that `entry` describes, for DATASETS."""
    first = entry.layouts[0]
    values = {
        "entry": entry,
        "title": entry.title,
        "splits": tuple(entry.splits),
        "usual_role": entry.usual_role,
        "mixed_shapes": entry.mixed_shapes,
        "download": entry.download,
        "holds": " and ".join(sorted({text.split("/")[0] + "/" for text in (first.images[0], first.labels[0][0])}, reverse=True)),
        "size_advice": entry.size_advice or TableDataset.size_advice,
        "__doc__": entry.about,
        "__module__": __name__,
    }
    return type(entry.title, (TableDataset,), values)


def _restored(entry: Entry, state: dict[str, Any]) -> TableDataset:
    dataset = object.__new__(dataset_class(entry))
    dataset.__dict__.update(state)
    return dataset
