"""Hash tables from segment ids to colours.

Ids are exact over the whole range of uint64; 0 is background. Labels may have any integer dtype. Unsigned labels are
used without conversion. Signed ids are converted to uint64 modulo 2**64: non-negative ids keep their value, and -1
becomes 2**64 - 1 for every width. Bools are 0 and 1.
"""

from __future__ import annotations

from operator import index
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from imageryxr.errors import LayerError, OptionError
from imageryxr.kernels.jit import compile_kernel
from imageryxr.kernels.run_length import as_kernel_input

# uint64 constants, because numba converts an operation on uint64 and int64 to float64.
_ZERO = np.uint64(0)
_ONE = np.uint64(1)
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_HALF = np.uint64(32)
_SHIFT_1, _SHIFT_2, _SHIFT_3 = np.uint64(30), np.uint64(27), np.uint64(31)


# --- inputs ---------------------------------------------------------------------------------------


def as_labels(labels: NDArray[Any]) -> NDArray[Any]:
    """Convert labels of any integer dtype or bool to unsigned ids for a kernel, signed ids modulo 2**64.

    The result has the same shape and is read-only and C-contiguous, a view if possible.
    """
    labels = np.asarray(labels)
    if labels.dtype.kind == "b":
        return as_kernel_input(labels).view(np.uint8)
    if labels.dtype.kind == "i":
        return as_kernel_input(labels.astype(np.int64, copy=False)).view(np.uint64)
    if labels.dtype.kind != "u":
        raise LayerError(f"segment ids must be integers, got an array of dtype {labels.dtype}")
    return as_kernel_input(labels)


def as_ids(ids: ArrayLike) -> NDArray[np.uint64]:
    """Convert ids to uint64[k], signed ids modulo 2**64."""
    if not isinstance(ids, np.ndarray | np.generic):
        # numpy converts a list such as [1, 2**64 - 1], and an empty one, to floats.
        given = np.array(ids, dtype=object).ravel()
        try:
            ids = np.fromiter((index(i) & 0xFFFF_FFFF_FFFF_FFFF for i in given), np.uint64, given.size)
        except TypeError as error:
            raise LayerError(f"segment ids must be integers, got {given.tolist()!s:.80}") from error
    if ids.dtype.kind not in "iu":
        raise LayerError(f"segment ids must be integers, got {ids.dtype}")
    return np.ascontiguousarray(ids.ravel()).astype(np.uint64)


# --- hashing --------------------------------------------------------------------------------------


@compile_kernel
def _splitmix64(value: np.uint64) -> np.uint64:
    """Return the same hash as `imageryxr.core.colors.ids.splitmix64`."""
    z = value + _GAMMA
    z = (z ^ (z >> _SHIFT_1)) * _MIX_1
    z = (z ^ (z >> _SHIFT_2)) * _MIX_2
    return z ^ (z >> _SHIFT_3)


@compile_kernel
def first_probe(key: np.uint64, size: int) -> np.uint64:
    """Return the slot at which the search for `key` begins in a hash table of `size` slots.

    Ids may differ in any of their bits. The slot is therefore computed from the highest bits of a product, which depend
    on all bits of the key.
    """
    return (((key * _GAMMA) >> _HALF) * np.uint64(size)) >> _HALF


@compile_kernel
def find_place(keys: NDArray[np.uint64], key: np.uint64) -> np.uint64:
    """Return the slot of `key` in an open-addressing hash table, or the empty slot for a new key; `key` is not 0."""
    mask = np.uint64(keys.size - 1)
    at = first_probe(key, keys.size)
    while keys[at] != _ZERO and keys[at] != key:
        at = (at + _ONE) & mask
    return at


@compile_kernel
def _insert(ids: NDArray[np.uint64], keys: NDArray[np.uint64], slots: NDArray[np.int32]) -> int:
    zero = -1
    for i in range(ids.size):
        if ids[i] == _ZERO:
            zero = i
        else:
            at = find_place(keys, ids[i])
            keys[at], slots[at] = ids[i], i
    return zero


@compile_kernel
def find_slot(
    keys: NDArray[np.uint64],
    slots: NDArray[np.int32],
    zero: int,
    explicit: int,
    fallback: int,
    key: np.uint64,
) -> int:
    """Return the row of the id `key`, or -1.

    `zero` is the row of the id 0. An id that is not in the table has row ``explicit + hash % fallback`` if `fallback`
    is not 0.
    """
    if key == _ZERO:
        return zero
    mask = np.uint64(keys.size - 1)
    at = first_probe(key, keys.size)
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


class KernelTable(NamedTuple):
    """A colour table in the form that kernels need: colours are packed to uint32, red in the lowest byte."""

    keys: NDArray[np.uint64]
    slots: NDArray[np.int32]
    packed: NDArray[np.uint32]
    explicit: int
    fallback: int


@compile_kernel
def find_row(table: KernelTable, key: np.uint64) -> int:
    """Return the row of the colour of the id `key`, or -1."""
    return find_slot(table.keys, table.slots, -1, table.explicit, table.fallback, key)


def build_hash_table(ids: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.int32], int]:
    """Return the keys and slots of a hash table of distinct ids, and the position of the id 0 (-1 if absent).

    A slot contains the position of an id in `ids`. If an id occurs more than once, it is the last position.
    """
    # At most two thirds full, so that probe sequences are short and always end at an empty slot.
    capacity = 1 << (3 * ids.size // 2).bit_length()
    keys = np.zeros(capacity, np.uint64)
    slots = np.full(capacity, -1, np.int32)
    zero = _insert(ids, keys, slots)
    return as_kernel_input(keys), as_kernel_input(slots), zero


# --- colour tables --------------------------------------------------------------------------------


class ColorTable(NamedTuple):
    """The colours of ids: explicit colours, and a fallback palette for all other ids.

    The id 0 is not drawn. An explicit id has its own row of `rgba`. Any other id has row ``n + hash % n_fallback``, or
    is not drawn if there is no fallback. `keys` (uint64[capacity]) is an open-addressing hash table with linear
    probing; capacity is a power of two, and 0 marks an empty slot. `slots` (int32[capacity]) has the row of each key.
    `rgba` (uint8[n + n_fallback, 4], straight alpha) has n explicit colours, then the fallback palette.
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


def build_color_table(ids: ArrayLike = (), rgba: ArrayLike = (), fallback: ArrayLike = ()) -> ColorTable:
    """Build the colour table for `fill`, `outline` and `paint`.

    `rgba` and `fallback` are uint8 (n, 4) with straight alpha: the colour of each id, and the colours of all other ids.
    The last of equal ids takes precedence. Equal arguments give tables that pickle to equal bytes.
    """
    explicit, colors, rest = as_ids(ids), _as_rgba(rgba), _as_rgba(fallback)
    if len(explicit) != len(colors):
        raise OptionError(f"{len(explicit)} ids need as many colours, got {len(colors)}")
    keys, slots, _ = build_hash_table(explicit)
    return ColorTable(keys, slots, np.concatenate([colors, rest]), len(rest))


def kernel_table(table: ColorTable) -> KernelTable:
    """Convert a colour table to the form that kernels need."""
    packed = as_kernel_input(table.rgba).view("<u4").reshape(-1).astype(np.uint32, copy=False)
    explicit = len(table.rgba) - table.n_fallback
    return KernelTable(
        as_kernel_input(table.keys),
        as_kernel_input(table.slots),
        as_kernel_input(packed),
        explicit,
        int(table.n_fallback),
    )
