"""Annotations of a tree that a view shows, stored in the attrs of the view."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from imageryxr.core.annotations import (
    DIM,
    ENDS,
    RADII,
    annotation_type_of,
    annotations_in_box,
    make_annotations,
    stack_axes,
)
from imageryxr.core.bbox import DIMS, BBox
from imageryxr.core.display import LAYER, VISIBLE
from imageryxr.core.grid import Grid
from imageryxr.errors import LayerError, LinkWarning, warn

ANNOTATIONS = "annotation_layers"
"""Attr of a view with the annotations in it, as JSON."""
REGION = "annotation_region"
"""Attr of annotations that were read from a part of their layer: the corners (x, y, z, x, y, z) of the part in nm."""
MARGIN = 32
"""Pixels around a view in which annotations are included, because their markers may extend into the view."""


def annotation_layers(tree: xr.DataTree) -> dict[str, list[xr.Dataset]]:
    """Return the Datasets of annotations of a tree, by the name of their layer."""
    found: dict[str, list[xr.Dataset]] = {}
    for node in tree.subtree:
        if DIM not in node.dims:
            continue
        dataset = node.to_dataset(inherit=False)
        try:
            annotation_type_of(dataset)
        except LayerError:
            continue
        found.setdefault(str(dataset.attrs.get(LAYER, node.name)), []).append(dataset)
    return found


def view_annotations(tree: xr.DataTree, grid: Grid, names: Collection[str] | None) -> dict[str, str]:
    """Return the attr of a view on a grid with the annotations in it, or an empty dict without any.

    ``names`` are the layers to show; None for the visible layers.
    """
    lo, hi = (np.array(corner) for corner in (grid.bbox.lo_nm, grid.bbox.hi_nm))
    margin = np.array(grid.resolution) * (MARGIN, MARGIN, 0)
    return _annotations_near(tree, BBox((lo - margin).tolist(), (hi + margin).tolist()), names)


def plane_annotations(
    tree: xr.DataTree, center: npt.NDArray[np.float64], axes: npt.NDArray[np.float64], size: npt.NDArray[np.float64]
) -> dict[str, str]:
    """Return the attr of a plane with the visible annotations near it, or an empty dict without any.

    ``center`` is (x, y, z) in nm; ``axes`` (3, 3) has the directions (x, y, z) of the columns, the rows and the depth
    of the plane; ``size`` is width, height and depth in nm, with the margin that markers need.
    """
    reach = size / 2 @ np.abs(axes)
    return _annotations_near(tree, BBox((center - reach).tolist(), (center + reach).tolist()), None)


def _annotations_near(tree: xr.DataTree, box: BBox, names: Collection[str] | None) -> dict[str, str]:
    entries = []
    for name, parts in annotation_layers(tree).items():
        for part in parts:
            is_shown = name in names if names is not None else bool(part.attrs.get(VISIBLE, True))
            inside = np.flatnonzero(annotations_in_box(part, box) & is_shown)
            if is_shown:
                _check_region(name, part, box)
            if len(inside):
                entries.append({"layer": name, **_to_json(part.isel({DIM: inside}))})
    return {ANNOTATIONS: json.dumps(entries)} if entries else {}


def _check_region(name: str, part: xr.Dataset, box: BBox) -> None:
    """Warn if a view extends beyond the part of a layer whose annotations were read."""
    corners = part.attrs.get(REGION)
    if corners is None:
        return
    lo, hi = np.array(corners[:3]), np.array(corners[3:])
    if (np.array(box.lo_nm) < lo).any() or (np.array(box.hi_nm) > hi).any():
        warn(
            f"the view extends beyond the part of the layer {name!r} whose annotations were read, "
            f"{BBox(lo.tolist(), hi.tolist())}; open others with imageryxr.open_annotations(source, bbox=…) and draw "
            "them with annotate",
            LinkWarning,
        )


def _to_json(part: xr.Dataset) -> dict[str, Any]:
    kind = annotation_type_of(part)
    entry: dict[str, Any] = {"type": kind, "positions": stack_axes(part, DIMS)[:, ::-1].tolist()}
    if kind in ("line", "box"):
        entry["ends"] = stack_axes(part, ENDS)[:, ::-1].tolist()
    if kind == "ellipsoid":
        entry["radii"] = stack_axes(part, RADII)[:, ::-1].tolist()
    column = part.attrs.get("color_column")
    if column in part:
        entry["colors"] = [str(value) for value in part[column].values.tolist()]
    entry["color"] = str(part.attrs.get("color", "yellow"))
    entry["ids"] = part["id"].values.tolist()
    return entry


def annotations_of_view(dataset: xr.Dataset) -> list[tuple[xr.Dataset, str, list[str] | None]]:
    """Return the Datasets of annotations of a view, each with its colour and, if these differ, its colours."""
    found = []
    for entry in json.loads(dataset.attrs.get(ANNOTATIONS) or "[]"):
        properties = {"color": entry["colors"]} if "colors" in entry else {}
        part = make_annotations(
            entry["type"],
            entry["positions"],
            ends=entry.get("ends"),
            radii=entry.get("radii"),
            ids=entry["ids"],
            properties=properties,
        )
        found.append((part, str(entry["color"]), entry.get("colors")))
    return found
