"""AdaBN: batch-norm statistics of the target, from its images alone (Li et al., 2016, arXiv:1603.04779)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from dada.build import target_loader
from dada.model.batch_norm import TARGET, DomainBatchNorm2d, batch_norms, select_domain
from dada.model.segmentation_model import SegmentationModel


def adapt_batch_norm(network: nn.Module, images: Iterable[Tensor], share: float = 1.0) -> nn.Module:
    """Replace the running statistics of all batch norms by those of `images`; nothing else changes.

    Mean and variance are averages over the batches of what a pass in training mode normalises with. Dropout is off. Of a
    network with batch norms for each domain, only the target's change.

    With a `share` s below 1 both domains are mixed, mean and variance alike: (1 - s) old + s new, as in UBNA (Klingner et
    al., 2020, arXiv:2011.08502) and in Schneider et al. (NeurIPS 2020, arXiv:2006.16971).

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
    before = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms]
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
    for norm, (mean, var) in zip(norms, before if share < 1 else ()):
        norm.running_mean.lerp_(mean, 1 - share)
        norm.running_var.lerp_(var, 1 - share)
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
