"""Which samples make up each training step: a function of (seed, stream, step) alone."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from dada.dataset.loader import Loader
from dada.dataset.sample import collate

_GOLDEN = (5**0.5 - 1) / 2


class Draw(NamedTuple):
    """Key of a training sample: `dataset[draw]` is sample `index`, augmented for this step and slot."""

    index: int
    step: int
    slot: int  # position in the batch
    wanted: int = -1  # the class that a crop should show, for samples that were drawn by class; -1: none


@dataclass(eq=False)
class StepSampler(Sampler):
    """Batches of Draws for the steps start_step .. stop_step - 1.

    Every epoch takes each sample exactly once, in a new order; a batch may span the end of an epoch. Sample
    number step * batch_size + slot of the run is the same whether or not the run was interrupted before.

    Args:
        num_samples: size of the dataset.
        batch_size: samples per step.
        seed: of the experiment.
        start_step: first step to yield; the step to resume at.
        stop_step: step before which to stop.
        stream: "source" and "target" have independent orders.
        parts: (samples, share) of each part of a dataset made of several, in their order. Samples are drawn from the parts
            in proportion to their shares, and each part has its own epochs. (): one part.
        by_class: one function per part, which returns for (seed, stream, step, slot) the index of a sample and the class that
            it was drawn for, in place of the order of epochs. See dada.dataset.rare_classes.
        slots: the positions in each batch to yield; None: all. Processes that share a batch take different ones.
    """

    num_samples: int
    batch_size: int
    seed: int
    start_step: int = 0
    stop_step: int = 0
    stream: str = "source"
    parts: Sequence[tuple[int, float]] = ()
    by_class: Sequence[Callable[..., tuple[int, int]]] = ()
    slots: range | None = None

    def __len__(self) -> int:
        return self.stop_step - self.start_step

    def __iter__(self) -> Iterator[list[Draw]]:
        sizes, shares = zip(*(self.parts or [(self.num_samples, 1.0)]))
        streams = [f"{self.stream} {part}" for part in range(len(sizes))] if len(sizes) > 1 else [self.stream]
        first = np.cumsum([0, *sizes])  # of each part
        orders: list[tuple[int, np.ndarray]] = [(-1, first)] * len(sizes)  # epoch, and its permutation
        slots = range(self.batch_size) if self.slots is None else self.slots
        before = self.start_step * self.batch_size
        drawn = np.bincount(self._parts_of(shares, 0, before), minlength=len(sizes))
        for step in range(self.start_step, self.stop_step):
            batch = []
            for slot, part in enumerate(self._parts_of(shares, step * self.batch_size, self.batch_size).tolist()):
                number, wanted = int(drawn[part]), -1
                drawn[part] += 1
                if slot not in slots:
                    continue
                if self.by_class:
                    index, wanted = self.by_class[part](self.seed, streams[part], step, slot)
                else:
                    epoch, place = divmod(number, sizes[part])
                    if epoch != orders[part][0]:
                        orders[part] = epoch, epoch_order(sizes[part], self.seed, streams[part], epoch)
                    index = int(orders[part][1][place])
                batch.append(Draw(int(first[part]) + index, step, slot, wanted))
            yield batch

    def _parts_of(self, shares: Sequence[float], number: int, count: int) -> np.ndarray:
        """Which part each of `count` samples from `number` on comes from, (count,): in any stretch close to the shares.

        Multiples of the golden ratio, modulo 1, are spread evenly, wherever the count begins (Weyl).
        """
        if len(shares) == 1:
            return np.zeros(count, dtype=np.int64)
        places = (mixed_seed(self.seed, self.stream, "parts") / 2**32 + np.arange(number, number + count) * _GOLDEN) % 1
        return np.searchsorted(np.cumsum(shares)[:-1] / np.sum(shares), places, side="right")


def epoch_order(num_samples: int, seed: int, stream: str, epoch: int) -> np.ndarray:
    """The order of the samples in one epoch: a permutation, (num_samples,) int64."""
    generator = torch.Generator().manual_seed(mixed_seed(seed, stream, epoch))
    return torch.randperm(num_samples, generator=generator).numpy()


def mixed_seed(*parts: int | str) -> int:
    """One 32-bit seed out of several numbers and names; neighbouring numbers give unrelated seeds."""
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else part % 2**64 for part in parts]
    return int(np.random.SeedSequence(words).generate_state(1)[0])


@contextmanager
def seeded(*parts: int | str) -> Iterator[None]:
    """Inside the block torch's global CPU generator is seeded with `parts`; afterwards it is as before.

    Not torch.manual_seed, which would reseed the GPU generators as well.
    """
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(mixed_seed(*parts))
    try:
        yield
    finally:
        torch.set_rng_state(state)


def step_loader(
    dataset: Dataset,
    batch_size: int,
    *,
    seed: int,
    stream: str = "source",
    num_workers: int = 0,
    pin_memory: bool = False,
    **steps: Any,
) -> Loader:
    """A Loader of Batches for the `steps` of a StepSampler; one pass over it is the whole run.

    Its batches depend on neither num_workers nor the global random state, which it leaves alone.
    """
    return Loader(
        dataset,
        batch_sampler=StepSampler(len(dataset), batch_size, seed, stream=stream, **steps),
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=pin_memory,
        generator=torch.Generator().manual_seed(mixed_seed(seed, stream)),  # otherwise each pass draws from the global one
    )
