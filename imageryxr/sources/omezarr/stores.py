"""Where Zarr arrays are read from: local folders, zip archives and private buckets by zarr-python, all else by web.

Every object that comes is looked at before it is decoded, and every one that does not come is noted.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

from imageryxr.errors import AuthError, ChunkReadError, ImageryError, ServerError, SourceError
from imageryxr.sources.address import Address, has_no_bucket_credentials
from imageryxr.sources.base import clean_message
from imageryxr.sources.fetch import ip_filter
from imageryxr.sources.fetch.auth import Token, find_password
from imageryxr.sources.fetch.client import Connection
from imageryxr.sources.fetch.json_service import web_folder
from imageryxr.sources.fetch.policy import Credential
from imageryxr.sources.fetch.threads import run_in_parallel
from imageryxr.sources.fetch.url import parse_web_url
from imageryxr.sources.json_members import parse_json
from imageryxr.sources.omezarr.bounded_codecs import bounded_metadata
from imageryxr.sources.omezarr.codec_metadata import register_codecs
from imageryxr.sources.omezarr.object_check import ObjectFormat, check_object, object_format
from imageryxr.sources.omezarr.web_objects import fetch_object
from imageryxr.sources.omezarr.zip_store import find_archive, open_archive, read_entry

# Object stores are asked again about errors that may pass, for half a minute at the most.
RETRY: dict[str, Any] = {
    "max_retries": 7,
    "backoff": {"init_backoff": timedelta(seconds=0.2), "max_backoff": timedelta(seconds=8), "base": 2},
    "retry_timeout": timedelta(seconds=60),
}


# Where the user's environment may name a server for buckets.
ENDPOINTS = {"AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"}
# Bytes of a chunk on a server: any voxel takes all of the chunk, and whoever wrote the metadata chose its shape.
_MOST_CHUNK_BYTES = 4 << 30
# What buckets and web servers call an object that may not be read.
_FORBIDDEN = ("PermissionDeniedError", "ForbiddenObjectError")


@lru_cache(maxsize=1024)
def parse_array_metadata(text: str) -> Any:
    """Return zarr's own form of an array's metadata, with bounded codecs; ValueError where a codec is not known."""
    from zarr import AsyncArray
    from zarr.storage import MemoryStore, StorePath

    register_codecs(text)
    metadata: Any = bounded_metadata(text)
    return AsyncArray(metadata, StorePath(MemoryStore())).metadata


def open_array(
    url: str, token: str | None, path: str, metadata: str, connection: Connection
) -> tuple[Any, dict[str, bool]]:
    """Return an array whose metadata are in hand, and which objects were absent once it was read from.

    Lazy: reads nothing. For each absent key, whether the store forbade it (403).
    """
    import zarr
    from zarr.storage import StorePath

    folder = _object_folder(url, connection)
    archive = find_archive(url.removeprefix("file://")) if url.startswith("file://") else None
    if archive is not None:
        store = open_archive(archive)
    elif folder is None:
        store = open_store(url, os.getpid())
    else:
        from imageryxr.sources.omezarr.web_store import WebStore

        _check_size(url, metadata)
        store = WebStore(folder, connection, credential_of(folder, token), object_limit(metadata))
    recorder = _recorder_class()(store, object_format(metadata))
    array = zarr.Array(zarr.AsyncArray(parse_array_metadata(metadata), StorePath(recorder, path)))
    return array, recorder.absent


def _check_size(url: str, metadata: str) -> None:
    """Raise if a chunk of an array on a server is larger than any that is read to get at one of its voxels."""
    form = object_format(metadata)
    size = form.chunk_bytes if form.chunks_in_shard else object_limit(metadata) // 4
    if size > _MOST_CHUNK_BYTES:
        raise ChunkReadError(
            f"{Address('zarr', url).public} has chunks of {size / 2**30:,.0f} GiB, of which "
            f"{_MOST_CHUNK_BYTES >> 30} are read from a server; copy the array with smaller chunks"
        )


def _object_folder(url: str, connection: Connection) -> str | None:
    # Where the user's environment names another server for buckets, their own client reads from that server.
    if not (url.startswith("s3://") and ENDPOINTS & set(os.environ)):
        return web_folder(url)
    if not connection.access.allow_local:
        _check_endpoints()
    return None


def _check_endpoints() -> None:
    """Raise `ServerError` if the environment names a server of this machine or its network for buckets."""
    for text in (os.environ[name] for name in ENDPOINTS if os.environ.get(name)):
        server = parse_web_url(text if "://" in text else f"https://{text}")
        ip_filter.check_host_name(server.host)
        with suppress(OSError):  # a name that is not found is not connected to
            ip_filter.check_candidates(server.host, ip_filter.resolve(server.host, server.port))


def object_limit(metadata: str) -> int:
    """Return the bytes that an object of an array may have: four times its voxels and 1 MB, as for other chunks."""
    document = json.loads(metadata)
    shape = document["chunks"] if "chunks" in document else document["chunk_grid"]["configuration"]["chunk_shape"]
    parsed = parse_array_metadata(metadata)
    native = getattr(parsed.dtype, "to_native_dtype", lambda: parsed.dtype)()
    return 4 * math.prod(int(n) for n in shape) * int(native.itemsize) + (1 << 20)


def credential_of(folder: str, token: str | None) -> Credential | None:
    """Return what the objects of a folder on a web server are asked for with: the caller's token, for that server."""
    if token is None:
        return find_password(folder)
    return Token(token, "token=", (parse_web_url(folder).netloc,))


@lru_cache(maxsize=1)
def _recorder_class() -> Any:
    from zarr.storage import WrapperStore

    class Recorder(WrapperStore[Any]):
        """A store that notes which objects it did not have and refuses broken ones, for the length of one read."""

        def __init__(self, store: Any, form: ObjectFormat) -> None:
            super().__init__(store)
            self.form = form
            self.absent: dict[str, bool] = {}

        async def get(self, key: str, *args: Any, **kwargs: Any) -> Any:
            for last in (False, False, True):
                try:
                    found = await self._store.get(key, *args, **kwargs)
                except Exception as error:
                    # Buckets that may not be listed answer 403 for what is not there: `_tell_holes` finds out which.
                    if type(error).__name__ in _FORBIDDEN:
                        self.absent[key] = True
                        return None
                    # obstore tries all else again, but not a transfer that was cut in its middle.
                    if last or "body error" not in str(error):
                        raise
                else:
                    break
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


@lru_cache(maxsize=64)
def open_store(url: str, pid: int) -> Any:
    """Return zarr's store for a local folder or a bucket; `pid` is that of this process."""
    # One store a process, shared by its threads.
    from zarr.storage import LocalStore, ObjectStore

    scheme, _, rest = url.partition("://")
    if scheme == "file":
        return LocalStore(rest, read_only=True)
    if _fork_marks():
        raise ChunkReadError(
            "this process was forked from one that had already read from a bucket, and such connections do not "
            "outlive a fork; start workers with multiprocessing's 'spawn' or 'forkserver', as dask.distributed does"
        )
    from obstore.store import GCSStore, S3Store

    client: dict[str, Any] = {"allow_http": True, "connect_timeout": "15s", "timeout": "180s"}
    common: dict[str, Any] = {"client_options": client, "retry_config": RETRY}
    bucket, _, prefix = rest.partition("/")
    options = bucket_options(url, bucket)
    kind: Any = S3Store if scheme == "s3" else GCSStore
    return ObjectStore(kind(bucket, prefix=prefix or None, **common, **options), read_only=True)


def bucket_options(url: str, bucket: str) -> dict[str, Any]:
    """Return the credentials for a bucket that people keep where CloudVolume looks, as obstore takes them."""
    from cloudfiles import secrets

    if url.startswith("gs://"):
        key = next((p for p in map(secrets.secretpath, _secret_files(bucket, "google")) if os.path.exists(p)), None)
        return {"skip_signature": True} if has_no_bucket_credentials(url) else ({"service_account": key} if key else {})
    if has_no_bucket_credentials(url):
        said = ENDPOINTS | {"AWS_REGION", "AWS_DEFAULT_REGION"}
        if said & set(os.environ) or "." in bucket:
            return {"skip_signature": True}
        # Without a region only the bucket's own host finds it, and unsigned requests need to name none.
        host = {"virtual_hosted_style_request": True, "endpoint": f"https://{bucket}.s3.amazonaws.com"}
        return {"skip_signature": True, **host}
    if "AWS_ACCESS_KEY_ID" in os.environ:
        return {}
    if any(os.path.exists(secrets.secretpath(name)) for name in _secret_files(bucket, "aws")):
        return {name.lower(): value for name, value in secrets.aws_credentials(bucket).items() if value}
    import boto3  # type: ignore[import-untyped]
    from obstore.auth.boto3 import Boto3CredentialProvider

    return {"credential_provider": Boto3CredentialProvider(boto3.Session())}


def _secret_files(bucket: str, kind: str) -> tuple[str, str]:
    return (f"{bucket}-{kind}-secret.json", f"{kind}-secret.json")


@lru_cache(maxsize=1)
def _fork_marks() -> list[bool]:
    # obstore's threads are not there in a forked child, which would wait for them for ever.
    marks: list[bool] = []
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: marks.append(True))
    return marks


@contextmanager
def translate_errors(name: str, otherwise: Any) -> Iterator[None]:
    """Make ours of the errors of stores: refusals `AuthError`, the rest what `otherwise` makes of the message."""
    try:
        yield
    except ServerError as error:
        raise otherwise(error) from error
    except ImageryError:
        raise
    except Exception as error:
        message = clean_message(str(error).split("Debug source:")[0])  # the rest is the client's inner state
        if isinstance(error, PermissionError) or type(error).__name__ in ("UnauthenticatedError", *_FORBIDDEN):
            raise AuthError(f"{name} refused to be read ({message}); check the token or your rights") from error
        raise otherwise(message or type(error).__name__) from error


def fetch(url: str, token: str | None, key: str, name: str, connection: Connection) -> bytes | None:
    """Return an object of a store, or None where there is none, or none that may be read."""
    with translate_errors(
        name, lambda error: ChunkReadError(f"could not read the metadata of {name} ({key}): {error}")
    ):
        try:
            if url.startswith("file://"):
                path = url.removeprefix("file://")
                archive = find_archive(path)
                return (Path(path) / key).read_bytes() if archive is None else read_entry(archive, key)
            folder = _object_folder(url, connection)
            if folder is not None:
                jobs = [(folder, key, connection, credential_of(folder, token))]
                return run_in_parallel(lambda job, stop: fetch_object(*job, stop=stop), jobs, 1)[0]
            import obstore

            return bytes(obstore.get(open_store(url, os.getpid()).store, key).bytes())
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except Exception as error:
            if type(error).__name__ not in _FORBIDDEN:
                raise
            return None


def fetch_json(address: Address, token: str | None, key: str, connection: Connection) -> dict[str, Any] | None:
    """Return the JSON object at a key, or None where there is none, or none that may be read.

    What an address restricts holds here: of the other Zarr version there are no metadata, and where they do not name
    the dimension separator, the address does.
    """
    other = {2: ("zarr.json",), 3: (".zattrs", ".zarray", ".zgroup")}.get(address.version or 0, ())
    if key.rpartition("/")[2] in other:
        return None
    data = fetch(address.url, token, key, f"zarr://{address.public}", connection)
    try:
        found = None if data is None else parse_json(data)
    except ValueError as error:
        raise SourceError(f"{address.public}/{key} is not JSON ({error}): a login page or a broken file?") from None
    if found is not None and not isinstance(found, dict):
        raise SourceError(f"{address.public}/{key} holds a {type(found).__name__}, not a JSON object")
    if found is not None and address.separator:
        _check_separator(address, key, found)
    return found


def _check_separator(address: Address, key: str, document: dict[str, Any]) -> None:
    if key.endswith("zarr.json"):
        raise SourceError(
            f"{address.public} is Zarr v3, whose metadata say how chunks are named; leave #dimension_separator="
            f"{address.separator} out"
        )
    if key.endswith(".zarray") and document.setdefault("dimension_separator", address.separator) != address.separator:
        raise SourceError(
            f"{address.public}/{key} says dimension_separator={document['dimension_separator']!r}, and the address "
            f"{address.separator!r}; leave #dimension_separator={address.separator} out"
        )
