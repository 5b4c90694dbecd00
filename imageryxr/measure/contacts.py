"""Find the contacts between segments: pairs that share faces of voxels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr

from imageryxr.core.array_labels import CUTOUT
from imageryxr.core.bbox import Index3, IndexBox
from imageryxr.core.grid import Grid
from imageryxr.core.validate import check_flag
from imageryxr.errors import MissingIdsWarning, warn
from imageryxr.graph.cutout_arrays import contains_cutouts, first_cutout, first_voxels, map_cutouts
from imageryxr.graph.expr import Array
from imageryxr.graph.labelled import Volume
from imageryxr.graph.reduction import reduce_volumes
from imageryxr.measure.groups import PairSums, merge_pairs
from imageryxr.measure.segment_tables import AXES, kept_attrs, positions
from imageryxr.measure.segments import add_columns, check_arrays
from imageryxr.ops.cutout_columns import check_ids, requested_columns
from imageryxr.ops.segment_ids import RequestedIds, segmentation_volume


def contacts(segmentation: xr.DataArray, *, ids: Iterable[int] | None = None, background: bool = False) -> xr.Dataset:
    """Find the pairs of segments that touch: their shared faces, area and position.

    Computes: reads each storage chunk (or dask block) once, with any dask scheduler. Neighbouring blocks exchange their
    border planes, so a face on a border counts once. Memory grows with the number of contacts, not with the size of the
    volume.

    Parameters
    ----------
    segmentation : DataArray
        Ids with dims (z, y, x), any integer dtype. 0 is background. An array from `cutouts`, with
        dims (cutout, z, y, x), gives the contacts in each cutout.
    ids : iterable of int, optional
        Return only contacts of which at least one segment is among these ids. Default: all contacts. For cutouts, a
        column such as ``boxes.pre_id`` or a list of columns selects other ids in each cutout.
    background : bool, default False
        Whether faces between a segment and the background are contacts, with 0 as ``segment_a``. The sum of the areas
        of all contacts of a segment is then its surface, without faces at the edge of the array.

    Returns
    -------
    Dataset
        In memory, dim ``contact``, in ascending order of ids. ``axis`` is labelled x, y, z.

        - ``segment_a`` < ``segment_b`` (contact): uint64 coordinates.
        - ``faces`` (contact): int64, the number of voxel faces that the segments share (6-connectivity).
        - ``area`` (contact): nm²; a face across an axis has the area of a voxel across that axis. Faces are steps, so
          that the area of a slanted surface is too large: by up to √3, and by 1.5 on average over all directions.
        - ``centroid`` (contact, axis): mean of the centres of the faces in nm, weighted by area.

        ``.imagery.to_dataframe()`` returns a table with one row per contact.

        For cutouts, there is one row per cutout and contact, in the order of the cutouts. Positions are those in the
        volume. The number of the ``cutout`` and the columns of its table are coordinates along ``contact``.

    Raises
    ------
    LayerError
        If ``segmentation`` is not of an integer type.
    IdError
        If an id is not an integer from 1 to 2**64 - 1.

    Warns
    -----
    MissingIdsWarning
        If some of ``ids`` do not occur in the data.

    Examples
    --------
    >>> import imageryxr as ix
    >>> seg = ix.open_segmentation(ix.sample("sample").segmentation)
    >>> touching = ix.contacts(seg.isel(z=slice(0, 2)))
    >>> bool((touching.segment_a < touching.segment_b).all())
    True
    >>> touching.imagery.to_dataframe().columns[:4].tolist()
    ['segment_a', 'segment_b', 'faces', 'area']
    """
    check_flag("background", background)
    if contains_cutouts(segmentation):
        return _contacts_of_cutouts(segmentation, ids, background=background)
    volume = segmentation_volume(segmentation)
    requested = None if ids is None else RequestedIds.of(ids)
    whole = None if volume.in_memory else volume.grid.box
    task = partial(contacts_of_block, whole=whole, requested=requested, background=background)
    merge = partial(merge_contacts, requested=requested, background=background)
    found = reduce_volumes([volume], task, merge, before=1)
    if requested is not None and found.present is not None and not found.present.all():
        absent = requested.array[~found.present].tolist()
        warn(requested.missing_message(absent), MissingIdsWarning)
    return label_contacts(found.pairs, volume)


# ---------------------------------------------------------------------------------------------------------
# cutouts


def _contacts_of_cutouts(segmentation: xr.DataArray, ids: Any, *, background: bool) -> xr.Dataset:
    """Return the contacts in each cutout, in the order of the cutouts; see `contacts`."""
    (array,) = check_arrays(segmentation, None)
    check_ids(ids, segmentation)
    own = requested_columns(segmentation, ids)
    shared = None if own is not None or ids is None else RequestedIds.of(ids)
    volume = segmentation_volume(first_cutout(array))
    rows = np.zeros((array.sizes[CUTOUT], 0), np.uint64) if own is None else own.values
    run = partial(_find_contacts, box=volume.grid.box, shared=shared, has_own=own is not None, background=background)
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


def _find_contacts(
    block: Array, rows: Array, *, box: IndexBox, shared: RequestedIds | None, has_own: bool, background: bool
) -> Array:
    """Return the `_CutoutContacts` of each cutout of a block, as an array of objects; ``rows`` has their own ids."""
    from imageryxr.kernels import relabel

    out = np.empty(len(block), object)
    for i, (labels, ids) in enumerate(zip(block, rows, strict=True)):
        found = contacts_of_block(box, labels, whole=None, requested=shared, background=background)
        pairs = found.pairs
        if has_own:
            kept = np.isin(pairs.pairs, ids[ids != 0]).any(axis=1)
            pairs = PairSums(pairs.pairs[kept], pairs.sums[kept])
        out[i] = _CutoutContacts(pairs, np.isin(ids, relabel.distinct_ids(labels)), found.present)
    return out


class _Runs(NamedTuple):
    """The plane of voxels on one side of a border between blocks, run-length encoded to take little memory."""

    values: Array
    ends: npt.NDArray[np.int64]
    shape: tuple[int, int]

    def labels(self) -> Array:
        sizes = np.diff(self.ends, prepend=0)
        return np.repeat(self.values, sizes).reshape(self.shape)


_Border = tuple[int, Index3]
"""A border between two blocks: the axis across it, and the first voxel (z, y, x) on its upper side."""


@dataclass(frozen=True)
class BlockContacts:
    """Contacts within a part of an array, and the planes at its borders with parts that are not merged yet."""

    pairs: PairSums
    planes: dict[_Border, _Runs]
    present: npt.NDArray[np.bool_] | None
    """Whether each requested id occurs."""


def contacts_of_block(
    box: IndexBox,
    labels: Array,
    *,
    whole: IndexBox | None,
    requested: RequestedIds | None,
    background: bool = False,
) -> BlockContacts:
    """Return the contacts of a block, and its planes at borders with other blocks of the `whole` array.

    If `whole` is None, no planes are returned. Instead, `labels` begin with the last planes of the previous blocks.
    """
    from imageryxr.kernels import isin, pair_sums

    before = np.subtract(labels.shape, box.shape)
    pairs, sums = pair_sums.sum_contacts(labels, (int(before[0]), int(before[1])), background=background)
    # The doubled positions count from the corner of the labels; convert them to count from the corner of the array.
    shift = 2 * (np.array(box.start, np.int64) - before)
    for axis in range(3):
        sums[:, 4 * axis + 1 : 4 * axis + 4] += shift * sums[:, [4 * axis]]
    table = _keep_requested(merge_pairs([PairSums(pairs, sums)]), requested)
    present = None if requested is None else isin.is_present(labels, requested.array)
    return BlockContacts(table, {} if whole is None else _border_planes(box, labels, whole), present)


def _border_planes(box: IndexBox, labels: Array, whole: IndexBox) -> dict[_Border, _Runs]:
    planes: dict[_Border, _Runs] = {}
    for axis in range(3):
        for is_upper in (False, True):
            place = box.stop[axis] if is_upper else box.start[axis]
            if whole.start[axis] < place < whole.stop[axis]:
                z, y, x = (place if a == axis else s for a, s in enumerate(box.start))
                planes[axis, (z, y, x)] = _as_runs(labels[(*[slice(None)] * axis, -1 if is_upper else 0)])
    return planes


def _as_runs(plane: Array) -> _Runs:
    flat = plane.reshape(-1)
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]) + 1, flat.size)
    return _Runs(flat[ends - 1], ends, (plane.shape[0], plane.shape[1]))


def _keep_requested(table: PairSums, requested: RequestedIds | None) -> PairSums:
    if requested is None:
        return table
    kept = np.isin(table.pairs, requested.array).any(axis=1)
    return PairSums(table.pairs[kept], table.sums[kept])


def merge_contacts(
    parts: list[BlockContacts], *, requested: RequestedIds | None = None, background: bool = False
) -> BlockContacts:
    """Return the contacts of all parts, with the faces at the borders between them."""
    if len(parts) == 1:
        return parts[0]
    tables = [part.pairs for part in parts]
    waiting: dict[_Border, _Runs] = {}
    for part in parts:
        for border, plane in part.planes.items():
            other = waiting.pop(border, None)
            if other is None:
                waiting[border] = plane
            else:
                tables.append(_keep_requested(_border_contacts(border, other, plane, background), requested))
    seen = [part.present for part in parts if part.present is not None]
    return BlockContacts(merge_pairs(tables), waiting, np.logical_or.reduce(seen) if seen else None)


def _border_contacts(border: _Border, one: _Runs, other: _Runs, background: bool) -> PairSums:
    from imageryxr.kernels import pair_sums

    axis, start = border
    pairs, found = pair_sums.sum_plane_contacts(one.labels(), other.labels(), background=background)
    faces, sums = found[:, 0], np.zeros((len(pairs), 12), np.int64)
    along = iter(found[:, 1:].T)
    sums[:, 4 * axis] = faces
    for a in range(3):
        inner = 0 if a == axis else next(along)
        sums[:, 4 * axis + 1 + a] = inner + 2 * start[a] * faces
    return PairSums(pairs, sums)


# ---------------------------------------------------------------------------------------------------------
# the result


def label_contacts(table: PairSums, volume: Volume, origin: npt.NDArray[np.float64] | None = None) -> xr.Dataset:
    """Return the Dataset of all contacts; ``origin`` is the first voxel (x, y, z) of the array or row."""
    sums = table.sums.reshape(-1, 3, 4)
    faces, doubled = sums[:, :, 0], sums[:, :, 1:]
    areas = faces * _face_areas(volume.grid)
    total = areas.sum(axis=1)
    # The mean position of the faces across each axis, weighted by their area.
    means = doubled / (2 * np.maximum(faces, 1))[:, :, np.newaxis]
    centers = (means * areas[:, :, np.newaxis]).sum(axis=1) / total[:, np.newaxis]
    data: dict[str, Any] = {
        "faces": ("contact", faces.sum(axis=1)),
        "area": ("contact", total, {"units": "nm2"}),
        "centroid": (("contact", "axis"), positions(centers, volume.grid, origin), {"units": "nm"}),
    }
    coords: dict[str, Any] = {
        "segment_a": ("contact", table.pairs[:, 0]),
        "segment_b": ("contact", table.pairs[:, 1]),
        "axis": AXES,
    }
    return xr.Dataset(data, coords=coords, attrs=kept_attrs(volume))


def _face_areas(grid: Grid) -> npt.NDArray[np.float64]:
    """Return the area in nm² of a voxel's face across z, y and x."""
    x, y, z = grid.resolution
    return np.array([x * y, x * z, y * z])
