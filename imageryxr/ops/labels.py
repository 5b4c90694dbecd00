"""List, select and split the ids of a segmentation."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt
import xarray as xr

from imageryxr.core.bbox import IndexBox
from imageryxr.core.validate import check_flag
from imageryxr.errors import SegmentError
from imageryxr.graph.cutout_arrays import route_cutouts
from imageryxr.graph.expr import Array, Mapped
from imageryxr.graph.labelled import label_result
from imageryxr.graph.reduction import count_ids, find_ids
from imageryxr.ops.cutout_columns import select_columns
from imageryxr.ops.cutout_verbs import apply_verb
from imageryxr.ops.segment_ids import RequestedIds, RequestsIds, segmentation_volume


@overload
def unique_ids(seg: xr.DataArray, *, counts: Literal[False] = False) -> npt.NDArray[np.uint64]: ...
@overload
def unique_ids(seg: xr.DataArray, *, counts: Literal[True]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]: ...
@overload
def unique_ids(
    seg: xr.DataArray, *, counts: bool
) -> npt.NDArray[np.uint64] | tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]: ...
def unique_ids(
    seg: xr.DataArray, *, counts: bool = False
) -> npt.NDArray[np.uint64] | tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    """Return the ids that occur in a segmentation, without 0.

    Computes: reads the whole array, each block once, and keeps only the ids.

    Parameters
    ----------
    seg : DataArray
        Segmentation with dims (z, y, x) and any integer type.
    counts : bool, default False
        Whether to return the number of voxels of each id as well.

    Returns
    -------
    ids : ndarray
        Ids in ascending order, with the dtype of ``seg`` in native byte order.
    counts : ndarray of int64
        Number of voxels of each id, in the order of ``ids``. Returned only with ``counts=True``, as in `numpy.unique`.

    Raises
    ------
    LayerError
        If ``seg`` is not of an integer type.

    Examples
    --------
    >>> import imageryxr as ix
    >>> seg = ix.open_segmentation(ix.sample("sample").segmentation)
    >>> ids, voxels = ix.unique_ids(seg.isel(z=slice(0, 2)), counts=True)
    >>> len(ids) > 100, int(voxels.min()) > 0
    (True, True)
    """
    check_flag("counts", counts)
    volume = segmentation_volume(seg)
    ids, voxels = count_ids(volume) if counts else (find_ids(volume), np.empty(0, np.int64))
    shown = ids != 0
    ids = np.asarray(ids[shown], dtype=volume.expr.dtype.newbyteorder("="))
    return (ids, voxels[shown]) if counts else ids


def _apply_to_cutouts(verb: Callable[..., xr.DataArray], args: Any, kwargs: Any) -> xr.DataArray:
    bound = inspect.signature(verb).bind(*args, **kwargs).arguments
    seg, ids = select_columns(bound["seg"], bound["ids"])
    return seg if ids is None else apply_verb(verb, (seg, ids), {}, slicewise=False)


@route_cutouts(_apply_to_cutouts)
def select_ids(seg: xr.DataArray, ids: Iterable[int]) -> xr.DataArray:
    """Keep some ids of a segmentation; all others become 0.

    Lazy: reads nothing.

    Parameters
    ----------
    seg : DataArray
        Segmentation with dims (z, y, x) and any integer type, or `cutouts` of one.
    ids : iterable of int
        Ids from 1 to 2**64 - 1. An empty list gives background only. For cutouts, a column such as ``boxes.pre_id`` or
        a list of columns selects other ids in each cutout; the result is then uint64.

    Returns
    -------
    DataArray
        Same shape and dtype as ``seg`` (in native byte order), with the selected ids in the attr ``ids``.

    Warns
    -----
    MissingIdsWarning
        If ids are not in the data. The warning requires that one process or one `export` computes all blocks.

    Raises
    ------
    LayerError
        If ``seg`` is not of an integer type.
    IdError
        If an id is not an integer from 1 to 2**64 - 1.

    Examples
    --------
    >>> import numpy as np, xarray as xr, imageryxr as ix
    >>> grid = ix.Grid((1, 1, 3), (8, 8, 40), (0, 0, 0))
    >>> ids = np.array([[[7, 2**64 - 1, 9]]], "uint64")
    >>> seg = xr.DataArray(ids, dims=("z", "y", "x"), coords=grid.coords(), attrs={"resolution": grid.resolution})
    >>> ix.select_ids(seg, [2**64 - 1]).values.tolist()
    [[[0, 18446744073709551615, 0]]]
    """
    volume, requested = segmentation_volume(seg), RequestedIds.of(ids)
    dtype = volume.expr.dtype.newbyteorder("=")
    pick = partial(_select, requested=requested)
    expr = _RequestedIdsMap(volume.expr, pick, dtype.str, requested=requested, whole=volume.grid.box)
    attrs = {**volume.attrs, "ids": requested.array.tolist()}
    return label_result(expr, volume.grid, volume, attrs=attrs, name="segmentation")


def split_masks(seg: xr.DataArray, ids: Iterable[int]) -> xr.DataArray:
    """Return one mask per id, along a new leading dim ``segment`` that is labelled by id.

    Lazy: reads nothing. All masks of a block are made in one pass.

    Parameters
    ----------
    seg : DataArray
        Segmentation with dims (z, y, x) and any integer type.
    ids : iterable of int
        Ids from 1 to 2**64 - 1; `unique_ids` returns all ids of a segmentation.

    Returns
    -------
    DataArray
        bool, dims (segment, z, y, x); the coordinate ``segment`` has the ids in ascending order (uint64).

    Raises
    ------
    LayerError
        If ``seg`` is not of an integer type.
    IdError
        If an id is not an integer from 1 to 2**64 - 1.
    SegmentError
        If ``ids`` is empty.

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
    volume, requested = segmentation_volume(seg), RequestedIds.of(ids)
    if not requested.packed:
        raise SegmentError("split_masks needs at least one id, e.g. from imageryxr.unique_ids(seg)")
    split = partial(_masks, requested=requested)
    expr = _RequestedIdsMap(
        volume.expr, split, "bool", lead=(len(requested.array),), requested=requested, whole=volume.grid.box
    )
    masks = label_result(expr, volume.grid, volume, attrs=volume.attrs, name="masks", lead="segment")
    return masks.assign_coords(segment=requested.array)


@dataclass(frozen=True)
class _RequestedIdsMap(Mapped, RequestsIds):
    """A function of labels that records which requested ids occur in them."""

    requested: RequestedIds = field(kw_only=True)
    whole: IndexBox = field(kw_only=True)
    """The box of the array in the request; a crop of the array may lack some of the ids."""

    def request(self) -> tuple[RequestedIds, IndexBox]:
        return self.requested, self.whole

    def apply(self, box: IndexBox, *arrays: Array) -> Array:
        self.record_request(box, arrays[0])
        return super().apply(box, *arrays)


def _select(labels: Array, requested: RequestedIds) -> Array:
    from imageryxr.kernels import isin

    return isin.select(labels, requested.array)


def _masks(labels: Array, requested: RequestedIds) -> Array:
    from imageryxr.kernels import isin

    return isin.masks(labels, requested.array)
