"""Buckets as places of exports: an object appears whole, and never in the place of another process's.

A process can be stopped at any instant, with its machine or by itself, and go on when another has taken over what it
was at. What it had made sure of before is not true any more, and what it then sends would arrive: so the bucket is told
with each object what it may take the place of, by conditions that its servers know
(https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html; Google's are generations).
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Any, Protocol

from imageryxr.errors import ImageryError, TargetError
from imageryxr.export.store.local import Folder, Place, is_remote
from imageryxr.sources.base import clean_message
from imageryxr.sources.omezarr.stores import RETRY, bucket_options

# What servers of buckets call a full disk, as far as the names are known: XMinioStorageFull, QuotaExceeded, ….
_FULL_CODE = re.compile("StorageFull|QuotaExceeded|InsufficientStorage", re.IGNORECASE)
# Bytes up to which an object is sent in one request. Beyond, it goes in parts, for which there are no conditions.
ONE_REQUEST = 1 << 26
# How often an upload is tried whose conditions are not met, though nobody else may write there.
TRIES = 4
# What an object carries of the export that put it there.
RUN = "imageryxr-run"
# How servers without conditional writes answer one: by status, or by 400 with one of these codes. Other codes of a 400
# (RequestTimeout, …) are transient.
_REFUSED_STATUS = (405, 501)
_REFUSED_CODES = (None, "NotImplemented", "InvalidArgument", "InvalidRequest")
# Seconds before what a broken connection had under way is sent again; then, or after so many seconds, it is given up.
_WAITS: tuple[float | None, ...] = (*(min(8.0, 0.1 * 2**i) for i in range(RETRY["max_retries"])), None)
_PATIENCE = RETRY["retry_timeout"].total_seconds()
# What servers take in one request: keys to delete; bytes to copy; parts of an object.
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
DELETED = 1000
COPIED = 5 << 30
PARTS = 10_000
PART = 5 << 20


class Watch(Protocol):
    """Who knows whether a place is still its own to change."""

    def ensure(self) -> None:
        """Raise `TargetError` if it is not; what was heard a few seconds ago will do."""

    def check(self) -> None:
        """Raise `TargetError` if it is not, and ask now."""


@dataclass(frozen=True)
class Bucket:
    """A prefix of a bucket: an object appears there whole when its upload is complete.

    A name that ends in ``.gz`` is stored without that, as a bucket tells of compression in the object's headers.
    """

    url: str
    watch: Watch | None = field(default=None, compare=False, repr=False)
    """Asked before each change."""
    elsewhere: Watch | None = field(default=None, compare=False, repr=False)
    """Asked in its stead in other processes, which the place goes to."""
    fresh: bool = field(default=False, compare=False, repr=False)
    """Whether objects change, so that nothing between may keep them: what all may read, Google's servers do, for an
    hour (https://cloud.google.com/storage/docs/caching)."""
    run: str | None = field(default=None, compare=False, repr=False)
    """What objects carry that are put here, where others put theirs too: see `own_size_of`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Bucket, (self.url, self.elsewhere, self.elsewhere, self.fresh, self.run))

    def _watch(self) -> None:
        if self.watch is not None:
            self.watch.ensure()

    def put(self, files: Iterable[tuple[str, bytes]]) -> list[int]:
        """Upload objects, each in the place of what is there now, and of nothing that comes there meanwhile."""
        sizes = []
        for key, data in files:
            self._watch()
            encoding = "gzip" if key.endswith(".gz") else None
            with _bucket_errors(self.url):
                self._put(key.removesuffix(".gz"), data, encoding)
            sizes.append(len(data))
        if self.elsewhere is not None and self.watch is self.elsewhere:
            self.watch.check()  # whoever handed this out is told of regions that are there
        return sizes

    def _put(self, name: str, data: bytes, encoding: str | None) -> None:
        if len(data) > ONE_REQUEST:
            self._send(name, data, "overwrite", encoding)
            return
        condition: Any = "create"
        for _ in range(TRIES):
            if self._send(name, data, condition, encoding):
                return
            # The object that is there now may be replaced while this process owns the target. The mark of that object
            # excludes whatever is written after this check.
            mark = self._mark(name)
            if self.watch is not None:
                self.watch.check()
            condition = "create" if mark is None else mark
        raise TargetError(
            f"could not write {self.url}/{name}: something else kept changing this object during {TRIES} attempts; "
            "stop whatever writes there, or choose another target"
        )

    def _send(self, name: str, data: bytes, mode: Any, encoding: str | None = None) -> bool:
        """Upload an object under a condition; return whether the condition was met."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, GenericError, NotSupportedError, PreconditionError

        attributes: Any = {"Content-Encoding": encoding} if encoding else {}
        if self.fresh:
            attributes["Cache-Control"] = "no-store"
        if self.run is not None:
            attributes[RUN] = self.run
        began, waits = time.monotonic(), iter(_WAITS)
        while True:
            try:
                obstore.put(self._store, name, data, mode=mode, attributes=attributes)
            except (AlreadyExistsError, PreconditionError):
                return False
            except (NotImplementedError, NotSupportedError) as error:
                raise self._unsupported() from error
            except GenericError as error:
                if mode != "overwrite" and _is_condition_refused(error):
                    raise self._unsupported() from error
                wait = next(waits)
                if wait is None or not _broke(error) or time.monotonic() - began > _PATIENCE:
                    raise
                time.sleep(wait)
                self._watch()
            else:
                return True

    def check_conditional_writes(self, key: str) -> None:
        """Raise `TargetError` if the server does not support conditional writes; leave nothing behind.

        Parameters
        ----------
        key : str
            Name of an object that does not exist, which is written and deleted.
        """
        try:
            supported = self._obeys_conditions(key)
        except BaseException:
            with suppress(TargetError):
                self.delete([key])
            raise
        self.delete([key])
        if not supported:
            raise self._unsupported()

    def _obeys_conditions(self, key: str) -> bool:
        # The contents are compared, not the answers: a retry after a broken connection is answered like a conflict.
        self.create(key, b"1")
        self.create(key, b"2")
        data, mark = self.get_marked(key)
        if data != b"1" or not mark:
            return False
        self.replace(key, b"3", mark)
        self.replace(key, b"4", mark)
        return self.get(key) == b"3"

    def _unsupported(self) -> TargetError:
        return TargetError(
            f"could not write {self.url}: its server does not support conditional writes (If-None-Match and If-Match), "
            "so two exports to one target could destroy each other's files; export to a local folder and copy the "
            "result, or use a service with conditional writes (Amazon S3, Google Cloud Storage, MinIO, Cloudflare R2)"
        )

    def create(self, key: str, data: bytes) -> bool:
        """Upload an object unless there is one; return whether it was uploaded. Of concurrent calls one succeeds."""
        with _bucket_errors(self.url):
            return self._send(key, data, "create")

    def replace(self, key: str, data: bytes, mark: dict[str, str]) -> bool:
        """Upload an object in place of the one with this mark; return whether that one was still there."""
        with _bucket_errors(self.url):
            return self._send(key, data, mark)

    def _mark(self, name: str) -> dict[str, str] | None:
        """Return what tells an object that is there from what is there later; nothing where there is none."""
        import obstore

        try:
            return _mark_of(obstore.head(self._store, name))
        except FileNotFoundError:
            return None

    def get_marked(self, key: str) -> tuple[bytes | None, dict[str, str] | None]:
        """Download an object, or None, and with it what tells it from what is there later."""
        import obstore

        with _bucket_errors(self.url):
            try:
                found = obstore.get(self._store, key.removesuffix(".gz"))
                return bytes(found.bytes()), _mark_of(found.meta)
            except FileNotFoundError:
                return None, None

    def get(self, key: str) -> bytes | None:
        """Download an object, or return None."""
        return self.get_marked(key)[0]

    def size_of(self) -> Callable[[str], int | None]:
        """Return a function that looks in a listing made now: one request a thousand objects, not one an object."""
        listed = self.sizes()
        return lambda key: listed.get(key.removesuffix(".gz"))

    def own_size_of(self) -> Callable[[str], int | None]:
        """Return the same for objects that this export put here, which are found by what they carry: a request each.

        Where others put theirs too, one of theirs may have come under a name that was free.
        """
        size_of = self.size_of()
        return lambda key: size_of(key) if size_of(key) is not None and self._is_own(key) else None

    def _is_own(self, key: str) -> bool:
        import obstore

        if self.run is None:
            return True
        with _bucket_errors(self.url):
            try:
                found = obstore.get(self._store, key.removesuffix(".gz"), options={"head": True})
            except FileNotFoundError:
                return False
        return found.attributes.get(RUN) == self.run

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects, as long as this process may: there are no conditions for that."""
        import obstore

        names = (key.removesuffix(".gz") for key in keys)
        while batch := list(islice(names, DELETED)):
            if self.watch is not None:
                self.watch.check()
            with _bucket_errors(self.url):
                obstore.delete(self._store, batch)

    def sizes(self) -> dict[str, int]:
        """List the prefix with sizes."""
        return {entry["path"]: int(entry["size"]) for entry in self._listing()}

    def names(self) -> Iterator[str]:
        """List the prefix."""
        for entry in self._listing():
            yield entry["path"]

    def beside(self) -> list[str]:
        """List the prefix up to the next slash."""
        import obstore

        with _bucket_errors(self.url):
            return [entry["path"] for entry in obstore.list_with_delimiter(self._store)["objects"]]

    def copy(self, key: str, final: Bucket, size: int = 0) -> None:
        """Copy an object of so many bytes to another prefix of this bucket, within its servers if they can."""
        import obstore

        final._watch()
        root = self._root
        store, inside = bucket_store(root), [url.removeprefix(root).strip("/") for url in (self.url, final.url)]
        old, new = (f"{prefix}/{key}".strip("/") for prefix in inside)
        with _bucket_errors(final.url):
            try:
                if size <= COPIED:
                    obstore.copy(store, old, new)
                    return
                with tempfile.TemporaryFile(prefix="imageryxr-") as file:  # by way of a disk here
                    for part in obstore.get(store, old).stream(PART):
                        file.write(part)
                    file.seek(0)
                    final._watch()
                    obstore.put(store, new, file, chunk_size=_part(size))
            except FileNotFoundError:
                raise TargetError(
                    f"could not write {final.url}: {self.url}/{key} is not there any more, as somebody removed it "
                    "meanwhile; what is at the target is part old and part new until the same call has made it again"
                ) from None

    def upload(self, path: str, key: str) -> None:
        """Upload a file."""
        import obstore

        self._watch()
        with open(path, "rb") as file, _bucket_errors(self.url):
            obstore.put(self._store, key, file, chunk_size=_part(os.path.getsize(path)))

    def _listing(self) -> Iterator[Any]:
        import obstore

        with _bucket_errors(self.url):
            for batch in obstore.list(self._store, chunk_size=1000):
                yield from batch

    @property
    def _root(self) -> str:
        return "/".join(self.url.split("/")[:3])

    @property
    def _store(self) -> Any:
        return bucket_store(self.url)


def _part(size: int) -> int:
    """Return how many bytes the parts of an object have."""
    return max(PART, -(-size // PARTS))


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


def _mark_of(meta: Any) -> dict[str, str]:
    """Return what the condition of an upload takes: entity tag and version, as the server gives them."""
    return {kind: meta[kind] for kind in ("e_tag", "version") if meta.get(kind)}


def _status(error: Exception) -> int | None:
    """Return the status that a bucket's server answered."""
    found = re.search(r"status code: (\d+)", str(error).split("Debug source:")[0])
    return int(found[1]) if found else None


def _is_condition_refused(error: Exception) -> bool:
    """Return whether a server refused a request because of its condition."""
    status = _status(error)
    return status in _REFUSED_STATUS or (status == 400 and _answer(error)[0] in _REFUSED_CODES)


def _broke(error: Exception) -> bool:
    """Tell whether a connection broke, and obstore did not try again, as it does where nothing is asked for twice."""
    said = str(error).split("Debug source:")[0]
    return "HTTP error" in said and " retries," not in said


def _answer(error: Exception) -> tuple[str | None, str | None]:
    """Return code and message of a bucket's server, which are in its XML."""
    said = str(error).split("Debug source:")[0]
    code, message = (re.search(f"<{name}>([^<]*)</{name}>", said) for name in ("Code", "Message"))
    return code and clean_message(code[1]), message and clean_message(message[1])


def _reason(url: str, error: Exception, code: str | None, message: str | None) -> str:
    """Return what a bucket's server says, and what to do."""
    if code == "NoSuchBucket":
        scheme, _, rest = url.partition("://")
        bucket = rest.partition("/")[0]
        return f"there is no bucket {scheme}://{bucket}; make it, or check its name"
    if code:
        status = _status(error)
        answer = f"{code}{f' ({message})' if message else ''}{f', status {status}' if status else ''}"
        return f"its server answers {answer}; check the bucket's name and your credentials"
    reason = clean_message(str(error).split("Debug source:")[0].partition("<?xml")[0]) or type(error).__name__
    return f"{reason}; check the bucket's name and your credentials"


def place_at(folder: str) -> Place:
    """Return the place that a folder or prefix is, as it is seen by who looks only."""
    return Bucket(folder) if is_remote(folder) else Folder(folder, folder)
