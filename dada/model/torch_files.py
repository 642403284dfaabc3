"""Read files written by torch.save, or by anybody: completely, or not at all."""

from __future__ import annotations

import argparse
import mmap
import zipfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch


class UnreadableFile(ValueError):
    """What is wrong with the file, in a few words; the caller adds its name.

    Attributes:
        objects: whether it is complete, but holds Python objects beside tensors.
    """

    def __init__(self, reason: str, objects: bool = False) -> None:
        super().__init__(reason)
        self.objects = objects


def read_torch_file(path: Path) -> object:
    """The content, tensors on the CPU. No code in the file is run, and memory stays within a few times its size.

    The checksums of archives, which torch.save has written since version 1.6, are compared; torch itself would load
    flipped bits as weights.

    Raises:
        UnreadableFile: cut off, changed on the disk, or made to do harm.
        OSError: the disk cannot be read.
    """
    with open(path, "rb") as file:
        is_archive = file.read(4) == b"PK\3\4"
    try:
        if is_archive:
            _check_archive(path)
        else:
            _refuse_bytearray(path)
        with _harmless():
            return torch.load(path, map_location="cpu", weights_only=True)
    except UnreadableFile:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise UnreadableFile(
            f"{type(error).__name__}: {reason[0][:200] if reason else 'nothing in it'}", "Unsupported" in str(error)
        ) from error


def _harmless() -> AbstractContextManager:
    """Lets torch read harmless objects that training scripts store beside weights: arguments and NumPy numbers."""
    from numpy.dtypes import Float32DType, Float64DType, Int64DType

    scalar = np.float64(0).__reduce__()[0]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")  # before NumPy 2, and since
    known: list[Any] = [argparse.Namespace, np.dtype, Float32DType, Float64DType, Int64DType, *((scalar, name) for name in names)]
    return torch.serialization.safe_globals(known) if hasattr(torch.serialization, "safe_globals") else nullcontext()


def _check_archive(path: Path) -> None:
    """Refuse an archive with wrong checksums, or one that would take more memory than it is large."""
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        if packed := [info.filename for info in infos if info.compress_type != zipfile.ZIP_STORED]:
            raise UnreadableFile(f"{packed[0]!r} in it is compressed, which torch.save never does")
        if sum(info.file_size for info in infos) > path.stat().st_size:
            raise UnreadableFile("what it claims to hold is larger than the file")
        if bad := archive.testzip():
            raise UnreadableFile(f"wrong checksum of {bad!r}")
        for name in archive.namelist():
            if name.endswith(".pkl") and b"bytearray" in archive.read(name):
                raise UnreadableFile("it holds a bytearray", objects=True)


def _refuse_bytearray(path: Path) -> None:
    """A few bytes can ask for a bytearray of any length, which Python fills with zeros; weights never hold one."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content.find(b"bytearray") >= 0:
            raise UnreadableFile("it holds a bytearray", objects=True)
