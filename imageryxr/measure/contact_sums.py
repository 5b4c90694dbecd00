"""Count the faces that segments share, block by block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr

from imageryxr.core.bbox import Index3, IndexBox
from imageryxr.core.grid import Grid
from imageryxr.graph.expr import Array
from imageryxr.graph.labelled import Volume
from imageryxr.measure.groups import PairSums, merge_pairs
from imageryxr.measure.segment_tables import AXES, kept_attrs, positions
from imageryxr.ops.segment_ids import RequestedIds


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
    box: IndexBox, labels: Array, *, whole: IndexBox | None, requested: RequestedIds | None
) -> BlockContacts:
    """Return the contacts of a block, and its planes at borders with other blocks of the `whole` array.

    If `whole` is None, no planes are returned. Instead, `labels` begin with the last planes of the previous blocks.
    """
    from imageryxr.kernels import isin, pair_sums

    before = np.subtract(labels.shape, box.shape)
    pairs, sums = pair_sums.sum_contacts(labels, (int(before[0]), int(before[1])))
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


def merge_contacts(parts: list[BlockContacts], *, requested: RequestedIds | None = None) -> BlockContacts:
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
                tables.append(_keep_requested(_border_contacts(border, other, plane), requested))
    seen = [part.present for part in parts if part.present is not None]
    return BlockContacts(merge_pairs(tables), waiting, np.logical_or.reduce(seen) if seen else None)


def _border_contacts(border: _Border, one: _Runs, other: _Runs) -> PairSums:
    from imageryxr.kernels import pair_sums

    axis, start = border
    pairs, found = pair_sums.sum_plane_contacts(one.labels(), other.labels())
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
