"""Samples a second: loaded as the published code does, as we do, and from a packed copy; with a loader process for each core."""

from __future__ import annotations

import os

from gpu_check.check import Check
from gpu_check.programs import benchmark, city_options


def run(check: Check) -> None:
    cores = len(os.sched_getaffinity(0))
    workers, images, repeat = ([0], 4, 1) if check.small else ([cores], 8 * cores, 3)
    side = 64 if check.small else 730
    with check.noting(cores=cores) as row:
        row["loading"] = benchmark(
            check,
            "data_loading",
            "--cfg",
            "synthia2cityscapes.yml",
            "--repeat",
            str(repeat),
            "--images",
            str(images),
            "--workers",
            *map(str, workers),
            "--set",
            *city_options(check),
            f"DATA_TRANSFORM.LOADSIZE={side}",
            f"DATA_TRANSFORM.CROPSIZE={side}",
        )
