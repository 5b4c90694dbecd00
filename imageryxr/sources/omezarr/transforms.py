"""Grids of the levels of an OME-Zarr, from coordinate transformations that treat each axis on its own."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from imageryxr.core.bbox import DIMS, tidy, to_fraction
from imageryxr.core.grid import Grid
from imageryxr.core.validate import as_list, as_number, as_object, as_text, to_number
from imageryxr.errors import SourceError, format_value, warn
from imageryxr.sources.omezarr.array_metadata import MOST_ALONG
from imageryxr.sources.omezarr.metadata import Axes

# Limits of the voxel size in nm, and of the offset in voxels. Beyond them neighbouring voxels may have equal float64
# coordinates.
_SMALLEST, _LARGEST = 1e-6, 1e15
_FARTHEST = 2**48
# Seconds per unit of time, by the UDUNITS names in NGFF.
_SECONDS = {
    "nanosecond": 1e-9, "microsecond": 1e-6, "millisecond": 1e-3, "minute": 60.0, "hour": 3600.0, "day": 86400.0
}  # fmt: skip


def grid_of_level(
    name: str, multiscale: dict[str, Any], mip: int, shape: Sequence[int], axes: Axes, assume: str
) -> Grid:
    """Return the grid of a level; ``assume`` is the point of the first voxel that a translation refers to."""
    scale, translation = _scale_and_translation(f"{name}: level {mip}", multiscale, mip, axes)
    sizes, resolution, offset = [1, 0, 0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]
    for i, dim in enumerate(DIMS):
        if dim in axes.names:
            sizes[i] = shape[axes.names.index(dim)]
            resolution[i] = float(scale[dim] * axes.factors[dim])
            place = translation[dim] / scale[dim] - (Fraction(1, 2) if assume == "center" else 0)
            _check_place(f"{name}: level {mip}", dim, sizes[i], resolution[i], place)
            offset[i] = tidy(place)
    resolution[0] = resolution[0] or resolution[2]  # a 2D image becomes one slice of voxels as thick as wide
    return Grid((sizes[0], sizes[1], sizes[2]), tuple(resolution[::-1]), tuple(offset[::-1]))  # type: ignore[arg-type]


def _check_place(what: str, dim: str, size: int, resolution: float, offset: Fraction) -> None:
    if size > MOST_ALONG:
        raise SourceError(f"{what} has {size:,} voxels along {dim}; the limit is {MOST_ALONG:,}")
    if not _SMALLEST <= resolution <= _LARGEST:
        raise SourceError(
            f"{what} has voxels of {resolution:g} nm along {dim}, which is out of range; check the unit of the axis "
            "and the scale"
        )
    if abs(offset) > _FARTHEST:
        raise SourceError(f"{what} has a translation of {float(offset):g} voxels along {dim}, which is out of range")


def _scale_and_translation(
    what: str, multiscale: dict[str, Any], mip: int, axes: Axes
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the scale and the translation along each spatial axis, in the units of the axes."""
    dataset = as_object(multiscale["datasets"][mip], what)
    own = _steps(dataset.get("coordinateTransformations") or [], what)
    if not any(step["type"] == "scale" for step in own) and axes.system is None:
        raise SourceError(
            f"{what} has no scale among its coordinateTransformations, so the voxel size is unknown; open its array "
            "with dask.array.from_zarr and add coordinates with imageryxr.Grid"
        )
    if axes.system is None:
        own += _steps(multiscale.get("coordinateTransformations") or [], what)
    elif mip == 0 and multiscale.get("coordinateTransformations"):
        # Since 0.6 these transformations map from one coordinate system to another; levels use the intrinsic one.
        warn(
            f"{what.partition(': ')[0]} is opened in its coordinate system {format_value(axes.system)}; "
            "transformations to its other coordinate systems are not applied"
        )
    scale = {dim: Fraction(1) for dim in axes.factors}
    translation = {dim: Fraction(0) for dim in axes.factors}
    for step in own:
        values = _step_values(step, what, axes)
        for dim, value in values.items():
            if step["type"] == "translation":
                translation[dim] += value
            elif value <= 0:
                raise SourceError(f"{what} has a scale of {float(value):g} along {dim}; it must be positive")
            else:
                translation[dim] *= value
                scale[dim] *= value
    return scale, translation


def other_axes_of(what: str, multiscale: dict[str, Any], axes: Axes) -> tuple[tuple[str, float, float], ...]:
    """Return the non-spatial axes as (name, scale, offset); scales of times are in seconds, offsets are indexes.

    As along spatial axes, a translation is the position of the centre of index 0.
    """
    steps = _steps(as_object(multiscale["datasets"][0], what).get("coordinateTransformations") or [], what)
    if axes.system is None:
        steps += _steps(multiscale.get("coordinateTransformations") or [], what)
    entries = multiscale.get("axes")
    out = []
    for number, axis in enumerate(axes.names):
        entry = entries[number] if isinstance(entries, list) and number < len(entries) else None
        scale, place = _SECONDS.get(str(entry.get("unit")) if isinstance(entry, dict) else "", 1.0), 0.0
        size = 1.0
        for step in steps:
            values = step.get(step["type"])
            value = values[number] if isinstance(values, list) and number < len(values) else None
            found = to_number(value)
            if found is None or not abs(found) < _LARGEST:
                continue
            size, place = (size, place + found) if step["type"] == "translation" else (size * found, place * found)
        if axis not in axes.factors and size > 0:
            out.append((axis, size * scale, place / size - 0.5))
    return tuple(out)


def _steps(given: Any, what: str, depth: int = 0) -> list[dict[str, Any]]:
    """Return scales and translations in order, including those in sequences."""
    out: list[dict[str, Any]] = []
    for entry in as_list(given, f"{what}: coordinateTransformations"):
        step = as_object(entry, f"{what}: a coordinate transformation")
        kind = step.get("type")
        if kind == "sequence" and depth < 8:
            out += _steps(step.get("transformations"), f"{what}: a sequence", depth + 1)
        elif kind in ("scale", "translation"):
            if kind not in step and "path" in step:
                raise SourceError(
                    f"{what} has a {kind} in a separate file ({format_value(step['path'])}), which is not supported"
                )
            out.append(step)
        elif kind != "identity":
            raise SourceError(
                f"{what} has a transformation of the type {format_value(kind)}; supported are scale, "
                "translation, identity and sequences of these. Open its array with dask.array.from_zarr and resample "
                "it, for example with scipy.ndimage.affine_transform"
            )
    return out


def _step_values(step: dict[str, Any], what: str, axes: Axes) -> dict[str, Fraction]:
    kind = as_text(step["type"], f"{what}: type")
    given = as_list(step.get(kind), f"{what}: {kind}", 32)
    if len(given) != len(axes.names):
        raise SourceError(
            f"{what} has a {kind} of {len(given)} numbers {format_value(given)} for its {len(axes.names)} axes "
            f"{', '.join(axes.names)[:100]}; it must have one per axis"
        )
    pairs = zip(axes.names, given, strict=True)
    return {
        dim: to_fraction(as_number(v, f"{what}: the {kind} along {dim}")) for dim, v in pairs if dim in axes.factors
    }
