"""Validation of the ``info`` file of precomputed annotations.

Format: https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/annotations.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from imageryxr.core.annotations import AnnotationType
from imageryxr.core.bbox import Triple
from imageryxr.core.units import length_in_nm
from imageryxr.errors import NoVolumeError, SourceError, UnitError, format_value
from imageryxr.sources.json_members import as_list, as_number, as_object, as_text
from imageryxr.sources.precomputed.info import complete_sharding, sharding_problem

KIND = "neuroglancer_annotations_v1"
TYPES: dict[str, AnnotationType] = {
    "POINT": "point", "LINE": "line", "AXIS_ALIGNED_BOUNDING_BOX": "box", "ELLIPSOID": "ellipsoid",
}  # fmt: skip

# The numpy type of each type of property, in the order in which an encoded annotation stores them.
PROPERTY_TYPES: dict[str, tuple[str, ...]] = {
    "uint32": ("<u4",), "int32": ("<i4",), "float32": ("<f4",), "uint16": ("<u2",), "int16": ("<i2",),
    "uint8": ("u1",), "int8": ("i1",), "rgb": ("u1", "u1", "u1"), "rgba": ("u1", "u1", "u1", "u1"),
}  # fmt: skip

GEOMETRY = "@geometry"
"""Field of the encoded positions in `AnnotationInfo.record`; no property can have this name."""


@dataclass(frozen=True)
class Property:
    """A property of every annotation."""

    name: str
    type: str
    """A key of `PROPERTY_TYPES`."""
    description: str = ""
    labels: tuple[tuple[float, str], ...] = ()
    """Labels of an enum: pairs of a value and its label."""


@dataclass(frozen=True)
class Index:
    """A folder of the annotations of each id, or of each cell of a grid."""

    key: str
    """Path of the folder, relative to that of the ``info``."""
    sharding: dict[str, Any] | None = None
    """Sharding specification; None if each id or cell has its own file."""


@dataclass(frozen=True)
class Relationship:
    """A relation of annotations to segments, and the index of the annotations of each segment."""

    name: str
    index: Index


@dataclass(frozen=True)
class SpatialLevel:
    """A grid of cells, each with the annotations in it that no coarser level contains."""

    index: Index
    grid_shape: tuple[int, int, int]
    """Number of cells along each stored dimension."""
    chunk_size: Triple
    """Size of a cell along each stored dimension, in units of `AnnotationInfo.units`."""


@dataclass(frozen=True)
class AnnotationInfo:
    """The validated ``info`` of a collection of annotations. Sequences follow the order of the stored dimensions."""

    type: AnnotationType
    axes: tuple[int, int, int]
    """For x, y and z, the number of the stored dimension."""
    units: Triple
    """Nanometres per unit of each stored dimension."""
    lower_bound: Triple
    """Origin of the grids, in units."""
    properties: tuple[Property, ...]
    relationships: tuple[Relationship, ...]
    by_id: Index | None
    spatial: tuple[SpatialLevel, ...]

    @property
    def record(self) -> np.dtype[Any]:
        """The layout of an encoded annotation: geometry, properties by falling size, and padding to 4 bytes."""
        fields: list[Any] = [(GEOMETRY, "<f4", (3 if self.type == "point" else 6,))]
        for size in (4, 2, 1):
            for prop in self.properties:
                parts = PROPERTY_TYPES[prop.type]
                if np.dtype(parts[0]).itemsize == size:
                    fields.append((prop.name, parts[0]) if len(parts) == 1 else (prop.name, parts[0], (len(parts),)))
        length = np.dtype(fields).itemsize
        return np.dtype([*fields, ("@padding", f"V{-length % 4}")] if length % 4 else fields)


def parse_info(info: dict[str, Any], name: str) -> AnnotationInfo:
    """Return the validated content of an ``info`` file.

    Raises
    ------
    NoVolumeError
        If the file describes something else.
    SourceError
        If a member is missing or invalid.
    """
    kind = info.get("@type")
    if kind != KIND:
        raise NoVolumeError(
            f"{name} holds no annotations: the @type of its info is {format_value(kind)} instead of {KIND!r}"
        )
    try:
        return _parse(info)
    except SourceError as error:
        raise SourceError(f"the info file of {name} does not describe annotations: {error}") from None


def _parse(info: dict[str, Any]) -> AnnotationInfo:
    stored_type = as_text(info.get("annotation_type"), "annotation_type").upper()
    if stored_type not in TYPES:
        raise SourceError(f"annotation_type is {format_value(stored_type)}; supported are {', '.join(TYPES)}")
    axes, units = _parse_dimensions(info.get("dimensions"))
    lower = _triple(info.get("lower_bound"), "lower_bound")
    properties = tuple(
        _parse_property(p, f"properties[{i}]") for i, p in enumerate(as_list(info.get("properties", []), "properties"))
    )
    relationships = tuple(
        Relationship(as_text(as_object(r, what).get("id"), f"{what}.id"), parse_index(r, what))
        for i, r in enumerate(as_list(info.get("relationships", []), "relationships"))
        for what in [f"relationships[{i}]"]
    )
    for what, names in (
        ("properties", [p.name for p in properties]),
        ("relationships", [r.name for r in relationships]),
    ):
        if len(set(names)) < len(names):
            raise SourceError(f"two of its {what} have the same id")
    by_id = None if info.get("by_id") is None else parse_index(info["by_id"], "by_id")
    spatial = tuple(
        _parse_level(level, f"spatial[{i}]") for i, level in enumerate(as_list(info.get("spatial", []), "spatial"))
    )
    return AnnotationInfo(TYPES[stored_type], axes, units, lower, properties, relationships, by_id, spatial)


def _parse_dimensions(value: Any) -> tuple[tuple[int, int, int], Triple]:
    dimensions = as_object(value, "dimensions")
    if set(dimensions) != {"x", "y", "z"}:
        raise SourceError(
            f"dimensions are {format_value(list(dimensions))}; annotations with the dimensions x, y and z are supported"
        )
    names = list(dimensions)
    units = []
    for name, entry in dimensions.items():
        what = f"dimensions.{name}"
        pair = as_list(entry, what)
        if len(pair) != 2:
            raise SourceError(f"{what} is {format_value(entry)}; it must be a scale and a unit, such as [4e-9, 'm']")
        scale, unit = as_number(pair[0], what), as_text(pair[1], what)
        try:
            # Rounded because metres as floats are inexact: 4e-09 m must be exactly 4 nm.
            nm = float(f"{scale * length_in_nm(unit):.12g}")
        except UnitError as error:
            raise SourceError(f"{what}: {error}") from None
        if not 1e-6 <= nm <= 1e12:
            raise SourceError(f"{what} is {format_value(entry)}; its scale must be a positive length")
        units.append(nm)
    return (names.index("x"), names.index("y"), names.index("z")), (units[0], units[1], units[2])


def _parse_property(value: Any, what: str) -> Property:
    entry = as_object(value, what)
    name = as_text(entry.get("id"), f"{what}.id")
    if not re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_]{0,255}", name):
        raise SourceError(f"{what}.id is {format_value(name)}; it must be a name of letters, digits and _")
    kind = as_text(entry.get("type"), f"{what}.type", tuple(PROPERTY_TYPES))
    values, labels = entry.get("enum_values"), entry.get("enum_labels")
    pairs: tuple[tuple[float, str], ...] = ()
    if values is not None or labels is not None:
        numbers = [as_number(v, f"{what}.enum_values") for v in as_list(values, f"{what}.enum_values", 100_000)]
        texts = [as_text(v, f"{what}.enum_labels") for v in as_list(labels, f"{what}.enum_labels", 100_000)]
        if len(numbers) != len(texts):
            raise SourceError(f"{what} has {len(numbers)} enum_values but {len(texts)} enum_labels")
        pairs = tuple(zip(numbers, texts, strict=True))
    description = entry.get("description")
    return Property(name, kind, description if isinstance(description, str) else "", pairs)


def parse_index(value: Any, what: str) -> Index:
    """Return the folder and the sharding of an index, or raise `SourceError`."""
    entry = as_object(value, what)
    key = as_text(entry.get("key"), f"{what}.key")
    # The format allows ".." in keys. The server and the bucket remain those of the info.
    if not key or re.search(r"[\x00-\x1f\x7f\\?#%|:]", key) or key.startswith(("/", "~")) or len(key) > 1000:
        raise SourceError(f"{what}.key is {format_value(key)}; it must be the relative path of a folder")
    sharding = entry.get("sharding")
    problem = sharding_problem(sharding)
    if problem:
        raise SourceError(f"{what} {problem}")
    return Index(key, None if sharding is None else complete_sharding(sharding))


def _parse_level(value: Any, what: str) -> SpatialLevel:
    entry = as_object(value, what)
    shape = _triple(entry.get("grid_shape"), f"{what}.grid_shape")
    size = _triple(entry.get("chunk_size"), f"{what}.chunk_size")
    if any(n % 1 or not 1 <= n <= 2**32 for n in shape):
        raise SourceError(f"{what}.grid_shape is {format_value(shape)}; it must hold whole numbers of at least 1")
    if min(size) <= 0:
        raise SourceError(f"{what}.chunk_size is {format_value(size)}; it must hold positive numbers")
    return SpatialLevel(parse_index(value, what), (int(shape[0]), int(shape[1]), int(shape[2])), size)


def _triple(value: Any, what: str) -> Triple:
    numbers = [float(as_number(n, what)) for n in as_list(value, what)]
    if len(numbers) != 3:
        raise SourceError(f"{what} is {format_value(value)}; it must hold three numbers")
    return numbers[0], numbers[1], numbers[2]
