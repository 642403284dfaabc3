"""How tiles are processed. Results do not depend on it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

STATIC_DEVICES = ("cuda",)  # where waiting for a value costs more than computing rows in vain
KERNEL_DEVICES = ("cuda",)  # of triton
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
    kernels: bool = False  # what lies between two products, or does them as well, is left to kernels, in float32


PLAIN = Form()


def form_for(device: torch.device, fused: bool) -> Form:
    """The form of `impl="fused"`, or of `impl="streaming"`, on a device."""
    return Form(static=device.type in STATIC_DEVICES, kernels=fused and device.type in KERNEL_DEVICES)


class Softmax(NamedTuple):
    """What is known of rows whose softmax was made, p = exp(scale * similarity - level): (R,), or (B, N) of all images."""

    scale: Tensor  # 1 / std, or 1
    level: Tensor  # log sum_j exp(scale * similarity_j)
    log_p: Tensor  # of the chosen place
