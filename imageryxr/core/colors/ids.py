"""Parse segment ids exactly, and hash them to rows of a palette or to the colours of Neuroglancer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from imageryxr.core.validate import to_id, to_whole
from imageryxr.errors import ColorError, IdError, Wording, format_value, param

UInt8Array: TypeAlias = npt.NDArray[np.uint8]
UInt64Array: TypeAlias = npt.NDArray[np.uint64]

MAX_ID = 2**64 - 1


def flat_ids(ids: Any) -> npt.NDArray[Any]:
    """Return an array of ids as a flat array of unsigned ids, in which masked ids are None."""
    return to_unsigned(np.asarray(np.ma.filled(ids.astype(object), None) if np.ma.isMaskedArray(ids) else ids).ravel())


def to_unsigned(ids: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Convert signed ids to uint64 modulo 2**64, as the kernels do (−5 becomes 2**64 − 5); keep unsigned ids."""
    return ids.astype(np.int64).view(np.uint64) if ids.dtype.kind == "i" else ids


def parse_id(value: Any, what: str = "ids", low: int = 0) -> int:
    """Return an id, an integer from `low` or its digits, as a Python int.

    Raises `IdError`, which names the argument `what`, for any other value. A float may have lost digits.
    """
    found = to_id(value)
    if found is not None and found >= low:
        return found
    if hasattr(value, "__array__") and np.ndim(value):
        raise IdError(
            f"{what} contains a {type(value).__name__} of {len(value):,} values, but one list of ids is needed; "
            f"give {what}=numpy.concatenate([a, b])"
        )
    background = " (0 is background)" if low else ""
    is_float = isinstance(value, float | np.floating)
    raise IdError(
        param(what),
        f" contains {format_value(value)}, which is not an id: ids are integers from {low} to 2**64 - 1{background}",
        Wording(
            "; floats cannot represent ids above 2**53, so give int, str or numpy.uint64" if is_float else "",
            "; separate ids by commas",
        ),
    )


def list_unique_ids(ids: Any, what: str = "ids") -> list[int]:
    """Return the distinct ids in the order given, without the background; a single id becomes a list."""
    return [segment for segment in dict.fromkeys(list_ids(ids, what)) if segment]


def list_ids(ids: Any, what: str = "ids", low: int = 0) -> list[int]:
    """Return ids, integers or their digits, in the order given, with repeats; a single id becomes a list.

    Raises `IdError`, which names the argument `what`, if a value is not an integer from `low` to 2**64 - 1.
    """
    if to_id(ids) is not None or isinstance(ids, int | float | np.number):
        return [parse_id(ids, what, low)]
    if isinstance(ids, str | bytes | np.generic) or not (isinstance(ids, Iterable) or hasattr(ids, "__array__")):
        raise IdError(param(what, ids), " is not a list of ids; give one, such as [864691135617152361]")
    if hasattr(ids, "__array__"):
        try:
            flat = flat_ids(ids)
        except TypeError:  # a Dataset or a DataTree
            raise IdError(f"{what} is a {type(ids).__name__}; give an array or a list of ids") from None
        if flat.dtype.kind == "u" and (not low or flat.all()):
            return [int(value) for value in flat.tolist()]
        if flat.dtype.kind not in "uOUT" and flat.size:
            raise IdError(
                f"{what} are integers, but the array has dtype {flat.dtype}. If the ids were converted to floats, "
                "those beyond 2**53 have lost digits: read them again as uint64."
            )
        ids = flat.tolist()
    return [parse_id(value, what, low) for value in ids]


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
    if to_id(key) == 0:
        raise IdError("colors has the key 0, the background, which is never drawn. Leave it out.")
    return parse_id(key, "colors", low=1)


# ---------------------------------------------------------------------------------------------------------
# Neuroglancer

MAX_SEED = 2**32 - 1


def _combine(state: npt.NDArray[np.uint32], word: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Update a hash with one 32-bit word, like a block of MurmurHash3."""

    def rotate(x: npt.NDArray[np.uint32], by: int) -> npt.NDArray[np.uint32]:
        return (x << np.uint32(by)) | (x >> np.uint32(32 - by))

    mixed = rotate(word * np.uint32(0xCC9E2D51), 15) * np.uint32(0x1B873593)
    return rotate(state ^ mixed, 13) * np.uint32(5) + np.uint32(0xE6546B64)


def neuroglancer_colors(ids: UInt64Array, seed: int) -> UInt8Array:
    """Return the colours of ids by Neuroglancer's SegmentColorHash: hash the low word, then the high word."""
    ids = np.atleast_1d(ids)
    low, high = (ids & np.uint64(MAX_SEED)).astype(np.uint32), (ids >> np.uint64(32)).astype(np.uint32)
    mixed = _combine(_combine(np.full(low.shape, seed, dtype=np.uint32), low), high)
    hue = (mixed & np.uint32(0xFF)) / 255.0 * 6
    saturation = 0.5 + 0.5 * ((mixed >> np.uint32(8) & np.uint32(0xFF)) / 255.0)
    sextant = np.floor(hue)
    within = hue - sextant
    full, least = np.ones_like(hue), 1 - saturation
    falling, rising = 1 - saturation * within, 1 - saturation * (1 - within)
    sixth = sextant.astype(np.intp) % 6
    red = np.choose(sixth, [full, falling, least, least, rising, full])
    green = np.choose(sixth, [rising, full, full, falling, least, least])
    blue = np.choose(sixth, [least, least, rising, full, full, falling])
    rgb: UInt8Array = np.rint(255 * np.stack([red, green, blue], axis=-1)).astype(np.uint8)
    return rgb


def neuroglancer_seed(colors: Any) -> int | None:
    """Return the seed of Neuroglancer's colour hash that ``colors=`` requests, or None for other values of it."""
    if isinstance(colors, str):
        return 0 if colors == "neuroglancer" else None
    if not (isinstance(colors, (tuple, list)) and len(colors) == 2 and isinstance(colors[0], str)):
        return None
    name, seed = colors
    if name != "neuroglancer" and isinstance(seed, str):
        return None
    if name != "neuroglancer":
        raise ColorError(
            param("colors", colors), f": only 'neuroglancer' takes a seed. Write ('neuroglancer', 0) or {name!r}."
        )
    found = to_whole(seed)
    if found is None or not 0 <= found <= MAX_SEED:
        raise ColorError(
            param("colors", colors),
            ": a seed is an integer from 0 to 2**32 - 1, like the layer's ",
            "'segmentColorSeed'. Write ('neuroglancer', 0) for the viewer's default ",
            "colours.",
        )
    return found
