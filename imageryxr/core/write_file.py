"""Write small files that are complete at any time, and explain errors of disks."""

from __future__ import annotations

import errno
import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from imageryxr.errors import TargetError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors that each retry repeats until space is freed."""


class DiskProblem(NamedTuple):
    """Why a file cannot be written, in words of a user, and what to do."""

    reason: str
    advice: str


_PROBLEMS = {
    errno.ENOSPC: DiskProblem("the disk is full", "free some space"),
    errno.EDQUOT: DiskProblem("the quota of the disk (bytes or files) is used up", "free some space or remove files"),
    errno.EFBIG: DiskProblem("the maximum file size is reached", "raise it (ulimit -f)"),
    errno.EACCES: DiskProblem("you have no permission to write there", "get the permission"),
    errno.EROFS: DiskProblem("the file system is read-only", "make it writable"),
    errno.EIO: DiskProblem("the disk failed with an input/output error", "check the disk"),
    errno.EMFILE: DiskProblem("this process has too many open files", "raise their number (ulimit -n)"),
}


def disk_problem(error: OSError) -> DiskProblem:
    """Return why a file could not be written, and what to do."""
    path = error.filename if isinstance(error.filename, str) else None
    folder = "" if path is None else path if os.path.isdir(path) else os.path.dirname(path) or "."
    if error.errno == errno.ENOSPC and folder and _lacks_inodes(folder):
        reason = "the disk has free bytes, but no free inodes, so that no file can be created"
        return DiskProblem(reason, "remove files")
    if error.errno in (errno.ENOENT, errno.ESTALE) and folder and not os.path.isdir(folder):
        import socket

        host = socket.gethostname()
        reason = f"{folder} does not exist on {host}; perhaps it was removed, or its disk is not mounted"
        return DiskProblem(reason, "mount the disk and run the same call again")
    return _PROBLEMS.get(error.errno or 0, DiskProblem(error.strerror or str(error), "check the path and the disk"))


def _lacks_inodes(folder: str) -> bool:
    """Return whether the disk of a folder lacks inodes rather than bytes."""
    with suppress(OSError, AttributeError):  # Windows has no statvfs
        disk = os.statvfs(folder)
        # other threads may just have removed a few of their unfinished files
        return disk.f_favail < 64 and disk.f_favail * disk.f_blocks < disk.f_bavail * disk.f_files
    return False


def write_file(target: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it, so that the target is always complete; create its folder.

    Raises `TargetError` if the file cannot be written.
    """
    beside = target.with_name(f".{target.stem}-{uuid.uuid4().hex[:8]}{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(content)
        os.replace(beside, target)
    except OSError as error:
        # The message of the OSError contains the name of the temporary file, which the caller does not know.
        raise TargetError(
            f"{target} cannot be written: creating a file in the folder {target.parent} failed "
            f"({disk_problem(error).reason}); choose another folder, or check its permissions and free space"
        ) from error
    finally:
        with suppress(OSError):  # an error that removing the file repeats, such as a file in place of the folder
            beside.unlink(missing_ok=True)
