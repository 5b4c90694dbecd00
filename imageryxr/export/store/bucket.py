"""Exported files in buckets: an object appears whole, and never replaces another process's object.

A process can be suspended at any instant, alone or with its machine, and resume after another process has taken over
its export. Its earlier checks are outdated by then, but its uploads would still succeed. So each upload carries a
condition that names the object that it may replace
(https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html; Google's are generations).
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Any, Protocol

from imageryxr.core.lazy_import import import_package
from imageryxr.errors import TargetError
from imageryxr.export.store.bucket_errors import bucket_errors, is_broken_connection, is_condition_refused
from imageryxr.export.store.local import FileRecord, Folder
from imageryxr.sources.fetch.buckets import RETRY, bucket_options

# Bytes up to which an object is uploaded in one request. Larger objects go in parts, which cannot be conditional.
ONE_REQUEST = 1 << 26
# Attempts of an upload whose condition is not met although this process owns the target.
TRIES = 4
# Metadata key of an object for the export that wrote it.
RUN = "imageryxr-run"
# Pauses in seconds before an upload over a broken connection is retried; None ends the retries, as does `_PATIENCE`.
_WAITS: tuple[float | None, ...] = (*(min(8.0, 0.1 * 2**i) for i in range(RETRY["max_retries"])), None)
_SHOWN = {"html": "text/html; charset=utf-8", "png": "image/png"}
_PATIENCE = RETRY["retry_timeout"].total_seconds()
# Limits of servers: keys that one request deletes, bytes that one request copies, parts of an object.
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
MAX_DELETE = 1000
MAX_COPY = 5 << 30
MAX_PARTS = 10_000
MIN_PART = 5 << 20


class Watch(Protocol):
    """A check that this process may still change a target."""

    def ensure(self) -> None:
        """Raise `TargetError` if this process may not change the target; reuse a check of the last few seconds."""

    def check(self) -> None:
        """Raise `TargetError` if this process may not change the target, according to a new request."""


@dataclass(frozen=True)
class Bucket:
    """A prefix of a bucket. An object appears whole when its upload is complete.

    A name that ends in ``.gz`` is stored without the ending: in a bucket, the header Content-Encoding says gzip.
    """

    url: str
    watch: Watch | None = field(default=None, compare=False, repr=False)
    """Checked before each change."""
    worker_watch: Watch | None = field(default=None, compare=False, repr=False)
    """Replaces `watch` in worker processes, which receive a pickled copy."""
    fresh: bool = field(default=False, compare=False, repr=False)
    """Whether to forbid caching, for objects that change: Google's servers cache public objects for an hour
    (https://cloud.google.com/storage/docs/caching)."""
    run: str | None = field(default=None, compare=False, repr=False)
    """Identifier of the export, stored in the metadata of each object: see `own_records`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Bucket, (self.url, self.worker_watch, self.worker_watch, self.fresh, self.run))

    def _watch(self) -> None:
        if self.watch is not None:
            self.watch.ensure()

    def put(self, files: Iterable[tuple[str, bytes]]) -> dict[str, FileRecord]:
        """Upload objects. Each may replace the object that exists now, but none that appears during the upload."""
        records = {}
        for key, data in files:
            self._watch()
            encoding = "gzip" if key.endswith(".gz") else None
            with bucket_errors(self.url):
                self._put(key.removesuffix(".gz"), data, encoding)
            records[key] = FileRecord.of(data)
        if self.worker_watch is not None and self.watch is self.worker_watch:
            self.watch.check()  # an export that was taken over must not count these regions as finished
        return records

    def _put(self, name: str, data: bytes, encoding: str | None) -> None:
        if len(data) > ONE_REQUEST:
            self._send(name, data, "overwrite", encoding)
            return
        condition: Any = "create"
        for _ in range(TRIES):
            if self._send(name, data, condition, encoding):
                return
            # The existing object may be replaced while this process owns the target. The next upload states the mark of
            # that object, so it fails if another process writes after the check of the lease.
            found = self._head(name)
            if self.watch is not None:
                self.watch.check()
            condition = "create" if found is None else _mark_from(found)
        raise TargetError(
            f"could not write {self.url}/{name}: another program changed this object during each of {TRIES} attempts; "
            "stop that program, or choose another target"
        )

    def _send(self, name: str, data: bytes, mode: Any, encoding: str | None = None) -> bool:
        """Upload an object under a condition; return whether the condition was met."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, GenericError, NotSupportedError, PreconditionError

        attributes: Any = {"Content-Encoding": encoding} if encoding else {}
        attributes |= _content_type(name)
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
            except (NotImplementedError, NotSupportedError) as error:  # obstore raises either, by the kind of store
                raise self._unsupported_error() from error
            except GenericError as error:
                if mode != "overwrite" and is_condition_refused(error):
                    raise self._unsupported_error() from error
                wait = next(waits)
                if wait is None or not is_broken_connection(error) or time.monotonic() - began > _PATIENCE:
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
            raise self._unsupported_error()

    def _obeys_conditions(self, key: str) -> bool:
        # The contents are compared, not the answers: a retry after a broken connection is answered like a conflict.
        self.create(key, b"1")
        self.create(key, b"2")
        data, mark = self.get_with_mark(key)
        if data != b"1" or not mark:
            return False
        self.replace(key, b"3", mark)
        self.replace(key, b"4", mark)
        return self.get(key) == b"3"

    def _unsupported_error(self) -> TargetError:
        return TargetError(
            f"could not write {self.url}: its server does not support conditional writes (If-None-Match and If-Match), "
            "so two exports to one target could destroy each other's files; export to a local folder and copy the "
            "result, or use a service with conditional writes (Amazon S3, Google Cloud Storage, MinIO, Cloudflare R2)"
        )

    def create(self, key: str, data: bytes) -> bool:
        """Upload an object unless there is one; return whether it was uploaded. Of concurrent calls one succeeds."""
        with bucket_errors(self.url):
            return self._send(key, data, "create")

    def replace(self, key: str, data: bytes, mark: dict[str, str]) -> bool:
        """Upload an object in place of the one with this mark (see `_mark_from`); return whether it was still there."""
        with bucket_errors(self.url):
            return self._send(key, data, mark)

    def _head(self, name: str) -> Any:
        """Return the metadata of the object that exists now; None if there is none."""
        import obstore

        with suppress(FileNotFoundError):
            return obstore.head(self._store, name)
        return None

    def size(self, key: str) -> int | None:
        """Return the size of an object, None if there is none."""
        with bucket_errors(self.url):
            found = self._head(key.removesuffix(".gz"))
        return None if found is None else int(found["size"])

    def get_with_mark(self, key: str) -> tuple[bytes | None, dict[str, str] | None]:
        """Download an object with its mark; None for both if there is none."""
        data, found = self._download(key)
        return data, None if data is None else _mark_from(found.meta)

    def _download(self, key: str) -> tuple[bytes | None, Any]:
        import obstore

        with bucket_errors(self.url), suppress(FileNotFoundError):
            found = obstore.get(self._store, key.removesuffix(".gz"))
            return bytes(found.bytes()), found
        return None, None

    def get(self, key: str) -> bytes | None:
        """Download an object; return None if there is none."""
        return self.get_with_mark(key)[0]

    def get_start(self, key: str, size: int) -> bytes | None:
        """Download the first `size` bytes of an object, or all if it is shorter; return None if there is none."""
        import obstore

        with bucket_errors(self.url), suppress(FileNotFoundError):
            parts = iter(obstore.get(self._store, key).stream(size))
            return bytes(next(parts, b""))[:size]
        return None

    def size_lookup(self) -> Callable[[str], int | None]:
        """Return a function that looks sizes up in a listing made now, which takes one request per 1000 objects."""
        listed = self.sizes()
        return lambda key: listed.get(key.removesuffix(".gz"))

    def record_check(self, since: float) -> Callable[[str, FileRecord], bool]:
        """Return a function that returns whether an object has the recorded size; contents are not downloaded."""
        size = self.size_lookup()
        return lambda key, record: size(key) == record.size

    def own_records(self) -> Callable[[str], FileRecord | None]:
        """Return a function that downloads an object and returns its record, or None if another export wrote it.

        The metadata of an object name its export.
        """
        size = self.size_lookup()

        def record(key: str) -> FileRecord | None:
            if size(key) is None:
                return None
            data, found = self._download(key)
            own = data is not None and self.run in (None, found.attributes.get(RUN))
            return FileRecord.of(data) if data is not None and own else None

        return record

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects. Deletions cannot be conditional, so ownership is checked before each request."""
        import obstore

        names = (key.removesuffix(".gz") for key in keys)
        while batch := list(islice(names, MAX_DELETE)):
            if self.watch is not None:
                self.watch.check()
            with bucket_errors(self.url):
                obstore.delete(self._store, batch)

    def exists(self) -> bool:
        """Return whether there is any object of this prefix."""
        return next(self.names(), None) is not None

    def clear(self) -> None:
        """Delete all objects of this prefix."""
        self.delete(list(self.names()))

    def sizes(self) -> dict[str, int]:
        """Return the size of each object."""
        return {entry["path"]: int(entry["size"]) for entry in self._listing()}

    def names(self) -> Iterator[str]:
        """Iterate over the names of all objects."""
        return (entry["path"] for entry in self._listing())

    def top_level_files(self) -> list[str]:
        """Return the names of objects without a slash."""
        import obstore

        with bucket_errors(self.url):
            return [entry["path"] for entry in obstore.list_with_delimiter(self._store)["objects"]]

    def copy(self, key: str, final: Bucket, size: int = 0) -> None:
        """Copy an object of `size` bytes to another prefix of this bucket, on the server if its limit allows."""
        import obstore

        final._watch()
        root = "/".join(self.url.split("/")[:3])
        store, inside = bucket_store(root), [url.removeprefix(root).strip("/") for url in (self.url, final.url)]
        old, new = (f"{prefix}/{key}".strip("/") for prefix in inside)
        with bucket_errors(final.url):
            try:
                if size <= MAX_COPY:
                    obstore.copy(store, old, new)
                    return
                with tempfile.TemporaryFile(prefix="imageryxr-") as file:
                    for part in obstore.get(store, old).stream(MIN_PART):
                        file.write(part)
                    file.seek(0)
                    final._watch()
                    obstore.put(store, new, file, chunk_size=_part_size(size))
            except FileNotFoundError:
                raise TargetError(
                    f"could not write {final.url}: {self.url}/{key} was removed by another program during the export; "
                    "the target is part old and part new until the same call has completed it"
                ) from None

    def upload(self, path: str, key: str) -> None:
        """Upload a file."""
        import obstore

        self._watch()
        with open(path, "rb") as file, bucket_errors(self.url):
            size = _part_size(os.path.getsize(path))
            obstore.put(self._store, key, file, chunk_size=size, attributes=_content_type(key))

    def _listing(self) -> Iterator[Any]:
        import obstore

        with bucket_errors(self.url):
            for batch in obstore.list(self._store, chunk_size=1000):
                yield from batch

    @property
    def _store(self) -> Any:
        return bucket_store(self.url)


def _content_type(name: str) -> Any:
    """Return the attributes of an object that a browser shows instead of saving it."""
    found = _SHOWN.get(name.rpartition(".")[2])
    return {"Content-Type": found} if found else {}


def _part_size(size: int) -> int:
    """Return the bytes of each part of an object."""
    return max(MIN_PART, -(-size // MAX_PARTS))


def bucket_store(url: str) -> Any:
    """Return the obstore store of a prefix, which the threads of a process share."""
    return _open_bucket(url, os.getpid())


@lru_cache(maxsize=32)
def _open_bucket(url: str, pid: int) -> Any:
    import_package("obstore")
    from obstore.store import GCSStore, S3Store

    scheme, _, rest = url.partition("://")
    bucket, _, prefix = rest.partition("/")
    kind: Any = S3Store if scheme == "s3" else GCSStore
    client = {"allow_http": True, "connect_timeout": "15s", "timeout": "180s"}
    options = bucket_options(url, bucket)
    return kind(bucket, prefix=prefix or None, client_options=client, retry_config=RETRY, **options)


def _mark_from(meta: Any) -> dict[str, str]:
    """Return the mark of an object: the entity tag and version that a conditional upload requires."""
    return {kind: meta[kind] for kind in ("e_tag", "version") if meta.get(kind)}


Place = Folder | Bucket
