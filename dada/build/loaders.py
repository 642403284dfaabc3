"""Batches of what a cfg has read: of training steps, and of tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader

from dada.build.datasets import tested_images, train_images, train_labelled, unlabelled_target
from dada.config import names_apart
from dada.dataset import SegmentationDataset, step_loader
from dada.dataset.joined import Joined, parts_of
from dada.dataset.loader import Loader
from dada.dataset.parallel_map import parallel_map
from dada.dataset.rare_classes import RareClasses, class_counts
from dada.dataset.sample import Batch, collate_by_size
from dada.dataset.spread import spread
from dada.normalization import Normalization
from dada.parallel.device import choose_device
from dada.parallel.distributed import share_of
from dada.parallel.ranks import rank, world_size


def source_loader(cfg: Any, normalization: Normalization, steps: int, start_step: int = 0) -> DataLoader:
    """Labelled batches of the source, one for each of the steps start_step .. steps - 1."""
    dataset = train_images(cfg, "source", normalization)
    by_class = [_by_class(cfg, part) for part in parts_of(dataset)] if cfg.TRAIN.RARE_CLASS_TEMPERATURE else []
    return _train_loader(cfg, dataset, "source", steps, start_step, by_class)


def _by_class(cfg: Any, dataset: SegmentationDataset) -> Callable[..., tuple[int, int]]:
    @cache
    def classes() -> RareClasses:  # at the first draw: counting reads every label
        counts = class_counts(dataset, Path(cfg.EXP_ROOT) / "class_counts", loading(cfg)["num_workers"])
        return RareClasses(counts, cfg.TRAIN.RARE_CLASS_TEMPERATURE)

    return lambda *parts: classes().draw(*parts)


def target_loader(
    cfg: Any, normalization: Normalization, steps: int, start_step: int = 0, second_view: bool = False, plain: bool = False
) -> DataLoader:
    """The same of the target, without labels, whose files are never opened; with `plain` in the colours of the files."""
    dataset = train_images(cfg, "target", normalization, second_view, plain)
    return _train_loader(cfg, dataset, "target", steps, start_step)


def labelled_loader(cfg: Any, normalization: Normalization, steps: int, start_step: int = 0) -> DataLoader:
    """Batches of the images of TARGET_LABELLED with their labels, one for each of the steps start_step .. steps - 1.

    Raises:
        ValueError: some of them are tested, too.
    """
    return _train_loader(cfg, train_labelled(cfg, normalization), "labelled", steps, start_step)


def target_images(cfg: Any, normalization: Normalization, count: int) -> DataLoader:
    """`images_of` `count` evenly spaced samples of `unlabelled_target`."""
    dataset = unlabelled_target(cfg, normalization)
    return images_of(cfg, dataset, spread(len(dataset), count))


def images_of(cfg: Any, dataset: SegmentationDataset | Joined, indices: Sequence[int]) -> DataLoader:
    """Images of these samples, (3, H, W) each; where ON_BAD_FILE is skip, one that cannot be read is None."""
    dataset.skip_bad_files = cfg.ON_BAD_FILE == "skip"
    return parallel_map(partial(_image_or_none, dataset), indices, **loading(cfg))


def _image_or_none(dataset: SegmentationDataset | Joined, index: int) -> torch.Tensor | None:
    try:
        return dataset[index].image
    except (ValueError, OSError):
        if not dataset.skip_bad_files:
            raise
        return None


def _train_loader(
    cfg: Any,
    dataset: SegmentationDataset | Joined,
    stream: str,
    steps: int,
    start_step: int,
    by_class: Sequence[Callable[..., tuple[int, int]]] = (),
) -> DataLoader:
    """Batches of TRAIN.BATCH_SIZE_{stream}, or this process's part of them."""
    for part in parts_of(dataset):
        part.skip_bad_files = cfg.ON_BAD_FILE == "skip"
    parts = list(zip(map(len, dataset.parts), dataset.shares)) if isinstance(dataset, Joined) else []
    size = f"BATCH_SIZE_{stream.upper()}"
    own = share_of(cfg.TRAIN[size], f"TRAIN.{size}")
    slots = range(own * rank(), own * (rank() + 1))
    drawn = {"stream": stream, "parts": parts, "by_class": by_class}
    steps_to_load = {"slots": slots, "start_step": start_step, "stop_step": steps, **drawn}
    return step_loader(dataset, cfg.TRAIN[size], seed=cfg.TRAIN.RANDOM_SEED, **steps_to_load, **loading(cfg))


def eval_loader(cfg: Any, normalization: Normalization, role: str = "target") -> DataLoader:
    """Labelled images of `tested_images`, each once, in order. Of several processes each has every N-th batch."""
    return _eval_loader(cfg, tested_images(cfg, normalization, role))


def eval_loaders(
    cfg: Any, normalization: Normalization, role: str = "target", splits: Sequence[str] = ()
) -> dict[str, DataLoader]:
    """The same of each dataset of the role by itself, or of other `splits`, by a name of its own."""
    parts = parts_of(tested_images(cfg, normalization, role, splits))
    return {name: _eval_loader(cfg, part) for name, part in zip(names_apart(cfg, role), parts)}


def _eval_loader(cfg: Any, dataset: SegmentationDataset | Joined) -> DataLoader:
    # Batches are shared, not images: each is the one that a single process would predict, to the last bit.
    batches = list(BatchSampler(range(len(dataset)), cfg.TEST.BATCH_SIZE_TARGET, drop_last=False))[rank() :: world_size()]
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
