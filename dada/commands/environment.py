"""What this machine offers a run: the first thing a maintainer asks for when something is slow or fails.

Of environment variables, only those that match VARIABLES are shown.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed
import torch.multiprocessing
from torch.utils import collect_env

from dada import __version__
from dada.build import files_of
from dada.dataset import Draw, storage
from dada.dataset.spread import spread
from dada.matmul_precision import products_of
from dada.parallel.device import find_device
from dada.publishing.commit import PACKAGE, changed_files, git_commit

PACKAGES = (
    *("torch", "torchvision", "timm", "numpy", "pillow", "opencv-python-headless", "opencv-python", "pyyaml", "easydict"),
    *("safetensors", "tensorboard", "tqdm", "matplotlib", "triton"),
)
VARIABLES = re.compile(
    r"""CUDA_VISIBLE_DEVICES | PYTORCH_CUDA_ALLOC_CONF | TMPDIR | OMP_NUM_THREADS | OMP_WAIT_POLICY | MKL_NUM_THREADS
    | (LOCAL_)?RANK | (LOCAL_)?WORLD_SIZE | MASTER_(ADDR|PORT) | TORCHELASTIC_(RUN_ID|RESTART_COUNT)
    | NCCL_(DEBUG|SOCKET_IFNAME|IB_DISABLE|P2P_DISABLE) | GLOO_SOCKET_IFNAME
    | SLURM_(JOB_ID|JOB_PARTITION|JOB_NODELIST|NNODES|NTASKS|NTASKS_PER_NODE|CPUS_PER_TASK|MEM_PER_NODE|GPUS_ON_NODE)
    | SLURM_(PROCID|LOCALID|ARRAY_TASK_ID|RESTART_COUNT|TMPDIR)""",
    re.VERBOSE,
)
TIME_LIMIT = 20  # seconds, for another program

Section = dict[str, Any]  # plain values; None for what the system does not say


def environment(cfg: Any, images: int = 0) -> dict[str, Section]:
    """Everything, by section.

    Args:
        cfg: for EXP_ROOT, for DEVICE and GPU_ID, and for the datasets if `images`.
        images: how many of each dataset to read and decode; 0 opens none.
    """
    no_compiler, compiler, _ = _run(f"{os.environ.get('CXX', 'g++')} --version")
    return {
        "project": {
            "dada": __version__,
            "folder": str(PACKAGE.parent),
            "git commit": git_commit() or "none: not a clone, or git cannot read it",
            "files changed since": changed_files(),
        },
        "system": {
            "system": collect_env.get_os(_run),
            "platform": platform.platform(),
            "host": platform.node(),
            "python": f"{sys.version}, {sys.executable}",
        },
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "processors": _processors(cfg),
        "memory": _memory(),
        "gpu": _gpus(cfg),
        "distributed": _distributed(),
        "loader processes": _loaders(),
        "torch.compile": {
            "C++ compiler": "none: torch.compile cannot build for the CPU" if no_compiler else compiler.splitlines()[0],
            "triton": _version("triton") or "none: torch.compile cannot build for a GPU",
        },
        "disk of EXP_ROOT": _disk(Path(cfg.EXP_ROOT)),
        "variables": {name: value for name, value in sorted(os.environ.items()) if VARIABLES.fullmatch(name)},
        **{f"{what} images": _data(cfg, what, images) for what in ("source", "target", "test") if images},
    }


def report(sections: dict[str, Section]) -> str:
    """The sections as text."""
    lines = []
    for name, section in sections.items():
        lines.append(name)
        for key, value in section.items() or [("none", "")]:
            lines.append(f"  {key:<28} {_words(value)}".rstrip())
    return "\n".join(lines)


def _words(value: Any) -> str:
    if value is None:
        return "not known"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


# --- the machine ---------------------------------------------------------------------------------------------


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processors(cfg: Any) -> Section:
    names = [line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    shares = [int(quota) / int(period) for quota, period in map(str.split, _cgroup("cpu.max")) if quota != "max"]
    return {
        "model": names[0] if names else platform.processor() or None,
        "cores of the machine": os.cpu_count(),
        "cores this process may use": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "limit of the container": f"{min(shares):g} cores" if shares else "none",
        "threads of torch": torch.get_num_threads(),
        "products of float32": products_of(cfg.TRAIN.MATMUL_PRECISION, "cpu").name,
        "load of the last minute": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def _cgroup(name: str) -> list[str]:
    """What the files of that name say in the control group of this process and in all that it lies in (version 2)."""
    path = next((line[3:] for line in _lines("/proc/self/cgroup") if line.startswith("0::")), "/")
    root, folder = Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup", path.lstrip("/"))
    return [line for p in (folder, *folder.parents) if p.is_relative_to(root) for line in _lines(str(p / name))[:1]]


def _memory() -> Section:
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in _lines("/proc/meminfo") if len(line.split()) > 1}
    limits = [int(text) for text in _cgroup("memory.max") if text.isdecimal()]
    of = {"of the machine": "MemTotal", "available": "MemAvailable", "swap": "SwapTotal"}
    return {
        **{what: _size(kilobytes[name] * 1024) if name in kilobytes else None for what, name in of.items()},
        "limit of the container": _size(min(limits)) if limits else "none",
    }


def _gpus(cfg: Any) -> Section:
    section: Section = {
        "CUDA of torch": torch.version.cuda or "none: torch was built for the CPU",
        "cuDNN": torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None,
        "driver": collect_env.get_nvidia_driver_version(_run) or "none: nvidia-smi finds none",
        "devices": torch.cuda.device_count() if torch.cuda.is_available() else 0,
    }
    try:
        section["a run"] = find_device(cfg.DEVICE, cfg.GPU_ID)[1]
    except ValueError as error:
        section["a run"] = f"none: {error}"
    for k in range(section["devices"]):
        device = torch.cuda.get_device_properties(k)
        free, total = torch.cuda.mem_get_info(k)
        section[f"device {k}"] = (
            f"{device.name}, compute capability {device.major}.{device.minor}, {_size(total)}, {_size(free)} of it free"
        )
    if section["devices"]:
        section["products of float32"] = products_of(cfg.TRAIN.MATMUL_PRECISION, "cuda:0").name
    return section


def _distributed() -> Section:
    if not torch.distributed.is_available():
        return {"torch.distributed": False}
    nccl = torch.distributed.is_nccl_available()
    version = ".".join(map(str, torch.cuda.nccl.version())) if nccl and torch.cuda.is_available() else nccl
    return {"gloo": torch.distributed.is_gloo_available(), "NCCL": version, "srun": shutil.which("srun") is not None}


def _loaders() -> Section:
    section: Section = {
        "start method": torch.multiprocessing.get_start_method(),
        "tensors are shared by": torch.multiprocessing.get_sharing_strategy(),
    }
    if os.name == "posix":
        import resource  # not on Windows

        for name, which in (("open files", resource.RLIMIT_NOFILE), ("processes", resource.RLIMIT_NPROC)):
            soft, hard = ("unlimited" if limit == resource.RLIM_INFINITY else limit for limit in resource.getrlimit(which))
            section[f"limit of {name}"] = f"{soft} (can be raised to {hard})"
    if os.path.isdir("/dev/shm"):
        usage = shutil.disk_usage("/dev/shm")
        section["/dev/shm"] = f"{_size(usage.total)}, {_size(usage.free)} of it free"
    return section


def _disk(folder: Path) -> Section:
    there = _on_disk(folder.absolute())
    usage = shutil.disk_usage(there)
    try:
        with tempfile.TemporaryFile(dir=there):
            writable = True
    except OSError:
        writable = False
    return {
        "folder": str(folder) if there == folder.absolute() else f"{folder} (not there yet; {there} is)",
        "file system": _file_system(there),
        "size": _size(usage.total),
        "free": _size(usage.free),
        "can be written": writable,
    }


def _file_system(path: Path) -> str | None:
    """Its type, and what is mounted, from the longest mount point that leads to `path`."""
    mounts = [line.split() for line in _lines("/proc/mounts")]
    fits = [m for m in mounts if len(m) > 2 and (path.resolve().is_relative_to(m[1].replace("\\040", " ")))]
    return f"{(best := max(fits, key=lambda m: len(m[1])))[2]}, mounted at {best[1]}" if fits else None


# --- the data ------------------------------------------------------------------------------------------------


def _data(cfg: Any, what: str, images: int) -> Section:
    """How fast `images` samples, evenly chosen, are read and prepared in one process."""
    try:
        found = files_of(cfg, what)
        indices = spread(len(found), images)
        paths = [p for k in indices for p in (found.items[k].image, found.items[k].label, found.items[k].depth) if p]
        section = {"dataset": f"{found.title}, {len(found)} images", "file system": _file_system(_on_disk(Path(paths[0])))}
        section.update(_reading(paths))
        started = time.perf_counter()
        for slot, index in enumerate(indices):
            found[Draw(index, 0, slot)]
        rate = len(indices) / (time.perf_counter() - started)
    except (ValueError, OSError) as error:
        return {"cannot be read": str(error)}
    section[f"{len(indices)} samples prepared"] = (
        f"{rate:.1f} images/s in this one process, files in memory; NUM_WORKERS is {cfg.NUM_WORKERS}"
    )
    return section


def _reading(paths: list[str]) -> Section:
    """Bytes a second: those of the disk only if the system drops the files from its cache."""
    dropped = [_drop_from_cache(_on_disk(Path(path))) for path in paths]
    started = time.perf_counter()
    try:
        size = sum(len(storage.read_bytes(path)) for path in paths)
    except ValueError as error:  # of a packed copy, whose pictures are no files
        return {"read": f"not measured: {error}"}
    seconds = time.perf_counter() - started
    figures = f"{size / seconds / 1e6:.1f} MB/s, {len(paths) / seconds:.1f} files/s ({len(paths)} files, {size / 1e6:.1f} MB)"
    return {f"read, {'dropped' if all(dropped) else 'perhaps'} from the cache": figures}


def _on_disk(path: Path) -> Path:
    """The file or folder, or the archive or folder that leads to it."""
    return next(p for p in (path, *path.parents) if p.exists())


def _drop_from_cache(path: Path) -> bool:
    """Ask the system to drop a file from its cache; returns whether it can be asked. A server's own cache is out of reach."""
    try:
        with path.open("rb") as file:
            os.fsync(file)  # what is not written yet would stay
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    except (OSError, AttributeError):  # a folder; a system that has no such call
        return False
    return True


# --- help ----------------------------------------------------------------------------------------------------


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB"


def _run(command: str) -> tuple[int, str, str]:
    """As collect_env.run, but for TIME_LIMIT at most, since nvidia-smi hangs where a driver does: status, output and errors."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "errors": "replace"}
    process = subprocess.Popen(command, shell=True, start_new_session=True, **options)
    try:
        output, errors = process.communicate(timeout=TIME_LIMIT)
    except subprocess.TimeoutExpired as error:
        os.killpg(process.pid, signal.SIGKILL)  # what the shell has started, too; not waited for, as it may not be able to end
        return 1, "", str(error)
    return process.returncode, output.strip(), errors.strip()
