"""How tiles are processed. Results do not depend on it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache, lru_cache
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dada.domain_adaptation.association.trial import aside, first_line

log = logging.getLogger(__name__)

STATIC_DEVICES = ("cuda",)  # where waiting for a value costs more than computing rows in vain
KERNEL_DEVICES = ("cuda",)  # of triton, without which nothing is compiled there either
GPUS = ("cuda",)  # where a product needs thousands of rows, and every operation is a launch

# A library cuts a product into blocks of about 128 x 256, one for each of an H100's 132 units at a time. 2048 x 2048 are
# 128 blocks: one turn. A few rows more are two turns, the second nearly idle. Counted, not measured.
GPU_ROWS = 2048
GPU_TILE_ELEMENTS = 2**25  # 128 MiB in float32: fewer rows for maps beyond 128 x 128, so memory stays linear
# Class probabilities have so few channels that their products need no such rows, and tiles would be most of the memory.
GPU_FEW_CHANNELS = 64
GPU_FEW_TILE_ELEMENTS = 14 * 2**20  # 59 MB


def on_gpu(device: torch.device) -> bool:
    return device.type in GPUS


class Form(NamedTuple):
    """Independent choices; the default is what suits a CPU."""

    static: bool = False  # no shape depends on a value, so that the host never waits for the device
    compiled: bool = False  # what is done to a tile between two products is one kernel or two
    kernels: bool = False  # what has a kernel that does the products as well is left to it, in float32

    def of(self, epilogue: Callable) -> Callable:
        """`epilogue`, a function whose first argument is a tile, as this form runs it.

        Hand it no views into larger tensors: a compiler tells them apart by their place there, and would compile
        anew for some of them.
        """
        return _compiled(epilogue) if self.compiled else epilogue


PLAIN = Form()


def form_for(device: torch.device, fused: bool) -> Form:
    """The form of `impl="fused"`, or of `impl="streaming"`, on a device."""
    compiled = fused and can_compile(device)
    return Form(static=device.type in STATIC_DEVICES, compiled=compiled, kernels=compiled and device.type in KERNEL_DEVICES)


class Compiled:
    """An epilogue, compiled for every kind of arguments on its own.

    torch keeps a few versions of one text (`torch._dynamo.config.recompile_limit`, 8) and from then on runs it
    uncompiled. Two precisions, metrics, gradients or not, and square tiles beside others were that many. So every
    kind is a text of its own here, and has one version; what else torch looks at (the precision of products,
    the default dtype) leaves room below the limit. Beyond it the epilogue runs as it is, and the log says so once.
    """

    def __init__(self, epilogue: FunctionType, **options: Any) -> None:
        self.epilogue, self.options = epilogue, options
        self.kinds: dict[tuple, Callable] = {}
        self.given_up = False

    def __call__(self, tile: Tensor, *others: Any) -> Any:
        if self.given_up or 1 in tile.shape:  # sizes of one are further versions, and too small to matter
            return self.epilogue(tile, *others)
        flags = (x for x in others if x is None or isinstance(x, bool))
        square = tile.shape[0] == tile.shape[1]  # sizes that are equal at first are taken to be equal always
        kind = tile.device, tile.dtype, tile.is_inference(), square, *flags
        if kind not in self.kinds:
            # Whole, since only then torch raises where it would otherwise go on without compiling.
            self.kinds[kind] = torch.compile(_copy(self.epilogue), dynamic=True, fullgraph=True, **self.options)
        try:
            return self.kinds[kind](tile, *others)
        except torch._dynamo.exc.FailOnRecompileLimitHit:  # before anything was computed
            self.given_up = True
            log.warning(
                "torch.compile keeps no more than %d versions of %s: association runs it uncompiled from here on, "
                "exact but slower. TORCH_LOGS=recompiles names what made them; "
                "torch._dynamo.config.recompile_limit raises the limit.",
                torch._dynamo.config.recompile_limit,
                self.epilogue.__name__,
            )
            return self.epilogue(tile, *others)


def _copy(function: FunctionType) -> FunctionType:
    """The same function with code of its own, by which torch counts versions."""
    code, known = function.__code__.replace(), function.__globals__
    return FunctionType(code, known, function.__name__, function.__defaults__, function.__closure__)


_compiled = lru_cache(maxsize=None)(Compiled)


def writable(tile: torch.Tensor) -> torch.Tensor:
    """A tile that an epilogue may overwrite. In a compiled one a new tensor: what is written into an argument
    would be written elsewhere first and then copied, a pass more. The copy here is compiled away.
    """
    return tile.clone() if torch.compiler.is_compiling() else tile


@cache
def can_compile(device: torch.device) -> bool:
    """Whether torch.compile works on this device; tried once. Says in the log what is missing if it does not."""
    try:
        with aside(device):
            torch.compile(_probe, dynamic=True)(torch.ones(2, 3, device=device))
        return True
    except Exception as error:  # no C++ compiler, no triton, an unknown Python: each raises its own
        log.warning(
            "torch.compile does not work on %s (%s): impl='fused' runs without compiled kernels, exact but slower. "
            "A CPU needs a C++ compiler, CUDA needs the package triton.",
            device,
            first_line(error),
        )
        return False


def _probe(x: torch.Tensor) -> torch.Tensor:
    return x.exp_().sum(dim=1)
