"""What a cfg has read of source and target, as datasets; several of a role are one, made of parts."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any

import numpy as np

from dada.build.network import without_imports
from dada.config import each_dataset, naming_one
from dada.dataset import DATASETS, EvalTransform, SegmentationDataset, TrainTransform, build_dataset, storage
from dada.dataset.image_files import first_few
from dada.dataset.joined import Joined, parts_of
from dada.dataset.own_classes import own_classes
from dada.dataset.plca_numbering import number_as_plca
from dada.dataset.sampler import mixed_seed
from dada.dataset.spread import spread
from dada.label_sets import OTHER_LABEL
from dada.normalization import TORCHVISION_RGB, Normalization

log = logging.getLogger(__name__)


def joined(cfg: Any, role: str, part: Callable[[Any], SegmentationDataset | None]) -> SegmentationDataset | Joined:
    """What `part` makes of the cfg of each dataset of "source" or "target", as one; None leaves it out.

    Errors say which of several datasets they are about.
    """
    parts, shares, several = [], [], each_dataset(cfg, role)
    for number, one in enumerate(several, start=1):
        with naming_one(several, number, role):
            dataset = part(one)
        if dataset is not None:
            parts.append(dataset)
            shares.append(one[f"{role.upper()}_SHARE"])
    return parts[0] if len(parts) == 1 else Joined(parts, shares)


def train_images(
    cfg: Any, role: str, normalization: Normalization, second_view: bool = False, plain: bool = False
) -> SegmentationDataset | Joined:
    """Images of "source", with labels, or of "target", whose label files are never opened, augmented for training.

    With `plain`, their colours are those of the files.
    """

    def part(one: Any) -> SegmentationDataset:
        transform = _train_transform(one, role, normalization, second_view, plain)
        read = {"with_depth": one.USE_DEPTH} if role == "source" else {"with_labels": False}
        return _dataset(one, role, transform, seed=one.TRAIN.RANDOM_SEED, **read)

    return joined(cfg, role, part)


def unlabelled_target(cfg: Any, normalization: Normalization) -> SegmentationDataset | Joined:
    """Whole images of the target's training split at the size of the test; label files are never opened."""
    return joined(cfg, "target", lambda one: _dataset(one, "target", eval_transform(one, normalization), with_labels=False))


def tested_images(
    cfg: Any, normalization: Normalization, role: str = "target", splits: Sequence[str] = ()
) -> SegmentationDataset | Joined:
    """Labelled images of TEST.SET_TARGET, or of other splits of "source" or "target", prepared as the TEST section says.

    Args:
        splits: one for each dataset of the role; empty for TEST.SET_TARGET, and for what is trained on of the source.

    Raises:
        ValueError: some were trained on, as TARGET_LABELLED says.
    """
    each = iter(splits or [""] * len(each_dataset(cfg, role)))

    def part(one: Any) -> SegmentationDataset:
        section = "TEST" if role == "target" else "TRAIN"
        dataset = _dataset(one, role, eval_transform(one, normalization, role), section, next(each))
        if one.TEST.CLASS_RULE == "count":
            dataset.id_map = np.where(dataset.other_ids, OTHER_LABEL, dataset.id_map).astype(np.uint8)
        return dataset

    dataset = joined(cfg, role, part)
    if role == "target" and cfg.TARGET_LABELLED:
        try:
            labelled = labelled_target(cfg)
        except (ValueError, FileNotFoundError) as error:
            log.warning("whether images that are tested were trained on with their labels is not known: %s", error)
        else:
            for one, tested, split in zip(each_dataset(cfg, role), parts_of(dataset), splits or repeat("")):
                _check_apart(labelled, tested, split or one.TEST.SET_TARGET)
    return dataset


def train_labelled(cfg: Any, normalization: Normalization) -> SegmentationDataset | Joined:
    """The images of `labelled_target`, augmented.

    Raises:
        ValueError: some of them are tested, too.
    """
    dataset = labelled_target(cfg, lambda one: _train_transform(one, "target", normalization))
    role, splits = evaluated_splits(cfg) if cfg.TRAIN.EVAL_EVERY else ("", ())
    for number, one in enumerate(each_dataset(cfg, "target")):
        for tested in {one.TEST.SET_TARGET, *(splits[number : number + 1] if role == "target" else [])}:
            try:
                images = _dataset(one, "target", None, "TEST", tested, with_labels=False)
            except (ValueError, FileNotFoundError):  # no test is possible here; where one is, it looks itself
                continue
            _check_apart(dataset, images, tested)
    return dataset


def evaluated_splits(cfg: Any) -> tuple[str, list[str]]:
    """What TRAIN.EVAL_SPLIT says: "source" or "target", and the split of each dataset of it.

    Raises:
        ValueError: it says neither, or not as many splits as there are datasets.
    """
    role, _, text = cfg.TRAIN.EVAL_SPLIT.partition(":")
    splits = [split.strip() for split in text.split(",")]
    if role not in ("source", "target") or not all(splits):
        raise ValueError(
            f"TRAIN.EVAL_SPLIT is {cfg.TRAIN.EVAL_SPLIT!r}, expected 'source:' or 'target:' and the name of a split with "
            "labels, 'source:val' for example; or set TRAIN.EVAL_EVERY to 0"
        )
    count = len(each_dataset(cfg, role))
    if len(splits) not in (1, count):
        raise ValueError(
            f"TRAIN.EVAL_SPLIT is {cfg.TRAIN.EVAL_SPLIT!r}, which names {len(splits)} splits, but {role.upper()} names "
            f"{count} dataset{'s' * (count > 1)}: give one split for each, with commas between them, or one for all"
        )
    return role, splits * (count // len(splits))


def labelled_target(cfg: Any, transform_of: Callable[[Any], Any] = lambda one: None) -> SegmentationDataset | Joined:
    """The images that TARGET_LABELLED means, with their labels.

    Args:
        transform_of: the cfg of a target -> the transform of its images.

    Raises:
        ValueError, FileNotFoundError: fewer images have a label file than it asks for, or what it names is not there.
    """

    def part(one: Any) -> SegmentationDataset | None:
        return _labelled(one, transform_of(one)) if one.TARGET_LABELLED else None

    if not any(one.TARGET_LABELLED for one in each_dataset(cfg, "target")):
        raise ValueError(
            f"TARGET_LABELLED is {list(cfg.TARGET_LABELLED)}, which is no image of any target: name some, or leave it out"
        )
    return joined(cfg, "target", part)


def _labelled(cfg: Any, transform: Any) -> SegmentationDataset:
    asked, train = cfg.TARGET_LABELLED, cfg.TRAIN
    number = re.fullmatch(r"(random )?(\d+)", asked)
    options: dict[str, Any] = {"seed": train.RANDOM_SEED, "list_setting": "TARGET_LABELLED"}
    if number or asked == "all":
        options |= {"labelled_only": True, "list_setting": ""}
    else:
        options["list_file"] = asked
    try:
        dataset = _dataset(cfg, "target", transform, **options)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"TARGET_LABELLED {asked}: {error}") from error
    dataset.stream = "labelled target"
    if number:
        count, there = int(number[2]), len(dataset)
        if not 1 <= count <= there:
            raise ValueError(
                f"TARGET_LABELLED is {asked}, but expected 1 to {there}: so many images of {dataset.title} {train.SET_TARGET} "
                "have a label file"
            )
        order = np.random.default_rng(mixed_seed(train.RANDOM_SEED, "labelled")).permutation(there)
        chosen = sorted(order[:count].tolist()) if number[1] else spread(there, count)
        dataset.items = [dataset.items[index] for index in chosen]
    return dataset


def _check_apart(labelled: SegmentationDataset | Joined, tested: SegmentationDataset, split: str) -> None:
    """Raise ValueError if a labelled image is one of those that are tested, or a copy of one."""
    both = storage.same_files([item.image for item in labelled.items], [item.image for item in tested.items])
    if both:
        named = first_few([file if file == other else f"{file} (a copy of {other})" for file, other in both.items()])
        raise ValueError(
            f"{len(both)} of the {len(labelled)} images of TARGET_LABELLED are tested, too (split {split!r}): {named}. A network "
            "that has learnt their labels is no measure: take others, or test on another split"
        )


def files_of(cfg: Any, what: str, *, images_only: bool = False) -> SegmentationDataset | Joined:
    """What a run reads of its "source", "target", "labelled" target or "test", to look at the files.

    No image is normalised as a network wants.

    With `images_only`, labels and depth are left out and need not exist.
    """
    if images_only:
        role = "source" if what == "source" else "target"
        section = "TEST" if what == "test" else "TRAIN"
        transform = eval_transform(cfg, TORCHVISION_RGB, role)
        return joined(cfg, role, lambda one: _dataset(one, role, transform, section, with_labels=False))
    if what in ("source", "target"):
        return train_images(cfg, what, TORCHVISION_RGB)
    return (train_labelled if what == "labelled" else tested_images)(cfg, TORCHVISION_RGB)


def _dataset(
    cfg: Any, role: str, transform: Callable | None, section: str = "TRAIN", split: str = "", **options: Any
) -> SegmentationDataset:
    """A split of the source or the target, of which `cfg` names one; its classes are the network's.

    Args:
        section: "TRAIN" or "TEST", which says what its label ids are, and which split is meant if `split` is empty.
        options: of build_dataset, where source, target and test differ.
    """
    upper = role.upper()
    options = {"list_file": cfg[f"DATA_LIST_{upper}"], **options, **_own_options(cfg, cfg[upper], role)}
    options |= {"num_classes": cfg.NUM_CLASSES, "info": cfg[section][f"INFO_{upper}"], "transform": transform}
    split = split or cfg[section][f"SET_{upper}"]
    with without_imports(cfg):
        dataset = build_dataset(cfg[upper], cfg[f"DATA_DIRECTORY_{upper}"], split=split, role=role, **options)
    names = tuple(cfg.CLASSES.NAMES)
    if dataset.num_classes != cfg.NUM_CLASSES or (names and dataset.classes.names != names):
        wanted = f"CLASSES.NAMES are {', '.join(names)}" if names else f"NUM_CLASSES is {cfg.NUM_CLASSES}"
        raise ValueError(
            f"{wanted}, but the classes of {dataset.title} are {', '.join(dataset.classes.names)} "
            f"({dataset.num_classes}). Source, target and network must have the same classes in the same order: "
            "describe those of the dataset in a JSON file, TRAIN.INFO_SOURCE, TRAIN.INFO_TARGET or TEST.INFO_TARGET."
        )
    if cfg.LEGACY.PLCA_CLASS_ORDER:
        number_as_plca(dataset)
    return dataset


def _own_options(cfg: Any, name: str, role: str) -> dict[str, Any]:
    """The settings that only the dataset of that name takes."""
    if name == "SYNTHIA":
        return {"published": cfg.LEGACY.SYNTHIA_7_MAP}
    if name == "Mapillary":
        return {"version": cfg.MAPILLARY_VERSION}
    if name == "Folder":
        names, colors = cfg.CLASSES.NAMES, cfg.CLASSES.COLORS
        classes = own_classes(names, colors) if names or colors else None
        return {"classes": classes, **{key.lower(): value for key, value in cfg[f"FOLDER_{role.upper()}"].items()}}
    return {}


def _mixed_shapes(name: str) -> bool:
    """Whether the images of that dataset are of many shapes, and so must not be squashed to one."""
    return name in DATASETS and DATASETS[name].mixed_shapes


def eval_transform(cfg: Any, normalization: Normalization, role: str = "target") -> EvalTransform:
    """How the TEST section prepares images of "source" or "target"; of several, as those of any that is of many shapes."""
    test = cfg.TEST
    mixed = any(_mixed_shapes(one[role.upper()]) for one in each_dataset(cfg, role))
    return EvalTransform(
        normalization,
        size=tuple(test.INPUT_SIZE_TARGET),
        resample=test.RESAMPLE,
        label_size=tuple(test.OUTPUT_SIZE_TARGET) or None,
        keep_ratio=test.KEEP_RATIO,
        pad=mixed and not test.KEEP_RATIO,
    )


def _train_transform(
    cfg: Any, role: str, normalization: Normalization, second_view: bool = False, plain: bool = False
) -> TrainTransform:
    options = cfg.DATA_TRANSFORM
    if options.RANDOM_RESIZE_AND_CROP:
        size = {"load_size": (options.LOADSIZE, int(1.3 * options.LOADSIZE)), "crop": (options.CROPSIZE, options.CROPSIZE)}
    else:
        rule = "fit" if _mixed_shapes(cfg[role.upper()]) else "resize" if cfg.LEGACY.SQUASHING_RESIZE else "cover"
        size = {rule: tuple(cfg.TRAIN[f"INPUT_SIZE_{role.upper()}"])}
    jitter = 0.0 if plain else options.COLOR_JITTER
    return TrainTransform(normalization, **size, flip=options.FLIP, color_jitter=jitter, second_view=second_view)
