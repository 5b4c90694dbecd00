"""Measure the segments of a segmentation: their size, position and grey values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import xarray as xr

from imageryxr.graph.cutout_arrays import contains_cutouts
from imageryxr.graph.reduction import reduce_volumes
from imageryxr.measure.cutout_segments import measure_cutouts
from imageryxr.measure.segment_tables import label_segments, merge_segments, prepare_measurement


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
        Ids with dims (z, y, x), any integer dtype. 0 is background and not measured. Or `cutouts`, with dims (cutout,
        z, y, x): then each cutout is measured alone.
    image : DataArray, optional
        Grey values on the grid of ``segmentation``; `align` resamples an image onto it.
    ids : iterable of int, optional
        The ids to measure. Default: all. For cutouts also those of each cutout: a column such as ``boxes.pre_id``, or a
        list of columns.
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

        Of cutouts, there is a row per cutout and segment, in the order of the cutouts, with the values of `measure` of
        that cutout's `crop`: positions are those in the volume. The number ``cutout`` and the columns of the table are
        coordinates along ``segment``, whose ids then repeat.

    Raises
    ------
    LayerError
        If ``segmentation`` is not of an integer type, or ``image`` is a segmentation or not numeric.
    GridMismatchError
        If ``image`` is on another grid, or has cutouts around other centres.
    SegmentError
        If an id is not an integer from 1 to 2**64 - 1.
    OptionError
        If percentiles are outside 0 to 100, there is no image of dtype uint8 or uint16, or a column of the cutouts has
        the name of a measurement.

    Warns
    -----
    MissingIdsWarning
        If some of ``ids`` do not occur in the data; they have no row. For ids of each cutout, if cutouts do not contain
        theirs.

    Examples
    --------
    >>> import imageryxr as ix
    >>> seg = ix.open_segmentation(ix.sample(sample_path).segmentation)
    >>> cells = ix.measure(seg.isel(z=slice(0, 4)))
    >>> largest = cells.isel(segment=cells.volume.argmax("segment"))
    >>> largest.centroid.sel(axis="z").item() > 0
    True
    >>> cells.imagery.to_dataframe().columns[:5].tolist()
    ['voxels', 'volume', 'centroid_x', 'centroid_y', 'centroid_z']
    """
    if contains_cutouts(segmentation) or contains_cutouts(image):
        return measure_cutouts(segmentation, image, ids=ids, percentiles=percentiles)
    volumes, task, requested = prepare_measurement(segmentation, image, ids=ids, percentiles=percentiles)
    found = reduce_volumes(volumes, task, merge_segments)
    return label_segments(found, volumes, requested, percentiles)
