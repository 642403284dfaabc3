"""Starting a kernel of Triton: the fastest of a few configurations on a GPU, small blocks in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import triton
from torch import Tensor


class Launcher:
    """A kernel and its configurations, which new values of the arguments in `key` try one after the other, on the results.

    `small` are blocks for the interpreter. A kernel may only write what does not depend on how often it ran.
    """

    def __init__(self, kernel: Any, configs: list[triton.Config], key: Sequence[str], small: dict[str, int]) -> None:
        interpreted = triton.knobs.runtime.interpret
        self.kernel = kernel if interpreted else triton.autotune(configs, key=list(key))(kernel)
        self.blocks = small if interpreted else {}

    def __call__(self, grid: tuple[int, ...] | Callable[[dict], tuple[int, ...]], *arguments: Any) -> None:
        """`grid`: programs, or what finds their number from the blocks."""
        self.kernel[grid](*(x.contiguous() if isinstance(x, Tensor) else x for x in arguments), **self.blocks)
