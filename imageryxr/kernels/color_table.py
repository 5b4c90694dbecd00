"""Tables from segment ids to anything: colours, masks, other ids.

Ids are exact over the whole range of uint64 and 0 is background. Labels may come in any integer dtype:
uint8, uint16, uint32 and uint64 are read as they are; a signed id is the uint64 that it is modulo 2**64, so a
non-negative one keeps its value and -1 is 2**64 - 1 whatever its width. Bools are 0 and 1.
"""

from __future__ import annotations

from operator import index
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from imageryxr.errors import LayerError, OptionError
from imageryxr.kernels.run_length import PIECE, compiled, frozen, padded, run_ends, scratch, spread

__all__ = [
    "ColorTable",
    "as_ids",
    "as_labels",
    "build_table",
    "hash_ids",
    "home",
    "lookup",
    "slot_of",
]

# As uint64 constants, because numba makes a float64 of a uint64 and an int64.
_ZERO = np.uint64(0)
_ONE = np.uint64(1)
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_HALF = np.uint64(32)
_SHIFT_1, _SHIFT_2, _SHIFT_3 = np.uint64(30), np.uint64(27), np.uint64(31)


# --- inputs ---------------------------------------------------------------------------------------


def as_labels(labels: NDArray[Any]) -> NDArray[Any]:
    """Return `labels` as unsigned ids for a kernel: see the rule for signed ids at the top of this module.

    Parameters
    ----------
    labels
        Ids of any integer dtype or bool, any shape.

    Returns
    -------
    numpy.ndarray
        uint8, uint16, uint32 or uint64 of the same shape; read-only, C-contiguous, a view where possible.

    Raises
    ------
    LayerError
        `labels` is neither integer nor bool.
    """
    labels = np.asarray(labels)
    if labels.dtype.kind == "b":
        return frozen(labels).view(np.uint8)
    if labels.dtype.kind == "i":
        return frozen(labels.astype(np.int64, copy=False)).view(np.uint64)
    if labels.dtype.kind != "u":
        raise LayerError(f"segment ids must be integers, got an array of dtype {labels.dtype}")
    return frozen(labels)


def as_ids(ids: ArrayLike) -> NDArray[np.uint64]:
    """Return a list of ids as uint64[k].

    Raises
    ------
    LayerError
        An id is not an integer.
    """
    if not isinstance(ids, np.ndarray | np.generic):
        # numpy makes floats of a list such as [1, 2**64 - 1], and of an empty one.
        given = np.array(ids, dtype=object).ravel()
        try:
            ids = np.fromiter((index(i) & 0xFFFF_FFFF_FFFF_FFFF for i in given), np.uint64, given.size)
        except TypeError as error:
            raise LayerError(f"segment ids must be integers, got {given.tolist()!s:.80}") from error
    if ids.dtype.kind not in "iu":
        raise LayerError(f"segment ids must be integers, got {ids.dtype}")
    return np.ascontiguousarray(ids.ravel()).astype(np.uint64)


# --- hashing --------------------------------------------------------------------------------------


@compiled
def _splitmix64(value: np.uint64) -> np.uint64:
    z = value + _GAMMA
    z = (z ^ (z >> _SHIFT_1)) * _MIX_1
    z = (z ^ (z >> _SHIFT_2)) * _MIX_2
    return z ^ (z >> _SHIFT_3)


def hash_ids(ids: ArrayLike) -> NDArray[np.uint64]:
    """Return the SplitMix64 hash of each id: equal everywhere and for ever, near ids lie far apart.

    It is the first output of Vigna's ``splitmix64.c`` seeded with the id, that is one step of the generator
    of Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014).

    Parameters
    ----------
    ids
        Integers, any shape.

    Returns
    -------
    numpy.ndarray
        uint64, the shape of `ids`.

    Examples
    --------
    >>> [hex(h) for h in hash_ids([0, 1]).tolist()]
    ['0xe220a8397b1dcdaf', '0x910a2dec89025cc1']
    """
    z = as_ids(ids) + _GAMMA
    z = (z ^ (z >> _SHIFT_1)) * _MIX_1
    z = (z ^ (z >> _SHIFT_2)) * _MIX_2
    return cast("NDArray[np.uint64]", (z ^ (z >> _SHIFT_3)).reshape(np.shape(ids)))


@compiled
def home(key: np.uint64, size: int) -> np.uint64:
    """Return where the search for `key` begins among `size` places (compiled).

    The highest bits of a product are mixed from all bits of the key; ids may differ in any few of them.
    """
    return (((key * _GAMMA) >> _HALF) * np.uint64(size)) >> _HALF


@compiled
def _insert(ids: NDArray[np.uint64], keys: NDArray[np.uint64], slots: NDArray[np.int32]) -> int:
    mask = np.uint64(keys.size - 1)
    zero = -1
    for i in range(ids.size):
        key = ids[i]
        if key == _ZERO:
            zero = i
            continue
        at = home(key, keys.size)
        while keys[at] != _ZERO and keys[at] != key:
            at = (at + _ONE) & mask
        keys[at] = key
        slots[at] = i
    return zero


@compiled
def slot_of(
    keys: NDArray[np.uint64],
    slots: NDArray[np.int32],
    zero: int,
    explicit: int,
    fallback: int,
    key: np.uint64,
) -> int:
    """Return the slot of the id `key`, or -1 (compiled; for use inside kernels)."""
    if key == _ZERO:
        return zero
    mask = np.uint64(keys.size - 1)
    at = home(key, keys.size)
    while True:
        here = keys[at]
        if here == key:
            return int(slots[at])
        if here == _ZERO:
            break
        at = (at + _ONE) & mask
    if fallback > 0:
        return explicit + int(_splitmix64(key) % np.uint64(fallback))
    return -1


def hash_table(ids: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.int32], int]:
    # At most two thirds full: short probes, and always an empty slot at which a search ends.
    capacity = 1 << (3 * ids.size // 2).bit_length()
    keys = np.zeros(capacity, np.uint64)
    slots = np.full(capacity, -1, np.int32)
    zero = _insert(ids, keys, slots)
    return keys, slots, zero


# --- colour tables --------------------------------------------------------------------------------


class ColorTable(NamedTuple):
    """Colours by id: explicit ones, and a fallback palette for all other ids.

    An id is found as follows. 0 is not shown. An explicit id has its own row. Any other id has row
    ``n + hash_ids(id) % n_fallback``, or is not shown if there is no fallback.

    Attributes
    ----------
    keys
        uint64[capacity], an open-addressing hash map with linear probing; capacity is a power of two, 0 marks
        an empty place.
    slots
        int32[capacity], the row of each key.
    rgba
        uint8[n + n_fallback, 4], straight alpha: n explicit colours, then the fallback palette.
    n_fallback
        Length of the fallback palette.
    """

    keys: NDArray[np.uint64]
    slots: NDArray[np.int32]
    rgba: NDArray[np.uint8]
    n_fallback: int


def _as_rgba(rgba: ArrayLike) -> NDArray[np.uint8]:
    rows = np.asarray(rgba)
    if rows.size == 0:
        rows = np.empty((0, 4), np.uint8)
    if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != 4:
        raise OptionError(f"colours must be uint8 of shape (n, 4), got {rows.dtype} of shape {rows.shape}")
    return rows


def build_table(ids: ArrayLike = (), rgba: ArrayLike = (), fallback: ArrayLike = ()) -> ColorTable:
    """Build the colour table that `fill`, `outline` and `paint` look ids up in.

    Parameters
    ----------
    ids
        n ids. Of equal ids the last one counts; 0 is never shown, whatever its colour.
    rgba
        uint8[n, 4], the colour of each id, straight alpha.
    fallback
        uint8[m, 4], colours for all other ids, chosen by their hash; m may be 0.

    Returns
    -------
    ColorTable
        Depends on nothing but the arguments, so it pickles to the same bytes every time.

    Raises
    ------
    OptionError
        The colours are not uint8 of shape (n, 4), or not as many as ids.
    """
    explicit, colors, rest = as_ids(ids), _as_rgba(rgba), _as_rgba(fallback)
    if len(explicit) != len(colors):
        raise OptionError(f"{len(explicit)} ids need as many colours, got {len(colors)}")
    keys, slots, _ = hash_table(explicit)
    return ColorTable(keys, slots, np.concatenate([colors, rest]), len(rest))


class _Ready(NamedTuple):
    """A colour table as kernels take it; colours packed to uint32, red in the lowest byte."""

    keys: NDArray[np.uint64]
    slots: NDArray[np.int32]
    packed: NDArray[np.uint32]
    explicit: int
    fallback: int


def ready(table: ColorTable) -> _Ready:
    """Return the parts of a colour table in the form that kernels take."""
    packed = frozen(table.rgba).view("<u4").reshape(-1).astype(np.uint32, copy=False)
    explicit = len(table.rgba) - table.n_fallback
    return _Ready(frozen(table.keys), frozen(table.slots), frozen(packed), explicit, int(table.n_fallback))


@compiled
def _lookup(
    flat: NDArray[Any],
    keys: NDArray[np.uint64],
    slots: NDArray[np.int32],
    zero: int,
    explicit: int,
    fallback: int,
    out: NDArray[np.int32],
) -> None:
    room = scratch(PIECE)
    for start in range(0, flat.size, PIECE):
        piece = flat[start : start + PIECE]
        begin = 0
        for k in range(run_ends(piece, room)):
            end = room.ends[k]
            slot = slot_of(keys, slots, zero, explicit, fallback, np.uint64(piece[begin]))
            spread(out, start + begin, start + end, slot)
            begin = end


def lookup(labels: NDArray[Any], table: ColorTable) -> NDArray[np.int32]:
    """Return the row of `table` of each label, -1 where it is not shown.

    Parameters
    ----------
    labels
        Ids, any integer dtype and shape.
    table
        See `build_table`.

    Returns
    -------
    numpy.ndarray
        int32, the shape of `labels`.
    """
    ids, look = as_labels(labels), ready(table)
    out = padded(ids.size, np.int32)
    _lookup(ids.reshape(-1), look.keys, look.slots, -1, look.explicit, look.fallback, out)
    return out[: ids.size].reshape(ids.shape)
