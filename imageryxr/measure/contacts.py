"""Find the contacts between segments: pairs that share faces of voxels."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr

from imageryxr.core.array_labels import CUTOUT
from imageryxr.core.bbox import IndexBox
from imageryxr.errors import MissingIdsWarning, warn
from imageryxr.graph.cutout_arrays import contains_cutouts, first_cutout, first_voxels, map_cutouts
from imageryxr.graph.expr import Array
from imageryxr.graph.reduction import reduce_volumes
from imageryxr.measure.contact_sums import contacts_of_block, label_contacts, merge_contacts
from imageryxr.measure.groups import PairSums
from imageryxr.measure.segments import add_columns, check_arrays
from imageryxr.ops.cutout_columns import check_ids, requested_columns
from imageryxr.ops.segment_ids import RequestedIds, segmentation_volume


def contacts(segmentation: xr.DataArray, *, ids: Iterable[int] | None = None) -> xr.Dataset:
    """Find the pairs of segments that touch: their shared faces, area and position.

    Computes: reads each storage chunk (or dask block) once, with any dask scheduler. Neighbouring blocks exchange their
    border planes, so a face on a border counts once. Memory grows with the number of contacts, not with the size of the
    volume.

    Parameters
    ----------
    segmentation : DataArray
        Ids with dims (z, y, x), any integer dtype. 0 is background and has no contacts. An array from `cutouts`, with
        dims (cutout, z, y, x), gives the contacts in each cutout.
    ids : iterable of int, optional
        Return only contacts of which at least one segment is among these ids. Default: all contacts. For cutouts, a
        column such as ``boxes.pre_id`` or a list of columns selects other ids in each cutout.

    Returns
    -------
    Dataset
        In memory, dim ``contact``, in ascending order of ids. ``axis`` is labelled x, y, z.

        - ``segment_a`` < ``segment_b`` (contact): uint64 coordinates.
        - ``faces`` (contact): int64, the number of voxel faces that the segments share (6-connectivity).
        - ``area`` (contact): nm²; a face across an axis has the area of a voxel across that axis.
        - ``centroid`` (contact, axis): mean of the centres of the faces in nm, weighted by area.

        ``.imagery.to_dataframe()`` returns a table with one row per contact.

        For cutouts, there is one row per cutout and contact, in the order of the cutouts. Positions are those in the
        volume. The number of the ``cutout`` and the columns of its table are coordinates along ``contact``.

    Raises
    ------
    LayerError
        If ``segmentation`` is not of an integer type.
    SegmentError
        If an id is not an integer from 1 to 2**64 - 1.

    Warns
    -----
    MissingIdsWarning
        If some of ``ids`` do not occur in the data.

    Examples
    --------
    >>> import imageryxr as ix
    >>> seg = ix.open_segmentation(ix.sample(sample_path).segmentation)
    >>> touching = ix.contacts(seg.isel(z=slice(0, 2)))
    >>> bool((touching.segment_a < touching.segment_b).all())
    True
    >>> touching.imagery.to_dataframe().columns[:4].tolist()
    ['segment_a', 'segment_b', 'faces', 'area']
    """
    if contains_cutouts(segmentation):
        return _contacts_of_cutouts(segmentation, ids)
    volume = segmentation_volume(segmentation)
    requested = None if ids is None else RequestedIds.of(ids)
    task = partial(contacts_of_block, whole=None if volume.in_memory else volume.grid.box, requested=requested)
    found = reduce_volumes([volume], task, partial(merge_contacts, requested=requested), before=1)
    if requested is not None and found.present is not None and not found.present.all():
        absent = requested.array[~found.present].tolist()
        warn(requested.missing_message(absent), MissingIdsWarning)
    return label_contacts(found.pairs, volume)


# ---------------------------------------------------------------------------------------------------------
# cutouts


def _contacts_of_cutouts(segmentation: xr.DataArray, ids: Any) -> xr.Dataset:
    """Return the contacts in each cutout, in the order of the cutouts; see `contacts`."""
    (array,) = check_arrays(segmentation, None)
    check_ids(ids, segmentation)
    own = requested_columns(segmentation, ids)
    shared = None if own is not None or ids is None else RequestedIds.of(ids)
    volume = segmentation_volume(first_cutout(array))
    rows = np.zeros((array.sizes[CUTOUT], 0), np.uint64) if own is None else own.values
    run = partial(_find_contacts, box=volume.grid.box, shared=shared, has_own=own is not None)
    table: Array = np.asarray(map_cutouts(run, [array], (), object, rows=rows, name="contacts"))
    message = None if own is None else own.missing_message(np.stack([part.own for part in table]))
    if shared is not None:
        absent = shared.array[~np.logical_or.reduce([part.shared for part in table])].tolist()
        message = shared.missing_message(absent) if absent else None
    if message is not None:
        warn(message, MissingIdsWarning)
    numbers = np.repeat(np.arange(len(table)), [len(part.pairs.pairs) for part in table])
    joined = PairSums(*(np.concatenate(columns) for columns in zip(*(part.pairs for part in table), strict=True)))
    origin = first_voxels(array)[numbers][:, ::-1]
    return add_columns(label_contacts(joined, volume, origin), segmentation, numbers, "contact")


class _CutoutContacts(NamedTuple):
    """The contacts of a cutout, and whether it contains each of its own ids and of the ids of all cutouts."""

    pairs: PairSums
    own: npt.NDArray[np.bool_]
    shared: npt.NDArray[np.bool_] | None


def _find_contacts(block: Array, rows: Array, *, box: IndexBox, shared: RequestedIds | None, has_own: bool) -> Array:
    """Return the `_CutoutContacts` of each cutout of a block, as an array of objects; ``rows`` has their own ids."""
    from imageryxr.kernels import relabel

    out = np.empty(len(block), object)
    for i, (labels, ids) in enumerate(zip(block, rows, strict=True)):
        found = contacts_of_block(box, labels, whole=None, requested=shared)
        pairs = found.pairs
        if has_own:
            kept = np.isin(pairs.pairs, ids[ids != 0]).any(axis=1)
            pairs = PairSums(pairs.pairs[kept], pairs.sums[kept])
        out[i] = _CutoutContacts(pairs, np.isin(ids, relabel.distinct_ids(labels)), found.present)
    return out
