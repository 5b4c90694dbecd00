"""Local folders that exports write to, in which each file is complete or absent; and locks."""

from __future__ import annotations

import os
import time
import uuid
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from imageryxr.core.write_file import FULL, disk_problem
from imageryxr.errors import ImageryError, OptionError, TargetError, param

BUCKETS = ("s3", "gs")
HIDDEN = ".imageryxr"
"""The folder beside pictures that contains locks, manifests, markers and unfinished results."""
# Files that each writer leaves unflushed while it encodes the next ones. A kill loses at most these files; after
# SETTLED_SECONDS they are on the disk.
WAITING = 32
SETTLED_SECONDS = 2.0


class FileRecord(NamedTuple):
    """The record of a file in the journal."""

    size: int
    """Bytes."""
    checksum: int
    """CRC-32 of the content."""

    @classmethod
    def of(cls, data: bytes) -> FileRecord:
        """Return the record of a file with this content."""
        return cls(len(data), zlib.crc32(data))


@contextmanager
def disk_errors(place: str, *, keeps_old: bool = False) -> Iterator[None]:
    """Raise `TargetError` with advice in place of an `OSError`; with `keeps_old`, it calls the target untouched."""
    try:
        yield
    except ImageryError:
        raise
    except OSError as error:
        reason, advice = disk_problem(error)
        rest = ". What was at the target before is untouched" if keeps_old else ""
        message = f"could not write {place}: {reason}; {advice}, or choose another target{rest}"
        raise TargetError(message, full=error.errno in FULL) from error


@contextmanager
def replaced_file(file: Path, folder: str | None = None) -> Iterator[Path]:
    """Yield a temporary path, which is renamed to a file after the block; create the folder of the file.

    The path is in `folder`, which must exist; by default, beside the file.
    """
    temporary = Path(folder or file.parent, f".{uuid.uuid4().hex[:12]}{file.suffix}")
    with disk_errors(str(file)):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class Folder:
    """A local folder that files are written to: small, picklable and thread-safe, as a `Bucket` is."""

    root: str
    scratch: str
    """A folder on the same file system for incomplete files. Writing fails once it is removed, so a worker that
    outlives its export cannot write into the next one."""

    @property
    def url(self) -> str:
        """The path."""
        return self.root

    def put(self, files: Iterable[tuple[str, bytes]]) -> dict[str, FileRecord]:
        """Write files under temporary names, flush them to the disk, then rename them.

        Up to `WAITING` files are flushed later, while the next ones are encoded.
        """
        waiting: deque[tuple[float, str, str]] = deque()
        folders, records = set[str](), dict[str, FileRecord]()

        def settle(left: int, until: float = 0.0) -> None:
            while len(waiting) > left or (waiting and waiting[0][0] < until):
                _, temporary, final = waiting.popleft()
                try:
                    folders.add(_publish_file(temporary, final))
                except BaseException:
                    with suppress(OSError):
                        os.unlink(temporary)
                    raise

        try:
            for key, data in files:
                temporary = os.path.join(self.scratch, uuid.uuid4().hex)
                _write(temporary, data)
                waiting.append((time.monotonic(), temporary, os.path.join(self.root, key)))
                records[key] = FileRecord.of(data)
                settle(WAITING, time.monotonic() - SETTLED_SECONDS)
            settle(0)
            for folder in folders:
                sync(folder)
        except BaseException:
            while waiting:  # publish complete files, which are not made again when the export continues
                with suppress(OSError):
                    settle(0)
            raise
        return records

    def get(self, key: str) -> bytes | None:
        """Return the content of a file, None if there is none."""
        try:
            return Path(self.root, key).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def exists(self) -> bool:
        """Return whether the folder, or a file in its place, exists."""
        return os.path.lexists(self.root)

    def _stat(self, key: str) -> os.stat_result | None:
        try:
            return os.stat(os.path.join(self.root, key))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def size(self, key: str) -> int | None:
        """Return the size of a file, None if there is none."""
        found = self._stat(key)
        return None if found is None else found.st_size

    def size_lookup(self) -> Callable[[str], int | None]:
        """Return `size`; a bucket returns a function that is faster for many files."""
        return self.size

    def record_check(self, since: float) -> Callable[[str, FileRecord], bool]:
        """Return a function that returns whether a file is as recorded.

        It compares the sizes, and the contents of files that were modified after the time `since`.
        """

        def is_intact(key: str, record: FileRecord) -> bool:
            found = self._stat(key)
            if found is None or found.st_size != record.size:
                return False
            return found.st_mtime <= since or self._record(key) == record

        return is_intact

    def own_records(self) -> Callable[[str], FileRecord | None]:
        """Return a function that reads a file and returns its record; all files in the folder belong to this export."""
        return self._record

    def _record(self, key: str) -> FileRecord | None:
        data = self.get(key)
        return None if data is None else FileRecord.of(data)

    def delete(self, keys: Iterable[str]) -> None:
        """Remove files."""
        for key in keys:
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(self.root, key))

    def names(self) -> Iterator[str]:
        """Iterate over the paths, relative to this folder, of all files in it and its subfolders."""
        for folder, _, names in os.walk(self.root):
            for name in names:
                yield os.path.relpath(os.path.join(folder, name), self.root).replace(os.sep, "/")

    def top_level_files(self) -> list[str]:
        """Return the names of files and subfolders."""
        try:
            return os.listdir(self.root)
        except (FileNotFoundError, NotADirectoryError):
            return []


def _write(path: str, data: bytes) -> None:
    """Write a new file and start flushing it; remove it on failure."""
    try:
        with open(path, "xb") as file:
            file.write(data)
            file.flush()
            _begin_sync(file.fileno())
    except BaseException:
        with suppress(OSError):
            os.unlink(path)
        raise


def _publish_file(temporary: str, final: str) -> str:
    """Flush a file and rename it to its final path; return the folder."""
    sync(temporary)
    folder = os.path.dirname(final)
    os.makedirs(folder, exist_ok=True)
    os.replace(temporary, final)
    return folder


def _begin_sync(handle: int) -> None:
    """Start writing a file to the disk, without waiting."""
    if hasattr(os, "posix_fadvise"):
        # On DONTNEED, Linux starts to write the file's dirty pages.
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
    """Return whether a target lies in a bucket, or raise `OptionError` for a scheme that cannot be written to."""
    scheme, separator, _ = target.partition("://")
    if not separator or scheme == "file":
        return False
    if scheme in BUCKETS:
        return True
    raise OptionError(
        param("target", target),
        f" has the scheme {scheme!r}, which cannot be written to; give a local path, ",
        " or ".join(f"{b}://bucket/…" for b in BUCKETS),
    )


def move_into_place(moves: Sequence[tuple[str, str]], aside: str) -> None:
    """Rename each finished file or folder to its final path, and move what it replaces to the folder `aside`.

    All are on the same file system. If one rename fails, the earlier ones are undone, so that the old data are complete
    again, and the error is raised. A piece that does not exist was moved by an earlier call.
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


class TargetLock:
    """A lock file of a target, which contains the id of its process. The system unlocks it when the process ends."""

    PATIENCE = 0.1
    """Seconds to wait for another process, which may lock the file for a moment to look up its holder."""

    def __init__(self, path: str) -> None:
        from filelock import FileLock

        self._path = Path(path)
        self._lock = FileLock(path, mode=0o666, thread_local=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return TargetLock, (str(self._path),)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Lock the file, and remove it at the end, with its folder if that is hidden and empty.

        Raises `TargetError` if another process has locked it.
        """
        with disk_errors(str(self._path)):
            acquired = self._acquire()
        if not acquired:
            raise TargetError(
                f"another process is exporting to this target ({self._process()}, which holds {self._path}); wait for "
                "it to end, or stop it: the same call continues where it stopped"
            )
        try:
            with disk_errors(str(self._path)):
                self._path.write_text(str(os.getpid()))
            yield
        finally:
            self._remove()

    def check(self) -> None:
        """Do nothing: no process can take over a locked file. See `Lease.check`."""

    ensure = check

    def holder(self) -> str:
        """Return a description of the other process that has locked the file; an empty string if there is none."""
        if self._lock.is_locked or not self._path.exists():
            return ""
        if self._acquire():
            self._remove()
            return ""
        return self._process()

    def _process(self) -> str:
        """Return a description of the process that has locked the file, with its id if the file can be read."""
        with suppress(OSError, ValueError):
            pid = int(self._path.read_text())
            return "this process" if pid == os.getpid() else f"process {pid}"
        return "a process"

    def _acquire(self) -> bool:
        from filelock import Timeout

        while True:
            os.makedirs(self._path.parent, exist_ok=True)
            try:
                self._lock.acquire(timeout=self.PATIENCE, poll_interval=self.PATIENCE / 5)
            except FileNotFoundError:  # another process removed the empty folder
                continue
            except Timeout:
                return False
            return True

    def _remove(self) -> None:
        with suppress(OSError):  # Windows removes no open files; there filelock removes the file
            self._path.unlink()
        self._lock.release()
        if self._path.parent.name.startswith("."):
            with suppress(OSError):  # the folder may contain manifests of other stacks
                self._path.parent.rmdir()
