"""Which device a process computes on, and why."""

from __future__ import annotations

import logging
import os
from functools import cache
from typing import Any

import torch

from dada.parallel.place import local_rank

log = logging.getLogger(__name__)

WITHOUT_FLOAT64 = ("mps",)


def choose_device(cfg: Any, process: int | None = None) -> torch.device:
    """The device that DEVICE and GPU_ID give this process; a GPU becomes torch's current one.

    Whatever takes the current device, such as page-locked memory and libraries, then opens nothing on another process's
    GPU. What was taken, and why, is logged once.

    Args:
        process: number of this process among those of its node; None: what `local_rank` says, once they form a group.

    Raises:
        ValueError: see `find_device`.
    """
    device, why = find_device(cfg.DEVICE, cfg.GPU_ID, local_rank() if process is None else process)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    tell(device, why)
    return device


def tell(device: torch.device, why: str) -> None:
    """Log what `find_device` returned, with the name of a GPU, once in the life of the process."""
    _log_once(f"{why}: {torch.cuda.get_device_name(device)}" if device.type == "cuda" else why)


def find_device(name: str = "auto", gpu_id: int = 0, process: int = 0) -> tuple[torch.device, str]:
    """The device that `name` stands for, and a sentence that says which it is and why. Nothing is opened on any GPU.

    Args:
        name: a value of DEVICE. "auto" takes a GPU where there is one, else the CPU; "cuda" insists on one, "cuda:N" on that
            one; "mps", Apple's GPU, is never taken unasked.
        gpu_id: number of the GPU where `name` has none; below 0, "auto" is the CPU and "cuda" the first.
        process: number of this process among those of its node, each of which takes the next GPU.

    Raises:
        ValueError: there is no such device, or there are more processes than GPUs.
    """
    if name == "mps":
        return _mps()
    if name == "cpu" or (name == "auto" and gpu_id < 0):
        return torch.device("cpu"), f"running on the CPU, as {'DEVICE cpu' if name == 'cpu' else f'GPU_ID {gpu_id}'} says"
    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not visible:
        if name != "auto":
            raise ValueError(f"device {name} was asked for, but there is no GPU ({_why_none()}); cpu is always there")
        apple = "; Apple's GPU has to be asked for, as mps" if torch.backends.mps.is_available() else ""
        return torch.device("cpu"), f"no GPU found ({_why_none()}{apple}): running on the CPU"
    first = int(name[len("cuda:") :]) if name.startswith("cuda:") else max(gpu_id, 0)
    if first >= visible:
        asked = f"GPU_ID is {gpu_id}" if name in ("auto", "cuda") else f"device {name} was asked for"
        have = "one GPU, cuda:0" if visible == 1 else f"{visible} GPUs, cuda:0 to cuda:{visible - 1}"
        raise ValueError(f"{asked}, but this machine has {have}; --device chooses among them")
    if visible == 1 and "SLURM_STEP_GPUS" in os.environ:
        process = 0  # Slurm may show each task its own alone
    if first + process >= visible:
        raise ValueError(
            f"process {process} of this node needs cuda:{first + process} (each process takes one GPU, from cuda:{first} on), "
            f"but this machine has {visible}. Start one process for each GPU, or give --device cpu."
        )
    device = torch.device("cuda", first + process)
    return device, f"running on {device}, of {visible} GPU{'s' * (visible > 1)} here"


def widest(device: torch.device) -> torch.dtype:
    """float64, or float32 on a device that lacks it; for sums that are to be exact."""
    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64


def _mps() -> tuple[torch.device, str]:
    if not torch.backends.mps.is_available():
        built = torch.backends.mps.is_built()
        why = "there is no GPU of Apple's, or its macOS is too old" if built else "this torch was built without it"
        raise ValueError(f"device mps was asked for, but {why}; cpu is always there")
    return torch.device("mps"), (
        "running on mps, Apple's GPU, which is untested; with PYTORCH_ENABLE_MPS_FALLBACK=1 the CPU does what it cannot"
    )


def _why_none() -> str:
    if not torch.backends.cuda.is_built():
        return "this torch has no CUDA"
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shown is not None and shown.strip() in ("", "-1"):
        return f"CUDA_VISIBLE_DEVICES is {shown!r}, which hides all"
    try:
        torch.cuda.init()  # says why
        answer = "torch counts none"
    except (RuntimeError, AssertionError) as error:
        answer = str(error).strip().partition("\n")[0].rstrip(".")
    platform = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
    named = f" that CUDA_VISIBLE_DEVICES={shown} names" if shown else ""
    return f"torch {torch.__version__} was built for {platform}, but no device{named} answers: {answer}"


@cache
def _log_once(text: str) -> None:
    log.info("%s", text)
