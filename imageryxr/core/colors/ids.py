"""Parse and hash segment ids exactly."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from imageryxr.errors import ColorError, LayerError, OptionError, param

UInt8Array: TypeAlias = npt.NDArray[np.uint8]
UInt64Array: TypeAlias = npt.NDArray[np.uint64]

MAX_ID = 2**64 - 1


def to_unsigned(ids: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Convert signed ids to uint64 modulo 2**64, as the kernels do: −5 becomes 2**64 − 5."""
    return ids.astype(np.int64).view(np.uint64) if ids.dtype.kind == "i" else ids


def parse_id(value: Any) -> int:
    """Return an id as a Python int; raise for a float, which may have lost digits."""
    if isinstance(value, np.signedinteger):
        return int(to_unsigned(np.array([value]))[0])
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        if 0 <= value <= MAX_ID:
            return int(value)
        raise OptionError(f"{value} is not a segment id: ids are integers from 0 to 2**64 - 1.")
    raise LayerError(
        f"{value!r} ({type(value).__name__}) is not a segment id. Write ids as ints, such as 864691135617152361; "
        "floats cannot represent ids beyond 2**53."
    )


def list_unique_ids(ids: Any) -> list[int]:
    """Return the distinct ids in the order given, without the background."""
    if isinstance(ids, (str, bytes, np.generic)) or not (isinstance(ids, Iterable) or hasattr(ids, "__array__")):
        raise LayerError(param("ids", ids), " is not a list of ids. Write a list, such as [864691135617152361].")
    if hasattr(ids, "__array__"):
        flat = to_unsigned(np.asarray(ids).ravel())
        if flat.dtype.kind in "iu":
            values, first = np.unique(flat, return_index=True)
            ids = values[np.argsort(first)].tolist()
        elif flat.dtype.kind == "O" or not flat.size:
            ids = flat.tolist()
        else:
            raise LayerError(
                f"segment ids are integers, but the array has dtype {flat.dtype}. If the ids were converted to floats, "
                "those beyond 2**53 have lost digits: read them again as uint64."
            )
    return [segment for segment in dict.fromkeys(parse_id(value) for value in ids) if segment]


def unique_id_array(ids: Any) -> UInt64Array:
    """Return the distinct ids in the order given, without the background, as an array."""
    return np.array(list_unique_ids(ids), dtype=np.uint64)


def splitmix64(ids: UInt64Array) -> UInt64Array:
    """Return the SplitMix64 hash of ids (Steele, Lea and Flood 2014; constants by Stafford)."""
    z = ids + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def hash_rows(ids: UInt64Array, count: int) -> npt.NDArray[np.intp]:
    """Return the row of each id in a table of ``count`` colours, by its hash."""
    return (splitmix64(np.atleast_1d(ids)) % np.uint64(count)).astype(np.intp)


def parse_key(key: Any) -> int:
    """Parse a key of a mapping id → colour: an int or a string of digits."""
    if isinstance(key, str):
        if not re.fullmatch(r"[0-9]+", key):
            raise ColorError(f"colors has the key {key!r}, which is not an id. Write ids as ints or strings of digits.")
        key = int(key)
    if isinstance(key, np.signedinteger):
        key = parse_id(key)
    if not isinstance(key, (int, np.integer)) or isinstance(key, bool) or not 0 <= key <= MAX_ID:
        raise ColorError(
            f"colors has the key {key!r} ({type(key).__name__}), which is not an id. Ids are ints from 1 to 2**64 - 1 "
            "or strings of their digits; floats cannot represent them."
        )
    if key == 0:
        raise ColorError("colors has the key 0, the background, which is never drawn. Leave it out.")
    return int(key)


def make_read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a contiguous array with its write flag cleared."""
    array = np.ascontiguousarray(array)
    array.setflags(write=False)
    return array
