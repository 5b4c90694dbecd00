"""Zarr stores: those of zarr-python for local folders and zip archives, and remote stores for the engine.

The local stores check every object before it is decoded, and record missing objects.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from imageryxr.core.lazy_import import import_package
from imageryxr.core.validate import parse_json
from imageryxr.errors import AuthError, ChunkReadError, ImageryError, ServerError, SourceError
from imageryxr.sources.address import Address
from imageryxr.sources.base import MetadataFile, clean_message, opening_stamp
from imageryxr.sources.fetch.auth import Token
from imageryxr.sources.fetch.buckets import BucketFolder, web_place
from imageryxr.sources.fetch.budget import FILE_REQUESTS
from imageryxr.sources.fetch.client import METADATA_BYTES
from imageryxr.sources.fetch.connection import Connection
from imageryxr.sources.fetch.decompress import decompress
from imageryxr.sources.fetch.disk_reads import ObjectStore
from imageryxr.sources.fetch.memory_cache import Stored
from imageryxr.sources.fetch.object_stores import ForbiddenObjectError, WebFolder
from imageryxr.sources.fetch.policy import Credential
from imageryxr.sources.fetch.threads import run_all, run_in_parallel, start_all
from imageryxr.sources.fetch.url import parse_web_url
from imageryxr.sources.omezarr.bounded_codecs import bounded_metadata
from imageryxr.sources.omezarr.codec_metadata import register_codecs
from imageryxr.sources.omezarr.object_check import ObjectFormat, check_object, object_format
from imageryxr.sources.omezarr.zip_store import find_archive, open_archive, read_entry

# Largest size in bytes of a remote chunk. Its shape may come from anybody, and reading one voxel reads the whole chunk.
_MOST_CHUNK_BYTES = 4 << 30


@lru_cache(maxsize=1024)
def parse_array_metadata(text: str) -> Any:
    """Return the metadata of an array as an object of zarr-python, with bounded codecs.

    zarr-python raises `ValueError` for unknown codecs.
    """
    from zarr import AsyncArray
    from zarr.storage import MemoryStore, StorePath

    register_codecs(text)
    metadata: Any = bounded_metadata(text)
    return AsyncArray(metadata, StorePath(MemoryStore())).metadata


def open_local_array(url: str, path: str, metadata: str) -> tuple[Any, dict[str, bool]]:
    """Return an array on this machine with given metadata, and a dict to which reads add the keys of missing objects.

    Opening reads nothing. The values of the dict are False: no access was denied.
    """
    import zarr
    from zarr.storage import LocalStore, StorePath

    place = url.removeprefix("file://")
    archive = find_archive(place)
    store = LocalStore(place, read_only=True) if archive is None else open_archive(archive)
    recorder = _recorder_class()(store, object_format(metadata))
    array = zarr.Array(zarr.AsyncArray(parse_array_metadata(metadata), StorePath(recorder, path)))
    return array, recorder.absent


def remote_store(
    url: str, token: str | None, connection: Connection, metadata: str = "", stamp: str = ""
) -> ObjectStore:
    """Return the store of a group on a web server or in a bucket.

    `token` is sent to web servers. `metadata` are those of the array whose chunks are read, empty for reading metadata.
    `stamp` is text that changes when the metadata are written; see `opening_stamp`. `ChunkReadError` is raised if the
    chunks of the array are too large.
    """
    if metadata:
        _check_size(url, metadata)
    place, version = web_place(url, connection), f"{stamp} {metadata}"
    if place is None:
        return BucketFolder(url, connection, version)
    credential = place.credential if token is None else _caller_token(place.folder, token)
    return WebFolder(place.folder, connection, credential, False, version, "identity", place.headers)


@lru_cache(maxsize=256)
def _check_size(url: str, metadata: str) -> None:
    """Raise if the chunks of a remote array are too large."""
    form = object_format(metadata)
    size = form.chunk_bytes if form.chunks_in_shard else object_limit(metadata) // 4
    if size > _MOST_CHUNK_BYTES:
        raise ChunkReadError(
            f"{Address('zarr', url).public} has chunks of {size / 2**30:,.0f} GiB; the limit for a server is "
            f"{_MOST_CHUNK_BYTES >> 30} GiB; copy the array with smaller chunks"
        )


def object_limit(metadata: str) -> int:
    """Return the largest size in bytes of an object: four times its voxels plus 1 MB, as for precomputed chunks."""
    document = json.loads(metadata)
    shape = document["chunks"] if "chunks" in document else document["chunk_grid"]["configuration"]["chunk_shape"]
    parsed = parse_array_metadata(metadata)
    native = getattr(parsed.dtype, "to_native_dtype", lambda: parsed.dtype)()
    return 4 * math.prod(int(n) for n in shape) * int(native.itemsize) + (1 << 20)


def _caller_token(folder: str, token: str) -> Credential:
    return Token(token, "token=", (parse_web_url(folder).netloc,))


@lru_cache(maxsize=1)
def _recorder_class() -> Any:
    import_package("zarr")
    from zarr.storage import WrapperStore

    class Recorder(WrapperStore[Any]):
        """A store that records missing objects and raises for damaged ones; used for one read."""

        def __init__(self, store: Any, form: ObjectFormat) -> None:
            super().__init__(store)
            self.form = form
            self.absent: dict[str, bool] = {}

        async def get(self, key: str, *args: Any, **kwargs: Any) -> Any:
            found = await self._store.get(key, *args, **kwargs)
            if found is None:
                self.absent[key] = False
            else:
                check_object(self.form, key, memoryview(found.as_numpy_array()), _requested_span(*args, **kwargs))
            return found

    return Recorder


def _requested_span(prototype: Any = None, byte_range: Any = None) -> tuple[int | None, int | None]:
    if hasattr(byte_range, "suffix"):
        return (None, byte_range.suffix)
    return (getattr(byte_range, "start", getattr(byte_range, "offset", None)), getattr(byte_range, "end", None))


@contextmanager
def translate_errors(name: str, otherwise: Any) -> Iterator[None]:
    """Translate errors of stores: denied access to `AuthError`, others to the result of the function `otherwise`."""
    try:
        yield
    except ServerError as error:
        raise otherwise(error) from error
    except ImageryError:
        raise
    except Exception as error:
        message = clean_message(str(error).split("Debug source:")[0])  # obstore appends its internal state
        if isinstance(error, PermissionError) or type(error).__name__ in (
            "UnauthenticatedError",
            "PermissionDeniedError",
        ):
            raise AuthError(f"access to {name} was denied ({message}); check the token and your permissions") from error
        raise otherwise(message or type(error).__name__) from error


def fetch(url: str, token: str | None, key: str, name: str, connection: Connection) -> bytes | None:
    """Return the bytes of an object of a store, or None if it does not exist or access is denied."""
    found = _fetch_stored(url, token, key, name, connection)
    return None if found is None else bytes(found.body)


def _fetch_stored(url: str, token: str | None, key: str, name: str, connection: Connection) -> Stored | None:
    """Return an object of a store without its Content-Encoding, or None if it does not exist or access is denied."""
    with translate_errors(
        name, lambda error: ChunkReadError(f"could not read the metadata of {name} ({key}): {error}")
    ):
        try:
            if url.startswith("file://"):
                path = url.removeprefix("file://")
                archive = find_archive(path)
                body = (Path(path) / key).read_bytes() if archive is None else read_entry(archive, key)
                return None if body is None else Stored(body)
            store = remote_store(url, token, connection)
            found = run_in_parallel(lambda key, stop: store.get(key, None, METADATA_BYTES, stop), [key], 1)[0]
            if found is None:
                return None
            return Stored(decompress(found.body, found.encoding, METADATA_BYTES), "", found.stamp)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except ForbiddenObjectError:
            return None


def fetch_json(address: Address, token: str | None, key: str, connection: Connection) -> dict[str, Any] | None:
    """Return the content of a JSON object at a key, or None; see `fetch_json_file`."""
    found = fetch_json_file(address, token, key, connection)
    return None if found is None else found.content


def fetch_json_file(address: Address, token: str | None, key: str, connection: Connection) -> MetadataFile | None:
    """Return the JSON object at a key, or None if it does not exist or access is denied.

    The address restricts the result: metadata of another Zarr version than in the address are ignored, and the
    dimension separator of the address is added to metadata without one.
    """
    other = {2: ("zarr.json",), 3: (".zattrs", ".zarray", ".zgroup")}.get(address.version or 0, ())
    if key.rpartition("/")[2] in other:
        return None
    stored = _fetch_stored(address.url, token, key, f"zarr://{address.public}", connection)
    if stored is None:
        return None
    try:
        found = parse_json(bytes(stored.body))
    except ValueError as error:
        raise SourceError(f"{address.public}/{key} is not JSON ({error}); it may be a login page or damaged") from None
    if not isinstance(found, dict):
        raise SourceError(f"{address.public}/{key} contains a {type(found).__name__} instead of a JSON object")
    if address.separator:
        _check_separator(address, key, found)
    return MetadataFile(found, opening_stamp(address.url, stored.stamp))


def _check_separator(address: Address, key: str, document: dict[str, Any]) -> None:
    if key.endswith("zarr.json"):
        raise SourceError(
            f"{address.public} is Zarr v3, whose metadata state how chunks are named; leave #dimension_separator="
            f"{address.separator} out"
        )
    if key.endswith(".zarray") and document.setdefault("dimension_separator", address.separator) != address.separator:
        raise SourceError(
            f"{address.public}/{key} has dimension_separator={document['dimension_separator']!r}, but the address has "
            f"{address.separator!r}; leave #dimension_separator={address.separator} out"
        )


# ---------------------------------------------------------------------------------------------------------
# metadata of a remote group, before its layout is known

GROUP_KEYS = ("zarr.json", ".zattrs")
USUAL_LEVELS = ("0", "1", "2", "s0", "s1", "s2")
"""Names of arrays that are requested before the group names them."""
_ARRAY_KEYS = ("zarr.json", ".zarray")

PendingFile = Callable[[], MetadataFile | None]
"""Function that waits for a requested file; returns None if it does not exist, and raises the error of the request."""
GroupFiles = Sequence[PendingFile]
"""Functions that return the ``zarr.json`` and the ``.zattrs`` of a group; None for a file that does not exist."""


class Requested(NamedTuple):
    """Pending requests for the metadata of a group and its arrays."""

    group: GroupFiles | None
    """None for a local group, whose files are read one by one."""
    arrays: Mapping[str, PendingFile]
    """Functions by key that return the metadata of an array; None if the file does not exist."""


def request_group(address: Address, token: str | None, connection: Connection) -> GroupFiles:
    """Request the ``zarr.json`` and the ``.zattrs`` of a group in parallel; return a function for each file."""
    return run_all([partial(fetch_json_file, address, token, key, connection) for key in GROUP_KEYS])


@contextmanager
def requested_metadata(
    address: Address, token: str | None, connection: Connection, group: GroupFiles | None
) -> Iterator[Requested]:
    """Request the metadata of a group and of arrays with the usual names in parallel.

    The metadata of a group name its arrays, so requesting those of the arrays afterwards takes a second round trip.
    Each function waits for its own request only. Requests that still run at the end of the context are stopped.

    Parameters
    ----------
    address, token, connection
        See `fetch_json_file`.
    group : sequence of callable or None
        Result of `request_group`; then nothing else is requested.
    """
    if group is not None or address.local_path is not None:
        yield Requested(group, {})
        return
    arrays = [f"{level}/{key}" for level in USUAL_LEVELS for key in _ARRAY_KEYS]
    if (connection.concurrency or FILE_REQUESTS) < len(GROUP_KEYS) + len(arrays):
        arrays = []  # with so few requests at once, these would delay the requests for the group
    calls = [partial(fetch_json_file, address, token, key, connection) for key in (*GROUP_KEYS, *arrays)]
    with start_all(calls) as files:
        yield Requested(files[: len(GROUP_KEYS)], dict(zip(arrays, files[len(GROUP_KEYS) :], strict=True)))
