"""Read and write the annotations that a Neuroglancer link contains as JSON.

Format: https://github.com/google/neuroglancer/blob/master/src/annotation/index.ts.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from imageryxr.core.annotations import (
    DIM,
    ENDS,
    RADII,
    AnnotationType,
    annotation_type_of,
    make_annotations,
    stack_axes,
)
from imageryxr.core.bbox import DIMS, Triple
from imageryxr.core.display import LAYER, LINK_LAYER
from imageryxr.errors import LayerError, LinkError, format_value
from imageryxr.neuroglancer.dimensions import AXES, spatial_scales
from imageryxr.neuroglancer.validate import as_list, as_mapping, as_numbers, as_whole
from imageryxr.ops.open_annotations import assign_tables

NUMBER = "link_number"
"""Name of the variable with the index of each annotation in the list of its layer."""
_MOST = 1_000_000
_TOP_ID = 2**64 - 1
_KINDS: dict[str, tuple[AnnotationType, tuple[str, ...]]] = {
    "point": ("point", ("point",)),
    "line": ("line", ("pointA", "pointB")),
    "axis_aligned_bounding_box": ("box", ("pointA", "pointB")),
    "ellipsoid": ("ellipsoid", ("center", "radii")),
}


#: Annotations of CAVE's older viewer that only group other annotations of the list.
_GROUPS = ("collection", "line_strip", "spoke")


def is_local(url: str) -> bool:
    """Return whether the annotations of a source are in the link itself."""
    return url.rstrip("/") in ("local://annotations", "local://annotation")


def update_spec(spec: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Return an annotation layer of an older viewer in the present form; other layers unchanged.

    Older layers have local annotations without a source, in units of the layer's ``voxelSize`` in nm, and a list
    ``points``. Raises `LinkError` if an entry is invalid.
    """
    if spec.get("source") is not None:
        return spec
    entries = list(as_list(spec.get("annotations") or [], f"{where}.annotations", None))
    points = as_list(spec.get("points") or [], f"{where}.points", None)
    entries += [{"type": "point", "id": str(number), "point": point} for number, point in enumerate(points)]
    new: dict[str, Any] = {k: v for k, v in spec.items() if k not in ("points", "voxelSize")}
    new |= {"type": "annotation", "source": {"url": "local://annotations"}, "annotations": entries}
    if spec.get("voxelSize") is not None:
        if spec.get("transform") is not None:
            raise LinkError("its voxelSize and transform scale local annotations, which is not supported")
        sizes = as_numbers(spec["voxelSize"], f"{where}.voxelSize", 3)
        dims = {axis: [float(f"{size * 1e-9:.12g}"), "m"] for axis, size in zip(AXES, sizes, strict=True)}
        new["source"]["transform"] = {"outputDimensions": dims}
    return new


def read_local_annotations(
    spec: Mapping[str, Any], dims: Mapping[str, tuple[float, str]], where: str
) -> list[xr.Dataset]:
    """Return the annotations of a layer, one Dataset for each type; polylines become lines.

    `dims` are the scale and unit of each coordinate, by name, in the order of the coordinates. `where` names the layer
    in errors. Raises `LinkError` if an annotation is invalid, or if there are none.
    """
    entries = as_list(spec.get("annotations") or [], f"{where}.annotations", None)
    if not entries:
        raise LinkError("it has no annotations")
    if len(entries) > _MOST:
        raise LinkError(f"{where} has {len(entries):,} annotations; the maximum is {_MOST:,}")
    scales, names = np.array(spatial_scales(dims)), list(dims)
    columns = [names.index(axis) for axis in AXES]
    grouped: dict[AnnotationType, list[tuple[int, Any, Any]]] = defaultdict(list)
    for number, value in enumerate(entries):
        what = f"{where}.annotations[{number}]"
        entry = as_mapping(value, what)
        for kind, places in _geometry(entry, what):
            rows = [np.asarray(as_numbers(place, what, len(names)), np.float64)[columns] * scales for place in places]
            if kind == "ellipsoid" and (rows[1] < 0).any():
                raise LinkError(f"{what} has negative radii")
            grouped[kind].append((number, rows[0], rows[-1]))
    if not grouped:
        raise LinkError("it has no annotations with a position")
    return [_make_dataset(kind, rows, entries, spec, where) for kind, rows in grouped.items()]


def _geometry(entry: Mapping[str, Any], what: str) -> list[tuple[AnnotationType, list[Any]]]:
    """Return the type and the coordinates of the parts of an annotation."""
    stored = entry.get("type", "point")
    if stored in _GROUPS:
        return []
    if stored == "polyline":
        points = as_list(entry.get("points"), f"{what}.points", None)
        return [("line", [a, b]) for a, b in pairwise(points)]
    if not isinstance(stored, str) or stored.lower() not in _KINDS:
        raise LinkError(
            f"{what} has the unknown type {format_value(stored)}; types are {', '.join(_KINDS)} and polyline"
        )
    kind, keys = _KINDS[stored.lower()]
    return [(kind, [entry.get(key) for key in keys])]


def _make_dataset(
    kind: AnnotationType, rows: list[tuple[int, Any, Any]], entries: Sequence[Any], spec: Mapping[str, Any], where: str
) -> xr.Dataset:
    numbers = [number for number, _, _ in rows]
    chosen = [entries[number] for number in numbers]
    second = np.array([row[2] for row in rows])
    properties: dict[str, Any] = {
        NUMBER: np.array(numbers, np.int64),
        "link_id": [str(e.get("id", "")) for e in chosen],
    }
    if any(e.get("description") for e in chosen):
        properties["description"] = [str(e.get("description") or "") for e in chosen]
    properties |= _read_properties(chosen, spec, where)
    relations = _read_segments(chosen, spec, where)
    narrow = {name: table[:, 0] for name, table in relations.items() if table.shape[1] == 1}
    found = make_annotations(
        kind,
        np.array([row[1] for row in rows]),
        ends=second if kind in ("line", "box") else None,
        radii=second if kind == "ellipsoid" else None,
        properties=properties | narrow,
        attrs={"source": "local://annotations"},
    )
    return assign_tables(found, {name: table for name, table in relations.items() if name not in narrow})


def _read_properties(chosen: Sequence[Mapping[str, Any]], spec: Mapping[str, Any], where: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for index, value in enumerate(
        as_list(spec.get("annotationProperties") or [], f"{where}.annotationProperties", None)
    ):
        prop = as_mapping(value, f"{where}.annotationProperties[{index}]")
        name = prop.get("id")
        if not isinstance(name, str) or not name:
            raise LinkError(f"{where}.annotationProperties[{index}] has no id")
        stored = [e.get("props") for e in chosen]
        default = prop.get("default", "#000000" if str(prop.get("type")).startswith("rgb") else 0)
        values = [p[index] if isinstance(p, list) and len(p) > index else default for p in stored]
        labels, keys = prop.get("enum_labels"), prop.get("enum_values")
        if isinstance(labels, list) and isinstance(keys, list):
            names = {json.dumps(k): str(text) for k, text in zip(keys, labels, strict=False)}
            values = [names.get(json.dumps(v), str(v)) for v in values]
        found[name] = values
    return found


def _read_segments(
    chosen: Sequence[Mapping[str, Any]], spec: Mapping[str, Any], where: str
) -> dict[str, npt.NDArray[np.uint64]]:
    """Return the related segments of each annotation, padded with 0, by relationship."""
    names = spec.get("annotationRelationships")
    names = [n for n in names if isinstance(n, str)] if isinstance(names, list) else ["segments"]
    lists: list[list[list[int]]] = []
    for entry in chosen:
        stored = entry.get("segments")
        groups = stored if isinstance(stored, list) else []
        groups = groups if any(isinstance(group, list) for group in groups) else [groups]
        groups = [group if isinstance(group, list) else [] for group in groups]
        lists.append([[as_whole(n, f"{where}.segments", _TOP_ID) for n in group] for group in groups])
    if not any(group for row in lists for group in row):
        return {}
    found = {}
    for index, name in enumerate(names):
        related = [row[index] if index < len(row) else [] for row in lists]
        table = np.zeros((len(related), max([1, *map(len, related)])), np.uint64)
        for row, segments in zip(table, related, strict=True):
            row[: len(segments)] = segments
        found[name] = table
    return found


def annotation_specs(tree: xr.DataTree, unit: Triple) -> dict[str, dict[str, Any]]:
    """Return the annotation layers of a tree as entries of a state, by name.

    Layers of a link are written unchanged, except for local annotations that were removed. Other Datasets of
    annotations become layers of local annotations.
    """
    specs: dict[str, dict[str, Any]] = {}
    kept: dict[str, set[int]] = defaultdict(set)
    for node in tree.subtree:
        if DIM not in node.dims:
            continue
        dataset = node.to_dataset()
        name = str(dataset.attrs.get(LAYER, node.name))
        text = dataset.attrs.get(LINK_LAYER)
        if isinstance(text, str):
            specs[name] = json.loads(text)
            if NUMBER in dataset:
                kept[name] |= set(dataset[NUMBER].values.tolist())
            continue
        try:
            specs[name] = _local_layer(name, dataset, unit)
        except LayerError:
            continue  # a Dataset with a dim of this name that has no annotations
    for name, numbers in kept.items():
        entries = specs[name].get("annotations") or []
        specs[name]["annotations"] = [entry for number, entry in enumerate(entries) if number in numbers]
    return specs


def _local_layer(name: str, dataset: xr.Dataset, unit: Triple) -> dict[str, Any]:
    kind = annotation_type_of(dataset)
    stored, keys = next((n, k[1]) for n, k in _KINDS.items() if k[0] == kind)
    names = [DIMS, *([ENDS] if kind in ("line", "box") else [RADII] if kind == "ellipsoid" else [])]
    scale = np.array(unit)
    parts = [(stack_axes(dataset, axes)[:, ::-1] / scale).tolist() for axes in names]
    numbers = dataset["id"].values.tolist() if "id" in dataset.coords else range(len(parts[0]))
    entries = [
        {"type": stored, "id": str(number), **dict(zip(keys, places, strict=True))}
        for number, *places in zip(numbers, *parts, strict=True)
    ]
    sizes = {axis: [float(f"{u * 1e-9:.12g}"), "m"] for axis, u in zip(AXES, unit, strict=True)}
    source = {"url": "local://annotations", "transform": {"outputDimensions": sizes}}
    color = dataset.attrs.get("color")
    more = {"annotationColor": color} if isinstance(color, str) else {}
    return {"type": "annotation", "name": name, "source": source, **more, "annotations": entries}
