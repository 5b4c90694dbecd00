"""Validation of the ``info`` file of precomputed annotations.

Format: https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/annotations.md.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct
from msgspec.structs import force_setattr

from imageryxr.core.annotations import AnnotationType
from imageryxr.core.bbox import Triple
from imageryxr.core.fork import cached_property
from imageryxr.core.units import length_in_nm
from imageryxr.errors import NoVolumeError, SourceError, UnitError, format_value
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
_PropertyType = Literal["uint32", "int32", "float32", "uint16", "int16", "uint8", "int8", "rgb", "rgba"]

GEOMETRY = "@geometry"
"""Name of the field of the positions in `AnnotationInfo.record`; no property can have this name."""

# The limit of positions and sizes keeps products of a few of them finite.
_Number = Annotated[float, Meta(ge=-1e30, le=1e30)]
_Size = Annotated[float, Meta(gt=0, le=1e30)]
_Count = Annotated[float, Meta(ge=1, le=2**32)]
_Few, _Labels = Meta(max_length=100), Meta(max_length=100_000)
# The format allows ".." in keys; `AnnotationFolder.child` checks that a path stays within the server or bucket.
_KEY = re.compile(r"[^/~\x00-\x1f\x7f\\?#%|:][^\x00-\x1f\x7f\\?#%|:]{0,999}")
_PROPERTY_ID = re.compile("[a-zA-Z][a-zA-Z0-9_]{0,255}")


class Property(Struct, frozen=True, dict=True):
    """A property of every annotation."""

    name: str = msgspec.field(name="id")
    type: _PropertyType
    description: Any = ""
    enum_values: Annotated[tuple[_Number, ...], _Labels] | None = None
    enum_labels: Annotated[tuple[str, ...], _Labels] | None = None

    def __post_init__(self) -> None:
        if not _PROPERTY_ID.fullmatch(self.name):
            raise ValueError(f"its id is {format_value(self.name)}; it must be a name of letters, digits and _")
        numbers, labels = len(self.enum_values or ()), len(self.enum_labels or ())
        if numbers != labels:
            raise ValueError(f"it has {numbers} enum_values but {labels} enum_labels")

    @property
    def labels(self) -> tuple[tuple[float, str], ...]:
        """Labels of an enum: pairs of a value and its label."""
        return tuple(zip(self.enum_values or (), self.enum_labels or (), strict=True))


class Index(Struct, frozen=True, kw_only=True):
    """A folder in which annotations are found by an id, a segment or a cell of a grid."""

    key: str
    """Path of the folder, relative to that of the ``info``."""
    sharding: Any = None
    """Sharding specification, a dict; None if each id or cell has its own file."""

    def __post_init__(self) -> None:
        if not _KEY.fullmatch(self.key):
            raise ValueError(f"its key is {format_value(self.key)}; it must be the relative path of a folder")
        problem = sharding_problem(self.sharding)
        if problem:
            raise ValueError(f"it {problem}")
        if self.sharding is not None:
            force_setattr(self, "sharding", complete_sharding(self.sharding))


class Relationship(Index, frozen=True, kw_only=True):
    """A relation of annotations to segments, and the index of the annotations of each segment."""

    name: str = msgspec.field(name="id")


class SpatialLevel(Index, frozen=True, kw_only=True):
    """A grid of cells, each with the annotations in it that no coarser level contains."""

    stored_shape: tuple[_Count, _Count, _Count] = msgspec.field(name="grid_shape")
    chunk_size: tuple[_Size, _Size, _Size]
    """Size of a cell along each stored dimension, in units of `AnnotationInfo.units`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(n % 1 for n in self.stored_shape):
            raise ValueError(f"its grid_shape is {self.stored_shape}; it must hold whole numbers")

    @property
    def grid_shape(self) -> tuple[int, int, int]:
        """Number of cells along each stored dimension."""
        first, second, third = map(int, self.stored_shape)
        return first, second, third


class AnnotationInfo(Struct, frozen=True, dict=True):
    """The validated ``info`` of a collection of annotations. Sequences follow the order of the stored dimensions."""

    annotation_type: str
    dimensions: dict[str, tuple[_Number, str]]
    lower_bound: tuple[_Number, _Number, _Number]
    """Origin of the grids, in units."""
    properties: Annotated[tuple[Property, ...], _Few] = ()
    relationships: Annotated[tuple[Relationship, ...], _Few] = ()
    by_id: Index | None = None
    spatial: Annotated[tuple[SpatialLevel, ...], _Few] = ()

    def __post_init__(self) -> None:
        stored_type = self.annotation_type.upper()
        if stored_type not in TYPES:
            raise ValueError(f"annotation_type is {format_value(stored_type)}; supported are {', '.join(TYPES)}")
        if set(self.dimensions) != {"x", "y", "z"}:
            names = format_value(list(self.dimensions))
            raise ValueError(f"dimensions are {names}; annotations with the dimensions x, y and z are supported")
        for what, named in (("properties", self.properties), ("relationships", self.relationships)):
            if len({one.name for one in named}) < len(named):
                raise ValueError(f"two of its {what} have the same id")
        for name, entry, unit in zip(self.dimensions, self.dimensions.values(), self.units, strict=True):
            if not 1e-6 <= unit <= 1e12:
                raise ValueError(f"dimensions.{name} is {format_value(entry)}; its scale must be a positive length")

    @property
    def type(self) -> AnnotationType:
        """Kind of the annotations."""
        return TYPES[self.annotation_type.upper()]

    @cached_property
    def axes(self) -> tuple[int, int, int]:
        """For x, y and z, the number of the stored dimension."""
        names = list(self.dimensions)
        return names.index("x"), names.index("y"), names.index("z")

    @cached_property
    def units(self) -> Triple:
        """Nanometres per unit of each stored dimension."""
        first, second, third = (_nanometres(name, *entry) for name, entry in self.dimensions.items())
        return first, second, third

    @cached_property
    def record(self) -> np.dtype[Any]:
        """The layout of an encoded annotation: positions, properties by decreasing size, and padding to 4 bytes."""
        fields: list[Any] = [(GEOMETRY, "<f4", (3 if self.type == "point" else 6,))]
        for size in (4, 2, 1):
            for prop in self.properties:
                parts = PROPERTY_TYPES[prop.type]
                if np.dtype(parts[0]).itemsize == size:
                    fields.append((prop.name, parts[0]) if len(parts) == 1 else (prop.name, parts[0], (len(parts),)))
        length = np.dtype(fields).itemsize
        return np.dtype([*fields, ("@padding", f"V{-length % 4}")] if length % 4 else fields)


def _nanometres(name: str, scale: float, unit: str) -> float:
    try:
        # Rounded because metres as floats are inexact: 4e-09 m must be exactly 4 nm.
        return float(f"{scale * length_in_nm(unit):.12g}")
    except UnitError as error:
        raise ValueError(f"dimensions.{name}: {error}") from None


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
    bounds = info.get("lower_bound")
    if isinstance(bounds, list):  # Neuroglancer's writer states infinite bounds of a collection without annotations
        info = {**info, "lower_bound": [0.0 if n in (math.inf, -math.inf) or n != n else n for n in bounds]}
    try:
        return msgspec.convert(info, AnnotationInfo)
    except msgspec.ValidationError as error:
        raise SourceError(f"the info file of {name} does not describe annotations: {error}") from None


def parse_index(value: Any, what: str) -> Index:
    """Return the folder and the sharding of an index, or raise `SourceError`."""
    try:
        return msgspec.convert(value, Index)
    except msgspec.ValidationError as error:
        raise SourceError(f"{what}: {error}") from None
