"""A network as a cfg asks for it, the device that it runs on, and the classes that it predicts."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from dada.config import each_dataset, not_imported
from dada.dataset.own_classes import own_classes
from dada.dataset.plca_numbering import plca_order
from dada.label_sets import LabelSet, label_set, label_set_from_info
from dada.matmul_precision import matmul_precision
from dada.model import SegmentationModel, build_model, load_weights
from dada.model.weight_formats import shortened
from dada.normalization import CAFFE_BGR, TORCHVISION_RGB, Normalization
from dada.parallel.device import choose_device

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


def classes_of(cfg: Any) -> LabelSet:
    """Names and colours of the classes that a network trained with `cfg` predicts.

    Raises:
        FileNotFoundError, ValueError: the info file is not there; the numbers of names and colours differ.
    """
    if cfg.CLASSES.NAMES:
        return own_classes(cfg.CLASSES.NAMES, cfg.CLASSES.COLORS)
    first = each_dataset(cfg, "target")[0]
    info = first.TRAIN.INFO_TARGET or first.TEST.INFO_TARGET
    classes = label_set_from_info(info).label_set if info else label_set(cfg.NUM_CLASSES)
    return plca_order(classes) if cfg.LEGACY.PLCA_CLASS_ORDER else classes
