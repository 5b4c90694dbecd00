"""Measure the segments of each cutout."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from imageryxr.core.bbox import DIMS, IndexBox
from imageryxr.errors import LayerError, MissingIdsWarning, OptionError, warn
from imageryxr.graph.cutout_arrays import (
    CUTOUT,
    check_same_cutouts,
    contains_cutouts,
    first_cutout,
    map_cutouts,
)
from imageryxr.graph.expr import Array
from imageryxr.measure.groups import PairSums
from imageryxr.measure.segment_tables import Grey, SegmentSums, label_segments, prepare_measurement
from imageryxr.ops.cutout_align import first_voxels
from imageryxr.ops.cutout_columns import requested_columns, select_columns
from imageryxr.ops.cutout_ids import CutoutIds

_SEGMENT = "segment"


def measure_cutouts(
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
    found = label_segments(_join(table.tolist()), volumes, requested, percentiles, origin=firsts[rows][:, ::-1])
    return add_columns(found, segmentation, rows, _SEGMENT)


def add_columns(found: xr.Dataset, cutouts: xr.DataArray, rows: npt.NDArray[np.intp], dim: str) -> xr.Dataset:
    """Return measurements of cutouts with the columns of the cutouts as coordinates along a dim.

    ``rows`` has the cutout of each measurement.
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
                f"{array.name!r} has dims {array.dims}, and the other array has the dim 'cutout'; cut both out around "
                "the same centres: ix.cutouts(ix.align(image, segmentation), …)"
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


def _join(parts: list[SegmentSums]) -> SegmentSums:
    """Concatenate the rows of all parts; equal ids of different parts keep separate rows."""
    names = ("ids", "voxels", "sums", "first", "last")
    ids, voxels, sums, first, last = (np.concatenate([getattr(part, name) for part in parts]) for name in names)
    greys = [part.grey for part in parts if part.grey is not None]
    grey = None
    if greys:
        grey = Grey(*(np.concatenate([getattr(g, n) for g in greys]) for n in ("mean", "deviation", "low", "high")))
    tables = [part.histogram for part in parts if part.histogram is not None]
    histogram = PairSums(*(np.concatenate(columns) for columns in zip(*tables, strict=True))) if tables else None
    return SegmentSums(ids, voxels, sums, first, last, grey, histogram)
