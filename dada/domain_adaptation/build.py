"""From the cfg to networks and loaders: the only place, besides scripts and trainer, that reads it."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from dada.dataset import (
    IGNORE_LABEL,
    SegmentationDataset,
    TestTransform,
    TrainTransform,
    build_dataset,
    collate,
    step_loader,
)
from dada.dataset.label_sets import cityscapes_id_map
from dada.domain_adaptation.metrics import OTHER_LABEL
from dada.model import SegmentationModel, build_model, load_weights
from dada.normalization import CAFFE_BGR, TORCHVISION_RGB, Normalization


def choose_device(cfg: Any) -> torch.device:
    """CUDA device GPU_ID where there is one, else the CPU.

    Raises:
        ValueError: GPU_ID names a device that this machine lacks.
    """
    if cfg.GPU_ID < 0 or not torch.cuda.is_available():
        return torch.device("cpu")
    if cfg.GPU_ID >= torch.cuda.device_count():
        raise ValueError(f"GPU_ID is {cfg.GPU_ID}, but this machine has {torch.cuda.device_count()} CUDA devices")
    return torch.device("cuda", cfg.GPU_ID)


def build_network(cfg: Any, weights: str, *, name: str = "", multi_level: bool | None = None) -> SegmentationModel:
    """Network `name` (TRAIN.MODEL if empty) with `weights`, and the normalization that TRAIN.IMG_MODE asks for."""
    train = cfg.TRAIN
    network = build_model(
        name or train.MODEL,
        cfg.NUM_CLASSES,
        multi_level=train.MULTI_LEVEL if multi_level is None else multi_level,
        head_bias=train.HEAD_BIAS,
        bn_policy=train.BN_POLICY,
        output_stride=train.OUTPUT_STRIDE,
    )
    network.set_recompute(train.RECOMPUTE)
    load_weights(network, weights)
    network.normalization = _normalization(cfg, network.normalization)
    # The weights alone decide: a convolution with channels-last weights gives channels-last maps.
    return network.to(memory_format=torch.channels_last) if train.CHANNELS_LAST else network


def _normalization(cfg: Any, of_the_weights: Normalization) -> Normalization:
    mode = cfg.TRAIN.IMG_MODE
    if mode == "RGB":
        return TORCHVISION_RGB
    if mode == "BGR" or of_the_weights == CAFFE_BGR:
        return dataclasses.replace(CAFFE_BGR, mean=tuple(cfg.TRAIN.IMG_MEAN))
    return of_the_weights


def source_loader(cfg: Any, normalization: Normalization, steps: int) -> DataLoader:
    """Labelled batches of the source, one for each of `steps`."""
    train = cfg.TRAIN
    dataset = build_dataset(
        cfg.SOURCE,
        cfg.DATA_DIRECTORY_SOURCE,
        split=train.SET_SOURCE,
        num_classes=cfg.NUM_CLASSES,
        list_file=cfg.DATA_LIST_SOURCE,
        transform=_train_transform(cfg, normalization, tuple(train.INPUT_SIZE_SOURCE)),
        with_depth=cfg.USE_DEPTH,
        seed=train.RANDOM_SEED,
        role="source",
    )
    return _train_loader(cfg, dataset, train.BATCH_SIZE_SOURCE, steps, "source")


def target_loader(cfg: Any, normalization: Normalization, steps: int, second_view: bool = False) -> DataLoader:
    """Unlabelled batches of the target, one for each of `steps`; label files are never opened."""
    train = cfg.TRAIN
    dataset = build_dataset(
        cfg.TARGET,
        cfg.DATA_DIRECTORY_TARGET,
        split=train.SET_TARGET,
        num_classes=cfg.NUM_CLASSES,
        list_file=cfg.DATA_LIST_TARGET,
        transform=_train_transform(cfg, normalization, tuple(train.INPUT_SIZE_TARGET), second_view),
        with_labels=False,
        seed=train.RANDOM_SEED,
        info=train.INFO_TARGET,
        role="target",
    )
    return _train_loader(cfg, dataset, train.BATCH_SIZE_TARGET, steps, "target")


def _train_transform(
    cfg: Any, normalization: Normalization, size: tuple[int, int], second_view: bool = False
) -> TrainTransform:
    options = cfg.DATA_TRANSFORM
    crops = options.RANDOM_RESIZE_AND_CROP
    return TrainTransform(
        normalization,
        resize=None if crops else size,
        load_size=(options.LOADSIZE, int(1.3 * options.LOADSIZE)) if crops else None,
        crop=(options.CROPSIZE, options.CROPSIZE) if crops else None,
        flip=options.FLIP,
        color_jitter=options.COLOR_JITTER,
        blur=options.BLUR,
        second_view=second_view,
    )


def _train_loader(cfg: Any, dataset: SegmentationDataset, batch_size: int, steps: int, stream: str) -> DataLoader:
    seed = cfg.TRAIN.RANDOM_SEED
    return step_loader(dataset, batch_size, seed=seed, stop_step=steps, stream=stream, **_loading(cfg))


def test_loader(cfg: Any, normalization: Normalization) -> DataLoader:
    """Labelled images of TEST.SET_TARGET, each once, in order."""
    test = cfg.TEST
    dataset = build_dataset(
        cfg.TARGET,
        cfg.DATA_DIRECTORY_TARGET,
        split=test.SET_TARGET,
        num_classes=cfg.NUM_CLASSES,
        list_file=cfg.DATA_LIST_TARGET,
        transform=TestTransform(
            normalization,
            size=tuple(test.INPUT_SIZE_TARGET),
            resample=test.RESAMPLE,
            label_size=tuple(test.OUTPUT_SIZE_TARGET) or None,
        ),
        info=test.INFO_TARGET,
        role="target",
    )
    if test.CLASS_RULE == "count":
        elsewhere = (dataset.id_map == IGNORE_LABEL) & (cityscapes_id_map(19) != IGNORE_LABEL)
        dataset.id_map = np.where(elsewhere, OTHER_LABEL, dataset.id_map).astype(np.uint8)
    return DataLoader(
        dataset, batch_size=test.BATCH_SIZE_TARGET, shuffle=False, collate_fn=collate, **_loading(cfg)
    )


def _loading(cfg: Any) -> dict[str, Any]:
    # More loaders than cores only take turns; a laptop should not need to know about NUM_WORKERS.
    workers = min(cfg.NUM_WORKERS, os.cpu_count() or 1)
    return {"num_workers": workers, "pin_memory": choose_device(cfg).type == "cuda"}
