"""Write files so that a reader finds the old one or the new one, never half of one."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def whole_file(path: str | Path, ending: str = "") -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it to `path` if the block succeeds, remove it if it fails.

    File and folder are on the disk, not only in its cache, when this returns: what it wrote outlives a power cut. The
    temporary name has the `ending`, for writers that go by it.

    Raises:
        OSError: the disk is full; the message gives the free space. An older file at `path` is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=f".part{ending}")
    part = Path(name)
    if fcntl is None:  # Windows lets nobody remove or rename what is open
        os.close(handle)
    else:
        _lock(handle)
    try:
        yield part
        with open(part, "rb") as written:
            os.fsync(written.fileno())
        # mkstemp makes private files; others may read what the process would have let them read.
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o666 & ~umask)
        os.replace(part, path)
        _sync_folder(path.parent)
    except Exception as error:
        if full := _disk_full(error):
            free = shutil.disk_usage(path.parent).free / 1e6
            raise OSError(
                f"no space left to write {path} ({os.strerror(full)}; {free:.0f} MB free, "
                f"{part.stat().st_size / 1e6:.0f} MB written so far). Nothing there was changed: make room, or have it "
                "written elsewhere, and go on."
            ) from error
        raise
    finally:
        part.unlink(missing_ok=True)
        if fcntl is not None:
            os.close(handle)


def _lock(handle: int) -> bool:
    """Whether the open file is now this process's, until it closes it or ends, however that happens."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another process's, or a file system without locks
        return False
    return True


def _sync_folder(folder: Path) -> None:
    """Make a rename last; only POSIX systems open folders."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _disk_full(error: BaseException | None) -> int:
    """The number of the system's error if `error` comes of a full disk or quota, else 0.

    torch.save reports a failed write with an error of its own, whose context is the system's.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return error.errno
        error = error.__cause__ or error.__context__
    return 0


def remove_parts(folder: str | Path) -> None:
    """Remove what processes that were killed in the middle of `whole_file` have left in `folder`; not what is being written."""
    for pattern in (".*.part", ".*.part.*"):
        for part in Path(folder).glob(pattern):
            with suppress(OSError), open(part, "rb") as file:
                if fcntl is None or _lock(file.fileno()):
                    part.unlink(missing_ok=True)


def write_whole(path: str | Path, content: bytes) -> None:
    """Write `content` to `path`, making its folder."""
    with whole_file(path) as part:
        part.write_bytes(content)
