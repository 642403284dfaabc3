"""Loading and training as the published implementations do, written anew, to be timed beside ours.

Loading (ADVENT, DADA, PLCA): Pillow and NumPy on whole files, one comparison of all pixels for each label id. Training
(ADVENT's MinEnt): source forward, cross-entropy, backward, then target forward, entropy, backward. With association (the fork
of DADA): cross-entropy, association with whole matrices, Lovász-Softmax through autograd class by class, one backward,
then a garbage collection. Evaluation (ADVENT): image by image, scores resized to the labels and copied to the host, the rest in
NumPy.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from association import published_loss
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from dada.dataset import Batch, SegmentationDataset
from dada.dataset.sampler import StepSampler
from dada.domain_adaptation.contrastive_learning import labels_at

MEAN = np.array((104.00698793, 116.66876762, 122.67891434), dtype=np.float32)


class PillowDataset(Dataset):
    """Image (3, H, W) and label (H, W) of the same files, prepared as the published code does for the options of `cfg`."""

    def __init__(self, dataset: SegmentationDataset, cfg: Any, size: tuple[int, int]) -> None:
        self._dataset = dataset
        self._size = size
        self._options = cfg.DATA_TRANSFORM

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, draw: Any) -> tuple[np.ndarray, np.ndarray]:
        item = self._dataset.items[draw.index]
        image = Image.open(item.image).convert("RGB")
        label = None if item.label is None else Image.open(item.label)
        if self._options.RANDOM_RESIZE_AND_CROP:
            shorter = np.random.randint(self._options.LOADSIZE, int(1.3 * self._options.LOADSIZE) + 1)
            scale = shorter / min(image.size)
            size, resample = (int(image.width * scale), int(image.height * scale)), Image.BILINEAR
        else:
            size, resample = self._size, Image.BICUBIC
        image = image.resize(size, resample)
        label = None if label is None else label.resize(size, Image.NEAREST)
        if np.random.random() < self._options.FLIP:
            image = image.transpose(Image.FLIP_LEFT_RIGHT)
            label = None if label is None else label.transpose(Image.FLIP_LEFT_RIGHT)
        pixels = np.asarray(image, np.float32)
        ids = np.zeros(pixels.shape[:2], np.float32) if label is None else np.asarray(label, np.float32)
        mapped = 255 * np.ones(ids.shape, dtype=np.float32)
        for file_id in np.flatnonzero(self._dataset.id_map != 255) if label is not None else ():
            mapped[ids == file_id] = self._dataset.id_map[file_id]
        if self._options.RANDOM_RESIZE_AND_CROP:
            side = self._options.CROPSIZE
            missing = [max(0, side - length) for length in ids.shape]
            pixels = np.pad(pixels, [(0, missing[0]), (0, missing[1]), (0, 0)])
            mapped = np.pad(mapped, [(0, missing[0]), (0, missing[1])], constant_values=255)
            top, left = (np.random.randint(0, length - side + 1) for length in mapped.shape)
            pixels, mapped = pixels[top : top + side, left : left + side], mapped[top : top + side, left : left + side]
        pixels = pixels[:, :, ::-1] - MEAN
        return pixels.transpose(2, 0, 1).copy(), mapped.copy()


def pillow_loader(loader: DataLoader, cfg: Any, size: tuple[int, int]) -> DataLoader:
    """The samples of one of our loaders, loaded in the published way."""
    ours: StepSampler = loader.batch_sampler
    return DataLoader(
        PillowDataset(loader.dataset, cfg, size), batch_sampler=ours, num_workers=loader.num_workers, pin_memory=loader.pin_memory
    )


def minent_step(network: nn.Module, source: list[Tensor], target: list[Tensor], weight: float) -> None:
    """Gradients of MinEnt, domain after domain."""
    _cross_entropy(network, source)[0].backward()
    image = target[0]
    logits = F.interpolate(network(image).logits, size=image.shape[-2:], mode="bilinear", align_corners=True)
    probabilities = logits.softmax(dim=1)
    n, k, h, w = probabilities.shape
    entropy = -(probabilities * torch.log2(probabilities + 1e-30)).sum() / (n * h * w * math.log2(k))
    (weight * entropy).backward()


def association_step(network: nn.Module, source: list[Tensor], target: list[Tensor], weight: float, lovasz_weight: float) -> None:
    """Gradients of cross-entropy, Lovász-Softmax and the association of features."""
    loss, outputs, logits = _cross_entropy(network, source)
    labels = labels_at(source[1].long(), outputs.features.shape[-2:])
    loss = loss + weight * published_loss(outputs.features, network(target[0]).features, labels, "cos")
    if lovasz_weight:
        loss = loss + lovasz_weight * _lovasz(logits.softmax(dim=1), source[1].long())
    loss.backward()
    gc.collect()


@torch.no_grad()
def evaluation_loop(network: nn.Module, batches: Iterable[Batch], classes: int, device: torch.device) -> np.ndarray:
    """The confusion matrix (rows: labels) of batches of one image with labels (1, H, W)."""
    counts = np.zeros((classes, classes), dtype=np.int64)
    for batch in batches:
        label = batch.label[0].numpy()
        logits = network(batch.image.to(device)).logits
        scores = F.interpolate(logits, size=label.shape, mode="bilinear", align_corners=True)[0].cpu().numpy()
        found = scores.transpose(1, 2, 0).argmax(axis=2)
        counted = (label >= 0) & (label < classes)
        pairs = classes * label[counted].astype(int) + found[counted]
        counts += np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    return counts


def _cross_entropy(network: nn.Module, source: list[Tensor]) -> tuple[Tensor, Any, Tensor]:
    image, labels = source
    outputs = network(image)
    logits = F.interpolate(outputs.logits, size=labels.shape[-2:], mode="bilinear", align_corners=True)
    return F.cross_entropy(logits, labels.long(), ignore_index=255), outputs, logits


def _lovasz(probabilities: Tensor, labels: Tensor) -> Tensor:
    flat, labels = probabilities.movedim(1, -1).reshape(-1, probabilities.shape[1]), labels.flatten()
    flat, labels = flat[labels != 255], labels[labels != 255]
    losses = []
    for k in labels.unique():
        hit = (labels == k).float()
        errors, order = torch.sort((hit - flat[:, k]).abs(), descending=True)
        hit = hit[order]
        jaccard = 1 - (hit.sum() - hit.cumsum(0)) / (hit.sum() + (1 - hit).cumsum(0))
        jaccard[1:] = jaccard[1:] - jaccard[:-1].clone()
        losses.append(errors @ jaccard)
    return torch.stack(losses).mean()
