"""Runs of equal labels along a row: what fills, outlines and look-ups work on.

Segmentations are runs of some dozen voxels, so the cost of a row is that of its runs, and the cost of a run is the
branches that a processor guesses wrong. So a row is compared with itself one voxel on in one vector loop, the
places where it changes are gathered without branches, and values are spread over runs in whole vectors that
overshoot: the next run, or the room behind the row, takes what is too much.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imageryxr.kernels.jit import compiled

__all__ = ["PAD", "PIECE", "Scratch", "blank", "compiled", "frozen", "padded", "run_ends", "scratch", "spread"]

PAD = 32
"""How far `spread` may write beyond its end."""
PIECE = 4096
"""Voxels that kernels without rows take at a time: what they note of a piece stays in the nearest cache."""

_LESS, _MASK = np.uint64(PAD - 1), ~np.uint64(PAD - 1)
_ONE = np.uint64(1)
_NONE = np.uint64(0)


def frozen(array: NDArray[Any]) -> NDArray[Any]:
    """Return `array` C-contiguous, aligned, in native byte order and read-only, copied only if it must be.

    numba compiles anew for each layout and for writable and read-only arrays: made alike, each kernel is
    compiled once per dtype.
    """
    native = np.require(array, dtype=array.dtype.newbyteorder("="), requirements=["C", "A"])
    view = native.view()
    view.flags.writeable = False
    return view


def padded(size: int, dtype: Any) -> NDArray[Any]:
    """Return new memory for `size` values with room behind it for `spread`; the caller takes ``[:size]``."""
    return np.empty(size + PAD, dtype)


class Scratch(NamedTuple):
    """Where `run_ends` notes what it finds in a row."""

    changes: NDArray[np.uint8]
    """1 where the next voxel differs, by voxel; in whole words."""
    marks: NDArray[np.int64]
    """The words of `changes` that are not 0."""
    ends: NDArray[np.int64]
    """Where each run ends."""


@compiled
def scratch(width: int) -> Scratch:
    """Return room for rows of up to `width` voxels (compiled)."""
    words = (width + 7) // 8
    return Scratch(np.zeros(8 * words, np.uint8), np.empty(words + 1, np.int64), np.empty(8 * words + 1, np.int64))


@compiled
def run_ends(row: NDArray[Any], room: Scratch) -> int:
    """Write into ``room.ends`` where each run of a row ends, and return how many there are (compiled)."""
    changes, marks, ends = room.changes, room.marks, room.ends
    if row.size == 0:
        return 0
    here, there = row[:-1], row[1:]
    for x in range(here.size):
        changes[x] = here[x] != there[x]
    changes[row.size - 1] = 1
    words = changes.view(np.uint64)[: (row.size + 7) // 8]
    changes[row.size : 8 * words.size] = 0
    # Unsigned indexes, or numba adds a test for negative ones to each access.
    m = 0
    for w in range(words.size):
        marks[np.uint64(m)] = w
        m += words[w] != _NONE
    n = 0
    for k in range(m):
        at = np.uint64(8 * marks[k])
        for i in range(8):
            ends[np.uint64(n)] = at + np.uint64(i) + _ONE
            n += changes[at + np.uint64(i)]
    return n


@compiled
def spread(out: NDArray[Any], start: int, stop: int, value: Any) -> None:
    """Set ``out[start:stop]``, and maybe up to `PAD` values beyond it, to `value` (compiled).

    The number of steps is a whole number of vectors, so that no scalar loop is left over. Give `value` as a variable:
    numba makes slow code of a conditional expression that is written into the call.
    """
    begin = np.uint64(start)
    for i in range((np.uint64(stop) - begin + _LESS) & _MASK):
        out[begin + np.uint64(i)] = value


@compiled
def blank(flat: NDArray[Any]) -> bool:
    """Tell whether all labels are 0; stops soon after the first that is not (compiled)."""
    for start in range(0, flat.size, PIECE):
        seen = flat.dtype.type(0)
        for label in flat[start : start + PIECE]:
            seen |= label
        if seen != 0:
            return False
    return True
