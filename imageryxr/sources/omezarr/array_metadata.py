"""Validation of the metadata of Zarr arrays (``.zarray`` and ``zarr.json``), and conversion to a form for zarr-python.

Every member is checked before it is used, so that a size in a file cannot cause a large allocation, and an unusual
value cannot cause an error of zarr-python.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NamedTuple

import numpy as np

from imageryxr.core.validate import as_counts, as_list, as_object, as_text, to_whole
from imageryxr.errors import SourceError, format_value
from imageryxr.sources.omezarr import codec_metadata

MOST_ALONG = 2**24
"""Largest number of voxels along a spatial axis, as in precomputed: their coordinates are in memory."""
_MOST_CHUNK_BYTES = 2**40
_DTYPE = re.compile(r"[<>|=]?([biuf])([1248])")
_NAMES = {
    "bool": "b1", "int8": "i1", "int16": "i2", "int32": "i4", "int64": "i8", "uint8": "u1", "uint16": "u2",
    "uint32": "u4", "uint64": "u8", "float16": "f2", "float32": "f4", "float64": "f8",
}  # fmt: skip
_TYPES = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}
_MEMBERS = {
    "zarr_format", "node_type", "shape", "data_type", "chunk_grid", "chunk_key_encoding", "fill_value", "codecs",
    "attributes", "dimension_names", "storage_transformers",
}  # fmt: skip
_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class Layout(NamedTuple):
    """The layout of an array: its shapes, data type, encoding and metadata."""

    shape: tuple[int, ...]
    """Shape of the array."""
    chunks: tuple[int, ...]
    """Shape of the smallest chunks that can be read."""
    objects: tuple[int, ...]
    """Shape of a stored object, which is a chunk or a shard."""
    dtype: str
    """Name of the data type of the voxels in native byte order; booleans are read as uint8."""
    encoding: str
    """Names of the codecs."""
    document: str
    """JSON metadata without attributes, in the form of zarr-python."""
    has_separator: bool
    """Whether the metadata state the separator of the indexes in chunk names."""


def layout_of(where: str, document: dict[str, Any], version: int) -> Layout:
    """Return the layout of an array from its ``.zarray`` (version 2) or ``zarr.json`` (version 3).

    `where` is the address of the array, for messages. `SourceError` names a member that is missing or not valid;
    `CodecError` a codec that is not allowed.
    """
    form = document.get("zarr_format")
    if to_whole(form) != version:
        raise SourceError(f"{where} has the zarr_format {format_value(form)}; it must be {version}")
    if version == 2:
        return _layout_v2(where, document)
    return _layout_v3(where, document)


def _layout_v2(where: str, document: dict[str, Any]) -> Layout:
    shape = as_counts(document.get("shape"), f"{where}: shape")
    chunks = as_counts(document.get("chunks"), f"{where}: chunks", count=len(shape))
    dtype = _dtype_v2(document.get("dtype"), where)
    filters = as_list(document.get("filters") or [], f"{where}: filters", 32)
    codecs = [codec_metadata.codec_v2(f, f"{where}: filter {i}") for i, f in enumerate(filters)]
    given = document.get("compressor")
    compressor = None if given is None else codec_metadata.codec_v2(given, f"{where}: compressor")
    separator = document.get("dimension_separator")
    clean = {
        "zarr_format": 2,
        "shape": list(shape),
        "chunks": list(chunks),
        "dtype": dtype.str,
        "fill_value": _fill_value(document.get("fill_value"), dtype, where),
        "order": as_text(document.get("order", "C"), f"{where}: order", ("C", "F")),
        "filters": codecs or None,
        "compressor": compressor,
        "dimension_separator": as_text(separator or ".", f"{where}: dimension_separator", (".", "/")),
    }
    return _layout(where, shape, chunks, chunks, dtype, clean, separator is not None)


def _layout_v3(where: str, document: dict[str, Any]) -> Layout:
    _check_members(document, where)
    shape = as_counts(document.get("shape"), f"{where}: shape")
    objects = _grid_chunks(document.get("chunk_grid"), where, len(shape))
    dtype = _dtype_v3(document.get("data_type"), where)
    codecs = codec_metadata.codecs_v3(document.get("codecs"), f"{where}: codecs", objects)
    clean = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(objects)}},
        "chunk_key_encoding": _key_encoding(document.get("chunk_key_encoding"), where),
        "data_type": dtype.name,
        "fill_value": _fill_value(document.get("fill_value"), dtype, where),
        "codecs": codecs,
    }
    return _layout(where, shape, _inner_chunks(codecs, objects), objects, dtype, clean, True)


def _layout(
    where: str,
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    objects: tuple[int, ...],
    dtype: np.dtype[Any],
    document: dict[str, Any],
    has_separator: bool,
) -> Layout:
    if math.prod(chunks) * dtype.itemsize > _MOST_CHUNK_BYTES:
        raise SourceError(f"{where} has chunks of {chunks} voxels; the limit is 1 TiB, so the metadata are damaged")
    names = [n for n in codec_metadata.codec_names(document) if n not in ("bytes", "transpose")]
    if "sharding_indexed" in names:  # the encoding is that of the inner chunks, without the codecs of the index
        inner = next(c for c in document["codecs"] if c["name"] == "sharding_indexed")["configuration"]["codecs"]
        names = [c["name"] for c in inner if c["name"] not in ("bytes", "transpose")]
    read = "uint8" if dtype.kind == "b" else dtype.name
    text = json.dumps(document, sort_keys=True)
    return Layout(shape, chunks, objects, read, ", ".join(names) or "raw", text, has_separator)


def _check_members(document: dict[str, Any], where: str) -> None:
    as_text(document.get("node_type", "array"), f"{where}: node_type", ("array",))
    if document.get("storage_transformers"):
        raise SourceError(f"{where} has storage_transformers, which are not supported")
    for key in sorted(set(document) - _MEMBERS, key=str):
        value = document[key]
        if not (isinstance(value, dict) and value.get("must_understand") is False):
            raise SourceError(
                f"{where} has the member {format_value(key)}, which Zarr 3 does not define; the specification forbids "
                "opening an array with an unknown member"
            )


def _grid_chunks(value: Any, where: str, count: int) -> tuple[int, ...]:
    grid = {"name": value} if isinstance(value, str) else as_object(value, f"{where}: chunk_grid")
    as_text(grid.get("name"), f"{where}: the name of the chunk_grid", ("regular",))
    options = as_object(grid.get("configuration"), f"{where}: the configuration of the chunk_grid")
    return as_counts(options.get("chunk_shape"), f"{where}: chunk_shape", count=count)


def _key_encoding(value: Any, where: str) -> dict[str, Any]:
    given = {"name": value} if isinstance(value, str) else as_object(value, f"{where}: chunk_key_encoding")
    name = as_text(given.get("name"), f"{where}: the name of the chunk_key_encoding", ("default", "v2"))
    options = as_object(given.get("configuration") or {}, f"{where}: the configuration of the chunk_key_encoding")
    separator = options.get("separator") or ("/" if name == "default" else ".")
    separator = as_text(separator, f"{where}: the separator of the chunk_key_encoding", ("/", "."))
    return {"name": name, "configuration": {"separator": separator}}


def _inner_chunks(codecs: list[dict[str, Any]], objects: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the smallest chunks that can be read, along the axes of the array."""
    order = list(range(len(objects)))
    for codec in codecs:
        options = codec.get("configuration") or {}
        if codec["name"] == "transpose":
            order = [order[i] for i in options["order"]]
        if codec["name"] == "sharding_indexed":
            inner = _inner_chunks(options["codecs"], tuple(options["chunk_shape"]))
            return tuple(inner[order.index(axis)] for axis in range(len(objects)))
    return objects


def _dtype_v2(value: Any, where: str) -> np.dtype[Any]:
    text = _NAMES.get(value, value) if isinstance(value, str) else ""
    found = _DTYPE.fullmatch(text)
    if found is None or found[1] + found[2] not in _TYPES:
        raise _type_error(value, where)
    order = ">" if text.startswith(">") else "<"  # single bytes have no order: >u1, <u1 and |u1 are equal
    return np.dtype(order + found[1] + found[2])


def _dtype_v3(value: Any, where: str) -> np.dtype[Any]:
    name = value.get("name") if isinstance(value, dict) and not value.get("configuration") else value
    if not isinstance(name, str) or name not in _NAMES:
        raise _type_error(value, where)
    return np.dtype(_NAMES[name])


def _type_error(value: Any, where: str) -> SourceError:
    return SourceError(f"{where} has the data type {format_value(value)}; supported are integers, floats and booleans")


def _fill_value(value: Any, dtype: np.dtype[Any], where: str) -> Any:
    """Return a fill value in the JSON form of zarr-python; null, which means undefined, becomes 0."""
    found: Any = 0 if value is None else value
    if isinstance(found, str):
        found = _fill_text(found, dtype)
    if not isinstance(found, bool | int | float):
        raise _fill_error(value, dtype, where)
    if dtype.kind == "f":
        return _float_fill(found, value, dtype, where)
    if isinstance(found, float) and (not math.isfinite(found) or found % 1):
        raise _fill_error(value, dtype, where)
    whole = int(found)
    limits = (0, 1) if dtype.kind == "b" else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    if not limits[0] <= whole <= limits[1]:
        raise _fill_error(value, dtype, where)
    return bool(whole) if dtype.kind == "b" else whole


def _fill_text(text: str, dtype: np.dtype[Any]) -> Any:
    if text in _SPECIAL:
        return _SPECIAL[text]
    if re.fullmatch(r"[+-]?[0-9]{1,30}", text):
        return int(text)
    if re.fullmatch(r"[+-]?[0-9]{1,30}\.?[0-9]{0,30}([eE][+-]?[0-9]{1,3})?", text):
        return float(text)
    if dtype.kind == "f" and re.fullmatch(
        rf"0x[0-9a-fA-F]{{{2 * dtype.itemsize}}}", text
    ):  # Zarr 3 permits the bits of a float
        return float(np.frombuffer(bytes.fromhex(text[2:]), dtype.newbyteorder(">"))[0])
    return None


def _float_fill(found: float, value: Any, dtype: np.dtype[Any], where: str) -> Any:
    try:
        number = float(found)
        with np.errstate(over="ignore"):
            stored = float(np.asarray(number).astype(dtype))
    except OverflowError:
        raise _fill_error(value, dtype, where) from None
    if math.isnan(number):
        return "NaN"
    if math.isinf(number):
        return "Infinity" if number > 0 else "-Infinity"
    if math.isinf(stored):
        raise _fill_error(value, dtype, where)
    return number


def _fill_error(value: Any, dtype: np.dtype[Any], where: str) -> SourceError:
    return SourceError(
        f"{where} has the fill_value {format_value(value)}, which is not a valid {dtype.name}, so the value of missing "
        "chunks is unknown; correct the fill_value in that file, or in a copy of it"
    )
