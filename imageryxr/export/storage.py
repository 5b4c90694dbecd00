"""Where exports put bytes: a folder or a bucket, in which every file is whole or not there."""

from __future__ import annotations

import errno
import os
import re
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from imageryxr.errors import ImageryError, OptionError, TargetError
from imageryxr.sources.base import plain
from imageryxr.sources.zarrstore import RETRY, bucket_options

BUCKETS = ("s3", "gs")
FULL = (errno.ENOSPC, errno.EDQUOT)
# What servers of buckets call that, as far as the names are known: XMinioStorageFull, QuotaExceeded, ….
_FULL_CODE = re.compile("StorageFull|QuotaExceeded|InsufficientStorage", re.IGNORECASE)
# Files on their way to the disk, of each who writes: so that none is waited for while there is something else to do.
WAITING = 32


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
        waiting: deque[tuple[str, str]] = deque()
        folders, sizes = set[str](), []
        try:
            for key, data in files:
                temporary = os.path.join(self.scratch, uuid.uuid4().hex)
                with open(temporary, "xb") as file:
                    waiting.append((temporary, os.path.join(self.root, key)))
                    file.write(data)
                    file.flush()
                    _begin_sync(file.fileno())
                sizes.append(len(data))
                if len(waiting) > WAITING:
                    folders.add(_settle(*waiting[0]))
                    waiting.popleft()
            while waiting:
                folders.add(_settle(*waiting[0]))
                waiting.popleft()
            for folder in folders:
                sync(folder)
        except BaseException:
            for temporary, _ in waiting:
                with suppress(OSError):
                    os.unlink(temporary)
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


@dataclass(frozen=True)
class Bucket:
    """A prefix of a bucket: an object appears there whole when its upload is complete.

    A name that ends in ``.gz`` is stored without that, as a bucket tells of compression in the object's headers.
    """

    url: str
    watch: Callable[[], None] | None = field(default=None, compare=False, repr=False)
    """Raises if this process may not change the bucket any more; asked before each change, and left behind when the
    place goes to another process."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Bucket, (self.url,))

    def _watch(self) -> None:
        if self.watch is not None:
            self.watch()

    def put(self, files: Iterable[tuple[str, bytes]]) -> list[int]:
        """Upload objects."""
        import obstore

        sizes = []
        for key, data in files:
            self._watch()
            attributes: Any = {"Content-Encoding": "gzip"} if key.endswith(".gz") else None
            with _bucket_errors(self.url):
                obstore.put(self._store, key.removesuffix(".gz"), data, attributes=attributes)
            sizes.append(len(data))
        return sizes

    def create(self, key: str, data: bytes) -> bool:
        """Upload an object unless there is one; return whether it was uploaded. Of several that try at once one may."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, NotSupportedError

        with _bucket_errors(self.url):
            try:
                obstore.put(self._store, key, data, mode="create")
            except AlreadyExistsError:
                return False
            except (NotImplementedError, NotSupportedError):  # a store of little means: better than nothing
                if self.get(key) is not None:
                    return False
                self.put([(key, data)])
        return True

    def get(self, key: str) -> bytes | None:
        """Download an object, or return None."""
        import obstore

        with _bucket_errors(self.url):
            try:
                return bytes(obstore.get(self._store, key.removesuffix(".gz")).bytes())
            except FileNotFoundError:
                return None

    def size_of(self) -> Callable[[str], int | None]:
        """Return a function that looks in a listing made now: one request a thousand objects, not one an object."""
        listed = {entry["path"]: int(entry["size"]) for entry in self._listing()}
        return lambda key: listed.get(key.removesuffix(".gz"))

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects."""
        import obstore

        self._watch()
        with _bucket_errors(self.url):
            batch = [key.removesuffix(".gz") for key in keys]
            if batch:
                obstore.delete(self._store, batch)

    def names(self) -> Iterator[str]:
        """List the prefix."""
        for entry in self._listing():
            yield entry["path"]

    def beside(self) -> list[str]:
        """List the prefix up to the next slash."""
        import obstore

        with _bucket_errors(self.url):
            return [entry["path"] for entry in obstore.list_with_delimiter(self._store)["objects"]]

    def copy(self, key: str, final: Bucket) -> None:
        """Copy an object to another prefix of this bucket, within its servers."""
        import obstore

        final._watch()
        root = "/".join(self.url.split("/")[:3])
        inside = [url.removeprefix(root).strip("/") for url in (self.url, final.url)]
        with _bucket_errors(final.url):
            obstore.copy(bucket_store(root), f"{inside[0]}/{key}".strip("/"), f"{inside[1]}/{key}".strip("/"))

    def upload(self, path: str, key: str) -> None:
        """Upload a file."""
        import obstore

        self._watch()
        with open(path, "rb") as file, _bucket_errors(self.url):
            obstore.put(self._store, key, file)

    def _listing(self) -> Iterator[Any]:
        import obstore

        with _bucket_errors(self.url):
            for batch in obstore.list(self._store, chunk_size=1000):
                yield from batch

    @property
    def _store(self) -> Any:
        return bucket_store(self.url)


def bucket_store(url: str) -> Any:
    """Return obstore's store of a prefix; one a process, shared by its threads."""
    return _open_bucket(url, os.getpid())


@lru_cache(maxsize=32)
def _open_bucket(url: str, pid: int) -> Any:
    from obstore.store import GCSStore, S3Store

    scheme, _, rest = url.partition("://")
    bucket, _, prefix = rest.partition("/")
    kind: Any = S3Store if scheme == "s3" else GCSStore
    client = {"allow_http": True, "connect_timeout": "15s", "timeout": "180s"}
    options = bucket_options(url, bucket)
    return kind(bucket, prefix=prefix or None, client_options=client, retry_config=RETRY, **options)


@contextmanager
def _bucket_errors(url: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except ImageryError:
        raise
    except Exception as error:
        code, message = _answer(error)
        full = code is not None and _FULL_CODE.search(code) is not None
        raise TargetError(f"could not write {url}: {_reason(url, error, code, message)}", full=full) from error


def _answer(error: Exception) -> tuple[str | None, str | None]:
    """Return code and message of a bucket's server, which are in its XML."""
    said = str(error).split("Debug source:")[0]
    code, message = (re.search(f"<{name}>([^<]*)</{name}>", said) for name in ("Code", "Message"))
    return code and plain(code[1]), message and plain(message[1])


def _reason(url: str, error: Exception, code: str | None, message: str | None) -> str:
    """Return what a bucket's server says, and what to do."""
    said = str(error).split("Debug source:")[0]
    if code == "NoSuchBucket":
        scheme, _, rest = url.partition("://")
        bucket = rest.partition("/")[0]
        return f"there is no bucket {scheme}://{bucket}; make it, or check its name"
    if code:
        status = re.search(r"status code: (\d+)", said)
        answer = f"{code}{f' ({message})' if message else ''}{f', status {status[1]}' if status else ''}"
        return f"its server answers {answer}; check the bucket's name and your credentials"
    reason = plain(said.partition("<?xml")[0]) or type(error).__name__
    return f"{reason}; check the bucket's name and your credentials"


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


def place_at(folder: str) -> Place:
    """Return the place that a folder or prefix is, as it is seen by who looks only."""
    return Bucket(folder) if is_remote(folder) else Folder(folder, folder)


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
