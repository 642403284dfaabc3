"""What to lower when a training does not fit into memory, with the figures of the run."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from math import gcd
from pathlib import Path
from typing import Any

import torch

from dada.parallel.device import choose_device
from dada.parallel.ranks import world_size

# As the libraries word it, besides the two classes of errors: the CPU's allocator, CUDA's libraries, loader processes.
_WORDS = re.compile(r"out of memory|(not enough|can't allocate) memory|ALLOC_FAILED|killed by signal: Killed")
_ASKED = re.compile(r"to allocate ([\d.]+) ([KMGT]i?B|bytes)")


class OutOfMemory(OSError):
    """The device, or the host, has not enough memory; the message says what to lower."""


@contextmanager
def explain_out_of_memory(cfg: Any) -> Iterator[None]:
    """Turn every way in which memory runs out in the block into OutOfMemory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(_message(cfg, error)) from error


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or bool(_WORDS.search(str(error)))


def _message(cfg: Any, error: BaseException) -> str:
    text = str(error)
    device = choose_device(cfg)
    on_gpu = device.type == "cuda" and bool(re.search("CUDA|CUBLAS|CUDNN", text, re.IGNORECASE))
    asked = ""
    if found := _ASKED.search(text):
        amount = f"{int(found[1]) / 1e9:.3g} GB" if found[2] == "bytes" else f"{found[1]} {found[2]}"
        asked = f"; {amount} more were asked for"
    where = _gpu(device) if on_gpu else _host()
    lines = [f"out of memory on {where}{asked}."]
    if "DataLoader" in text:
        lines.append("It is a loader process that had too little: the system ended it, or it found none left. Lower, with --set:")
        return "\n".join([*lines, f"  NUM_WORKERS (now {cfg.NUM_WORKERS} for each domain); 0 loads in the training process"])
    train, several = cfg.TRAIN, f" on {world_size()} processes" if world_size() > 1 else ""
    lines.append(
        f"A step holds {train.BATCH_SIZE_SOURCE} source and {train.BATCH_SIZE_TARGET} target images{several} and all that "
        f"{train.MODEL} computes from them. Change, with --set, what costs least first:"
    )
    lines += [f"  {advice}" for advice in _advice(cfg)]
    return "\n".join([*lines, "These options decide the weights: start the run anew, without --resume."])


def _gpu(device: torch.device) -> str:
    free, total = torch.cuda.mem_get_info(device)
    peak, held = torch.cuda.max_memory_allocated(device), torch.cuda.memory_reserved(device)
    others = max(total - free - held, 0)
    return (
        f"{device} ({torch.cuda.get_device_name(device)}, {total / 1e9:.1f} GB): this run used up to {peak / 1e9:.1f} GB, "
        f"other programs and CUDA itself use {others / 1e9:.1f} GB"
    )


def _host() -> str:
    figures = []
    if total := _host_total():
        figures.append(f"{total / 1e9:.1f} GB")
    if peak := _host_peak():
        figures.append(f"this process used up to {peak / 1e9:.1f} GB")
    return "the host" + (f" ({', '.join(figures)})" if figures else "")


def peak_memory(device: torch.device) -> int:
    """Peak memory of this process in bytes: of the GPU if `device` is one, else of the host; 0 if unknown."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _host_peak()


def _host_peak() -> int:
    if os.name != "posix":
        return 0
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _host_total() -> int:
    """Bytes that processes of this machine, or of this container, may use; 0 if the system does not say."""
    totals = []
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        totals.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            totals.append(int(Path(limit).read_text()))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return min(totals, default=0)


def _advice(cfg: Any) -> list[str]:
    """Options to change, each with its current value; those that keep the result come first."""
    train, crops = cfg.TRAIN, cfg.DATA_TRANSFORM
    advice = []
    timm = train.MODEL.startswith("timm:")
    # Of timm's encoders those without batch norm can; the most common of them.
    if not train.RECOMPUTE and (not timm or train.MODEL.startswith(("timm:vit_", "timm:convnext"))):
        advice.append("TRAIN.RECOMPUTE=True (now False): the same result, in more time")
    if not train.BF16:
        advice.append("TRAIN.BF16=True (now False): the network's maps take half the bytes")
    sizes = train.BATCH_SIZE_SOURCE, train.BATCH_SIZE_TARGET
    if (common := gcd(*sizes) // world_size()) > 1:
        parts = next(n for n in range(2, common + 1) if common % n == 0)
        advice.append(
            f"TRAIN.BATCH_SIZE_SOURCE={sizes[0] // parts} TRAIN.BATCH_SIZE_TARGET={sizes[1] // parts} "
            f"TRAIN.ITER_SIZE={train.ITER_SIZE * parts} (now {sizes[0]}, {sizes[1]}, {train.ITER_SIZE}): as many images an "
            "update, fewer at a time; batch norm sees the fewer"
        )
    elif max(sizes) > world_size():
        advice.append(
            f"TRAIN.BATCH_SIZE_SOURCE, TRAIN.BATCH_SIZE_TARGET (now {sizes[0]}, {sizes[1]}); a larger TRAIN.ITER_SIZE (now "
            f"{train.ITER_SIZE}) makes up for it"
        )
    if crops.RANDOM_RESIZE_AND_CROP:
        advice.append(f"DATA_TRANSFORM.CROPSIZE (now {crops.CROPSIZE}): memory goes with its square")
    else:
        now = " and ".join("x".join(map(str, size)) for size in (train.INPUT_SIZE_SOURCE, train.INPUT_SIZE_TARGET))
        advice.append(f"TRAIN.INPUT_SIZE_SOURCE, TRAIN.INPUT_SIZE_TARGET (now {now}): memory goes with the area")
    if timm and train.OUTPUT_STRIDE < 32 and not train.MODEL.startswith("timm:vit_"):
        advice.append(
            f"TRAIN.OUTPUT_STRIDE={2 * train.OUTPUT_STRIDE} (now {train.OUTPUT_STRIDE}): a quarter of the features, coarser "
            "predictions"
        )
    return [*advice, f"TRAIN.MODEL (now {train.MODEL}): a smaller network"]
