"""The URLs and paths that an array is read from, collected from imageryxr's sources, dask graphs and xarray objects."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

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


def source_places(*objects: Any) -> list[str]:
    """Return the URLs and paths that objects are read from.

    Parameters
    ----------
    *objects
        Expressions, dask arrays, or data of xarray objects.

    Returns
    -------
    list of str
        Absolute paths and URLs, each once. Arrays in memory have none.
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
            waiting.extend(_parts(value))
        except Exception:  # properties of objects of other packages may raise anything
            continue
    return list(found)


def _places(value: Any) -> Iterator[str]:
    """Iterate over the places that an object itself names."""
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
    """Iterate over the place in a string, if it is a bucket's URL or the path of an existing file or volume."""
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


def _parts(value: Any) -> Iterable[Any]:
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
