"""Pairs of a source and a target image as a network sees them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dada.build import eval_loader, unlabelled_target
from dada.dataset import SegmentationDataset
from dada.dataset.spread import spread
from dada.domain_adaptation.association_term import probabilities_at_features
from dada.domain_adaptation.contrastive_learning import labels_at
from dada.model.batch_norm import SOURCE, TARGET, select_domain
from dada.normalization import Normalization

MOST_PIXELS = 2**16  # of a feature map: the page holds their indices in 16 bits


class View(NamedTuple):
    """One image and what is associated of it: h, w are the resolution of the features."""

    name: str
    image: np.ndarray  # (H, W, 3) uint8 RGB, at the network's input size
    features: Tensor  # (1, C, h, w)
    probabilities: Tensor  # (1, K, h, w)
    labels: Tensor | None  # (1, h, w) int64 train ids, 255 for what is not trained; None where labels are not read


class Pair(NamedTuple):
    source: View  # labelled
    target: View


def datasets(cfg: Any, normalization: Normalization, with_target_labels: bool) -> tuple[SegmentationDataset, SegmentationDataset]:
    """Source and target, prepared as for the test.

    Source images are those that are trained on. Target images are too, and their label files are never opened; with
    `with_target_labels` they are the test's, with labels.
    """
    source = eval_loader(cfg, normalization, "source").dataset
    target = eval_loader(cfg, normalization).dataset if with_target_labels else unlabelled_target(cfg, normalization)
    return source, target


def read_pairs(
    network: nn.Module, source: SegmentationDataset, target: SegmentationDataset, count: int, device: torch.device
) -> Iterator[Pair]:
    """`count` pairs, evenly spread over both datasets.

    Raises:
        ValueError: there are not as many images, or a map cannot be associated.
    """
    most = min(len(source), len(target))
    if not 1 <= count <= most:
        raise ValueError(
            f"--pairs is {count}; expected 1 to {most}: there are {len(source)} images of the source {source.title} and "
            f"{len(target)} of the target {target.title}"
        )
    for s, t in zip(spread(len(source), count), spread(len(target), count)):
        yield Pair(view_of(network, source, s, SOURCE, device), view_of(network, target, t, TARGET, device))


@torch.no_grad()
def view_of(network: nn.Module, dataset: SegmentationDataset, index: int, domain: int, device: torch.device) -> View:
    """Image `index` through the network, which must be in eval mode.

    Raises:
        ValueError: the network gives no features, some that are not finite, or a map too large for the page.
    """
    sample = dataset[index]
    select_domain(network, domain)
    outputs = network(sample.image[None].to(device))
    features = outputs.features
    if features is None:
        raise ValueError(f"{type(network).__name__} gives no features, so there is nothing to associate")
    features = features.float()
    for what, x in (("features", features), ("logits", outputs.logits)):
        if not x.isfinite().all():
            raise ValueError(
                f"the network's {what} of {sample.name} are not all finite; is the checkpoint of a run that diverged?"
            )
    size = tuple(features.shape[-2:])
    if size[0] * size[1] > MOST_PIXELS:
        raise ValueError(
            f"the features of {sample.name} are {size[1]}x{size[0]} pixels, and a page holds maps of up to {MOST_PIXELS}; "
            "set TEST.INPUT_SIZE_TARGET to a smaller size"
        )
    probabilities = probabilities_at_features(outputs._replace(logits=outputs.logits.float()))
    labels = None
    if sample.label is not None:
        labels = labels_at(sample.label[None].to(device), size)
        labels = torch.where(labels < probabilities.shape[1], labels, 255)
    image = network.normalization.pixels(sample.image)
    return View(sample.name, image, features, probabilities, labels)
