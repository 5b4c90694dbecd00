"""What OME metadata say of an image: axes, units, where each level lies, how its arrays are stored.

The format: https://ngff.openmicroscopy.org (0.4 and 0.5). JSON in, values out; nothing is read here.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import numpy as np

from imageryxr.boxes import DIMS, exact, tidy
from imageryxr.errors import ImageryWarning, SourceError
from imageryxr.grid import Grid
from imageryxr.sources.base import pick_index

# Nanometres per unit, by the names that NGFF takes from UDUNITS, and the abbreviations found in the wild.
UNITS: dict[str, Fraction | int] = {
    "picometer": Fraction(1, 1000), "angstrom": Fraction(1, 10), "nanometer": 1, "micrometer": 10**3, "micron": 10**3,
    "millimeter": 10**6, "centimeter": 10**7, "decimeter": 10**8, "meter": 10**9, "kilometer": 10**12,
    "pm": Fraction(1, 1000), "nm": 1, "um": 10**3, "µm": 10**3, "μm": 10**3, "mm": 10**6, "cm": 10**7, "m": 10**9,
}  # fmt: skip


def no_image(name: str, ome: dict[str, Any], is_array: bool) -> str:
    """Return what a group or array without an image is, and what to give in its place: goes on from its name."""
    if is_array:
        return (
            "is a bare Zarr array, which says nothing of its place; give the group above it if that has OME metadata "
            f"({name.rpartition('/')[0]}), or open it with xarray.open_zarr or zarr.open_array and place it: "
            "xr.DataArray(array, dims=('z', 'y', 'x'), coords=imageryxr.Grid(shape, resolution, voxel_offset).coords())"
        )
    if "plate" in ome:
        wells = [w.get("path") for w in ome["plate"].get("wells", [])][:1]
        return f"is a plate of many images; give one of them, such as {name}/{wells[0] if wells else 'A/1'}/0"
    if isinstance(ome.get("labels"), list):
        labels = ", ".join(f"{name}/{label}" for label in ome["labels"])
        return f"holds the list of an image's labels; give one of them: {labels}"
    if "well" in ome or "bioformats2raw.layout" in ome:
        return f"holds several images; give one of them, such as {name}/0"
    return (
        "is a Zarr group without OME metadata (no 'multiscales'); give the group of an image, such as "
        f"{name}/0, or open its arrays with xarray.open_zarr and place them with imageryxr.Grid"
    )


class Layout(NamedTuple):
    """The shapes of an array, its chunks and its stored objects, its dtype and its encoding."""

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    objects: tuple[int, ...]
    dtype: str
    encoding: str


def layout_of(name: str, path: str, document: dict[str, Any], count: int) -> Layout:
    """Return how an array is laid out, by its ``zarr.json`` or ``.zarray``; `count` is that of the axes named."""
    shape = tuple(int(n) for n in document["shape"])
    if document["zarr_format"] == 2:
        chunks = objects = tuple(document["chunks"])
        kind, codecs = document["dtype"], [document.get("compressor"), *(document.get("filters") or [])]
    else:
        chunks = objects = tuple(document["chunk_grid"]["configuration"]["chunk_shape"])
        kind, codecs = document["data_type"], document["codecs"]
        if codecs and codecs[0]["name"] == "sharding_indexed":
            inner = codecs[0]["configuration"]
            chunks, codecs = tuple(inner["chunk_shape"]), inner["codecs"]
    if len(shape) != count or len(chunks) != count:
        raise SourceError(f"{name}: the array {path!r} has {len(shape)} axes, but the metadata name {count}")
    dtype = np.dtype(kind) if isinstance(kind, str) else np.dtype(object)
    if dtype.kind not in "biuf":
        raise SourceError(f"{name} holds {kind!r}; voxels are integers, floats or booleans")
    dtype = np.dtype("uint8") if dtype.kind == "b" else dtype.newbyteorder("=")
    names = [str(c.get("name") or c.get("id")) for c in codecs if c]
    encoding = ", ".join(n for n in names if n not in ("bytes", "transpose")) or "raw"
    return Layout(shape, tuple(chunks), tuple(objects), dtype.name, encoding)


def axes_of(name: str, multiscale: dict[str, Any]) -> tuple[tuple[str, ...], dict[str, Fraction]]:
    """Return the names of the axes as stored (z, y, x, c, t), and the nanometres of a unit along those of space."""
    entries = [{"name": a} if isinstance(a, str) else a for a in multiscale.get("axes", [])]
    names = [_axis_name(entry) for entry in entries]
    space = [i for i, axis in enumerate(names) if axis in DIMS or axis == "space"]
    if "space" in names:  # names of their own: NGFF orders them z, y, x
        for i, dim in zip(reversed(space), reversed(DIMS), strict=False):
            names[i] = dim
    if not {"y", "x"} <= set(names) or len(set(names)) < len(names) or "space" in names:
        shown = [str(entry.get("name")) for entry in entries]
        raise SourceError(f"{name} has the axes {shown}; understood are y and x, and with them z, c and t")
    units = {names[i]: entries[i].get("unit") for i in space}
    bare = [dim for dim, unit in units.items() if unit is None]
    if bare:
        message = f"{name} does not say in which unit {', '.join(bare)} are measured; they are taken as nanometres"
        warnings.warn(message, ImageryWarning, stacklevel=2)
    unknown = [unit for unit in units.values() if unit is not None and unit not in UNITS]
    if unknown:
        raise SourceError(f"{name} is measured in {unknown[0]!r}; understood are {', '.join(UNITS)}")
    return tuple(names), {dim: Fraction(UNITS[unit or "nanometer"]) for dim, unit in units.items()}


def _axis_name(entry: dict[str, Any]) -> str:
    given, kind = str(entry["name"]), entry.get("type")
    if given.lower() in DIMS and kind in (None, "space"):
        return given.lower()
    if kind in ("space", "channel", "time"):
        return {"space": "space", "channel": "c", "time": "t"}[str(kind)]
    return given


def picks_of(
    name: str, axes: tuple[str, ...], shape: Sequence[int], asked: dict[str, int | None]
) -> tuple[tuple[str, int], ...]:
    """Return the index to read along each axis that is not space, from what was asked for by ``c`` and ``t``."""
    kinds: dict[str, Literal["channel", "time"]] = {"c": "channel", "t": "time"}
    chosen = {
        axis: pick_index(name, what, shape[axes.index(axis)] if axis in axes else 1, asked[axis])
        for axis, what in kinds.items()
    }
    other = [a for a, n in zip(axes, shape, strict=True) if a not in (*DIMS, "c", "t") and n > 1]
    if other:
        raise SourceError(f"{name} has several voxels along {other[0]!r}, which is neither space, channel nor time")
    return tuple((axis, chosen.get(axis, 0)) for axis in axes if axis not in DIMS)


def grid_of_level(
    name: str,
    multiscale: dict[str, Any],
    mip: int,
    shape: Sequence[int],
    axes: tuple[str, ...],
    factors: dict[str, Fraction],
    assume: str,
) -> Grid:
    """Return where a level lies, its axes in any order; ``assume`` says what a translation is the place of."""
    scale, translation = _placed(name, multiscale, mip, len(axes))
    sizes, resolution, offset = [1, 0, 0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]
    for i, dim in enumerate(DIMS):
        if dim in axes:
            k = axes.index(dim)
            if scale[k] <= 0:
                raise SourceError(
                    f"{name}: level {mip} has a scale of {float(scale[k])} along {dim}; it must be positive"
                )
            sizes[i] = shape[k]
            resolution[i] = float(scale[k] * factors[dim])
            offset[i] = tidy(translation[k] / scale[k] - (Fraction(1, 2) if assume == "center" else 0))
    resolution[0] = resolution[0] or resolution[2]  # a picture's one slice, from 0, is as thick as a voxel is wide
    return Grid((sizes[0], sizes[1], sizes[2]), tuple(resolution[::-1]), tuple(offset[::-1]))  # type: ignore[arg-type]


def _placed(name: str, multiscale: dict[str, Any], mip: int, count: int) -> tuple[list[Fraction], list[Fraction]]:
    scale, translation = [Fraction(1)] * count, [Fraction(0)] * count
    own = multiscale["datasets"][mip].get("coordinateTransformations") or []
    if not any(step.get("type") == "scale" for step in own):
        raise SourceError(
            f"{name}: level {mip} has no scale among its coordinateTransformations, so the size of a voxel is not "
            "known; open its array with xarray.open_zarr and place it with imageryxr.Grid"
        )
    for step in [*own, *(multiscale.get("coordinateTransformations") or [])]:
        kind = step.get("type")
        if kind == "identity":
            continue
        if kind not in ("scale", "translation") or kind not in step:
            raise SourceError(f"{name}: level {mip} is placed by {step}; understood are scales and translations")
        values = [exact(v) for v in step[kind]]
        translation = [(b * v if kind == "scale" else b + v) for b, v in zip(translation, values, strict=True)]
        scale = [a * v for a, v in zip(scale, values, strict=True)] if kind == "scale" else scale
    return scale, translation


def window_of(ome: dict[str, Any], channel: int) -> tuple[float, float] | None:
    """Return the contrast limits that the file gives for a channel, or None."""
    channels = (ome.get("omero") or {}).get("channels") or []
    window = (channels[channel].get("window") or {}) if channel < len(channels) else {}
    if "start" not in window or "end" not in window or window["start"] == window["end"]:
        return None
    return (float(window["start"]), float(window["end"]))
