"""Draw source images by the classes they show, rare classes more often.

Hoyer et al. (DAFormer), CVPR 2022, arXiv:2111.14887.
"""

from __future__ import annotations

import hashlib
import logging
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from dada.dataset import storage
from dada.dataset.base import SegmentationDataset
from dada.dataset.parallel_map import parallel_map
from dada.dataset.sampler import mixed_seed
from dada.dataset.statistics import class_frequencies
from dada.files import whole_file

log = logging.getLogger(__name__)

# An image counts as showing a class if at least this share of its labelled pixels is of it, so that a crop can find it.
LEAST_SHARE = 0.001


def class_probabilities(frequencies: np.ndarray, temperature: float) -> np.ndarray:
    """P(c) = exp((1 - f_c) / T) / sum over c' of exp((1 - f_c') / T), (K,) float64; 0 for classes that never occur.

    Args:
        frequencies: (K,) f_c, the share of class c among all labelled pixels.
        temperature: T above 0. The higher, the more even; the lower, the more the rarest class is favoured.

    Raises:
        ValueError: no class occurs.
    """
    occurs = frequencies > 0
    if not occurs.any():
        raise ValueError("no source label holds a pixel of a trained class: check the labels with `dada check-data`")
    exponents = np.where(occurs, (1 - frequencies) / temperature, -np.inf)
    shares = np.exp(exponents - exponents.max())
    return shares / shares.sum()


class RareClasses:
    """Which image to draw: first a class, with `class_probabilities`, then one of the images that hold it, evenly.

    Args:
        counts: (images, K) pixels of each class in each image.
        temperature: T.
    """

    def __init__(self, counts: np.ndarray, temperature: float) -> None:
        self.probabilities = class_probabilities(class_frequencies(counts).pixels, temperature)
        enough = counts >= np.maximum(LEAST_SHARE * counts.sum(axis=1, keepdims=True), 1)
        # A class that is tiny in every image is drawn from all images that show it.
        self._holders = [np.flatnonzero(e if e.any() else c > 0) for e, c in zip(enough.T, counts.T)]

    def draw(self, *parts: int | str) -> tuple[int, int]:
        """(image, class): a function of `parts`, such as seed, stream, step and slot."""
        generator = np.random.default_rng(mixed_seed(*parts, "rare class"))
        wanted = int(generator.choice(len(self.probabilities), p=self.probabilities))
        return int(generator.choice(self._holders[wanted])), wanted


def class_counts(dataset: SegmentationDataset, cache: Path, num_workers: int = 0) -> np.ndarray:
    """Pixels of each class in each label of `dataset`, (images, K) int64.

    Every label is read once, and the counts are kept in `cache`, in a file for these label files and this id map. If you change
    labels in place, delete that file: the change is not noticed.

    If the dataset skips bad files, labels that cannot be read count as empty, so their images are not drawn by class.

    Raises:
        ValueError: a label cannot be read.
    """
    if resized := [item.label for item in dataset.items if item.label and storage.original_size(item.label)]:
        raise ValueError(
            f"{resized[0]} was resized when it was packed: counting its classes would give other counts than the original. "
            "Make the copy again with `dada pack-dataset --original-size`."
        )
    names = "\n".join(str(item.label) for item in dataset.items)
    how = f"{dataset.title}\n{dataset.classes.names}\n{names}\n{dataset.codes}\n"
    key = hashlib.sha256(how.encode() + dataset.id_map.tobytes())
    path = cache / f"class_counts_{key.hexdigest()[:16]}.npy"
    if path.is_file():
        counts = np.load(path, allow_pickle=False)
        if counts.shape == (len(dataset), dataset.num_classes):
            return counts
    log.info("counting the classes in %d labels of %s, once; kept in %s", len(dataset), dataset.title, path)
    # A generator of its own: the run draws the same whether its labels were counted before or not.
    loader = parallel_map(partial(_counts, dataset), range(len(dataset)), num_workers, generator=torch.Generator())
    counts = np.stack(list(tqdm(loader, desc="classes", unit="label", dynamic_ncols=True, disable=None)))
    with whole_file(path, ".npy") as part:
        np.save(part, counts)
    return counts


def _counts(dataset: SegmentationDataset, index: int) -> np.ndarray:
    """Pixels of each class in the label, (K,)."""
    try:
        label = dataset.read_label(index)
    except (ValueError, OSError):
        if not dataset.skip_bad_files:
            raise
        return np.zeros(dataset.num_classes, dtype=np.int64)
    return np.array(label.histogram()[: dataset.num_classes], dtype=np.int64)
