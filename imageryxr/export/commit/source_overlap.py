"""Find the files and URLs that an array is read from, and refuse targets that overlap one of them in any spelling.

These places are collected from imageryxr's sources, dask graphs and xarray objects.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import numpy as np

from imageryxr.errors import Message, TargetExistsError, param
from imageryxr.export.store.local import is_remote
from imageryxr.export.targets.base import Target
from imageryxr.sources.base import clean_message

Relation = Literal["is", "lies inside", "contains"]
# Web addresses of buckets, with the bucket in the host name or first in the path.
_GOOGLE = re.compile(r"(?:(?P<bucket>.+)\.)?(?:storage|commondatastorage|storage-download)\.googleapis\.com")
_GOOGLE_PAGE = re.compile(r"storage\.cloud\.google\.com")
_AMAZON = re.compile(r"(?:(?P<bucket>.+)\.)?s3(?:[.-][a-z0-9-]+)*\.amazonaws\.com(?:\.cn)?")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")

# Limit of visited objects: a dask graph may have millions of tasks, most of which differ in numbers only.
MOST_OBJECTS = 20_000
# Visited entries of a long collection.
MOST_ENTRIES = 2_000
# Packages whose objects contain no paths, or refer to the whole program.
_OPAQUE = ("builtins", "numpy", "threading", "_thread", "logging", "types", "distributed", "asyncio", "weakref", "re")
# Attributes of sources that name no further places.
_DESCRIPTIONS = ("given_attrs", "attrs", "info_text", "url")
# Files that make a folder a volume.
_VOLUME_FILES = ("zarr.json", ".zarray", ".zgroup", "info")

Identity = tuple[int, int]
BucketPath = tuple[str, str, tuple[str, ...]]


def refuse_sources(target: Target, places: Iterable[str]) -> None:
    """Raise `TargetExistsError` if a target is, contains or lies inside a place that its export reads.

    `overwrite=True` does not permit this, because the source would be removed while it is read.
    """
    if target.kind == "memory":
        return
    remote = is_remote(target.root)
    for place in places:
        local = _local_path(place)
        if remote and local is None:
            relation = _in_bucket(target, place)
        elif remote or local is None:
            continue
        else:
            relation = _on_disk(target, local)
        if relation is not None:
            raise TargetExistsError(_message(target, relation, place))


def _message(target: Target, relation: Relation, place: str) -> str:
    return Message(
        f"the target {target.place} {relation} {clean_message(place)}, a source of the exported array: writing there ",
        "would destroy the source, so this is refused even with ",
        param("overwrite", True),
        "; give another target, and move the result when the export is complete",
    )


def _local_path(place: str) -> str | None:
    if place.startswith("file://"):
        return place.removeprefix("file://")
    return None if "://" in place else place


def _files(target: Target) -> Iterator[str]:
    """Iterate over the paths that an export replaces: one folder, one file, or the files of a stack."""
    if target.kind == "files":
        yield from (f"{target.root}/{key}" for key in target.identifying_keys())
    else:
        yield target.root


# ---------------------------------------------------------------------------------------------------------
# overlaps on a disk


def _on_disk(target: Target, source: str) -> Relation | None:
    if target.kind != "files":
        return _relation(target.root, source)
    # The folder of a stack is not replaced, so it may contain sources beside the stack's files.
    theirs = os.path.realpath(source)
    above = {theirs.casefold()}
    while (parent := os.path.dirname(theirs)) != theirs:
        above.add(parent.casefold())
        theirs = parent
    number = _identity(source) if os.path.isfile(source) else None
    folders = dict[str, str]()
    for key in target.identifying_keys():
        folder, _, name = f"{target.root}/{key}".rpartition("/")
        if folder not in folders:
            if (around := _relation(folder, source)) in ("is", "lies inside"):
                return around
            folders[folder] = os.path.realpath(folder)
        path = f"{folders[folder].rstrip('/')}/{name}"
        # the path may be a symbolic link, or a hard link to the source
        is_candidate = path.casefold() in above or (number is not None and _identity(path) == number)
        if (is_candidate or os.path.islink(path)) and (found := _relation(path, source)) is not None:
            return found
    return None


def _relation(target: str, source: str) -> Relation | None:
    """Return how a target's path relates to a source's path, by names and by inode numbers.

    Inode numbers are equal across links, mounts, and spellings in another case on a case-insensitive disk.
    """
    ours, theirs = os.path.realpath(target), os.path.realpath(source)
    if os.path.normcase(ours) == os.path.normcase(theirs):
        return "is"
    mine, other = _identity(ours), _identity(theirs)
    if mine is not None and mine == other:
        return "is"
    if _is_below(ours, theirs) or (other is not None and other in _identities(os.path.dirname(ours))):
        return "lies inside"
    if _is_below(theirs, ours) or (mine is not None and mine in _identities(os.path.dirname(theirs))):
        return "contains"
    return None


def _is_below(path: str, folder: str) -> bool:
    return os.path.normcase(path).startswith(os.path.normcase(folder).rstrip(os.sep) + os.sep)


def _identity(path: str) -> Identity | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if found.st_ino else None  # some file systems on Windows have no inode numbers


def _identities(folder: str) -> set[Identity]:
    """Return the device and inode numbers of a folder and its parents."""
    found = set()
    while True:
        if (number := _identity(folder)) is not None:
            found.add(number)
        above = os.path.dirname(folder)
        if above == folder:
            return found
        folder = above


# ---------------------------------------------------------------------------------------------------------
# overlaps in a bucket


def _in_bucket(target: Target, source: str) -> Relation | None:
    theirs = bucket_path(source)
    if theirs is None:
        return None
    if target.kind == "files" and (around := _key_relation(bucket_path(target.root), theirs)) != "contains":
        return around
    found = (_key_relation(bucket_path(file), theirs) for file in _files(target))
    return next((relation for relation in found if relation is not None), None)


def _key_relation(ours: BucketPath | None, theirs: BucketPath) -> Relation | None:
    if ours is None or ours[:2] != theirs[:2]:
        return None
    mine, other = ours[2], theirs[2]
    if mine == other:
        return "is"
    if mine[: len(other)] == other:
        return "lies inside"
    return "contains" if other[: len(mine)] == mine else None


def bucket_path(url: str) -> BucketPath | None:
    """Return server, bucket and key of a bucket's URL, equal for all spellings; None for other URLs."""
    scheme, _, rest = url.partition("://")
    scheme = scheme.lower().removeprefix("middleauth+").removeprefix("ngauth+")
    if scheme in ("s3", "gs") and rest.startswith(("http://", "https://")):
        return _web_bucket(rest, any_host=True)
    if scheme == "gs":
        bucket, _, key = rest.lstrip("/").partition("/")
        return "gs", bucket, _parts(key)
    if scheme == "s3":
        bucket, _, key = rest.lstrip("/").partition("/")
        return _endpoint() or "s3", bucket, _parts(key)
    return _web_bucket(f"{scheme}://{rest}") if scheme in ("http", "https") else None


def _web_bucket(url: str, *, any_host: bool = False) -> BucketPath | None:
    host = _host(url)
    path = unquote(urlsplit(url).path)
    endpoint = _endpoint()
    if endpoint is not None and host.endswith(f".{endpoint}"):
        return endpoint, host.removesuffix(f".{endpoint}"), _parts(path)
    if endpoint == host or any_host:
        return _first_is_bucket(host, path)
    for service, pattern in (("gs", _GOOGLE), ("gs", _GOOGLE_PAGE), ("s3", _AMAZON)):
        match = pattern.fullmatch(host)
        if match:
            bucket = match.groupdict().get("bucket")
            return (service, bucket, _parts(path)) if bucket else _first_is_bucket(service, path)
    return None


def _first_is_bucket(service: str, path: str) -> BucketPath:
    bucket, _, key = path.lstrip("/").partition("/")
    return service, bucket, _parts(key)


def _host(url: str) -> str:
    """Return the host of a URL, with the port unless it is the scheme's default."""
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    host = "127.0.0.1" if host in ("localhost", "::1") else host
    port = parts.port
    usual = {"http": 80, "https": 443}.get(parts.scheme)
    return host if port is None or port == usual else f"{host}:{port}"


def _endpoint() -> str | None:
    """Return the host that the environment configures for s3://, None if it is Amazon's."""
    given = next((os.environ[name] for name in _ENDPOINTS if os.environ.get(name)), None)
    if given is None:
        return None
    host = _host(given)
    return None if _AMAZON.fullmatch(host) else host


@lru_cache(maxsize=4096)
def _parts(key: str) -> tuple[str, ...]:
    found: list[str] = []
    for part in key.split("/"):
        if part == "..":
            del found[-1:]
        elif part not in ("", "."):
            found.append(part)
    return tuple(found)


# ---------------------------------------------------------------------------------------------------------
# the places of an array


def source_places(*objects: Any) -> list[str]:
    """Return the URLs and absolute paths that objects are read from, each once; arrays in memory have none.

    The objects are expressions, dask arrays, or data of xarray objects.
    """
    found: dict[str, None] = {}
    seen: dict[int, Any] = {}  # keeps visited objects alive, because ids of freed objects are reused
    # Breadth first: each layer of a large graph is visited before the limit is reached.
    waiting = deque(objects)
    while waiting and len(seen) < MOST_OBJECTS:
        value = waiting.popleft()
        if id(value) in seen:
            continue
        seen[id(value)] = value
        try:
            found.update(dict.fromkeys(_places(value)))
            waiting.extend(_referenced_objects(value))
        except Exception:  # properties of objects of other packages may raise anything
            continue
    return list(found)


def _places(value: Any) -> Iterator[str]:
    """Iterate over the places that an object itself states, not the objects that it refers to."""
    if isinstance(value, str | os.PathLike):
        yield from _named_file(os.fspath(value))
        return
    if isinstance(value, np.memmap) and value.filename is not None:
        yield os.path.abspath(value.filename)
    package = _package(value)
    if package == "imageryxr" and isinstance(url := getattr(value, "url", None), str) and "://" in url:
        yield url
    elif package == "zarr":
        yield from _zarr_places(value)
    elif package == "h5py" and hasattr(value, "file"):
        yield os.path.abspath(value.file.filename)
    elif package == "tensorstore" and getattr(value, "kvstore", None) is not None:
        yield str(value.kvstore.url)
    elif package == "xarray" and isinstance(name := getattr(value, "_filename", None), str):
        yield name if "://" in name else os.path.abspath(os.path.expanduser(name))


def _named_file(text: str) -> Iterator[str]:
    """Yield a text as a URL if it is one of a web server or bucket, or as a path if a file or volume exists there."""
    if not 1 < len(text) < 4096 or "\0" in text or "\n" in text:
        return
    if "://" in text and not text.startswith("file://"):
        if text.startswith(("s3://", "gs://", "http://", "https://")):
            yield text
        return
    path = os.path.abspath(os.path.expanduser(text.removeprefix("file://")))
    if os.path.isfile(path) or any(os.path.isfile(os.path.join(path, name)) for name in _VOLUME_FILES):
        yield path


def _zarr_places(value: Any) -> Iterator[str]:
    """Iterate over the places of a Zarr array, group or store."""
    inner = getattr(getattr(value, "store_path", None), "path", "") or ""
    store = getattr(getattr(value, "store_path", None), "store", value)
    store = getattr(store, "_store", store)  # unwrap a wrapper store
    if isinstance(root := getattr(store, "root", None), str | os.PathLike):
        yield os.path.abspath(os.path.join(root, inner))
    elif hasattr(store, "fs") and isinstance(path := getattr(store, "path", None), str):
        yield f"{store.fs.unstrip_protocol(path)}/{inner}"
    elif isinstance(path := getattr(store, "path", None), str | os.PathLike) and os.path.isfile(path):
        yield os.path.abspath(path)
    elif (bucket := getattr(store, "store", None)) is not None and _package(bucket) == "obstore":
        yield from _obstore_places(bucket, inner)


def _obstore_places(store: Any, inner: str) -> Iterator[str]:
    """Iterate over the places of an obstore store."""
    prefix = getattr(store, "prefix", None)
    path = "/".join(str(part) for part in (prefix, inner) if part)
    kind = type(store).__name__
    if kind == "LocalStore":
        yield os.path.abspath(os.path.join(str(prefix), inner))
    elif kind in ("S3Store", "GCSStore"):
        config = {str(k).lower(): v for k, v in dict(store.config).items()}
        bucket = config.get("bucket") or config.get("aws_bucket") or config.get("google_bucket")
        yield f"{'s3' if kind == 'S3Store' else 'gs'}://{bucket}/{path}"
    elif kind == "HTTPStore":
        yield f"{store.url}/{inner}"


def _referenced_objects(value: Any) -> Iterable[Any]:
    """Return the objects that an object refers to, which may name further places."""
    if isinstance(value, str | bytes | int | float | complex | type | os.PathLike) or value is None:
        return []
    if isinstance(value, np.ndarray):
        return [value.base] if value.dtype != object else [value.base, *value.flat[:MOST_ENTRIES]]
    if isinstance(value, dict):
        return list(value.values())[:MOST_ENTRIES]
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)[:MOST_ENTRIES]
    if hasattr(value, "__closure__"):  # a function
        return [cell.cell_contents for cell in value.__closure__ or ()] + list(value.__defaults__ or ())
    if hasattr(value, "__self__") and hasattr(value, "__func__"):  # a method
        return [value.__self__]
    if type(value).__module__ == "functools":
        return [value.func, value.args, value.keywords] if hasattr(value, "keywords") else []
    if _package(value) in _OPAQUE:
        return []
    return _graph_parts(value) or _attributes(value)


def _graph_parts(value: Any) -> list[Any]:
    """Return the parts of a dask collection or of a layer of its graph, without materializing tasks."""
    if hasattr(value, "dask") and hasattr(value.dask, "layers"):
        return list(value.dask.layers.values())
    if isinstance(mapping := getattr(value, "mapping", None), dict):
        return list(mapping.values())[:MOST_ENTRIES]
    return []


def _attributes(value: Any) -> list[Any]:
    names = [name for kind in type(value).__mro__ for name in _slots(kind) if not name.startswith("__")]
    names += list(getattr(value, "__dict__", ()))
    return [getattr(value, name, None) for name in names if name not in _DESCRIPTIONS]


def _slots(kind: type) -> list[str]:
    slots = kind.__dict__.get("__slots__", ())
    return [slots] if isinstance(slots, str) else list(slots)


def _package(value: Any) -> str:
    return type(value).__module__.partition(".")[0]
