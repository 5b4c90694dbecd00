"""Find and fill runs of equal labels along a row.

Segmentations consist of runs of a few dozen voxels. The cost of processing a run is dominated by mispredicted branches.
Therefore one vector loop compares each voxel of a row with the next, the positions of changes are collected without
branches, and runs are filled with whole vectors. These may write beyond the end of a run: the next run overwrites the
excess, or it falls into the padding at the end of the row.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imageryxr.kernels.jit import compile_kernel

PAD = 32
"""The number of values that `fill_run` may write beyond the end of a run."""
PIECE = 4096
"""The number of voxels that kernels without rows process at a time, so that their buffers fit the L1 cache."""

_LESS, _MASK = np.uint64(PAD - 1), ~np.uint64(PAD - 1)
_ONE = np.uint64(1)
_NONE = np.uint64(0)


def as_kernel_input(array: NDArray[Any]) -> NDArray[Any]:
    """Convert an array to a C-contiguous, aligned, read-only array in native byte order, without a copy if possible.

    numba compiles a kernel separately for each layout and for writable and read-only arrays. With this conversion each
    kernel is compiled once per dtype.
    """
    native = np.require(array, dtype=array.dtype.newbyteorder("="), requirements=["C", "A"])
    view = native.view()
    view.flags.writeable = False
    return view


def make_padded(size: int, dtype: Any) -> NDArray[Any]:
    """Return a new array of `size` values plus padding for `fill_run`; the caller uses ``[:size]``."""
    return np.empty(size + PAD, dtype)


class RunBuffers(NamedTuple):
    """The buffers of `run_ends`."""

    changes: NDArray[np.uint8]
    """1 for each voxel whose next voxel differs; the length is a multiple of 8."""
    marks: NDArray[np.int64]
    """The indices of the 8-byte words of `changes` that are not 0."""
    ends: NDArray[np.int64]
    """The end of each run."""


@compile_kernel
def make_run_buffers(width: int) -> RunBuffers:
    """Return buffers for rows of up to `width` voxels."""
    words = (width + 7) // 8
    return RunBuffers(np.zeros(8 * words, np.uint8), np.empty(words + 1, np.int64), np.empty(8 * words + 1, np.int64))


@compile_kernel
def run_ends(row: NDArray[Any], buffers: RunBuffers) -> int:
    """Write the end of each run of a row to ``buffers.ends``, and return the number of runs."""
    changes, marks, ends = buffers.changes, buffers.marks, buffers.ends
    if row.size == 0:
        return 0
    here, there = row[:-1], row[1:]
    for x in range(here.size):
        changes[x] = here[x] != there[x]
    changes[row.size - 1] = 1
    words = changes.view(np.uint64)[: (row.size + 7) // 8]
    changes[row.size : 8 * words.size] = 0
    # Unsigned indices avoid numba's test for negative indices.
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


@compile_kernel
def fill_run(out: NDArray[Any], start: int, stop: int, value: Any) -> None:
    """Set ``out[start:stop]``, and possibly up to `PAD` values after it, to `value`.

    The number of iterations is a multiple of the vector length, so that no scalar loop remains. `value` must be a
    variable: numba generates slow code for a conditional expression as the argument.
    """
    begin = np.uint64(start)
    for i in range((np.uint64(stop) - begin + _LESS) & _MASK):
        out[begin + np.uint64(i)] = value


@compile_kernel
def copy_values(values: NDArray[Any], out: NDArray[Any]) -> None:
    """Copy the first ``values.size`` values.

    For ``out[:] = values`` numba also compiles an error message about shapes, which takes longer than most kernels.
    """
    for i in range(values.size):
        out[i] = values[i]


@compile_kernel
def is_blank(flat: NDArray[Any]) -> bool:
    """Return whether all labels are 0; reading stops soon after the first label that is not 0."""
    for start in range(0, flat.size, PIECE):
        seen = flat.dtype.type(0)
        for label in flat[start : start + PIECE]:
            seen |= label
        if seen != 0:
            return False
    return True
