"""Read the golden files: inputs and outputs of the published implementations, as arrays.

The folder is `tests/golden`, or the one named by the environment variable DADA_GOLDEN. Every case found in a file is
taken, so that a larger set of files tests more without a change here.
"""

from __future__ import annotations

import json
import os
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
