"""Find the contacts in each cutout."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr

from imageryxr.core.bbox import IndexBox
from imageryxr.errors import MissingIdsWarning, warn
from imageryxr.graph.cutout_arrays import CUTOUT, as_blocks, first_cutout, map_cutouts
from imageryxr.graph.expr import Array
from imageryxr.graph.labelled import is_dask, is_lazy
from imageryxr.measure.contact_sums import contacts_of_block, label_contacts
from imageryxr.measure.cutout_segments import add_columns, check_arrays
from imageryxr.measure.groups import PairSums
from imageryxr.ops.cutout_align import first_voxels
from imageryxr.ops.cutout_columns import check_ids, requested_columns
from imageryxr.ops.segment_ids import RequestedIds, segmentation_volume


def contacts_of_cutouts(segmentation: xr.DataArray, ids: Any) -> xr.Dataset:
    """Return the contacts in each cutout, in the order of the cutouts; see `contacts`."""
    (array,) = check_arrays(segmentation, None)
    check_ids(ids, segmentation)
    own = requested_columns(segmentation, ids)
    shared = None if own is not None or ids is None else RequestedIds.of(ids)
    volume = segmentation_volume(first_cutout(array))
    rows = np.zeros((array.sizes[CUTOUT], 0), np.uint64) if own is None else own.values
    run = partial(_find_contacts, box=volume.grid.box, shared=shared, has_own=own is not None)
    if is_dask(array) or is_lazy(array):
        table: Array = map_cutouts(run, [as_blocks(array)], (), object, rows=rows, name="contacts").compute()
    else:
        table = run(array.values, rows)
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


class _Found(NamedTuple):
    """The contacts of a cutout, and which of its own and of the shared ids it contains."""

    pairs: PairSums
    own: npt.NDArray[np.bool_]
    shared: npt.NDArray[np.bool_] | None


def _find_contacts(block: Array, rows: Array, *, box: IndexBox, shared: RequestedIds | None, has_own: bool) -> Array:
    """Return what is found in each cutout of a block, as an array of objects; ``rows`` has the ids of each."""
    from imageryxr.kernels import isin

    out = np.empty(len(block), object)
    for i, (labels, ids) in enumerate(zip(block, rows, strict=True)):
        found = contacts_of_block(box, labels, whole=None, requested=shared)
        pairs = found.pairs
        if has_own:
            kept = np.isin(pairs.pairs, ids[ids != 0]).any(axis=1)
            pairs = PairSums(pairs.pairs[kept], pairs.sums[kept])
        out[i] = _Found(pairs, isin.is_present(labels, ids), found.present)
    return out
