"""Where exports put bytes: a folder, or what stands for one, in which every file is whole or not there."""

from __future__ import annotations

import errno
import os
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from imageryxr.errors import ImageryError, OptionError, TargetError

BUCKETS = ("s3", "gs")
FULL = (errno.ENOSPC, errno.EDQUOT)
# Files on their way to the disk, of each who writes: so that none is waited for while there is something else to do.
# A kill costs those; after so many seconds they have got there.
WAITING = 32
SETTLED_SECONDS = 2.0


class Place(Protocol):
    """A folder, or what stands for one, that files are put into; small and picklable, safe to use from many threads."""

    @property
    def url(self) -> str:
        """Where it is."""

    def put(self, files: Iterable[tuple[str, bytes]]) -> list[int]:
        """Write files, each atomically and durably; return their sizes."""

    def get(self, key: str) -> bytes | None:
        """Return a file, or None where there is none."""

    def size_of(self) -> Callable[[str], int | None]:
        """Return a function that gives the size of a file, None where there is none; it may remember what it saw."""

    def own_size_of(self) -> Callable[[str], int | None]:
        """Return the same for what this export put there, where others may put something too."""

    def delete(self, keys: Iterable[str]) -> None:
        """Remove files; those that are not there are passed over."""

    def names(self) -> Iterator[str]:
        """Return the names of all files, with folders."""

    def beside(self) -> list[str]:
        """Return the names of the files that lie in no folder of it."""


@contextmanager
def disk_errors(place: str) -> Iterator[None]:
    """Turn a failed write into a `TargetError` that says what to do."""
    try:
        yield
    except ImageryError:
        raise
    except OSError as error:
        advice = {
            errno.ENOSPC: "the disk is full: free some space or choose another target",
            errno.EDQUOT: "the disk quota is used up: free some space or choose another target",
            errno.EACCES: "you have no right to write there",
            errno.EROFS: "the file system is read-only",
        }.get(error.errno or 0, str(error))
        said = f"could not write {place}: {advice}. What was at the target before is untouched"
        raise TargetError(said, full=error.errno in FULL) from error


@dataclass(frozen=True)
class Folder:
    """A local folder."""

    root: str
    scratch: str
    """A folder on the same file system for files that are being written. Without it nothing can be: that is how a
    worker that outlived its export is kept from writing into the next one."""

    @property
    def url(self) -> str:
        """The path."""
        return self.root

    def put(self, files: Iterable[tuple[str, bytes]]) -> list[int]:
        """Write under temporary names, make sure of them on the disk, then rename; a few wait while others are made."""
        waiting: deque[tuple[float, str, str]] = deque()
        folders, sizes = set[str](), []

        def settle(left: int, until: float = 0.0) -> None:
            while len(waiting) > left or (waiting and waiting[0][0] < until):
                _, temporary, final = waiting.popleft()
                try:
                    folders.add(_settle(temporary, final))
                except BaseException:
                    with suppress(OSError):
                        os.unlink(temporary)
                    raise

        try:
            for key, data in files:
                temporary = os.path.join(self.scratch, uuid.uuid4().hex)
                _write(temporary, data)
                waiting.append((time.monotonic(), temporary, os.path.join(self.root, key)))
                sizes.append(len(data))
                settle(WAITING, time.monotonic() - SETTLED_SECONDS)
            settle(0)
            for folder in folders:
                sync(folder)
        except BaseException:
            while waiting:  # whoever continues need not make again what is whole
                with suppress(OSError):
                    settle(0)
            raise
        return sizes

    def get(self, key: str) -> bytes | None:
        """Return a file, or None."""
        try:
            return Path(self.root, key).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def size_of(self) -> Callable[[str], int | None]:
        """Return a function that asks the file system."""

        def size(key: str) -> int | None:
            try:
                return os.stat(os.path.join(self.root, key)).st_size
            except (FileNotFoundError, NotADirectoryError):
                return None

        return size

    def own_size_of(self) -> Callable[[str], int | None]:
        """Ask for any: nobody else has this scratch folder."""
        return self.size_of()

    def delete(self, keys: Iterable[str]) -> None:
        """Remove files."""
        for key in keys:
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(self.root, key))

    def names(self) -> Iterator[str]:
        """Walk the folder."""
        for folder, _, names in os.walk(self.root):
            for name in names:
                yield os.path.relpath(os.path.join(folder, name), self.root).replace(os.sep, "/")

    def beside(self) -> list[str]:
        """List the folder."""
        try:
            return os.listdir(self.root)
        except (FileNotFoundError, NotADirectoryError):
            return []


def _write(path: str, data: bytes) -> None:
    """Write a new file, which is on its way to the disk then, or not there."""
    try:
        with open(path, "xb") as file:
            file.write(data)
            file.flush()
            _begin_sync(file.fileno())
    except BaseException:
        with suppress(OSError):
            os.unlink(path)
        raise


def _settle(temporary: str, final: str) -> str:
    """Bring a file that is written to its place; return the folder."""
    sync(temporary)
    folder = os.path.dirname(final)
    os.makedirs(folder, exist_ok=True)
    os.replace(temporary, final)
    return folder


def _begin_sync(handle: int) -> None:
    """Let a file be on its way to the disk while the next one is made."""
    if hasattr(os, "posix_fadvise"):
        # Linux begins to write what it is told to forget, and forgets only what is written.
        with suppress(OSError):
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)


def sync(path: str) -> None:
    """Wait until a file or folder is on the disk."""
    if os.name == "nt" and os.path.isdir(path):
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_remote(target: str) -> bool:
    """Tell whether a target lies in a bucket, or raise `OptionError` for a scheme that cannot be written to."""
    scheme, separator, _ = target.partition("://")
    if not separator or scheme == "file":
        return False
    if scheme in BUCKETS:
        return True
    raise OptionError(
        f"target={target!r} has the scheme {scheme!r}, which cannot be written to; give a local path, "
        f"{' or '.join(f'{b}://bucket/…' for b in BUCKETS)}"
    )


def move_into_place(moves: Sequence[tuple[str, str]], aside: str) -> None:
    """Rename each finished piece to its final path; what was there is kept aside until all are in place.

    If one rename fails, all that were done are taken back, so that the old data are whole again, and it raises.
    A piece that is not there was moved before.

    Parameters
    ----------
    moves : sequence of (path, path)
        Finished piece and final path, on one file system.
    aside : path
        A folder of the export's own on that file system.
    """
    os.makedirs(aside, exist_ok=True)
    done: list[tuple[str, str]] = []
    try:
        for piece, final in moves:
            if not os.path.lexists(piece):
                continue
            os.makedirs(os.path.dirname(final), exist_ok=True)
            if os.path.lexists(final):
                kept = os.path.join(aside, uuid.uuid4().hex)
                os.rename(final, kept)
                done.append((final, kept))
            os.rename(piece, final)
            done.append((piece, final))
    except BaseException:
        for before, after in reversed(done):
            os.rename(after, before)
        raise
    for folder in {os.path.dirname(final) for _, final in moves}:
        sync(folder)
