"""Ids as colours need them: exact, each once, and hashed alike everywhere."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from imageryxr.errors import ColorError, LayerError, OptionError

UInt8Array: TypeAlias = npt.NDArray[np.uint8]
UInt64Array: TypeAlias = npt.NDArray[np.uint64]

MAX_ID = 2**64 - 1


def unsigned(ids: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return signed ids as the uint64 that the kernels compare them as: −5 of an int64 array is 2**64 − 5."""
    return ids.astype(np.int64).view(np.uint64) if ids.dtype.kind == "i" else ids


def id_of(value: Any) -> int:
    """Read one id exactly; a float has already lost digits, so it is refused."""
    if isinstance(value, np.signedinteger):
        return int(unsigned(np.array([value]))[0])
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        if 0 <= value <= MAX_ID:
            return int(value)
        raise OptionError(f"{value} is not a segment id: ids are whole numbers from 0 to 2**64 - 1.")
    raise LayerError(
        f"{value!r} ({type(value).__name__}) is not a segment id. Write ids as ints, such as 864691135617152361; "
        "a float cannot hold one beyond 2**53."
    )


def unique_ids(ids: Any) -> list[int]:
    """List ids in the order given, each once, without the background."""
    if isinstance(ids, (str, bytes, np.generic)) or not (isinstance(ids, Iterable) or hasattr(ids, "__array__")):
        raise LayerError(f"ids={ids!r} is no series of ids. Write a list, such as [864691135617152361].")
    if hasattr(ids, "__array__"):
        flat = unsigned(np.asarray(ids).ravel())
        if flat.dtype.kind in "iu":
            values, first = np.unique(flat, return_index=True)
            ids = values[np.argsort(first)].tolist()
        elif flat.dtype.kind == "O" or not flat.size:
            ids = flat.tolist()
        else:
            raise LayerError(
                f"an array of {flat.dtype} holds no segment ids, which are integers. If floats were made of them, "
                "digits beyond 2**53 are lost: read the ids again, as uint64."
            )
    return [segment for segment in dict.fromkeys(id_of(value) for value in ids) if segment]


def as_ids(ids: Any) -> UInt64Array:
    """Return ids as `unique_ids` lists them, as an array."""
    return np.array(unique_ids(ids), dtype=np.uint64)


def splitmix64(ids: UInt64Array) -> UInt64Array:
    """Mix the bits of ids: the finaliser of SplitMix64 (Steele, Lea and Flood 2014; constants by Stafford)."""
    z = ids + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def hash_rows(ids: UInt64Array, count: int) -> npt.NDArray[np.intp]:
    """Give the row of a table with ``count`` colours that each id has."""
    return (splitmix64(np.atleast_1d(ids)) % np.uint64(count)).astype(np.intp)


def key_of(key: Any) -> int:
    """Read the key of a mapping id → colour: an int, or a string of digits."""
    if isinstance(key, str):
        if not re.fullmatch(r"[0-9]+", key):
            raise ColorError(f"colors has the key {key!r}, which is no id. Write ids as ints or strings of digits.")
        key = int(key)
    if isinstance(key, np.signedinteger):
        key = id_of(key)
    if not isinstance(key, (int, np.integer)) or isinstance(key, bool) or not 0 <= key <= MAX_ID:
        raise ColorError(
            f"colors has the key {key!r} ({type(key).__name__}), which is no id. Ids are ints from 1 to 2**64 - 1, or "
            "strings of their digits; a float cannot hold them."
        )
    if key == 0:
        raise ColorError("colors has the key 0, the background, which is never painted. Leave it out.")
    return int(key)


def read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return an array that cannot be written to."""
    array = np.ascontiguousarray(array)
    array.setflags(write=False)
    return array
