"""Stored Zarr objects looked at before they are decoded: one that was cut short may decode to zeros, in silence.

Blosc does not compare the length that its header gives with what it was handed, and what a shard's index points at
beyond its end is taken for nothing. Headers of Blosc, LZ4 and Zstandard are compared with the array's metadata
(`frames`). Other codecs tell by themselves.
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
"""Where a shard's index says that a chunk was left out."""


class DamagedObjectError(ValueError):
    """A stored object that is not whole; `OmeZarrSource` says of which box."""


class ObjectFormat(NamedTuple):
    """How the objects of an array are made up."""

    codec: str
    """What a chunk was compressed with last, without the namespace of numcodecs; empty for none."""
    chunks_in_shard: int
    """0 where an object is a chunk."""
    index_size: int
    """Bytes of a shard's index, 0 where that cannot be told."""
    index_first: bool
    """Whether it stands at the start of the shard, not at its end."""
    chunk_bytes: int = 0
    """Bytes that a chunk decompresses to, 0 where the metadata do not say."""
    item_sizes: tuple[int, ...] = ()
    """Which sizes of an item the header of a Blosc frame may state, any where empty.

    Several writers (in Java, and zarr-python before 3.1) state 1, whatever the array holds.
    """


@lru_cache(maxsize=1024)
def object_format(metadata: str) -> ObjectFormat:
    """Return what an array's ``zarr.json`` or ``.zarray`` says of its objects."""
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


def check_object(form: ObjectFormat, key: str, data: bytes | memoryview, asked: tuple[int | None, int | None]) -> None:
    """Raise unless an object, or a part of one, is whole as far as that can be told.

    Parameters
    ----------
    form : ZarrForm
        How the array's objects are made up.
    key : str
        The object's, for the message.
    data : bytes or memoryview
        What came.
    asked : tuple
        First byte and the one behind the last that were asked for; ``(None, n)`` stands for the last n, and
        ``(None, None)`` for all.

    Raises
    ------
    DamagedObjectError
        If it was truncated, or is a web page.
    """
    first, stop = asked
    problem = ""
    if len(data) == 0:
        problem = "it is empty (0 bytes)"
    elif is_html_page(data):
        problem = "it is a web page, such as servers send to ask for a login"
    elif stop is not None and len(data) != stop - (first or 0):
        problem = f"{stop - (first or 0)} bytes of it were asked for, and {len(data)} came"
    elif form.chunks_in_shard and asked == (None, None):
        problem = _shard_problem(form, data)
    elif not (form.chunks_in_shard and _is_index(form, asked)):
        problem = frame_problem(data, form.codec, form.chunk_bytes, form.item_sizes)
    if problem:
        raise DamagedObjectError(f"the stored object {key} was truncated or overwritten: {problem}")


def _last_codec(codecs: list[dict[str, Any]]) -> str:
    return str(codecs[-1]["name"]).removeprefix("numcodecs.") if codecs else ""


def _item_size(dtype: Any) -> int:
    """Return the bytes of a voxel, 0 where the metadata name a type that is none of numpy's."""
    try:
        return np.dtype(dtype).itemsize if isinstance(dtype, str) else 0
    except TypeError:
        return 0


def _product(shape: Any) -> int:
    return math.prod(int(n) for n in shape) if isinstance(shape, list) else 0


def _expected_frame(codecs: list[dict[str, Any]], voxels: int, item: int) -> tuple[int, tuple[int, ...]]:
    """Return the bytes and the sizes of an item that the frame of a chunk must state, as far as they are known."""
    names = [str(codec["name"]) for codec in codecs[:-1] if codec["name"] != "transpose"]
    if names != ["bytes"] or not item:
        return 0, ()
    said = (codecs[-1].get("configuration") or {}).get("typesize")
    return voxels * item, (1, item, *([said] if isinstance(said, int) else []))


def _index_size(codecs: list[dict[str, Any]], count: int) -> int:
    names = [codec["name"] for codec in codecs]
    if names not in (["bytes"], ["bytes", "crc32c"]):
        return 0
    is_little = (codecs[0].get("configuration") or {}).get("endian", "little") == "little"
    return 16 * count + 4 * (len(names) - 1) if is_little else 0


def _is_index(form: ObjectFormat, asked: tuple[int | None, int | None]) -> bool:
    # Where the size of the index is not known, no part of a shard is taken for a chunk.
    return not form.index_size or asked == ((0 if form.index_first else None), form.index_size)


def _shard_problem(form: ObjectFormat, data: bytes | memoryview) -> str:
    if not form.index_size:
        return ""
    if len(data) < form.index_size:
        return f"it holds {len(data)} bytes, less than its index takes"
    begin = 0 if form.index_first else len(data) - form.index_size
    index = np.frombuffer(data, "<u8", 2 * form.chunks_in_shard, begin).reshape(-1, 2)
    for offset, size in index[(index != _LEFT_OUT).any(axis=1)].tolist():
        if offset + size > len(data):
            return f"its index points at byte {offset + size} of {len(data)}"
        problem = frame_problem(data[offset : offset + size], form.codec, form.chunk_bytes, form.item_sizes)
        if problem:
            return problem
    return ""
