"""Encoded chunks in a folder on a disk that many processes share.

Each entry is a file (see `disk_entry`) whose name is a digest of its key. Files are written under another name and
renamed, so a reader sees a whole entry or none. Readers take no lock. One process at a time drops the least recently
used entries.

Libraries were considered: diskcache and others keep an SQLite index that every read locks and writes, and their
entries have no checksums; CloudVolume's cache has neither checksums nor a limit.
"""

from __future__ import annotations

import errno
import os
import random
import re
import secrets
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from imageryxr.core.fork import run_after_fork
from imageryxr.errors import CacheWarning, OptionError, warn
from imageryxr.sources.fetch.disk_entry import FORMAT, make_entry, read_entry
from imageryxr.sources.fetch.memory_cache import Stored

VARIABLE = "IMAGERYXR_DISK_CACHE"
_NAME = re.compile("[0-9a-f]{40}")
_TEMPORARY = re.compile("[0-9a-f]{40}-[0-9a-f]{16}")
_SUBFOLDER = re.compile("[0-9a-f]{2}")
# A temporary file of this age was left by a process that died.
_ABANDONED_SECONDS = 3600
# Fractions of the size limit: the largest size of an entry; how much a process writes between two checks of the size;
# the size above which entries are dropped, low enough for a dozen processes; and the size that remains afterwards.
_LARGEST, _UNCHECKED, _FULL, _KEPT = 1 / 4, 1 / 128, 0.9, 0.8
# The size of a folder with many entries is estimated from some of its subfolders, among which digests spread evenly.
_SAMPLE, _FEW = 16, 2000
_OPEN = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK if os.name == "posix" else getattr(os, "O_BINARY", 0)


class Usage(NamedTuple):
    """The content of a cache folder."""

    entries: int
    size: int
    """Bytes on the disk."""
    oldest: float | None
    """Time (Unix, seconds) of the last use of the entry that would be dropped first."""


class DiskCache:
    """The entries of one folder.

    Parameters
    ----------
    folder : str
        Absolute path.
    create : bool
        Whether to create it if it does not exist.

    Raises
    ------
    OptionError
        If the folder belongs to another user, or others may write to it.
    """

    def __init__(self, folder: str, *, create: bool = True) -> None:
        self.folder = folder
        self._place = os.path.join(os.path.realpath(folder), FORMAT)
        self._lock = threading.Lock()
        self._unchecked: float = float("inf")
        self._checking = threading.Lock()
        self._is_due = False
        self._is_writable = True
        if not create and not os.path.lexists(folder):
            return
        try:
            os.makedirs(folder, 0o700, exist_ok=True)
        except FileExistsError:
            raise _folder_error(folder, "is a file", "name a folder") from None
        except OSError as error:
            self._stop_writing(error)
            return
        _check_owner(folder)
        if create:
            with suppress(OSError):  # a folder that cannot be written to may still have entries
                os.mkdir(self._place, 0o700)
        if os.path.lexists(self._place):
            _check_owner(self._place)
            with suppress(OSError):
                os.chmod(self._place, 0o700)

    def has(self, name: str) -> bool:
        """Return whether there is an entry, which may be damaged."""
        return os.path.lexists(self._path(name))

    def get(self, name: str, limit: int) -> Stored | None:
        """Return an object of at most ``limit`` bytes, or None if it is not cached; a damaged entry is removed."""
        path = self._path(name)
        try:
            file = os.open(path, os.O_RDONLY | _OPEN)
        except FileNotFoundError:
            return None
        except OSError:  # a symbolic link, or a file that may not be read
            self.remove(name)
            return None
        try:
            found = read_entry(file, name, limit)
            if found is not None:
                with suppress(OSError):
                    os.utime(path)  # the time of last use
                return found
        finally:
            os.close(file)
        self.remove(name)
        return None

    def put(self, name: str, stored: Stored, limit: int) -> None:
        """Write an entry, and drop old entries if the folder has more than ``limit`` bytes.

        If it cannot be written, a warning is issued and this process writes no further entries.
        """
        content = make_entry(name, stored)
        if not self._is_writable or content is None or sum(map(len, content)) > limit * _LARGEST:
            return
        try:
            self._write(name, content)
        except FileNotFoundError:  # the folder was removed at this moment
            return
        except OSError as error:
            self._stop_writing(error)
            return
        with self._lock:
            self._unchecked += _size_on_disk(sum(map(len, content)))
            if self._unchecked <= limit * _UNCHECKED:
                return
            self._unchecked, self._is_due = 0, True
        self._check_size(limit)

    def _check_size(self, limit: int) -> None:
        # One thread at a time checks. If another thread sets `_is_due` meanwhile, the first thread checks again.
        while self._is_due and self._checking.acquire(blocking=False):
            try:
                self._is_due = False
                # Check again after dropping: another process that finds the lock taken drops nothing itself.
                while self._estimate_size() > limit * _FULL:
                    if not self.drop_until(int(limit * _KEPT), above=int(limit * _FULL)):
                        break
            finally:
                self._checking.release()

    def remove(self, name: str) -> None:
        """Remove an entry if it exists."""
        with suppress(OSError):
            os.unlink(self._path(name))

    def drop_until(self, size: int, above: int = 0) -> bool:
        """Drop the least recently used entries until ``size`` bytes are left; return whether any was dropped.

        If all entries have at most ``above`` bytes, another process has dropped some, and nothing is dropped.
        """
        with _lock_file(os.path.join(self._place, "lock")) as is_locked:
            if not is_locked:
                self._unchecked = float("inf")  # the next write checks again
                return False
            files = sorted(self._files())
            first = left = sum(size for _, size, _ in files)
            for _, count, path in files if left > above else ():
                if left <= size:
                    break
                with suppress(OSError):
                    os.unlink(path)
                    left -= count
            return left < first

    @property
    def exists(self) -> bool:
        """Whether the folder has a cache, which may be empty."""
        return os.path.isdir(self._place)

    def usage(self) -> Usage:
        """Return the number and size of the entries."""
        files = [file for file in self._files() if _NAME.fullmatch(os.path.basename(file[2]))]
        return Usage(len(files), sum(size for _, size, _ in files), min(files)[0] if files else None)

    def clear(self) -> Usage:
        """Remove all entries, but no other files in the folder; return the number and size of the removed entries."""
        found = self.usage()
        for _, _, path in list(self._files()):
            with suppress(OSError):
                os.unlink(path)
        return found

    def _path(self, name: str) -> str:
        return os.path.join(self._place, name[:2], name)

    def _write(self, name: str, content: list[bytes | memoryview]) -> None:
        path = self._path(name)
        temporary = f"{path}-{secrets.token_hex(8)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _OPEN
        try:
            file = os.open(temporary, flags, 0o600)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
            file = os.open(temporary, flags, 0o600)
        try:
            with os.fdopen(file, "wb", buffering=0) as opened:
                for part in content:
                    _write_all(opened, part)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise

    def _subfolders(self) -> list[str]:
        return [found.path for found in _scan(self._place) if _SUBFOLDER.fullmatch(found.name)]

    def _estimate_size(self) -> float:
        folders = self._subfolders()
        some = random.sample(folders, min(_SAMPLE, len(folders)))
        sizes = [size for folder in some for _, size, _ in _files_in(folder)]
        if len(sizes) * len(folders) <= _FEW * len(some):
            return sum(size for _, size, _ in self._files())
        return sum(sizes) * len(folders) / len(some)

    def _files(self) -> Iterator[tuple[float, int, str]]:
        """Yield the time of last use, size and path of each entry and of each temporary file; remove abandoned ones."""
        for folder in self._subfolders():
            yield from _files_in(folder)

    def _stop_writing(self, error: OSError) -> None:
        with self._lock:
            was_writable, self._is_writable = self._is_writable, False
        if was_writable:
            advice = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "name another folder"
            warn(
                f"the disk cache {self.folder} cannot be written to ({error.strerror or error}), so chunks are read "
                f"without adding them to it; {advice}",
                CacheWarning,
            )


_caches: dict[str, DiskCache] = {}
_caches_lock = threading.Lock()


def open_cache(folder: str) -> DiskCache:
    """Return the cache of a folder; a process has one for each folder."""
    with _caches_lock:
        if folder not in _caches:
            _caches[folder] = DiskCache(folder)
        return _caches[folder]


def absolute_folder(value: Any) -> str:
    """Return the absolute path of a folder that a user named.

    Raises
    ------
    OptionError
        If it is not a path on this machine.
    """
    if not isinstance(value, str | os.PathLike) or "://" in str(value) or not str(value).strip():
        raise OptionError(f"disk_cache={value!r} is not a folder on this machine; write e.g. disk_cache='~/chunks'")
    return os.path.abspath(os.path.expanduser(os.fspath(value)))


@run_after_fork
def _reset_after_fork() -> None:
    global _caches_lock
    _caches_lock = threading.Lock()  # a thread that the child does not have may hold it
    _caches.clear()


# ---------------------------------------------------------------------------------------------------------
# files


def _write_all(file: Any, data: bytes | memoryview) -> None:
    left = memoryview(data)
    while len(left):
        left = left[file.write(left) :]


def _size_on_disk(size: int) -> int:
    return -(-size // 4096) * 4096


def _files_in(folder: str) -> Iterator[tuple[float, int, str]]:
    now = time.time()
    for file in _scan(folder):
        is_temporary = _TEMPORARY.fullmatch(file.name) is not None
        if not is_temporary and not _NAME.fullmatch(file.name):
            continue
        with suppress(OSError):
            found = file.stat(follow_symlinks=False)
            if is_temporary and now - found.st_mtime > _ABANDONED_SECONDS:
                os.unlink(file.path)
            elif not stat.S_ISDIR(found.st_mode):
                yield (now if is_temporary else found.st_mtime), _size_on_disk(found.st_size), file.path


def _scan(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError:
        return []


@contextmanager
def _lock_file(path: str) -> Iterator[bool]:
    """Lock a file, and yield False if another process has locked it.

    The lock ends with its process. On systems without locks the result is True: several processes may drop entries at
    the same time, which is only slower.
    """
    try:
        import fcntl

        file = os.open(path, os.O_RDWR | os.O_CREAT | _OPEN, 0o600)
    except (ImportError, OSError):
        yield True
        return
    try:
        is_locked = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            is_locked = False
        except OSError:  # the file system has no locks
            pass
        yield is_locked
    finally:
        os.close(file)


def _check_owner(folder: str) -> None:
    found = os.stat(folder)
    if not stat.S_ISDIR(found.st_mode):
        raise _folder_error(folder, "is not a folder", "name a folder")
    if not hasattr(os, "geteuid"):
        return
    if found.st_uid != os.geteuid():
        raise _folder_error(folder, "belongs to another user, who could change the voxels", "name a folder of your own")
    if found.st_mode & stat.S_ISVTX:
        raise _folder_error(folder, "is shared with other users", f"name a folder of your own, e.g. {folder}/imageryxr")
    if found.st_mode & 0o022:
        raise _folder_error(folder, "can be changed by other users", f"run chmod go-w {folder}, or name another folder")


def _folder_error(folder: str, problem: str, advice: str) -> OptionError:
    return OptionError(f"the disk cache {folder} {problem}; {advice}")
