"""Room on a local disk for what does not fit into memory: a file without a name, which is gone when its process is."""

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

from imageryxr.errors import ImageryError, OptionError, ScratchError

SCRATCH_ADVICE = (
    "give scratch=… a local folder with more room, workers more memory, or scratch=False, which reads the same chunks "
    "again and again instead"
)
"""What to do where a scratch folder is too small."""

_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "it is full, as a file there may not be larger",
}
# Windows has no reading at a place: there one thread at a time moves the file's only position.
_HAS_POSITIONED_IO = hasattr(os, "preadv")


def check_scratch(value: Any) -> str | bool | None:
    """Return a folder, None for the usual one, or False for none at all; or raise `OptionError`."""
    if value is None or value is False:
        return value
    if not isinstance(value, str | os.PathLike):
        raise OptionError(f"scratch={value!r} must be a folder on a local disk, None for the usual one, or False")
    if not os.fspath(value).strip():
        raise OptionError(
            f"scratch={os.fspath(value)!r} names no folder; give one on a local disk, None for the usual one, or False"
        )
    path = os.path.abspath(os.path.expanduser(os.fspath(value)))
    if "://" in os.fspath(value):
        raise OptionError(f"scratch={os.fspath(value)!r} must be a folder on a local disk, not a URL")
    return path


def scratch_folder(given: str | None) -> str:
    """Return where scratch files go: the folder that is given, a dask worker's own, dask's, or the system's."""
    if given is not None:
        return given
    if "distributed" in sys.modules:
        from distributed import get_worker

        with suppress(ValueError):  # this is no worker
            return str(get_worker().local_directory)
    from dask import config

    return str(config.get("temporary-directory", None) or tempfile.gettempdir())


def free_bytes(folder: str) -> int:
    """Return how much room a scratch folder has.

    Raises
    ------
    ScratchError
        If no file can be made in it.
    """
    with _disk_errors(folder), tempfile.TemporaryFile(dir=folder):
        return shutil.disk_usage(folder).free


class ScratchFile:
    """A file without a name, which arrays are put into one behind the other; many threads may use it.

    Parameters
    ----------
    folder : str
        Where it lies.
    size : int
        Bytes that will come: where there is too little room for them, that is told before any are made.
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
        """Give the room back; nobody may be reading or writing."""
        self._file.close()

    def put(self, values: npt.NDArray[Any]) -> int:
        """Put an array of C order behind all others; return the place where it begins."""
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
        """Fill an array of C order with what begins at a place."""
        data = _as_bytes(out)
        with _disk_errors(self.folder):
            while data:
                count = self._read(data, at)
                if not count:
                    raise OSError(errno.EIO, "what was written there is not there any more")
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
        reason = _FULL.get(error.errno or 0, error.strerror or str(error))
        raise _scratch_error(folder, reason, error.errno in _FULL) from error


@contextmanager
def name_worker_in_errors() -> Iterator[None]:
    """Let errors of the scratch folder of a cluster's worker say whose it is: other workers may have a better one."""
    try:
        yield
    except ScratchError as error:
        if "distributed" not in sys.modules:
            raise
        from distributed import get_worker

        try:
            address = str(get_worker().address)
        except ValueError:  # a process of this machine
            raise error from error.__cause__
        raise _scratch_error(error.folder, error.reason, error.full, worker=address) from error.__cause__


def _scratch_error(folder: str, reason: str, full: bool, worker: str | None = None) -> ScratchError:
    whose = "" if worker is None else f" of the worker {worker} on {socket.gethostname()}"
    said = f"the scratch folder {folder}{whose} cannot be used: {reason}; {SCRATCH_ADVICE}"
    return ScratchError(said, folder=folder, reason=reason, full=full, worker=worker)
