"""From the cfg to networks and loaders: the only place, besides scripts and trainer, that reads it."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader

from dada.config import not_imported, sources
from dada.dataset import DATASETS, EvalTransform, SegmentationDataset, TrainTransform, build_dataset, step_loader
from dada.dataset.image_files import first_few
from dada.dataset.joined import Joined, parts_of
from dada.dataset.loader import Loader
from dada.dataset.own_classes import own_classes
from dada.dataset.parallel_map import parallel_map
from dada.dataset.plca_numbering import number_as_plca, plca_order
from dada.dataset.rare_classes import RareClasses, class_counts
from dada.dataset.sample import Batch, collate_by_size
from dada.dataset.sampler import mixed_seed
from dada.dataset.spread import spread
from dada.label_sets import OTHER_LABEL, LabelSet, label_set, label_set_from_info
from dada.matmul_precision import matmul_precision
from dada.model import SegmentationModel, build_model, load_weights
from dada.model.weight_formats import shortened
from dada.normalization import CAFFE_BGR, TORCHVISION_RGB, Normalization
from dada.parallel.device import choose_device
from dada.parallel.distributed import share_of
from dada.parallel.ranks import rank, world_size

log = logging.getLogger(__name__)


@contextmanager
def on_device(cfg: Any, *, fixed_sizes: bool = False) -> Iterator[torch.device]:
    """The device of `choose_device`; within the block, TRAIN.MATMUL_PRECISION holds for products of float32 matrices.

    Args:
        fixed_sizes: images come in few sizes, as those of training do, so that a search for the fastest convolutions pays.
    """
    device = choose_device(cfg)
    with matmul_precision(cfg.TRAIN.MATMUL_PRECISION, device), cudnn_search(fixed_sizes and device.type == "cuda"):
        yield device


@contextmanager
def cudnn_search(wanted: bool) -> Iterator[None]:
    """Whether cuDNN times its algorithms for every new size of a convolution and keeps the fastest, within the block.

    Another process may choose another algorithm, whose results differ in the last bits; so nothing is searched if torch was asked
    for deterministic convolutions.
    """
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark
    cudnn.benchmark = wanted and not cudnn.deterministic
    try:
        yield
    finally:
        cudnn.benchmark = before


def build_network(
    cfg: Any, weights: str, *, name: str = "", multi_level: bool | None = None, trained: bool = False, head: bool = True
) -> SegmentationModel:
    """Network `name` (TRAIN.MODEL if empty) with `weights`, and the normalization that TRAIN.IMG_MODE asks for.

    `head`: see load_weights.

    Raises:
        ValueError: `weights` do not fit; or the network is to be a `trained` one and they are of an encoder alone.
    """
    train = cfg.TRAIN
    with without_imports(cfg):
        network = build_model(
            name or train.MODEL,
            cfg.NUM_CLASSES,
            multi_level=train.MULTI_LEVEL if multi_level is None else multi_level,
            head_bias=train.HEAD_BIAS,
            with_depth=cfg.USE_DEPTH,
            bn_policy=train.BN_POLICY,
            domain_bn=train.DOMAIN_BN,
            output_stride=train.OUTPUT_STRIDE,
        )
    if missing := not_imported(cfg):
        log.warning("%s", missing)
    network.set_recompute(train.RECOMPUTE)
    if train.ADAPTER and not trained:  # a network that predicts has them merged
        network.add_low_rank(train.LORA_LAYERS, train.LORA_RANK, train.LORA_ALPHA)
    elif train.FREEZE_ENCODER:
        network.freeze_backbone()
    plca_order = cfg.LEGACY.PLCA_CLASS_ORDER
    report = load_weights(network, weights, plca_class_order=plca_order, accept_licence=train.ACCEPT_LICENCE, head=head)
    if trained and report.missing:
        raise ValueError(
            f"{weights} holds no trained network: {shortened(report.missing, 3)} are not in it. It may be the ImageNet "
            "weights that a training starts from; give a snapshot, or published weights of a whole network"
        )
    network.normalization = _normalization(cfg, network.normalization)
    # The weights alone decide: a convolution with channels-last weights gives channels-last maps.
    return network.to(memory_format=torch.channels_last) if train.CHANNELS_LAST else network


@contextmanager
def without_imports(cfg: Any) -> Iterator[None]:
    """Errors within the block also say which of IMPORTS are not imported, since the missing name may be theirs."""
    try:
        yield
    except ValueError as error:
        if missing := not_imported(cfg):
            raise ValueError(f"{error}; {missing}") from error
        raise


def _normalization(cfg: Any, of_the_weights: Normalization) -> Normalization:
    mode = cfg.TRAIN.IMG_MODE
    if mode == "RGB":
        return TORCHVISION_RGB
    if mode == "BGR" or of_the_weights == CAFFE_BGR:
        return dataclasses.replace(CAFFE_BGR, mean=tuple(cfg.TRAIN.IMG_MEAN))
    return of_the_weights


def source_loader(cfg: Any, normalization: Normalization, steps: int, start_step: int = 0) -> DataLoader:
    """Labelled batches of the source, one for each of the steps start_step .. steps - 1."""
    train = cfg.TRAIN

    def transform(name: str) -> TrainTransform:
        return _train_transform(cfg, name, normalization, tuple(train.INPUT_SIZE_SOURCE))

    dataset = _source(cfg, transform, with_depth=cfg.USE_DEPTH, seed=train.RANDOM_SEED)
    by_class = [_by_class(cfg, part) for part in parts_of(dataset)] if train.RARE_CLASS_TEMPERATURE else []
    return _train_loader(cfg, dataset, train.BATCH_SIZE_SOURCE, steps, "source", start_step, by_class)


def _source(cfg: Any, transform_of: Callable[[str], Callable], split: str = "", **options: Any) -> SegmentationDataset | Joined:
    """The source, or several as one. `split`: of each; empty for those of training. `options`: as of _dataset."""
    parts, several = [], sources(cfg)
    for number, one in enumerate(several, start=1):
        try:
            info, part = one.TRAIN.INFO_SOURCE, split or one.TRAIN.SET_SOURCE
            dataset = _dataset(one, "source", part, transform_of(one.SOURCE), info=info, **options)
            parts.append(_numbered(one, dataset))
        except (ValueError, FileNotFoundError) as error:
            if len(several) == 1:
                raise
            raise type(error)(f"source {number} of {len(several)}, {one.SOURCE}: {error}") from error
    return parts[0] if len(parts) == 1 else Joined(parts)


def _by_class(cfg: Any, dataset: SegmentationDataset) -> Callable[..., tuple[int, int]]:
    @cache
    def classes() -> RareClasses:  # at the first draw: counting reads every label
        counts = class_counts(dataset, Path(cfg.EXP_ROOT) / "class_counts", loading(cfg)["num_workers"])
        return RareClasses(counts, cfg.TRAIN.RARE_CLASS_TEMPERATURE)

    return lambda *parts: classes().draw(*parts)


def target_loader(
    cfg: Any, normalization: Normalization, steps: int, start_step: int = 0, second_view: bool = False, plain: bool = False
) -> DataLoader:
    """Unlabelled batches of the target, one for each of the steps start_step .. steps - 1; label files are never opened.

    With `plain`, their colours are those of the files.
    """
    train = cfg.TRAIN
    transform = _train_transform(cfg, cfg.TARGET, normalization, tuple(train.INPUT_SIZE_TARGET), second_view, plain)
    options = {"info": train.INFO_TARGET, "with_labels": False, "seed": train.RANDOM_SEED}
    dataset = _numbered(cfg, _dataset(cfg, "target", train.SET_TARGET, transform, **options))
    return _train_loader(cfg, dataset, train.BATCH_SIZE_TARGET, steps, "target", start_step)


def labelled_loader(cfg: Any, normalization: Normalization, steps: int, start_step: int = 0) -> DataLoader:
    """Batches of the images of TARGET_LABELLED with their labels, one for each of the steps start_step .. steps - 1.

    Raises:
        ValueError: some of them are tested, too.
    """
    train = cfg.TRAIN
    dataset = labelled_target(cfg, _train_transform(cfg, cfg.TARGET, normalization, tuple(train.INPUT_SIZE_TARGET)))
    role, _, split = train.EVAL_SPLIT.partition(":")
    for tested in {cfg.TEST.SET_TARGET, *([split] if train.EVAL_EVERY and role == "target" else [])}:
        try:
            images = _dataset(cfg, "target", tested, dataset.transform, with_labels=False)
        except (ValueError, FileNotFoundError):  # no test is possible here; where one is, it looks itself
            continue
        _check_apart(dataset, images, tested)
    return _train_loader(cfg, dataset, train.BATCH_SIZE_LABELLED, steps, "labelled", start_step)


def labelled_target(cfg: Any, transform: Callable) -> SegmentationDataset:
    """The images that TARGET_LABELLED means, with their labels.

    Raises:
        ValueError, FileNotFoundError: fewer images have a label file than it asks for, or what it names is not there.
    """
    asked, train = cfg.TARGET_LABELLED, cfg.TRAIN
    number = re.fullmatch(r"(random )?(\d+)", asked)
    options = {"info": train.INFO_TARGET, "seed": train.RANDOM_SEED, "list_setting": "TARGET_LABELLED"}
    if number or asked == "all":
        options |= {"labelled_only": True, "list_setting": ""}
    else:
        options["list_file"] = asked
    try:
        dataset = _numbered(cfg, _dataset(cfg, "target", train.SET_TARGET, transform, **options))
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


def _check_apart(labelled: SegmentationDataset, tested: SegmentationDataset, split: str) -> None:
    """Raise ValueError if a labelled image is one of those that are tested."""
    places = {os.path.realpath(item.image) for item in tested.items}
    if both := [item.image for item in labelled.items if os.path.realpath(item.image) in places]:
        raise ValueError(
            f"{len(both)} of the {len(labelled)} images of TARGET_LABELLED are tested, too (split {split!r}): {first_few(both)}. "
            "A network that has learnt their labels is no measure: take others, or test on another split"
        )


def target_images(cfg: Any, normalization: Normalization, count: int) -> DataLoader:
    """`count` images of `unlabelled_target`, (3, H, W) each, evenly spaced.

    Where ON_BAD_FILE is skip, one that cannot be read is None.
    """
    dataset = unlabelled_target(cfg, normalization)
    dataset.skip_bad_files = cfg.ON_BAD_FILE == "skip"
    return parallel_map(partial(_image_or_none, dataset), spread(len(dataset), count), **loading(cfg))


def unlabelled_target(cfg: Any, normalization: Normalization) -> SegmentationDataset:
    """Whole images of the target's training split at the size of the test; label files are never opened."""
    transform = eval_transform(cfg, normalization, cfg.TARGET)
    return _dataset(cfg, "target", cfg.TRAIN.SET_TARGET, transform, info=cfg.TRAIN.INFO_TARGET, with_labels=False)


def files_of(cfg: Any, what: str, *, images_only: bool = False) -> SegmentationDataset:
    """What a run reads of its "source", "target", "labelled" target or "test", to look at the files.

    No image is normalised as a network wants. Of several sources, give the cfg of one.

    With `images_only`, labels and depth are left out and need not exist.
    """
    if images_only:
        split = {"source": cfg.TRAIN.SET_SOURCE, "test": cfg.TEST.SET_TARGET}.get(what, cfg.TRAIN.SET_TARGET)
        role = "source" if what == "source" else "target"
        return _dataset(cfg, role, split, eval_transform(cfg, TORCHVISION_RGB, cfg[role.upper()]), with_labels=False)
    if what == "test":
        return eval_loader(cfg, TORCHVISION_RGB).dataset
    loaders = {"source": source_loader, "target": target_loader, "labelled": labelled_loader}
    return loaders[what](cfg, TORCHVISION_RGB, steps=1).dataset


def _image_or_none(dataset: SegmentationDataset, index: int) -> torch.Tensor | None:
    try:
        return dataset[index].image
    except (ValueError, OSError):
        if not dataset.skip_bad_files:
            raise
        return None


def _dataset(cfg: Any, role: str, split: str, transform: Callable, **options: Any) -> SegmentationDataset:
    """A split of the source or the target. `options`: of build_dataset, where source, target and test differ."""
    upper = role.upper()
    options = {"list_file": cfg[f"DATA_LIST_{upper}"], **options, **_own_options(cfg, cfg[upper], role)}
    options["num_classes"] = cfg.NUM_CLASSES
    root = cfg[f"DATA_DIRECTORY_{upper}"]
    with without_imports(cfg):
        return build_dataset(cfg[upper], root, split=split, transform=transform, role=role, **options)


def _own_options(cfg: Any, name: str, role: str) -> dict[str, Any]:
    """The settings that only the dataset of that name takes."""
    if name == "SYNTHIA":
        return {"published": cfg.LEGACY.SYNTHIA_7_MAP}
    if name == "Mapillary":
        return {"version": cfg.MAPILLARY_VERSION}
    if name == "Folder":
        options = cfg[f"FOLDER_{role.upper()}"]
        names, colors = cfg.CLASSES.NAMES, cfg.CLASSES.COLORS
        return {
            "classes": own_classes(names, colors) if names or colors else None,
            "images": options.IMAGES,
            "labels": options.LABELS,
            "depth": options.DEPTH,
            "white": options.WHITE,
            "orientation": options.ORIENTATION,
            "label_format": options.LABEL_FORMAT,
            "label_map": options.LABEL_MAP,
            "default": options.DEFAULT,
        }
    return {}


def _numbered(cfg: Any, dataset: SegmentationDataset) -> SegmentationDataset:
    """The dataset, with classes that are the network's, numbered as LEGACY.PLCA_CLASS_ORDER asks.

    Raises:
        ValueError: it has others.
    """
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


def _mixed_shapes(name: str) -> bool:
    """Whether the images of that dataset are of many shapes, and so must not be squashed to one."""
    return name in DATASETS and DATASETS[name].mixed_shapes


def _train_transform(
    cfg: Any, name: str, normalization: Normalization, size: tuple[int, int], second_view: bool = False, plain: bool = False
) -> TrainTransform:
    options = cfg.DATA_TRANSFORM
    crops = options.RANDOM_RESIZE_AND_CROP
    fit = _mixed_shapes(name) and not crops
    squash = cfg.LEGACY.SQUASHING_RESIZE and not crops and not fit
    return TrainTransform(
        normalization,
        resize=size if squash else None,
        cover=None if crops or squash or fit else size,
        fit=size if fit else None,
        load_size=(options.LOADSIZE, int(1.3 * options.LOADSIZE)) if crops else None,
        crop=(options.CROPSIZE, options.CROPSIZE) if crops else None,
        flip=options.FLIP,
        color_jitter=0.0 if plain else options.COLOR_JITTER,
        second_view=second_view,
    )


def _train_loader(
    cfg: Any,
    dataset: SegmentationDataset | Joined,
    batch_size: int,
    steps: int,
    stream: str,
    start_step: int,
    by_class: Sequence[Callable[..., tuple[int, int]]] = (),
) -> DataLoader:
    seed = cfg.TRAIN.RANDOM_SEED
    parts = parts_of(dataset)
    for part in parts:
        part.skip_bad_files = cfg.ON_BAD_FILE == "skip"
    shares = [(len(part), one.SOURCE_SHARE) for part, one in zip(parts, sources(cfg))] if len(parts) > 1 else []
    own = share_of(batch_size, f"TRAIN.BATCH_SIZE_{stream.upper()}")
    slots = range(own * rank(), own * (rank() + 1))
    drawn = {"stream": stream, "parts": shares, "by_class": by_class}
    steps_to_load = {"slots": slots, "start_step": start_step, "stop_step": steps, **drawn}
    return step_loader(dataset, batch_size, seed=seed, **steps_to_load, **loading(cfg))


def eval_transform(cfg: Any, normalization: Normalization, name: str) -> EvalTransform:
    """How the TEST section prepares images of the dataset `name`."""
    test = cfg.TEST
    return EvalTransform(
        normalization,
        size=tuple(test.INPUT_SIZE_TARGET),
        resample=test.RESAMPLE,
        label_size=tuple(test.OUTPUT_SIZE_TARGET) or None,
        keep_ratio=test.KEEP_RATIO,
        pad=_mixed_shapes(name) and not test.KEEP_RATIO,
    )


def eval_loader(cfg: Any, normalization: Normalization, role: str = "target", split: str = "") -> DataLoader:
    """Labelled images of TEST.SET_TARGET, or of another split of source or target, each once, in order.

    They are prepared as the TEST section says. Of several processes each has every N-th batch.

    Args:
        split: empty for TEST.SET_TARGET, and for what is trained on of the source.

    Raises:
        ValueError: some were trained on, as TARGET_LABELLED says.
    """
    test = cfg.TEST
    if role == "source":
        dataset = _source(cfg, partial(eval_transform, cfg, normalization), split)
    else:
        split, transform = split or test.SET_TARGET, eval_transform(cfg, normalization, cfg.TARGET)
        dataset = _numbered(cfg, _dataset(cfg, role, split, transform, info=test.INFO_TARGET))
        if cfg.TARGET_LABELLED:
            try:
                labelled = labelled_target(cfg, transform)
            except (ValueError, FileNotFoundError) as error:
                log.warning("whether images that are tested were trained on with their labels is not known: %s", error)
            else:
                _check_apart(labelled, dataset, split)
    for part in parts_of(dataset):
        if test.CLASS_RULE == "count":
            part.id_map = np.where(part.other_ids, OTHER_LABEL, part.id_map).astype(np.uint8)
    # Batches are shared, not images: each is the one that a single process would predict, to the last bit.
    batches = list(BatchSampler(range(len(dataset)), test.BATCH_SIZE_TARGET, drop_last=False))[rank() :: world_size()]
    return EvalLoader(dataset, batch_sampler=batches, collate_fn=collate_by_size, **loading(cfg))


class EvalLoader(Loader):
    """Batches of test images; images, or labels, of other sizes make a batch of their own."""

    def __iter__(self) -> Iterator[Batch]:
        for batches in super().__iter__():
            yield from batches


def loading(cfg: Any) -> dict[str, Any]:
    """Options of a Loader."""
    # More loaders than cores only take turns; a laptop should not need to know about NUM_WORKERS.
    workers = min(cfg.NUM_WORKERS, os.cpu_count() or 1)
    return {"num_workers": workers, "pin_memory": choose_device(cfg).type == "cuda"}


def classes_of(cfg: Any) -> LabelSet:
    """Names and colours of the classes that a network trained with `cfg` predicts.

    Raises:
        FileNotFoundError, ValueError: the info file is not there; the numbers of names and colours differ.
    """
    if cfg.CLASSES.NAMES:
        return own_classes(cfg.CLASSES.NAMES, cfg.CLASSES.COLORS)
    info = cfg.TRAIN.INFO_TARGET or cfg.TEST.INFO_TARGET
    classes = label_set_from_info(info).label_set if info else label_set(cfg.NUM_CLASSES)
    return plca_order(classes) if cfg.LEGACY.PLCA_CLASS_ORDER else classes
