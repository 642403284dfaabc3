"""Which classes a network sees in the images of the target, without their labels."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dada.domain_adaptation.build import target_images
from dada.domain_adaptation.parallel.ranks import from_main, is_main
from dada.model.batch_norm import TARGET, select_domain

log = logging.getLogger(__name__)


@torch.no_grad()
def predicted_counts(cfg: Any, network: nn.Module, device: torch.device) -> Tensor:
    """Pixels of each class as the network predicts them, in each image of the target's training split: (m, K) int64.

    Images are whole, of the size of the test. An image that cannot be read holds nothing where ON_BAD_FILE is skip.

    Raises:
        ValueError: the network is one that has not learnt the classes yet.
    """
    if cfg.TRAIN.RESTORE_FROM in ("", "imagenet"):
        raise ValueError(
            "ASSOCIATION.PAIR_TOP pairs images by the classes that the network sees in the target when training begins, but "
            f"TRAIN.RESTORE_FROM is {cfg.TRAIN.RESTORE_FROM!r}: it has not learnt them. Give the snapshot of a source-only run"
        )
    loader = target_images(cfg, network.normalization)
    log.info("predicting the classes of %d target images, to pair source images with them", len(loader))
    mode = network.training
    network.eval()
    select_domain(network, TARGET)
    counts = torch.zeros(len(loader), cfg.NUM_CLASSES, dtype=torch.int64)
    for index, image in enumerate(tqdm(loader, "classes", unit="image", dynamic_ncols=True, disable=not is_main())):
        if image is not None:
            predicted = network(image[None].to(device)).logits.argmax(dim=1).flatten()
            counts[index] = torch.bincount(predicted, minlength=cfg.NUM_CLASSES).cpu()
    network.train(mode)
    return from_main(counts)
