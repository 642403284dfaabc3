"""Read the golden files: inputs and outputs of the published implementations, as arrays.

The folder is `tests/golden`, or the one named by the environment variable DADA_GOLDEN. Every case found in a file is
taken, so that a larger set of files tests more without a change here.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

GOLDEN = Path(os.environ.get("DADA_GOLDEN") or Path(__file__).parent / "golden")


class Case(NamedTuple):
    """One case of one golden file: its name, its settings and its arrays by name."""

    name: str
    settings: dict
    arrays: dict[str, np.ndarray]

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        return torch.from_numpy(np.array(self.arrays[name])).to(dtype)


def golden_cases(file: str, prefix: str = "") -> list[Case]:
    """All cases of `file` whose name starts with `prefix`; fails if there is none."""
    with np.load(GOLDEN / file, allow_pickle=False) as npz:
        arrays = {key: npz[key] for key in npz.files}
    cases = []
    for name in (str(n) for n in arrays["cases"]):
        if name.startswith(prefix):
            own = {key[len(name) + 1 :]: value for key, value in arrays.items() if key.startswith(name + "/")}
            settings = json.loads(str(own.pop("settings"))) if "settings" in own else {}
            cases.append(Case(name, settings, own))
    if not cases:
        raise LookupError(f"{GOLDEN / file} holds no case whose name starts with {prefix!r}")
    return cases


def assert_close_relative(got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """max |got - expected| / max |expected| <= tolerance, over the whole array."""
    assert got.shape == expected.shape, f"shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    scale = expected.abs().max().item() if expected.numel() else 0.0
    error = (got.double() - expected.double()).abs().max().item() if expected.numel() else 0.0
    assert error <= tolerance * max(scale, 1e-300), f"relative error {error / max(scale, 1e-300):.3g} > {tolerance:g}"


def golden_recipe(key: str, shape: tuple[int, ...], salt: int) -> torch.Tensor:
    """The weight recipe of the golden files: a counter-based generator seeded by the entry's name."""
    s = (zlib.crc32(key.encode()) ^ salt) & 0xFFFFFFFF
    z = np.arange(int(np.prod(shape)), dtype=np.uint64)
    z += np.uint64((s * 2**32 + 0x9E3779B97F4A7C15) % 2**64)
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    u = (z >> np.uint64(40)) / 2.0**24
    v = 2 * u - 1
    if len(shape) >= 2:
        value = v * np.sqrt(6 / np.prod(shape[1:]))
    elif key.endswith("running_var"):
        value = 1 + 0.5 * u
    elif key.endswith("running_mean"):
        value = 0.2 * v
    elif key.endswith("weight"):
        value = 0.7 + 0.2 * v
    else:
        value = 0.1 * v
    return torch.from_numpy(value.astype(np.float32).reshape(shape))
