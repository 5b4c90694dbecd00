"""Measure the segments of a segmentation: their size, position and grey values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from imageryxr.core.array_labels import CUTOUT
from imageryxr.core.bbox import DIMS, IndexBox
from imageryxr.core.validate import name_array
from imageryxr.errors import LayerError, MissingIdsWarning, OptionError, warn
from imageryxr.graph.cutout_arrays import check_same_cutouts, contains_cutouts, first_cutout, first_voxels, map_cutouts
from imageryxr.graph.expr import Array
from imageryxr.graph.reduction import reduce_volumes
from imageryxr.measure.segment_tables import (
    concatenate_segments,
    label_segments,
    merge_segments,
    prepare_measurement,
)
from imageryxr.ops.cutout_columns import requested_columns, select_columns
from imageryxr.ops.cutout_ids import CutoutIds


def measure(
    segmentation: xr.DataArray,
    image: xr.DataArray | None = None,
    *,
    ids: Iterable[int] | None = None,
    percentiles: Sequence[float] | None = None,
) -> xr.Dataset:
    """Measure the segments of a segmentation: size, position and, with an image, grey values.

    Computes: reads each storage chunk (or dask block) once, with any dask scheduler. Memory grows with the number of
    segments, not with the size of the volume.

    Parameters
    ----------
    segmentation : DataArray
        Ids with dims (z, y, x), any integer dtype. 0 is background and not measured. In an array from `cutouts`, with
        dims (cutout, z, y, x), each cutout is measured separately.
    image : DataArray, optional
        Grey values on the grid of ``segmentation``; `align` resamples an image onto it.
    ids : iterable of int, optional
        The ids to measure. Default: all. For cutouts, a column such as ``boxes.pre_id`` or a list of columns selects
        other ids in each cutout.
    percentiles : sequence of float, optional
        Percentiles of the grey values, from 0 to 100, computed from exact histograms; requires an ``image`` of dtype
        uint8 or uint16. Percentiles between two values are interpolated linearly, as in `numpy.percentile`.

    Returns
    -------
    Dataset
        In memory, dim ``segment`` with an index of ids (uint64) in ascending order. ``axis`` is labelled x, y, z.

        - ``voxels`` (segment): int64.
        - ``volume`` (segment): nm³.
        - ``centroid`` (segment, axis): mean of the voxel centres in nm.
        - ``bbox_min``, ``bbox_max`` (segment, axis): outer voxel edges in nm.
        - ``touches_edge`` (segment): whether the segment contains the first or the last voxel along an axis of the
          array.
        - ``mean``, ``std``, ``min``, ``max`` (segment), with an image: ``std`` is the population standard deviation;
          ``min`` and ``max`` have the dtype of the image. If a voxel of a segment is NaN, its values are NaN; to ignore
          such voxels, set their ids to 0: ``segmentation.where(image.notnull(), 0)``.
        - ``percentiles`` (segment, percentile), with ``percentiles``.

        ``.imagery.to_dataframe()`` returns a table with one row per segment.

        For cutouts, there is one row per cutout and segment, in the order of the cutouts, so ids can repeat. The values
        are those of the same box from `crop`: positions are those in the volume. The number of the ``cutout`` and the
        columns of its table are coordinates along ``segment``.

    Raises
    ------
    LayerError
        If ``segmentation`` is not of an integer type, or ``image`` is a segmentation or not numeric.
    GridMismatchError
        If ``image`` is on another grid, or has cutouts around other centres.
    IdError
        If an id is not an integer from 1 to 2**64 - 1.
    OptionError
        If percentiles are outside 0 to 100, there is no image of dtype uint8 or uint16, or a column of the cutouts has
        the name of a measurement.

    Warns
    -----
    MissingIdsWarning
        If some of ``ids`` do not occur in the data; they have no row. With other ids in each cutout, if a cutout does
        not contain its ids.

    Examples
    --------
    >>> import imageryxr as ix
    >>> seg = ix.open_segmentation(ix.sample("sample").segmentation)
    >>> cells = ix.measure(seg.isel(z=slice(0, 4)))
    >>> largest = cells.isel(segment=cells.volume.argmax("segment"))
    >>> largest.centroid.sel(axis="z").item() > 0
    True
    >>> cells.imagery.to_dataframe().columns[:5].tolist()
    ['voxels', 'volume', 'centroid_x', 'centroid_y', 'centroid_z']
    """
    if contains_cutouts(segmentation) or contains_cutouts(image):
        return _measure_cutouts(segmentation, image, ids=ids, percentiles=percentiles)
    volumes, task, requested = prepare_measurement(segmentation, image, ids=ids, percentiles=percentiles)
    found = reduce_volumes(volumes, task, merge_segments)
    return label_segments(found, volumes, requested, percentiles)


# ---------------------------------------------------------------------------------------------------------
# cutouts


def _measure_cutouts(
    segmentation: xr.DataArray,
    image: xr.DataArray | None,
    *,
    ids: Any,
    percentiles: Sequence[float] | None,
) -> xr.Dataset:
    """Return the measurements of each segment of each cutout, in the order of the cutouts; see `measure`."""
    selected, shared = select_columns(segmentation, ids, is_reported=False)
    own = requested_columns(segmentation, ids)
    segmentation, ids = selected, shared
    arrays = check_arrays(segmentation, image)
    firsts = first_voxels(arrays[0])
    volumes, task, requested = prepare_measurement(*map(first_cutout, arrays), ids=ids, percentiles=percentiles)
    box = volumes[0].grid.box
    run = partial(_sum_cutouts, task=task, box=box)
    table: Array = np.asarray(map_cutouts(run, arrays, (), object, name="measure"))
    if own is not None:
        _warn_missing_ids(own, table)
    rows = np.repeat(np.arange(len(table)), [len(part.ids) for part in table])
    found = label_segments(
        concatenate_segments(table.tolist()), volumes, requested, percentiles, origin=firsts[rows][:, ::-1]
    )
    return add_columns(found, segmentation, rows, "segment")


def add_columns(found: xr.Dataset, cutouts: xr.DataArray, rows: npt.NDArray[np.intp], dim: str) -> xr.Dataset:
    """Return measurements of cutouts with the columns of the cutouts as coordinates along a dim.

    ``rows`` has the position of each measurement's cutout.
    """
    columns = {n: c.variable for n, c in cutouts.coords.items() if c.dims == (CUTOUT,)}
    taken = sorted(str(n) for n in columns if n in found.variables or n in found.dims)
    if taken:
        raise OptionError(
            f"the column {taken[0]!r} of the cutouts has the name of a measurement; rename the column: "
            f"boxes.rename({taken[0]}='{taken[0]}_of_cutout')"
        )
    numbers = np.arange(cutouts.sizes[CUTOUT]) if CUTOUT not in columns else columns.pop(CUTOUT).values
    kept = {n: (dim, v.values[rows], v.attrs) for n, v in columns.items()}
    return found.assign_coords({CUTOUT: (dim, numbers[rows]), **kept})


def _warn_missing_ids(own: CutoutIds, table: Array) -> None:
    found = [np.isin(ids, part.ids) for ids, part in zip(own.values, table, strict=True)]
    message = own.missing_message(np.stack(found))
    if message is not None:
        warn(message, MissingIdsWarning)


def check_arrays(segmentation: xr.DataArray, image: xr.DataArray | None) -> list[xr.DataArray]:
    """Return cutouts of a segmentation and, if given, an image, with the dims in order, after checking them."""
    arrays = [segmentation] if image is None else [segmentation, image]
    for array in arrays:
        if not contains_cutouts(array):
            raise LayerError(
                f"{name_array(array.name)} has dims {array.dims}, and the other array has the dim 'cutout'; cut both "
                "out around the same centres: ix.cutouts(ix.align(image, segmentation), …)"
            )
    found = [array.transpose(CUTOUT, *DIMS) for array in arrays]
    if len(found) == 2:
        check_same_cutouts(found[0], found[1], "the segmentation and the image")
    return found


def _sum_cutouts(*blocks: Array, task: Any, box: IndexBox) -> Array:
    """Return the sums of the segments of each cutout of a block, as an array of objects."""
    out = np.empty(len(blocks[0]), object)
    for i, values in enumerate(zip(*blocks, strict=True)):
        out[i] = task(box, *values)
    return out
