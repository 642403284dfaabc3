"""How tiles are worked on. What is computed does not depend on it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch

log = logging.getLogger(__name__)

STATIC_DEVICES = ("cuda",)  # where waiting for a value costs more than computing rows in vain


class Form(NamedTuple):
    """Two independent choices; the default is what suits a CPU."""

    static: bool = False  # no shape depends on a value, so that the host never waits for the device
    compiled: bool = False  # what is done to a tile between two products is one kernel or two

    def of(self, epilogue: Callable) -> Callable:
        """`epilogue`, a function of tensors, as this form runs it.

        Hand it no views into larger tensors: a compiler tells them apart by their place there, and would compile
        anew for some of them.
        """
        return _compiled(epilogue) if self.compiled else epilogue


PLAIN = Form()


def form_for(device: torch.device, fused: bool) -> Form:
    """The form of `impl="fused"`, or of `impl="streaming"`, on a device."""
    return Form(static=device.type in STATIC_DEVICES, compiled=fused and can_compile(device.type))


@lru_cache(maxsize=None)
def _compiled(epilogue: Callable) -> Callable:
    return torch.compile(epilogue, dynamic=True)  # the last stripe is lower than the others


def writable(tile: torch.Tensor) -> torch.Tensor:
    """A tile that an epilogue may overwrite. In a compiled one a new tensor: what is written into an argument
    would be written elsewhere first and then copied, a pass more. The copy here is compiled away.
    """
    return tile.clone() if torch.compiler.is_compiling() else tile


@lru_cache(maxsize=None)
def can_compile(device_type: str) -> bool:
    """Whether torch.compile works here; tried once. Says in the log what is missing if it does not."""
    try:
        with torch.no_grad():
            x = torch.ones(2, 3, device=device_type)
            torch.compile(_probe, dynamic=True)(x)
        return True
    except Exception as error:  # no C++ compiler, no triton, an unknown Python: each raises its own
        reason = str(error).strip().splitlines() or [type(error).__name__]
        log.warning(
            "torch.compile does not work on %s (%s): impl='fused' runs without compiled kernels, exact but slower. "
            "A CPU needs a C++ compiler, CUDA needs the package triton.",
            device_type,
            reason[0],
        )
        return False


def _probe(x: torch.Tensor) -> torch.Tensor:
    return x.exp_().sum(dim=1)
