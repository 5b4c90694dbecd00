"""Spill voxels that do not fit into memory to a nameless scratch file, which is deleted with its process."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from imageryxr.core.write_file import FULL, disk_problem
from imageryxr.errors import ImageryError, Message, ScratchError, param

SCRATCH_ADVICE = Message(
    "give ",
    param("scratch", ...),
    " a local folder with more space, give workers more memory, or give ",
    param("scratch", False),
    ", which reads the same chunks repeatedly",
)
"""Advice for a scratch folder that is too small."""

# Windows has no pread and pwrite: there, one thread at a time moves the position of the file.
_HAS_POSITIONED_IO = hasattr(os, "preadv")


def scratch_folder(given: str | None) -> str:
    """Return the folder of scratch files: the given one, that of the dask worker, that of dask, or the system's."""
    if given is not None:
        return given
    if "distributed" in sys.modules:
        from distributed import get_worker

        with suppress(ValueError):  # this process is not a worker
            return str(get_worker().local_directory)
    from dask import config

    return str(config.get("temporary-directory", None) or tempfile.gettempdir())


def free_bytes(folder: str) -> int:
    """Return the free bytes of a scratch folder; raise `ScratchError` if no file can be created in it."""
    with _disk_errors(folder), tempfile.TemporaryFile(dir=folder):
        return shutil.disk_usage(folder).free


class ScratchFile:
    """A file without a name that arrays are appended to. Thread-safe.

    If the disk has too little space for `size`, the bytes that will be written, a `ScratchError` is raised at once.
    """

    def __init__(self, folder: str, size: int) -> None:
        self.folder = folder
        with _disk_errors(folder):
            free = shutil.disk_usage(folder).free
            if size > free:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._file: Any = tempfile.TemporaryFile(prefix="imageryxr-", dir=folder, buffering=0)  # noqa: SIM115
        self._end = 0
        self._lock = threading.Lock()

    def close(self) -> None:
        """Delete the file; no thread may read or write it any more."""
        self._file.close()

    def put(self, values: npt.NDArray[Any]) -> int:
        """Append a C-contiguous array; return its offset in the file."""
        data = _as_bytes(values)
        with self._lock:
            begin = at = self._end
            self._end += len(data)
        with _disk_errors(self.folder):
            while data:
                count = self._write(data, at)
                data, at = data[count:], at + count
        return begin

    def get(self, out: npt.NDArray[Any], at: int) -> None:
        """Fill a C-contiguous array with the bytes at an offset."""
        data = _as_bytes(out)
        with _disk_errors(self.folder):
            while data:
                count = self._read(data, at)
                if not count:
                    raise OSError(errno.EIO, "the file is shorter than what was written to it")
                data, at = data[count:], at + count

    def _write(self, data: memoryview, at: int) -> int:
        if _HAS_POSITIONED_IO:
            return os.pwrite(self._file.fileno(), data, at)
        with self._lock:
            self._file.seek(at)
            return int(self._file.write(data))

    def _read(self, data: memoryview, at: int) -> int:
        if _HAS_POSITIONED_IO:
            return os.preadv(self._file.fileno(), [data], at)
        with self._lock:
            self._file.seek(at)
            return int(self._file.readinto(data))


def _as_bytes(values: npt.NDArray[Any]) -> memoryview:
    flat: Any = values.reshape(-1).view(np.uint8)
    return memoryview(flat)


@contextmanager
def _disk_errors(folder: str) -> Iterator[None]:
    try:
        yield
    except ImageryError:
        raise
    except OSError as error:
        raise _scratch_error(folder, disk_problem(error).reason, error.errno in FULL) from error


@contextmanager
def name_worker_in_errors() -> Iterator[None]:
    """Add the address of a dask worker to errors of its scratch folder, because other workers may have more space."""
    try:
        yield
    except ScratchError as error:
        if "distributed" not in sys.modules:
            raise
        from distributed import get_worker

        try:
            address = str(get_worker().address)
        except ValueError:  # not a dask worker
            raise error from error.__cause__
        raise _scratch_error(error.folder, error.reason, error.full, worker=address) from error.__cause__


def _scratch_error(folder: str, reason: str, full: bool, worker: str | None = None) -> ScratchError:
    whose = "" if worker is None else f" of the worker {worker} on {socket.gethostname()}"
    message = f"the scratch folder {folder}{whose} cannot be used: {reason}; {SCRATCH_ADVICE}"
    return ScratchError(message, folder=folder, reason=reason, full=full, worker=worker)
