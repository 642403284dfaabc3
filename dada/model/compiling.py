"""Run a network through torch.compile, or uncompiled if that does not work."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dada.model.batch_norm import selected_domain

log = logging.getLogger(__name__)


def compile_network(network: nn.Module, backend: str | Callable = "inductor") -> None:
    """Have `network(image)` run compiled, in place: it stays the same module, with the same state names and gradients.

    Nothing is compiled before the first call. A call of a new kind (size of the images, domain, autocast, with or
    without gradient) is tried first, backward pass included, and the running statistics and generators that it changed are
    restored. If the trial fails, for want of a compiler or because of the network, one message says so, and the network
    runs uncompiled from then on. Copies of the network are uncompiled.

    Each size is compiled separately, which gives the fastest kernels; beyond torch's limit of eight versions, further
    sizes run uncompiled.

    Args:
        backend: of torch.compile.
    """
    compiled = torch.compile(network._call_impl, dynamic=False, backend=backend)  # as network.compile does
    network._compiled_call_impl = _Tried(network, compiled)


class _Tried:
    """Calls the compiled network once a trial has shown that it works."""

    def __init__(self, network: nn.Module, compiled: Callable) -> None:
        self._network = network
        self._compiled = compiled
        self._works: set[tuple] = set()

    def __call__(self, image: Tensor) -> Any:
        kind = (
            *(image.shape, image.dtype, image.device, selected_domain(self._network), self._network.training),
            *(torch.is_grad_enabled(), torch.is_autocast_enabled(image.device.type)),
        )
        if kind not in self._works:
            try:
                self._try(image)
            except torch.OutOfMemoryError:  # a step needs as much
                raise
            except Exception as error:
                log.warning(
                    "TRAIN.COMPILE: torch.compile does not work for this network on %s (%s). It runs uncompiled: the same "
                    "results, more slowly. A CPU needs a C++ compiler, CUDA needs the package triton.",
                    image.device.type,
                    _reason(error),
                )
                self._network._compiled_call_impl = None
                return self._network(image)  # and raises what is wrong with the image, if that was it
            self._works.add(kind)
        return self._compiled(image)

    def _try(self, image: Tensor) -> None:
        """One forward and backward pass that leaves no trace: the backward pass is compiled when it first runs."""
        buffers = [(buffer, buffer.clone()) for buffer in self._network.buffers()]
        with torch.random.fork_rng([image.device] if image.device.type == "cuda" else []):
            try:
                outputs = [o for o in self._compiled(image) if o is not None and o.requires_grad]
                if outputs:
                    parameters = [p for p in self._network.parameters() if p.requires_grad]
                    slopes = [torch.zeros_like(output) for output in outputs]
                    torch.autograd.grad(outputs, parameters, slopes, allow_unused=True)
            finally:
                with torch.no_grad():
                    for buffer, before in buffers:
                        buffer.copy_(before)


def _reason(error: Exception) -> str:
    """The first two lines that say something; torch's messages are pages long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:300] or type(error).__name__
