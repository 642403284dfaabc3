"""A process's rank among those started together, from the variables of the launcher."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from dada.parallel.ranks import world_size


class Place(NamedTuple):
    """Where a process stands among those of its run."""

    rank: int
    world_size: int
    local_rank: int  # among those of its node: the number of its GPU
    address: str  # of rank 0
    port: int


def place(environment: Mapping[str, str] = os.environ) -> Place | None:
    """What the variables of torchrun, or else of srun, say; None for a process of its own.

    A process that is no task of an `srun` stands alone, even in a job of several tasks. So does one for which a platform, or
    an image, has set RANK or WORLD_SIZE=1 without starting it as torchrun does. The first node in the job's list is that of
    rank 0; MASTER_ADDR and MASTER_PORT, if they are set, come first.

    Raises:
        ValueError: some variables are missing, or are no numbers.
    """
    world = environment.get("WORLD_SIZE") or "1"
    if world != "1":
        names, launcher = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"), "torchrun"
        port, address = environment.get("MASTER_PORT", ""), environment.get("MASTER_ADDR", "localhost")
    elif not environment.get("TORCHELASTIC_RUN_ID") and (environment.get("SLURM_STEP_NUM_TASKS") or "1") != "1":
        names, launcher = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_JOB_ID"), "srun"
        port, address = environment.get("MASTER_PORT") or _port_of_step(environment), environment.get("MASTER_ADDR", "")
    else:
        return None
    values = [environment.get(name, "") for name in names]
    if not all(value.isdigit() for value in values):
        found = ", ".join(f"{name}={value!r}" for name, value in zip(names, values))
        raise ValueError(
            f"{launcher} gives every process numbers in {', '.join(names)}, but here are {found}; start all with it, or, where "
            f"something else starts one process on each node, set {names[2]} to 0; for a process of its own unset {names[1]}"
        )
    where = Place(int(values[0]), int(values[1]), int(values[2]), address or _first_node(environment), int(port))
    return where if where.world_size > 1 else None


def _port_of_step(environment: Mapping[str, str]) -> str:
    """A port for all tasks of one `srun`, which other jobs on the node, and other steps of the job, do not take.

    Those below 15000 and above 32767 are in use. Numbers of jobs follow each other, and so do those of steps.
    """
    job, step = (environment.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return str(15000 + (int(job) + 5003 * int(step or 0)) % 17000) if job.isdigit() and (step or "0").isdigit() else ""


def _first_node(environment: Mapping[str, str]) -> str:
    """The first name of Slurm's node list, in which `gpu[03-05,9],login` stands for gpu03, gpu04, gpu05, gpu9, login."""
    if environment.get("SLURM_STEP_NUM_NODES", environment.get("SLURM_NNODES")) == "1":
        return "localhost"  # a node's name need not be known to itself
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST") or ""
    found = re.match(r"([^\[,]+)(?:\[(\w+)[^\]]*\]([^,]*))?", nodes)
    if not found:
        raise ValueError(f"SLURM_STEP_NODELIST is {nodes!r}, which names no node; set MASTER_ADDR to the node of the first task")
    return "".join(part or "" for part in found.groups())


def local_rank() -> int:
    """Number of this process among those of its node; 0 if it is alone, or no part of a group."""
    where = place() if world_size() > 1 else None
    return where.local_rank if where else 0
