"""Compare two segmentations: the voxels that their ids share."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from imageryxr.core.bbox import IndexBox
from imageryxr.core.validate import check_flag
from imageryxr.graph.cutout_arrays import check_same_positions
from imageryxr.graph.expr import Array
from imageryxr.graph.reduction import reduce_volumes
from imageryxr.measure.groups import PairSums, group_rows, merge_pairs
from imageryxr.measure.segment_tables import kept_attrs, voxel_volume
from imageryxr.ops.segment_ids import segmentation_volume


def overlaps(a: xr.DataArray, b: xr.DataArray, *, background: bool = False) -> xr.Dataset:
    """Count the voxels that the ids of two segmentations share, and compute the variation of information.

    Computes: reads each storage chunk (or dask block) once, with any dask scheduler. Memory grows with the number of
    pairs that overlap.

    Parameters
    ----------
    a, b : DataArray
        Segmentations with dims (z, y, x) on one grid, such as two versions or two instants of one volume.
    background : bool, default False
        Whether 0 counts as a segment. By default voxels that are 0 in ``a`` or ``b`` are ignored.

    Returns
    -------
    Dataset
        In memory, dim ``overlap``, in ascending order of ids: a sparse contingency table.

        - ``segment_a``, ``segment_b`` (overlap): uint64 coordinates.
        - ``voxels`` (overlap): int64, the number of voxels with both ids.
        - ``volume`` (overlap): nm³.

        ``attrs`` has, in bits and 0 for equal segmentations (Meilă, "Comparing clusterings", 2007):

        - ``split``: conditional entropy H(b | a); high if segments of ``a`` are split in ``b``.
        - ``merge``: conditional entropy H(a | b); high if segments of ``a`` are merged in ``b``.
        - ``variation_of_information``: the sum of both.

        ``.imagery.to_dataframe()`` returns a table with one row per overlap.

    Raises
    ------
    LayerError
        If an array is not of an integer type.
    GridMismatchError
        If the arrays are not on one grid.

    Examples
    --------
    >>> import imageryxr as ix
    >>> seg = ix.open_segmentation(ix.sample("sample").segmentation).isel(z=slice(0, 2))
    >>> same = ix.overlaps(seg, seg)
    >>> same.variation_of_information, bool((same.segment_a == same.segment_b).all())
    (0.0, True)
    """
    check_flag("background", background)
    volumes = [segmentation_volume(a), segmentation_volume(b)]
    check_same_positions(volumes[0], volumes[1], "the segmentations")
    table = reduce_volumes(volumes, partial(_overlaps_of_block, background=background), merge_pairs)
    voxels = table.sums[:, 0]
    split, merge = _conditional_entropies(table.pairs, voxels)
    data: dict[str, Any] = {
        "voxels": ("overlap", voxels),
        "volume": ("overlap", voxels * voxel_volume(volumes[0].grid), {"units": "nm3"}),
    }
    coords = {f"segment_{name}": ("overlap", table.pairs[:, i]) for i, name in enumerate("ab")}
    attrs = {"split": split, "merge": merge, "variation_of_information": split + merge}
    return xr.Dataset(data, coords=coords, attrs={**kept_attrs(volumes[0]), **attrs})


def _overlaps_of_block(box: IndexBox, one: Array, other: Array, *, background: bool) -> PairSums:
    from imageryxr.kernels import pair_sums

    pairs, sums = pair_sums.sum_overlaps(one, other)
    kept = np.ones(len(pairs), bool) if background else (pairs != 0).all(axis=1)
    return merge_pairs([PairSums(pairs[kept], sums[kept])])


def _conditional_entropies(pairs: npt.NDArray[np.uint64], voxels: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Return H(b | a) and H(a | b) in bits."""
    if not len(pairs):
        return 0.0, 0.0
    share = voxels / voxels.sum()
    found = []
    for side in (0, 1):
        groups = group_rows(pairs[:, side])
        whole = groups.spread(groups.add(voxels))
        # log2 of the ratio is exactly 0 where one pair is the whole segment.
        found.append(abs(float(np.sum(share * np.log2(whole / voxels)))))
    return found[0], found[1]
