"""Apply a function to blocks of whole cutouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import dask.array as da
import numpy as np

from imageryxr.graph.expr import Array
from imageryxr.graph.to_dask import check_query_planning

_AXES = ("cutout", "z", "y", "x", "tail")


def map_cutouts(
    function: Callable[..., Array],
    arrays: Sequence[da.Array | Array],
    shape: tuple[int, ...],
    dtype: Any,
    *,
    rows: Array | None = None,
    name: str = "cutouts",
) -> da.Array:
    """Return the dask array of a function of blocks that contain whole cutouts.

    Lazy: one task per block.

    Parameters
    ----------
    function : callable
        Picklable function of a block of each array (cutout, z, y, x) and, if given, of ``rows``.
    arrays : sequence of arrays
        Arrays with equal lengths along their first axis.
    shape : tuple of int
        Shape of a result for one cutout: (z, y, x), or (z, y, x, channels).
    dtype : dtype
        Type of the result.
    rows : ndarray of shape (n, k), optional
        Values of each cutout.
    name : str
        Prefix of the array's name, which dask's dashboard displays.
    """
    check_query_planning()
    first = next((a for a in arrays if isinstance(a, da.Array)), None)
    own = first.chunks[0] if first is not None else "auto"
    parts: list[Any] = []
    for number, array in enumerate(arrays):
        whole = dict.fromkeys(range(1, array.ndim), -1)
        block = array.rechunk(whole) if isinstance(array, da.Array) else da.from_array(array, {0: own, **whole})
        parts += [block, ("cutout", *(f"{axis}{number}" for axis in _AXES[1 : array.ndim]))]
    if rows is not None:
        parts += [da.from_array(rows, (own, -1)), ("cutout", "column")]
    out = _AXES[: 1 + len(shape)]
    found: da.Array = da.blockwise(
        function,
        out,
        *parts,
        new_axes=dict(zip(out[1:], shape, strict=True)),
        dtype=dtype,
        meta=np.empty((0,) * len(out), dtype),
        concatenate=True,
        name=None,
        token=name,
    )
    return found
