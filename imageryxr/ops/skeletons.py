"""Open precomputed skeletons as lines."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from imageryxr.core.annotations import make_annotations
from imageryxr.core.colors.ids import list_ids
from imageryxr.errors import warn
from imageryxr.ops.open_annotations import warn_missing_ids
from imageryxr.sources.annotations.folder import open_folder
from imageryxr.sources.annotations.skeletons import find_skeletons, read_skeletons
from imageryxr.sources.fetch.connection import Connection


def open_skeletons(
    source: str | os.PathLike[str],
    ids: Iterable[int | str] | int | str,
    *,
    token: str | None = None,
    connection: Connection | None = None,
) -> xr.Dataset:
    """Open precomputed skeletons of segments as annotations: a line for each edge.

    Reads the skeletons; the Dataset is in memory. Sharded and unsharded skeletons are read, several at a time.

    Parameters
    ----------
    source : str or path
        ``precomputed://…`` with a URL or a local path: a segmentation whose ``info`` names its skeletons, or the
        folder of the skeletons.
    ids : iterable of int
        Segments: integers or their digits; a single one can be given without a list.
    token : str, optional
        Token for ``middleauth`` servers. Default: as in `open_image`.
    connection : Connection, optional
        Timeouts, retries and concurrent requests.

    Returns
    -------
    Dataset
        As in `as_annotations`, with annotation_type "line": the ends of each edge in nm, after the transform of the
        ``info``; ``segment`` (uint64); ``radius`` (nm), the mean of both ends, NaN where the file has no radii. The
        coordinate ``id`` counts the edges.

    Raises
    ------
    SourceNotFoundError, SourceError, NoVolumeError
        If there is nothing at the address, or there are no skeletons.
    AuthError
        If access is denied.
    ChunkReadError
        If a skeleton cannot be read or is damaged.

    Warns
    -----
    MissingIdsWarning
        If segments have no skeleton.
    ImageryWarning
        If edges whose stored positions are not finite numbers are omitted.

    Notes
    -----
    CloudVolume decodes the skeletons. The format is described in
    https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/skeletons.md.

    Examples
    --------
    >>> import imageryxr as ix
    >>> lines = ix.open_skeletons("precomputed://gs://bucket/segmentation", [720575940605102694])  # doctest: +SKIP
    """
    listed = list_ids(ids)
    # The background has no skeleton, so it is ignored among other ids, and reported as missing if it is the only one.
    requested = [segment for segment in dict.fromkeys(listed) if segment] or listed[:1]
    folder, info = find_skeletons(*open_folder(source, token, connection))
    found = read_skeletons(folder, info, requested)
    warn_missing_ids(f"{folder.name} has no skeleton of the segment", requested, found)
    starts, ends, radii, segments = [np.empty((0, 3))], [np.empty((0, 3))], [np.empty(0)], [np.empty(0, np.uint64)]
    for number in requested:
        if number not in found:
            continue
        skeleton = found[number]
        is_finite = np.asarray(np.isfinite(skeleton.vertices[skeleton.edges]).all(axis=(1, 2)))
        if not is_finite.all():
            warn(
                f"{np.count_nonzero(~is_finite):,} of {len(is_finite):,} edges of the skeleton of {number} in "
                f"{folder.name} have positions that are not finite numbers and are omitted"
            )
        first, second = skeleton.edges[is_finite].T
        starts.append(skeleton.vertices[first])
        ends.append(skeleton.vertices[second])
        radii.append((skeleton.radii[first] + skeleton.radii[second]) / 2)
        segments.append(np.full(len(first), number, np.uint64))
    properties: dict[str, npt.NDArray[Any]] = {"segment": np.concatenate(segments), "radius": np.concatenate(radii)}
    lines = make_annotations(
        "line",
        np.concatenate(starts),
        ends=np.concatenate(ends),
        properties=properties,
        attrs={"source": folder.name},
    )
    lines["radius"].attrs["units"] = "nm"
    return lines
