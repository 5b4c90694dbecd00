"""Checks of stored Zarr objects before decoding, because a truncated object may silently decode to zeros.

Blosc does not compare the length in its header with the length of its input, and zarr-python treats chunks beyond the
end of a shard as missing. The headers of Blosc, LZ4 and Zstandard are compared with the metadata of the array (see
`frame_headers`). Other codecs detect truncation themselves.
"""

from __future__ import annotations

import json
import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from imageryxr.sources.base import is_html_page
from imageryxr.sources.codecs.frame_headers import frame_problem

_LEFT_OUT = np.iinfo(np.uint64).max
"""Marks a missing chunk in the index of a shard."""


class DamagedObjectError(ValueError):
    """A stored object that is damaged; `OmeZarrSource` adds the box to the message."""


class ObjectFormat(NamedTuple):
    """The structure of the stored objects of an array."""

    codec: str
    """Last compressor of a chunk, without the namespace of numcodecs; empty for none."""
    chunks_in_shard: int
    """Number of chunks in a shard; 0 if each object is a chunk."""
    index_size: int
    """Size in bytes of the index of a shard; 0 if unknown."""
    index_first: bool
    """Whether the index is at the start of the shard and not at its end."""
    chunk_bytes: int = 0
    """Size in bytes of a decompressed chunk; 0 if unknown."""
    item_sizes: tuple[int, ...] = ()
    """Item sizes that a Blosc header may state; empty allows any.

    Several writers (in Java, and zarr-python before 3.1) state 1 for all data types.
    """


@lru_cache(maxsize=1024)
def object_format(metadata: str) -> ObjectFormat:
    """Return the structure of the stored objects from a ``zarr.json`` or ``.zarray``."""
    document = json.loads(metadata)
    if document["zarr_format"] == 2:
        name = str((document.get("compressor") or {}).get("id", ""))
        item = 0 if document.get("filters") else _item_size(document.get("dtype"))
        return ObjectFormat(name, 0, 0, False, _product(document.get("chunks")) * item, (1, item) if item else ())
    codecs, item = document["codecs"], _item_size(document.get("data_type"))
    outer = document["chunk_grid"]["configuration"]["chunk_shape"]
    if codecs[0]["name"] != "sharding_indexed":
        return ObjectFormat(_last_codec(codecs), 0, 0, False, *_expected_frame(codecs, _product(outer), item))
    shard = codecs[0]["configuration"]
    count = int(np.prod([-(-n // m) for n, m in zip(outer, shard["chunk_shape"], strict=True)]))
    size = _index_size(shard.get("index_codecs", []), count) if len(codecs) == 1 else 0
    is_first = shard.get("index_location") == "start"
    expected = _expected_frame(shard["codecs"], _product(shard["chunk_shape"]), item)
    return ObjectFormat(_last_codec(shard["codecs"]), count, size, is_first, *expected)


def check_object(form: ObjectFormat, key: str, data: bytes | memoryview, span: tuple[int | None, int | None]) -> None:
    """Raise `DamagedObjectError` if an object, or a range of one, was truncated or is HTML.

    `span` is the requested start and stop of the range; ``(None, n)`` is the last n bytes, and ``(None, None)`` the
    whole object.
    """
    first, stop = span
    problem = ""
    if len(data) == 0:
        problem = "it is empty (0 bytes)"
    elif is_html_page(data):
        problem = "it is HTML, such as a login page"
    elif stop is not None and len(data) != stop - (first or 0):
        problem = f"{stop - (first or 0)} bytes were requested, but {len(data)} were read"
    elif form.chunks_in_shard and span == (None, None):
        problem = _shard_problem(form, data)
    elif not (form.chunks_in_shard and _is_index(form, span)):
        problem = frame_problem(data, form.codec, form.chunk_bytes, form.item_sizes)
    if problem:
        raise DamagedObjectError(f"the stored object {key} was truncated or overwritten: {problem}")


def _last_codec(codecs: list[dict[str, Any]]) -> str:
    return str(codecs[-1]["name"]).removeprefix("numcodecs.") if codecs else ""


def _item_size(dtype: Any) -> int:
    """Return the size of a voxel in bytes; 0 if numpy does not support the type."""
    try:
        return np.dtype(dtype).itemsize if isinstance(dtype, str) else 0
    except TypeError:
        return 0


def _product(shape: Any) -> int:
    return math.prod(int(n) for n in shape) if isinstance(shape, list) else 0


def _expected_frame(codecs: list[dict[str, Any]], voxels: int, item: int) -> tuple[int, tuple[int, ...]]:
    """Return the decompressed size and the item sizes that the header of a chunk may state; 0 and empty if unknown."""
    names = [str(codec["name"]) for codec in codecs[:-1] if codec["name"] != "transpose"]
    if names != ["bytes"] or not item:
        return 0, ()
    declared = (codecs[-1].get("configuration") or {}).get("typesize")
    return voxels * item, (1, item, *([declared] if isinstance(declared, int) else []))


def _index_size(codecs: list[dict[str, Any]], count: int) -> int:
    names = [codec["name"] for codec in codecs]
    if names not in (["bytes"], ["bytes", "crc32c"]):
        return 0
    is_little = (codecs[0].get("configuration") or {}).get("endian", "little") == "little"
    return 16 * count + 4 * (len(names) - 1) if is_little else 0


def _is_index(form: ObjectFormat, span: tuple[int | None, int | None]) -> bool:
    # If the size of the index is unknown, every range of a shard may be the index.
    return not form.index_size or span == ((0 if form.index_first else None), form.index_size)


def _shard_problem(form: ObjectFormat, data: bytes | memoryview) -> str:
    if not form.index_size:
        return ""
    if len(data) < form.index_size:
        return f"it has {len(data)} bytes, but its index alone takes {form.index_size}"
    begin = 0 if form.index_first else len(data) - form.index_size
    index = np.frombuffer(data, "<u8", 2 * form.chunks_in_shard, begin).reshape(-1, 2)
    for offset, size in index[(index != _LEFT_OUT).any(axis=1)].tolist():
        if offset + size > len(data):
            return f"it has {len(data)} bytes, but its index refers to byte {offset + size}"
        problem = frame_problem(data[offset : offset + size], form.codec, form.chunk_bytes, form.item_sizes)
        if problem:
            return problem
    return ""
