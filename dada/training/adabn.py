"""AdaBN: batch-norm statistics of the target, from its images alone (Li et al., 2016, arXiv:1603.04779)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from dada.build import build_network, on_device, target_loader
from dada.config import plain_cfg
from dada.model.batch_norm import TARGET, DomainBatchNorm2d, batch_norms, select_domain
from dada.model.segmentation_model import SegmentationModel
from dada.runs import iteration_of, save_whole, snapshot


def adapt_batch_norm(network: nn.Module, images: Iterable[Tensor]) -> nn.Module:
    """Replace the running statistics of all batch norms by those of `images`; nothing else changes.

    Mean and variance are averages over the batches of what a pass in training mode normalises with. Dropout is off. Of a
    network with batch norms for each domain, only the target's change.

    Args:
        images: batches (B, 3, H, W) of normalised target images on the network's device, all of one size; at least one.

    Returns:
        network, in the modes that it had, for chaining.

    Raises:
        ValueError: the network has no batch norm, or there is no image.
    """
    norms = _norms_of_target(network)
    modes = {module: module.training for module in network.modules()}
    momenta = [norm.momentum for norm in norms]
    network.eval()
    select_domain(network, TARGET)
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over all batches
        norm.train()
    passes = 0
    try:
        with torch.no_grad():
            for batch in images:
                network(batch)
                passes += 1
    finally:
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
        for module, training in modes.items():
            module.training = training
    if not passes:
        raise ValueError("expected at least one batch of target images to take the statistics of, got none")
    return network


def _norms_of_target(network: nn.Module) -> list[nn.Module]:
    """The batch norms with running statistics that target images pass through."""
    by_domain = [module for module in network.modules() if isinstance(module, DomainBatchNorm2d)]
    others = {id(norm) for module in by_domain for norm in module.norm_layers if norm is not module.norm_layers[TARGET]}
    norms = [norm for norm in batch_norms(network) if norm.track_running_stats and id(norm) not in others]
    if not norms:
        raise ValueError(f"{type(network).__name__} has no batch norm with statistics to adapt; set TRAIN.ADABN_IMAGES to 0")
    return norms


def statistics_loader(cfg: Any, network: SegmentationModel, images: int) -> DataLoader:
    """At least as many target images, in whole training batches: cropped as in training, their colours as in the files.

    Raises:
        FileNotFoundError, ValueError: there are none, or no batch norm in `network` to adapt.
    """
    _norms_of_target(network)
    steps = math.ceil(images / cfg.TRAIN.BATCH_SIZE_TARGET)
    return target_loader(cfg, network.normalization, steps=steps, plain=True)


def adapt_snapshot(cfg: Any, checkpoint: str | Path, out: str | Path, images: int) -> None:
    """Write the network of `checkpoint`, with the statistics of target images, to `out`, a snapshot like any other.

    Raises:
        FileNotFoundError, ValueError: weights or data that cannot be used, no image, or another ending than .pth.
    """
    if images < 1:
        raise ValueError(f"--images is {images}; expected at least 1")
    if Path(out).suffix != ".pth":
        raise ValueError(f"a snapshot is a .pth file, but --out is {str(out)!r}")
    with on_device(cfg) as device:
        network = build_network(cfg, str(checkpoint)).to(device)
        loader = statistics_loader(cfg, network, images)
        adapt_batch_norm(network, (batch.image.to(device, non_blocking=True) for batch in loader))
    save_whole(Path(out), snapshot(Path(out).parent, network, iteration_of(Path(checkpoint)), plain_cfg(cfg)))
