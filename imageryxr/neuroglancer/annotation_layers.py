"""Open the annotation layers of a Neuroglancer link as Datasets.

The rules are those of Neuroglancer's ``annotation/index.ts`` and ``layer/annotation/index.ts``: coordinates of local
annotations are in units of the output dimensions of their source, or of the link's dimensions. Shaders:
https://github.com/google/neuroglancer/blob/master/src/annotation/rendering.md.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from imageryxr.core.annotations import DIM, ENDS, RADII
from imageryxr.core.array_labels import plain_attrs
from imageryxr.core.bbox import DIMS, BBox, Triple
from imageryxr.core.display import LAYER, LINK_LAYER, VISIBLE
from imageryxr.errors import ImageryError, LinkError, LinkWarning, warn
from imageryxr.neuroglancer.annotation_colors import annotation_color, size_problem
from imageryxr.neuroglancer.dimensions import AXES
from imageryxr.neuroglancer.local_annotations import is_local, read_local_annotations, update_spec
from imageryxr.neuroglancer.open_layers import LayerOptions, check_source, limit_time
from imageryxr.neuroglancer.state import LinkState
from imageryxr.neuroglancer.state_layers import LinkLayer, SkippedLayer, public_json, read_source
from imageryxr.neuroglancer.transform import Transform, read_transform
from imageryxr.ops.open_annotations import read_annotations
from imageryxr.ops.tree_annotations import REGION
from imageryxr.sources.address import parse_address
from imageryxr.sources.annotations.folder import open_folder
from imageryxr.sources.annotations.info import parse_info
from imageryxr.sources.annotations.source import AnnotationSource

MOST_CELLS = 1000
"""Largest number of cells of a spatial index that are read for a layer of a link."""


def is_annotation_layer(layer: SkippedLayer) -> bool:
    """Return whether a layer without voxels is a valid annotation layer."""
    return layer.type == "annotation" and layer.error is None and bool(layer.raw)


def open_annotation_layers(
    state: LinkState, names: Sequence[str] | None, options: LayerOptions, resolution: Triple | None = None
) -> tuple[dict[str, list[xr.Dataset]], dict[str, str]]:
    """Return the Datasets of annotation layers by name, one for each type, and by name why others cannot be opened.

    ``names`` are the layers to open; None for all. `resolution` is the nm per unit of a link without dimensions.
    """
    opened: dict[str, list[xr.Dataset]] = {}
    failed: dict[str, str] = {}
    began = time.monotonic()
    for layer in filter(is_annotation_layer, state.skipped):
        if names is not None and layer.name not in names:
            continue
        try:
            with limit_time(began):
                opened[layer.name] = _open_layer(layer, json.loads(layer.raw), state, options, resolution)
        except ImageryError as error:
            failed[layer.name] = error.message
    return opened, failed


def _open_layer(
    layer: SkippedLayer, spec: Mapping[str, Any], state: LinkState, options: LayerOptions, resolution: Triple | None
) -> list[xr.Dataset]:
    where = f"layers[{layer.name!r}]"
    spec = update_spec(spec, where)
    url, transform = _read_source(spec, where)
    if is_local(url):
        dims = {n: (scale, unit) for n, scale, unit in _check_identity(transform)} or dict(state.dimensions)
        if not dims and resolution is not None:
            dims = {axis: (size, "nm") for axis, size in zip(AXES, resolution, strict=True)}
        found = read_local_annotations(spec, dims, where)
        filters = _segment_filters(layer, spec, state)
        found = [_filter_annotations(part, filters) for part in found] if filters is not None else found
    else:
        found = [_open_precomputed(layer, url, transform, spec, state, options)]
    color, column, problem = annotation_color(spec, found, where)
    problem = problem or size_problem(spec)
    if problem:
        warn(f"the layer {layer.name!r} of the link is drawn differently from the viewer: {problem}", LinkWarning)
    is_visible = (
        spec.get("visible", True) is not False and not spec.get("archived") and layer.name in state.shown_layers
    )
    attrs = {
        LAYER: layer.name,
        VISIBLE: is_visible,
        LINK_LAYER: public_json(spec),
        "color": color,
        "color_column": column,
    }
    kept = plain_attrs({key: value for key, value in attrs.items() if value is not None})
    # xarray does not allow slashes in the names of a tree's variables.
    slashes = [
        {str(n): str(n).replace("/", "∕") for n in [*part.variables, *part.dims] if "/" in str(n)} for part in found
    ]
    return [part.rename(names).assign_attrs(kept) for part, names in zip(found, slashes, strict=True)]


def _read_source(spec: Mapping[str, Any], where: str) -> tuple[str, Transform]:
    """Return the address and the transform of the first source; the viewer allows one source of annotations."""
    source = spec.get("source")
    url, entry = read_source(source[0] if isinstance(source, list) and source else source, where)
    transform = entry.get("transform")
    is_whole = isinstance(transform, Mapping) and transform.get("outputDimensions") is not None
    return url, read_transform(transform if is_whole else None, where)


def _check_identity(transform: Transform) -> Sequence[tuple[str, float, str]]:
    """Return the output dimensions of a source, whose transform must not move its coordinates."""
    rows = transform.matrix or ()
    is_moved = any(value != (i == j) for i, row in enumerate(rows) for j, value in enumerate(row))
    scales = [d[1:] for d in transform.inputs or transform.outputs]
    if is_moved or scales != [d[1:] for d in transform.outputs]:
        raise LinkError("its transform moves or scales local annotations, which is not supported; remove the transform")
    return transform.outputs


def _open_precomputed(
    layer: SkippedLayer,
    url: str,
    transform: Transform,
    spec: Mapping[str, Any],
    state: LinkState,
    options: LayerOptions,
) -> xr.Dataset:
    address = parse_address(url)
    if address.format != "precomputed":
        raise LinkError(
            f"its source is {address.public}; annotations are read from local:// and precomputed:// sources"
        )
    check_source(LinkLayer(layer.name, "annotation", url), options.connection.access)
    placement, _ = transform.apply(AXES)
    folder, info = open_folder(url, None, options.connection)
    opened = AnnotationSource(folder, parse_info(info, folder.name))
    by_axis = [opened.info.units[number] for number in opened.info.axes]
    scales = [
        factor * (1.0 if size is None else size / unit)
        for factor, size, unit in zip(placement.scale, placement.voxel_size, by_axis, strict=True)
    ]
    filters = _segment_filters(layer, spec, state)
    if filters is None:
        return _read_near_position(layer, opened, state, scales, placement.shift)
    selected = sorted(set().union(*filters.values()))
    found = _filter_annotations(read_annotations(opened, None, selected, None), filters)
    return _transform_annotations(found, scales, placement.shift)


def _read_near_position(
    layer: SkippedLayer, opened: AnnotationSource, state: LinkState, scales: Sequence[float], shift: Sequence[float]
) -> xr.Dataset:
    """Return all annotations of a layer, or if it has many cells, those in a box around the position of the link."""
    cells, box = opened.count_cells(None), None
    if cells > MOST_CELLS:
        pose = state.pose
        if pose.position is None or pose.resolution is None or 0 in scales:
            raise LinkError(
                f"it has {cells:,} cells of annotations, and at most {MOST_CELLS:,} are read for a link without a "
                f"position; open a part with imageryxr.open_annotations({opened.folder.name!r}, bbox=…)"
            )
        x, y, z = (
            (p * unit - offset) / scale
            for p, unit, offset, scale in zip(pose.position, pose.resolution, shift, scales, strict=True)
        )
        box = opened.box_around((x, y, z), MOST_CELLS)
        if opened.count_cells(box) > MOST_CELLS:
            raise LinkError(f"more than {MOST_CELLS:,} of its cells overlap at the position of the link")
    found = _transform_annotations(read_annotations(opened, box, None, None), scales, shift)
    if box is None:
        return found
    corners = np.sort([np.multiply(corner, scales) + shift for corner in (box.lo_nm, box.hi_nm)], axis=0)
    region = BBox(corners[0].tolist(), corners[1].tolist())
    warn(
        f"the layer {layer.name!r} of the link has {cells:,} cells of annotations, and at most {MOST_CELLS:,} are "
        f"read: those around the position of the link, in the box {region}; open others with "
        f"imageryxr.open_annotations({opened.folder.name!r}, bbox=…)",
        LinkWarning,
    )
    return found.assign_attrs({REGION: corners.ravel().tolist()})


def _transform_annotations(annotations: xr.Dataset, scales: Sequence[float], shift: Sequence[float]) -> xr.Dataset:
    """Return annotations scaled about the origin and then moved, along x, y and z."""
    changed: dict[str, Any] = {}
    for names, is_place in ((DIMS, True), (ENDS, True), (RADII, False)):
        for name, scale, offset in zip(names[::-1], scales, shift, strict=True):
            if name in annotations:
                moved = annotations[name] * scale + offset if is_place else annotations[name] * abs(scale)
                changed[name] = moved.assign_attrs(annotations[name].attrs)
    return annotations.assign(changed)


# ---------------------------------------------------------------------------------------------------------
# segments


def _segment_filters(layer: SkippedLayer, spec: Mapping[str, Any], state: LinkState) -> dict[str, set[int]] | None:
    """Return the visible segments of the linked layer for each relationship that filters, or None without a filter.

    As in the viewer, annotations are not filtered if no segments are visible, unless ``ignoreNullSegmentFilter`` is
    False.
    """
    wanted = spec.get("filterBySegmentation")
    names = wanted if isinstance(wanted, list) else ["segments"] if wanted is True else []
    linked = spec.get("linkedSegmentationLayer")
    linked = {"segments": linked} if isinstance(linked, str) else linked
    by_layer = {entry.name: entry for entry in state.layers}
    found: dict[str, set[int]] = {}
    is_complete = True
    for name in (n for n in names if isinstance(n, str)):
        other = linked.get(name) if isinstance(linked, Mapping) else None
        if not isinstance(other, str):
            continue
        if other not in by_layer:
            warn(
                f"the layer {layer.name!r} of the link shows only annotations of segments of {other!r}, which cannot "
                "be opened; all annotations are shown",
                LinkWarning,
            )
            is_complete = False
            continue
        found[name] = set(by_layer[other].look.selected_ids)
    if any(found.values()):
        return found
    hides_all = bool(names) and is_complete and spec.get("ignoreNullSegmentFilter") is False
    return found if hides_all else None


def _filter_annotations(annotations: xr.Dataset, filters: Mapping[str, set[int]]) -> xr.Dataset:
    """Return the annotations that are related to one of the segments, by any of the relationships."""
    chosen = np.zeros(annotations.sizes[DIM], bool)
    for name, segments in filters.items():
        if name not in annotations:
            continue
        related: npt.NDArray[Any] = annotations[name].values.reshape(len(chosen), -1)
        chosen |= (np.isin(related, np.array(sorted(segments), np.uint64)) & (related != 0)).any(axis=1)
    return annotations.isel({DIM: np.flatnonzero(chosen)})
