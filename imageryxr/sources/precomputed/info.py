"""The ``info`` file of a precomputed layer: checked once, when it is opened, and completed.

An ``info`` may come from anybody. Nothing in it is used before it is checked: sizes must be those of a volume whose
coordinates and chunks fit into memory, keys must stay within the layer's folder, and an encoding must hold the layer's
data type and channels.

The format: https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/volume.rst.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from imageryxr.core.grid import Grid
from imageryxr.errors import ImageryError
from imageryxr.sources.base import Level

__all__ = ["CODECS", "ENCODINGS", "checked_members", "complete_info", "info_level", "info_problem", "is_placeholder"]

# What each encoding needs beside CloudVolume itself: the module that decodes, and the package that brings it.
CODECS = {
    "jpeg": ("simplejpeg", "simplejpeg"),
    "png": ("pyspng", "pyspng-seunglab"),
    "compressed_segmentation": ("compressed_segmentation", "compressed-segmentation"),
    "compresso": ("compresso", "compresso"),
    "crackle": ("crackle", "crackle-codec"),
    "fpzip": ("fpzip", "fpzip"),
    "kempressed": ("fpzip", "fpzip"),
    "zfpc": ("zfpc", "zfpc"),
    "jxl": ("imagecodecs", "imagecodecs"),
    "jpegxl": ("imagecodecs", "imagecodecs"),
}
ENCODINGS = ("raw", *CODECS)
_IDS = ("uint8", "uint16", "uint32", "uint64")
# The data types and numbers of channels (any, where none are given) of each encoding but raw, which holds all.
_HOLDS: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
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
_PLACES = ("size", "voxel_offset", "chunk_sizes", "compressed_segmentation_block_size")
_SCALE = ("key", "resolution", "encoding", "sharding", *_PLACES)

_LONGEST = 1 << 24
"""Voxels of an axis: each has a coordinate in memory. A whole mouse brain at 1 nm has fewer."""
_FARTHEST = 1 << 53
"""Beyond it neighbouring voxels have the same coordinate."""
_LARGEST = 1 << 31
"""Bytes of a decoded chunk, which is in memory as a whole."""
_SMALLEST_NM, _WIDEST_NM = 1e-6, 1e12
_INDEX_BITS = 24
"""Minishards of a shard, as a power of two: each has 16 bytes in an index that is fetched as a whole."""


def info_problem(info: dict[str, Any]) -> str:
    """Return what is wrong with an ``info``, or an empty string."""
    kind = str(info.get("@type", "neuroglancer_multiscale_volume"))[:100]
    if kind != "neuroglancer_multiscale_volume":
        what = next((word for word in ("skeleton", "mesh", "annotation", "properties") if word in kind), None)
        said = {"mesh": "meshes", "properties": "properties of segments"}.get(what or "", f"{what}s")
        return f"its @type is {kind!r}" + (f", so it holds {said}; give the volume they belong to" if what else "")
    absent = [key for key in ("data_type", "scales") if not info.get(key)]
    if absent:
        return f"it lacks {' and '.join(absent)}"
    dtype, channels, scales = info["data_type"], info.get("num_channels", 1), info["scales"]
    if not isinstance(dtype, str) or dtype.lower() not in _TYPES or not _is_whole(channels) or channels < 1:
        return f"data_type {shown(dtype)} with {shown(channels)} channels"
    if info.get("type") is not None and not isinstance(info["type"], str):
        return f"its type is {shown(info['type'])}, which is no text"
    if not isinstance(scales, list):
        return f"its scales are {shown(scales)}, which is no list"
    for mip, scale in enumerate(scales):
        problem = _scale_problem(scale, np.dtype(dtype.lower()), int(channels))
        if problem:
            return f"scale {mip} {problem}"
    return ""


def shown(value: Any) -> str:
    """Return a value of an ``info``, short enough for a message."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no whole numbers of thousands of digits
        return f"a {type(value).__name__} of too many digits"
    return text if len(text) <= 100 else text[:100] + "…"


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 2**1023 and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return _is_number(value) and value % 1 == 0


def _scale_problem(scale: Any, dtype: np.dtype[Any], channels: int) -> str:
    if not isinstance(scale, dict):
        return f"is {shown(scale)}, which is no object"
    absent = [key for key in ("key", "size", "resolution", "chunk_sizes") if key not in scale]
    if absent:
        return f"lacks {' and '.join(absent)}"
    encoding = scale.get("encoding", "raw")
    if not isinstance(encoding, str):
        return f"has the encoding {shown(encoding)}, which is no text"
    problem = (
        _key_problem(scale["key"])
        or _places_problem(scale, encoding.lower())
        or _resolution_problem(scale["resolution"])
        or _extent_problem(scale, dtype, channels)
        or _encoding_problem(encoding.lower(), dtype, channels)
        or _sharding_problem(scale.get("sharding"))
    )
    if problem:
        return problem
    try:
        info_level(0, _complete_scale(scale))
    except ImageryError as error:
        return f"has no place: {error}"
    return ""


def _key_problem(key: Any) -> str:
    """Return why a key is no folder within the layer's own."""
    if not isinstance(key, str) or not key:
        return f"has the key {shown(key)}; understood is the name of a folder"
    if re.search(r"[\x00-\x1f\x7f\\?#%|:]", key) or key.startswith(("/", "~")) or ".." in key.split("/"):
        return (
            f"has the key {shown(key)}, which leads out of the layer's folder; understood is the name of a folder in "
            "it, without .., \\, ?, #, %, | and :, and with no / or ~ at its start"
        )
    return f"has the key {shown(key)}, which no file can have" if _is_too_long(key) else ""


def _is_too_long(key: str) -> bool:
    try:
        return len(key.encode()) > 1000 or any(len(part.encode()) > 255 for part in key.split("/"))
    except UnicodeEncodeError:  # half of a surrogate pair
        return True


def _places_problem(scale: dict[str, Any], encoding: str) -> str:
    places = {key: scale.get(key, []) for key in ("size", "voxel_offset")}
    chunks = scale["chunk_sizes"]
    places["chunk_sizes"] = chunks[0] if isinstance(chunks, list) and chunks else chunks
    if encoding == "compressed_segmentation":
        places["compressed_segmentation_block_size"] = scale.get("compressed_segmentation_block_size")
    for key, numbers in places.items():
        if not isinstance(numbers, list) or not all(map(_is_whole, numbers)):
            return f"has the {key} {shown(numbers)}; understood are whole numbers"
        if key == "voxel_offset":
            if len(numbers) != 3 and (numbers or key in scale):
                return f"has the {key} {shown(numbers)}; understood are three whole numbers"
        elif len(numbers) != 3 or min(numbers) < 1:
            return f"has the {key} {shown(numbers)}; understood are three positive numbers"
    return ""


def _resolution_problem(resolution: Any) -> str:
    is_right = isinstance(resolution, list) and len(resolution) == 3 and all(map(_is_number, resolution))
    if is_right and all(_SMALLEST_NM <= r <= _WIDEST_NM for r in resolution):
        return ""
    return (
        f"has the resolution {shown(resolution)}; understood are three positive numbers of nanometres, "
        f"{_SMALLEST_NM:g} to {_WIDEST_NM:g}"
    )


def _extent_problem(scale: dict[str, Any], dtype: np.dtype[Any], channels: int) -> str:
    size, offset = scale["size"], scale.get("voxel_offset") or (0, 0, 0)
    if max(size) > _LONGEST:
        return f"has the size {shown(size)}; an axis holds {_LONGEST:,} voxels at most"
    if max(map(abs, offset)) > _FARTHEST:
        return f"has the voxel_offset {shown(offset)}; understood are numbers up to 2^53"
    chunk = [min(c, s) for c, s in zip(scale["chunk_sizes"][0], size, strict=True)]
    length = int(math.prod(chunk)) * channels * dtype.itemsize
    if length > _LARGEST:
        return (
            f"has chunks of {shown(chunk)} voxels, {channels} channels: {length / 2**30:,.0f} GiB, of which 2 are read"
        )
    return ""


def _encoding_problem(encoding: str, dtype: np.dtype[Any], channels: int) -> str:
    types, counts = _HOLDS.get(encoding, ((dtype.name,), ()))
    if dtype.name in types and (not counts or channels in counts):
        return ""
    said = f"{' or '.join(map(str, counts))} channel{'' if counts == (1,) else 's'}" if counts else "any channels"
    return f"is stored as {encoding}, which holds {' or '.join(types)} in {said}, not {dtype.name} in {channels}"


def _sharding_problem(sharding: Any) -> str:
    if sharding is None:
        return ""
    if not isinstance(sharding, dict):
        return f"has the sharding {shown(sharding)}, which is no object"
    kind = sharding.get("@type")
    if kind != "neuroglancer_uint64_sharded_v1":
        return f"has the sharding @type {shown(kind)}; understood is 'neuroglancer_uint64_sharded_v1'"
    if sharding.get("hash") not in ("identity", "murmurhash3_x86_128"):
        return f"has the sharding hash {shown(sharding.get('hash'))}; understood are identity and murmurhash3_x86_128"
    for key, most in (("preshift_bits", 64), ("minishard_bits", _INDEX_BITS), ("shard_bits", 64)):
        bits = sharding.get(key)
        if bits is None or not _is_whole(bits) or not 0 <= bits <= most:
            return f"has the sharding {key} {shown(bits)}; understood are whole numbers from 0 to {most}"
    if sharding["minishard_bits"] + sharding["shard_bits"] > 64:
        return "has a sharding of more than 64 bits"
    for key in ("minishard_index_encoding", "data_encoding"):
        if sharding.get(key, "raw") not in ("raw", "gzip"):
            return f"has the sharding {key} {shown(sharding[key])}; understood are raw and gzip"
    return ""


def complete_info(info: dict[str, Any]) -> dict[str, Any]:
    """Return an ``info`` without faults with what may be left out, and whole numbers written as such."""
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
    sharding = scale.get("sharding")
    if sharding is not None:
        bits = {key: int(sharding[key]) for key in ("preshift_bits", "minishard_bits", "shard_bits")}
        defaults = {"minishard_index_encoding": "raw", "data_encoding": "raw"}
        more["sharding"] = {**defaults, **sharding, **bits}
    return {**{key: value for key, value in scale.items() if key != "sharding"}, **whole, **more}


def checked_members(info: dict[str, Any]) -> dict[str, Any]:
    """Return the members of a completed ``info`` that were checked: CloudVolume follows others, such as ``mesh``."""
    scales = [{key: scale[key] for key in _SCALE if key in scale} for scale in info["scales"]]
    return {**{key: info[key] for key in ("type", "data_type", "num_channels")}, "scales": scales}


def is_placeholder(scale: dict[str, Any]) -> bool:
    """Return whether a scale has no voxels, by its key."""
    return "placeholder" in str(scale.get("key", "")).lower()


def info_level(mip: int, scale: dict[str, Any]) -> Level:
    """Return the level that a completed scale describes."""
    x, y, z = scale["size"]
    cx, cy, cz = scale["chunk_sizes"][0]
    grid = Grid((z, y, x), tuple(scale["resolution"]), tuple(scale["voxel_offset"]))
    return Level(mip, grid, (cz, cy, cx), scale["encoding"], is_placeholder(scale))
