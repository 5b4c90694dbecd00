"""The ``info`` file of a precomputed layer: its validation and completion, and the chunks that it describes.

An ``info`` may come from anybody. All members are checked before they are used: coordinates and chunks must fit into
memory, keys must stay within the folder of the layer, and an encoding must support the data type and the channels.

Format: https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/volume.rst.
"""

from __future__ import annotations

import math
import re
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from imageryxr.core.bbox import Index3, IndexBox
from imageryxr.core.grid import Grid
from imageryxr.errors import format_value
from imageryxr.sources.base import Level
from imageryxr.sources.fetch.chunk_boxes import Axes, chunk_spans

# The module that decodes each encoding, and the package that contains the module.
CODECS = {
    "jpeg": ("simplejpeg", "simplejpeg"),
    "png": ("pyspng", "pyspng-seunglab"),
    "compresso": ("compresso", "compresso"),
    "crackle": ("crackle", "crackle-codec"),
    "fpzip": ("fpzip", "fpzip"),
    "kempressed": ("fpzip", "fpzip"),
    "zfpc": ("zfpc", "zfpc"),
    "jxl": ("imagecodecs", "imagecodecs"),
    "jpegxl": ("imagecodecs", "imagecodecs"),
}
ENCODINGS = ("raw", *CODECS, "compressed_segmentation")
_IDS = ("uint8", "uint16", "uint32", "uint64")
# The data types and numbers of channels (empty for any) of each encoding except raw, which supports all.
_SUPPORTED: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
    "jpeg": (("uint8",), (1, 3)),
    "png": (("uint8", "uint16"), (1, 2, 3, 4)),
    "jxl": (("uint8", "uint16"), (1, 2, 3, 4)),
    "jpegxl": (("uint8", "uint16"), (1, 2, 3, 4)),
    "compressed_segmentation": (("uint32", "uint64"), ()),
    "compresso": (_IDS, (1,)),
    "crackle": (_IDS, (1,)),
    "fpzip": (("float32", "float64"), ()),
    "kempressed": (("float32",), ()),
    "zfpc": (("float32",), ()),
}
_TYPES = (*_IDS, "int8", "int16", "int32", "int64", "float16", "float32", "float64")

_LONGEST = 1 << 24
"""Largest number of voxels along an axis: their coordinates are in memory. A whole mouse brain at 1 nm has fewer."""
_FARTHEST = 1 << 53
"""Largest offset; beyond it neighbouring voxels have equal float64 coordinates."""
_LARGEST = 1 << 31
"""Largest size in bytes of a decoded chunk, which must fit into memory."""
_SMALLEST_NM, _WIDEST_NM = 1e-6, 1e12
_INDEX_BITS = 24
"""Largest binary logarithm of the number of minishards in a shard: the index with 16 bytes for each is read whole."""


def info_problem(info: dict[str, Any]) -> str:
    """Return the problem of an ``info``, or an empty string."""
    kind = str(info.get("@type", "neuroglancer_multiscale_volume"))[:100]
    if kind != "neuroglancer_multiscale_volume":
        what = next((word for word in ("skeleton", "mesh", "annotation", "properties") if word in kind), None)
        content = {"mesh": "meshes", "properties": "properties of segments"}.get(what or "", f"{what}s")
        return f"its @type is {kind!r}" + (f", so it holds {content}; give the volume they belong to" if what else "")
    absent = [key for key in ("data_type", "scales") if not info.get(key)]
    if absent:
        return f"it lacks {' and '.join(absent)}"
    dtype, channels, scales = info["data_type"], info.get("num_channels", 1), info["scales"]
    if not isinstance(dtype, str) or dtype.lower() not in _TYPES or not _is_whole(channels) or channels < 1:
        return (
            f"it states {format_value(channels)} channels of the data_type {format_value(dtype)}; supported are 1 or "
            f"more channels of {', '.join(_TYPES)}"
        )
    if info.get("type") is not None and not isinstance(info["type"], str):
        return f"its type is {format_value(info['type'])}, which is not a string"
    if not isinstance(scales, list):
        return f"its scales are {format_value(scales)}, which is not a list"
    for mip, scale in enumerate(scales):
        problem = _scale_problem(scale, np.dtype(dtype.lower()), int(channels))
        if problem:
            return f"scale {mip} {problem}"
    return ""


def _is_number(value: Any) -> bool:
    """Return whether a member is a finite number, which computations with floats accept."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 <= value <= 1e300


def _is_whole(*values: Any) -> bool:
    return all(_is_number(value) and value % 1 == 0 for value in values)


def _scale_problem(scale: Any, dtype: np.dtype[Any], channels: int) -> str:
    if not isinstance(scale, dict):
        return f"is {format_value(scale)}, which is not an object"
    absent = [key for key in ("key", "size", "resolution", "chunk_sizes") if key not in scale]
    if absent:
        return f"lacks {' and '.join(absent)}"
    encoding = scale.get("encoding", "raw")
    if not isinstance(encoding, str):
        return f"has the encoding {format_value(encoding)}, which is not a string"
    return (
        _key_problem(scale["key"])
        or _vectors_problem(scale, encoding.lower())
        or _resolution_problem(scale["resolution"])
        or _extent_problem(scale, dtype, channels)
        or _encoding_problem(encoding.lower(), dtype, channels)
        or sharding_problem(scale.get("sharding"))
    )


def _key_problem(key: Any) -> str:
    """Return the problem of a key that is not the name of a folder within the layer."""
    if not isinstance(key, str) or not key:
        return f"has the key {format_value(key)}; it must be the name of a folder"
    if re.search(r"[\x00-\x1f\x7f\\?#%|:]", key) or key.startswith(("/", "~")) or ".." in key.split("/"):
        return (
            f"has the key {format_value(key)}, which may lead out of the layer's folder; it must be the name of a "
            "folder in it, without .., \\, ?, #, %, | and :, and without / or ~ at its start"
        )
    return f"has the key {format_value(key)}, which is not a valid file name" if _is_too_long(key) else ""


def _is_too_long(key: str) -> bool:
    try:
        return len(key.encode()) > 1000 or any(len(part.encode()) > 255 for part in key.split("/"))
    except UnicodeEncodeError:  # half of a surrogate pair
        return True


def _vectors_problem(scale: dict[str, Any], encoding: str) -> str:
    """Return the problem of the members with three whole numbers."""
    vectors = {key: scale.get(key, []) for key in ("size", "voxel_offset")}
    chunks = scale["chunk_sizes"]
    vectors["chunk_sizes"] = chunks[0] if isinstance(chunks, list) and chunks else chunks
    if encoding == "compressed_segmentation":
        vectors["compressed_segmentation_block_size"] = scale.get("compressed_segmentation_block_size")
    for key, numbers in vectors.items():
        if not isinstance(numbers, list) or not _is_whole(*numbers):
            return f"has the {key} {format_value(numbers)}; it must hold whole numbers"
        if key == "voxel_offset":
            if len(numbers) != 3 and (numbers or key in scale):
                return f"has the {key} {format_value(numbers)}; it must hold three whole numbers"
        elif len(numbers) != 3 or min(numbers) < 1:
            return f"has the {key} {format_value(numbers)}; it must hold three positive numbers"
        elif key == "compressed_segmentation_block_size" and math.prod(numbers) > _LARGEST:
            return f"has the {key} {format_value(numbers)}; the limit is 2^31 voxels"
    return ""


def _resolution_problem(resolution: Any) -> str:
    is_right = isinstance(resolution, list) and len(resolution) == 3 and all(map(_is_number, resolution))
    if is_right and all(_SMALLEST_NM <= r <= _WIDEST_NM for r in resolution):
        return ""
    return (
        f"has the resolution {format_value(resolution)}; it must hold three positive numbers of nanometres, "
        f"{_SMALLEST_NM:g} to {_WIDEST_NM:g}"
    )


def _extent_problem(scale: dict[str, Any], dtype: np.dtype[Any], channels: int) -> str:
    size, offset = scale["size"], scale.get("voxel_offset") or (0, 0, 0)
    if max(size) > _LONGEST:
        return f"has the size {format_value(size)}; the limit is {_LONGEST:,} voxels along an axis"
    if max(map(abs, offset)) > _FARTHEST:
        return f"has the voxel_offset {format_value(offset)}; the limit is 2^53"
    chunk = [min(c, s) for c, s in zip(scale["chunk_sizes"][0], size, strict=True)]
    length = int(math.prod(chunk)) * channels * dtype.itemsize
    if length > _LARGEST:
        size_text = f"{length / 2**30:,.0f} GiB"
        return f"has chunks of {format_value(chunk)} voxels and {channels} channels: {size_text}; the limit is 2 GiB"
    return ""


def _encoding_problem(encoding: str, dtype: np.dtype[Any], channels: int) -> str:
    types, counts = _SUPPORTED.get(encoding, ((dtype.name,), ()))
    if dtype.name in types and (not counts or channels in counts):
        return ""
    allowed = f"{' or '.join(map(str, counts))} channel{'' if counts == (1,) else 's'}" if counts else "any channels"
    return f"is stored as {encoding}, which holds {' or '.join(types)} in {allowed}, not {dtype.name} in {channels}"


def sharding_problem(sharding: Any) -> str:
    """Return the problem of a sharding specification, or an empty string; None is no sharding."""
    if sharding is None:
        return ""
    if not isinstance(sharding, dict):
        return f"has the sharding {format_value(sharding)}, which is not an object"
    kind = sharding.get("@type")
    if kind != "neuroglancer_uint64_sharded_v1":
        return f"has the sharding @type {format_value(kind)}; supported is 'neuroglancer_uint64_sharded_v1'"
    if sharding.get("hash") not in ("identity", "murmurhash3_x86_128"):
        found = format_value(sharding.get("hash"))
        return f"has the sharding hash {found}; supported are identity and murmurhash3_x86_128"
    for key, most in (("preshift_bits", 64), ("minishard_bits", _INDEX_BITS), ("shard_bits", 64)):
        bits = sharding.get(key)
        if bits is None or not _is_whole(bits) or not 0 <= bits <= most:
            return f"has the sharding {key} {format_value(bits)}; it must be a whole number from 0 to {most}"
    if sharding["minishard_bits"] + sharding["shard_bits"] > 64:
        return "has a sharding of more than 64 bits"
    for key in ("minishard_index_encoding", "data_encoding"):
        if sharding.get(key, "raw") not in ("raw", "gzip"):
            return f"has the sharding {key} {format_value(sharding[key])}; supported are raw and gzip"
    return ""


def complete_info(info: dict[str, Any]) -> dict[str, Any]:
    """Return a valid ``info`` with defaults for optional members, and integers instead of integral floats."""
    scales = [_complete_scale(scale) for scale in info["scales"]]
    dtype = info["data_type"].lower()
    is_ids = dtype in ("uint32", "uint64") or {s["encoding"] for s in scales} & {
        "compressed_segmentation", "compresso", "crackle",
    }  # fmt: skip
    kind = (info.get("type") or ("segmentation" if is_ids else "image")).lower()
    more = {"type": kind, "data_type": dtype, "num_channels": int(info.get("num_channels", 1)), "scales": scales}
    return {**info, **more}


def _complete_scale(scale: dict[str, Any]) -> dict[str, Any]:
    whole = {key: [int(n) for n in scale.get(key, (0, 0, 0))] for key in ("size", "voxel_offset")}
    sizes = [[int(n) for n in sizes] for sizes in scale["chunk_sizes"][:1]]
    more = {"encoding": scale.get("encoding", "raw").lower(), "chunk_sizes": sizes}
    block = scale.get("compressed_segmentation_block_size")
    if more["encoding"] == "compressed_segmentation" and block is not None:
        more["compressed_segmentation_block_size"] = [int(n) for n in block]
    if scale.get("sharding") is not None:
        more["sharding"] = complete_sharding(scale["sharding"])
    return {**{key: value for key, value in scale.items() if key != "sharding"}, **whole, **more}


def complete_sharding(sharding: dict[str, Any]) -> dict[str, Any]:
    """Return a valid sharding specification with its defaults, and integers instead of integral floats."""
    bits = {key: int(sharding[key]) for key in ("preshift_bits", "minishard_bits", "shard_bits")}
    return {"minishard_index_encoding": "raw", "data_encoding": "raw", **sharding, **bits}


def info_levels(info: dict[str, Any]) -> tuple[Level, ...]:
    """Return the levels that a completed ``info`` describes."""
    found = []
    for mip, scale in enumerate(info["scales"]):
        (x, y, z), (cx, cy, cz), (rx, ry, rz) = scale["size"], scale["chunk_sizes"][0], scale["resolution"]
        grid = Grid((z, y, x), (float(rx), float(ry), float(rz)), tuple(scale["voxel_offset"]))
        found.append(Level(mip, grid, (cz, cy, cx), scale["encoding"], "placeholder" in scale["key"].lower()))
    return tuple(found)


# --- positions of stored chunks -------------------------------------------------------------------

Slices = tuple[slice, slice, slice]


class StoredChunk(NamedTuple):
    """A chunk of a level, without its part beyond the end of the level."""

    name: str
    """File name, which states the position of the chunk in absolute voxels."""
    box: IndexBox
    shape: Index3
    slices: tuple[int, int]
    """Indexes in the chunk of the first slice that is decoded, and of the slice after the last one."""
    taken: Slices
    """The part of the decoded slices that lies in the requested box."""
    place: Slices
    """Where this part lies in the requested box."""


def level_spans(level: Level, box: IndexBox, depth: int = 0) -> Axes:
    """Return the chunks that a box inside a level overlaps along z, y and x.

    ``depth`` is the number of slices that are decoded together; 0 for all slices of a chunk.
    """
    depths = (depth, 0, 0)
    axes = zip(level.chunks, box.start, box.stop, level.grid.shape, depths, strict=True)
    return [chunk_spans(size, start, stop, end=end, depth=n) for size, start, stop, end, n in axes]


def stored_chunks(level: Level, axes: Axes) -> list[StoredChunk]:
    """Return the chunks of a box in C order, from the result of `level_spans`."""
    # A slice overlaps hundreds of chunks, so whatever depends on one axis only is computed once per axis.
    lows = [int(n) for n in level.grid.voxel_offset[::-1]]
    named = [[(s, f"{n + s.start}-{n + s.stop}") for s in spans] for spans, n in zip(axes, lows, strict=True)]
    return [
        StoredChunk(
            f"{name_x}_{name_y}_{name_z}",
            IndexBox((z.start, y.start, x.start), (z.stop, y.stop, x.stop)),
            (z.stop - z.start, y.stop - y.start, x.stop - x.start),
            (z.low - z.start, z.high - z.start),
            (z.taken, y.taken, x.taken),
            (z.place, y.place, x.place),
        )
        for (z, name_z), (y, name_y), (x, name_x) in product(*named)
    ]
