"""The global random generators of a process: seeded, saved and restored together."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from dada.dataset.sampler import mixed_seed


def seed_all(seed: int) -> None:
    """Seed Python's `random`, NumPy and torch on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def own_seed(seed: int, rank: int, iteration: int) -> None:
    """Let every process but the first, which draws what a single one would, draw numbers of its own from here on."""
    if rank > 0:
        seed_all(mixed_seed(seed, "rank", rank, iteration))


def rng_state(device: torch.device) -> dict[str, Any]:
    """State of the generators of the CPU, and of `device` if it is a GPU; tensors, tuples and numbers only."""
    name, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
        **torch_rng_state(device),
    }


def torch_rng_state(device: torch.device) -> dict[str, Any]:
    """The part of `rng_state` that a training step draws from; quick enough to take before every one."""
    return {"torch": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None}


def set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    """Put back what `rng_state` returned. A run that changes from CPU to GPU keeps its seed there."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    set_torch_rng_state(state, device)


def set_torch_rng_state(state: dict[str, Any], device: torch.device) -> None:
    """Put back what `torch_rng_state`, or `rng_state`, returned."""
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
