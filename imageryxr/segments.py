"""Segments: which ids there are, some of them, one mask each."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from imageryxr.errors import LayerError, MissingIdsWarning, SegmentError
from imageryxr.expr import Array, Mapped, evaluating_all
from imageryxr.volumes import Volume, result, volume_of


def segmentation_volume(seg: xr.DataArray) -> Volume:
    """Take a segmentation apart, refusing what cannot be ids.

    Raises
    ------
    LayerError
        If the values are no integers.
    """
    volume = volume_of(seg)
    if volume.expr.dtype.kind not in "iu":
        raise LayerError(
            f"the segmentation {seg.name!r} has dtype {volume.expr.dtype}: ids are whole numbers, and floats cannot "
            "hold those above 2**53; open it with imageryxr.open_segmentation, or cast with .astype('uint64') if its "
            "values are whole and small"
        )
    return volume


def id_array(ids: Iterable[Any], what: str = "ids") -> npt.NDArray[np.uint64]:
    """Return ids as sorted, distinct uint64, without passing them through floats.

    Raises
    ------
    SegmentError
        If one is no whole number from 1 to 2**64 - 1.
    """
    values = np.atleast_1d(ids).tolist() if isinstance(ids, np.ndarray | int | np.integer) else list(ids)
    numbers = set()
    for value in values:
        text = str(value)
        number = int(text) if text.isdecimal() else None
        if isinstance(value, bool) or number is None or not 0 < number < 2**64:
            raise SegmentError(
                f"{what} holds {value!r}, which is no segment id: ids are whole numbers from 1 to 2**64 - 1 (0 is "
                "background); a float cannot hold ids above 2**53, so give int, str or numpy.uint64"
            )
        numbers.add(number)
    return np.array(sorted(numbers), dtype=np.uint64)


def unique_ids(seg: xr.DataArray) -> npt.NDArray[np.uint64]:
    """Return the ids that occur in a segmentation, without 0.

    Computes: reads the whole array, block by block, and keeps only the ids.

    Parameters
    ----------
    seg : DataArray
        Dims (z, y, x), any integer type.

    Returns
    -------
    ndarray
        Ascending, of the dtype of ``seg``.

    Raises
    ------
    LayerError
        If ``seg`` is not of an integer type.

    Examples
    --------
    >>> import imageryxr as ix
    >>> seg = ix.open_segmentation(ix.sample(sample_path).segmentation)
    >>> len(ix.unique_ids(seg.isel(z=slice(0, 2)))) > 100
    True
    """
    volume = segmentation_volume(seg)
    array = result(volume.expr, volume.grid, volume, attrs={}, name="segmentation")
    blocks = _unique_of_blocks(array.data)
    found = np.unique(np.concatenate(blocks)) if blocks else np.empty(0, volume.expr.dtype)
    return np.asarray(found[found != 0], dtype=volume.expr.dtype)


def _unique_of_blocks(data: Any) -> list[Array]:
    import fastremap
    from dask.base import compute
    from dask.delayed import delayed

    if isinstance(data, np.ndarray):
        return [fastremap.unique(np.ascontiguousarray(data))]
    return list(compute(*[delayed(fastremap.unique)(block) for block in data.to_delayed().ravel()]))


def select_ids(seg: xr.DataArray, ids: Iterable[int]) -> xr.DataArray:
    """Keep some ids of a segmentation; all others become 0.

    Lazy: reads nothing.

    Parameters
    ----------
    seg : DataArray
        Dims (z, y, x), any integer type.
    ids : iterable of int
        From 1 to 2**64 - 1. None at all gives background only.

    Returns
    -------
    DataArray
        As ``seg``, same dtype; attrs gain ``ids``.

    Warns
    -----
    MissingIdsWarning
        When computed in one block, of ids that are not in the data.

    Raises
    ------
    LayerError
        If ``seg`` is not of an integer type.
    SegmentError
        If an id is none.

    Examples
    --------
    >>> import numpy as np, xarray as xr, imageryxr as ix
    >>> grid = ix.Grid((1, 1, 3), (8, 8, 40), (0, 0, 0))
    >>> ids = np.array([[[7, 2**64 - 1, 9]]], "uint64")
    >>> seg = xr.DataArray(ids, dims=("z", "y", "x"), coords=grid.coords(), attrs={"resolution": grid.resolution})
    >>> ix.select_ids(seg, [2**64 - 1]).values.tolist()
    [[[0, 18446744073709551615, 0]]]
    """
    volume, asked = segmentation_volume(seg), AskedIds.of(ids)
    expr = Mapped(volume.expr, partial(_select, asked=asked), str(volume.expr.dtype))
    attrs = {**volume.attrs, "ids": asked.array.tolist()}
    return result(expr, volume.grid, volume, attrs=attrs, name="segmentation")


def split_masks(seg: xr.DataArray, ids: Iterable[int]) -> xr.DataArray:
    """Return one mask per id, along a new leading dim ``segment`` that is labelled by id.

    Lazy: reads nothing. All masks of a block are made in one pass.

    Parameters
    ----------
    seg : DataArray
        Dims (z, y, x), any integer type.
    ids : iterable of int
        From 1 to 2**64 - 1; `unique_ids` gives all of them.

    Returns
    -------
    DataArray
        bool, dims (segment, z, y, x), ``segment`` the ids in ascending order (uint64).

    Raises
    ------
    LayerError
        If ``seg`` is not of an integer type.
    SegmentError
        If an id is none, or there are no ids.

    Examples
    --------
    >>> import numpy as np, xarray as xr, imageryxr as ix
    >>> grid = ix.Grid((1, 1, 3), (8, 8, 40), (0, 0, 0))
    >>> ids = np.array([[[7, 0, 9]]], "uint64")
    >>> seg = xr.DataArray(ids, dims=("z", "y", "x"), coords=grid.coords(), attrs={"resolution": grid.resolution})
    >>> masks = ix.split_masks(seg, [9, 7])
    >>> masks.sel(segment=9).values.tolist()
    [[[False, False, True]]]
    """
    volume, asked = segmentation_volume(seg), AskedIds.of(ids)
    if not asked.packed:
        raise SegmentError("split_masks was given no ids; give some, e.g. those of imageryxr.unique_ids(seg)")
    expr = Mapped(volume.expr, partial(_masks, asked=asked), "bool", lead=(len(asked.array),))
    masks = result(expr, volume.grid, volume, attrs=volume.attrs, name="masks", lead="segment")
    return masks.assign_coords(segment=asked.array)


@dataclass(frozen=True)
class AskedIds:
    """Ids that somebody asked for: what a task carries."""

    packed: bytes
    """Ascending uint64: bytes compare, hash and pickle as one value."""

    @classmethod
    def of(cls, ids: Iterable[Any]) -> AskedIds:
        """Return the ids as `id_array` reads them."""
        return cls(id_array(ids).tobytes())

    @property
    def array(self) -> npt.NDArray[np.uint64]:
        """The ids, ascending."""
        return np.frombuffer(self.packed, np.uint64)

    def report(self, labels: Array) -> None:
        """Warn of ids that are not in the data, where one block holds all of what was asked for."""
        if not evaluating_all():
            return
        from imageryxr.kernels import lookup

        absent = self.array[~lookup.present(labels, self.array)].tolist()
        if absent:
            shown = ", ".join(map(str, absent[:10])) + (f" and {len(absent) - 10} more" if len(absent) > 10 else "")
            warnings.warn(
                f"{len(absent)} of the {len(self.array)} ids that were asked for are not in the data: {shown}; "
                "imageryxr.unique_ids(segmentation) lists those that are",
                MissingIdsWarning,
                stacklevel=2,
            )


def _select(labels: Array, asked: AskedIds) -> Array:
    from imageryxr.kernels import lookup

    asked.report(labels)
    return lookup.select(labels, asked.array)


def _masks(labels: Array, asked: AskedIds) -> Array:
    from imageryxr.kernels import lookup

    asked.report(labels)
    return lookup.masks(labels, asked.array)
