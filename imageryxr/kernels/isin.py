"""Sets of segment ids: which labels are among them, masks, other ids in their place."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from imageryxr.errors import GridMismatchError, OptionError
from imageryxr.kernels.color_table import as_ids, as_labels, hash_table, slot_of
from imageryxr.kernels.run_length import PIECE, blank, compiled, frozen, padded, run_ends, scratch, spread

__all__ = ["IdSet", "build_set", "masks", "present", "remap", "select"]


class IdSet(NamedTuple):
    """A list of ids that kernels search: build it once with `build_set` when many blocks use it.

    Attributes
    ----------
    keys, slots
        As in `ColorTable`; a slot is the place in the list of distinct ids.
    zero
        Slot of the id 0, or -1.
    order
        int64[k] from places in the list as given, which may repeat ids, to slots.
    """

    keys: NDArray[np.uint64]
    slots: NDArray[np.int32]
    zero: int
    order: NDArray[np.int64]


def build_set(ids: ArrayLike) -> IdSet:
    """Build a searchable list of ids, for `select`, `masks` and `present`; here 0 is an id like any other."""
    distinct, order = np.unique(as_ids(ids), return_inverse=True)
    return IdSet(*hash_table(distinct), order.astype(np.int64))


def _as_set(ids: IdSet | ArrayLike) -> IdSet:
    return ids if isinstance(ids, IdSet) else build_set(ids)


@compiled
def _select(
    flat: NDArray[Any], keys: NDArray[np.uint64], slots: NDArray[np.int32], zero: int, out: NDArray[Any]
) -> None:
    room = scratch(PIECE)
    for start in range(0, flat.size, PIECE):
        piece = flat[start : start + PIECE]
        begin = 0
        for k in range(run_ends(piece, room)):
            end = room.ends[k]
            label = piece[begin]
            # A select of either value, not the product: some compilers' promotions would pass through float.
            if slot_of(keys, slots, zero, 0, 0, np.uint64(label)) < 0:
                label = flat.dtype.type(0)
            spread(out, start + begin, start + end, label)
            begin = end


def select(labels: NDArray[Any], ids: IdSet | ArrayLike) -> NDArray[Any]:
    """Keep the labels in `ids`, set all others to 0.

    Parameters
    ----------
    labels
        Ids, any integer dtype and shape.
    ids
        The ids to keep, or a set of them from `build_set`.

    Returns
    -------
    numpy.ndarray
        The dtype (in native byte order) and shape of `labels`.
    """
    flat, kept = as_labels(labels), _as_set(ids)
    if blank(flat.reshape(-1)):
        return np.zeros(flat.shape, np.asarray(labels).dtype.newbyteorder("="))
    out = padded(flat.size, flat.dtype)
    _select(flat.reshape(-1), frozen(kept.keys), frozen(kept.slots), kept.zero, out)
    return out[: flat.size].reshape(flat.shape).astype(np.asarray(labels).dtype.newbyteorder("="), copy=False)


@compiled
def _masks(
    flat: NDArray[Any], keys: NDArray[np.uint64], slots: NDArray[np.int32], zero: int, out: NDArray[np.bool_]
) -> None:
    room = scratch(PIECE)
    for start in range(0, flat.size, PIECE):
        piece = flat[start : start + PIECE]
        begin = 0
        for k in range(run_ends(piece, room)):
            end = room.ends[k]
            slot = slot_of(keys, slots, zero, 0, 0, np.uint64(piece[begin]))
            if slot >= 0:
                out[slot, start + begin : start + end] = True
            begin = end


def masks(labels: NDArray[Any], ids: IdSet | ArrayLike) -> NDArray[np.bool_]:
    """Return one mask per id, in one pass over `labels`.

    Parameters
    ----------
    labels
        Ids, any integer dtype and shape.
    ids
        k ids, or a set of them from `build_set`.

    Returns
    -------
    numpy.ndarray
        bool of shape (k, *labels.shape), in the order of `ids`.
    """
    flat, wanted = as_labels(labels), _as_set(ids)
    distinct = int(wanted.order.max(initial=-1)) + 1
    out = np.zeros((distinct, flat.size), np.bool_)
    _masks(flat.reshape(-1), frozen(wanted.keys), frozen(wanted.slots), wanted.zero, out)
    if not np.array_equal(wanted.order, np.arange(distinct)):
        out = out[wanted.order]
    return out.reshape((len(wanted.order), *flat.shape))


@compiled
def _present(
    flat: NDArray[Any], keys: NDArray[np.uint64], slots: NDArray[np.int32], zero: int, out: NDArray[np.bool_]
) -> None:
    missing = out.size
    room = scratch(PIECE)
    for start in range(0, flat.size, PIECE):
        piece = flat[start : start + PIECE]
        begin = 0
        for k in range(run_ends(piece, room)):
            slot = slot_of(keys, slots, zero, 0, 0, np.uint64(piece[begin]))
            if slot >= 0 and not out[slot]:
                out[slot] = True
                missing -= 1
            begin = room.ends[k]
        if missing == 0:
            return


def present(labels: NDArray[Any], ids: IdSet | ArrayLike) -> NDArray[np.bool_]:
    """Tell which of `ids` occur in `labels`.

    Parameters
    ----------
    labels
        Ids, any integer dtype and shape.
    ids
        k ids, or a set of them from `build_set`.

    Returns
    -------
    numpy.ndarray
        bool[k], in the order of `ids`.
    """
    flat, wanted = as_labels(labels), _as_set(ids)
    out = np.zeros(int(wanted.order.max(initial=-1)) + 1, np.bool_)
    _present(flat.reshape(-1), frozen(wanted.keys), frozen(wanted.slots), wanted.zero, out)
    return out[wanted.order]


@compiled
def _remap(
    flat: NDArray[Any],
    keys: NDArray[np.uint64],
    slots: NDArray[np.int32],
    zero: int,
    values: NDArray[np.uint64],
    keep: bool,
    out: NDArray[np.uint64],
) -> None:
    room = scratch(PIECE)
    for start in range(0, flat.size, PIECE):
        piece = flat[start : start + PIECE]
        begin = 0
        for k in range(run_ends(piece, room)):
            end = room.ends[k]
            value = np.uint64(piece[begin])
            slot = slot_of(keys, slots, zero, 0, 0, value)
            if slot >= 0:
                value = values[slot]
            elif not keep:
                value = np.uint64(0)
            spread(out, start + begin, start + end, value)
            begin = end


def remap(
    labels: NDArray[Any], ids: ArrayLike, values: ArrayLike, *, missing: Literal["zero", "keep"] = "zero"
) -> NDArray[np.uint64]:
    """Replace each id by its value.

    Parameters
    ----------
    labels
        Ids, any integer dtype and shape.
    ids, values
        k ids and the ids to put in their place; 0 may be among either. Of equal ids the last one counts.
    missing : {"zero", "keep"}
        What becomes of a label that is not in `ids`: 0, or itself.

    Returns
    -------
    numpy.ndarray
        uint64, the shape of `labels`.

    Raises
    ------
    GridMismatchError
        `ids` and `values` differ in length.
    OptionError
        `missing` is neither "zero" nor "keep".
    """
    if missing not in ("zero", "keep"):
        raise OptionError(f'missing must be "zero" or "keep", got {missing!r}')
    old, new = as_ids(ids), as_ids(values)
    if len(old) != len(new):
        raise GridMismatchError(f"{len(old)} ids need as many values, got {len(new)}")
    flat = as_labels(labels)
    keys, slots, zero = hash_table(old)
    out = padded(flat.size, np.uint64)
    _remap(flat.reshape(-1), frozen(keys), frozen(slots), zero, frozen(new), missing == "keep", out)
    return out[: flat.size].reshape(flat.shape)
