"""Parsing of the OME metadata of an image: version, axes, units, datasets, channels and contrast limits.

Format: https://ngff.openmicroscopy.org (0.4, 0.5 and 0.6). This module does no I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Literal, NamedTuple

from imageryxr.core.bbox import DIMS, to_fraction
from imageryxr.core.units import has_unit, length_in_nm
from imageryxr.core.validate import as_list, as_object, as_text, to_number, to_whole
from imageryxr.errors import SourceError, UnitError, format_value, warn
from imageryxr.sources.base import pick_index

_NEWEST = (0, 6)
_OLDEST = (0, 4)


class Axes(NamedTuple):
    """The axes of an image, in the order of its arrays."""

    names: tuple[str, ...]
    """Names z, y, x, c, t, or others from the file."""
    factors: dict[str, Fraction]
    """Nanometres per unit along each spatial axis."""
    system: str | None = None
    """Coordinate system of the axes, since version 0.6."""


def first_multiscale(name: str, ome: dict[str, Any]) -> dict[str, Any]:
    """Return the first multiscale of a group's OME metadata."""
    entries = as_list(ome.get("multiscales"), f"{name}: multiscales", 10_000)
    return as_object(entries[0], f"{name}: the first of the multiscales")


def check_version(name: str, ome: dict[str, Any], multiscale: dict[str, Any], advice: str) -> None:
    """Raise `SourceError` for a version without voxel sizes, or a version that is too new.

    `advice` is how to open an array of the image.
    """
    declared = ome.get("version", multiscale.get("version"))
    version = _number(declared)
    if version is not None and version > _NEWEST:
        raise SourceError(
            f"{name} is OME-Zarr of version {format_value(declared)}; supported are versions 0.4 to 0.6: convert the "
            "image, or look for a newer imageryxr"
        )
    has_axes = bool(multiscale.get("axes") or multiscale.get("coordinateSystems"))
    datasets = multiscale.get("datasets")
    entries = [d for d in datasets if isinstance(d, dict)] if isinstance(datasets, list) else []
    is_placed = any(entry.get("coordinateTransformations") for entry in entries)
    if has_axes and (is_placed or version is None or version >= _OLDEST):
        return
    if not has_axes and version is not None and version >= _OLDEST:
        raise SourceError(
            f"{name} states no axes, which version {format_value(declared)} of OME-Zarr requires; {advice}"
        )
    which = "an OME-Zarr without a version" if version is None else f"OME-Zarr of version {format_value(declared)}"
    raise SourceError(
        f"{name} is {which}, without {'the size of a voxel' if has_axes else 'axes and the size of a voxel'}, which "
        f"version 0.4 and later state. Rewrite it as 0.4 or 0.5, or {advice}"
    )


def _number(version: Any) -> tuple[int, int] | None:
    parts = str(version if isinstance(version, str | float | int) else "").split(".")
    try:
        return int(parts[0]), int("".join(c for c in parts[1][:4] if c.isascii() and c.isdigit()))
    except (ValueError, IndexError):
        return None


def axes_of(name: str, multiscale: dict[str, Any]) -> Axes:
    """Return the axes of an image in stored order, with the nanometres per unit of spatial axes."""
    entries, system = _axis_entries(name, multiscale)
    names = [_axis_name(entry) for entry in entries]
    space = [i for i, axis in enumerate(names) if axis in DIMS or axis == "space"]
    if "space" in names:  # NGFF requires the order z, y, x for spatial axes of any name
        for i, dim in zip(reversed(space), reversed(DIMS), strict=False):
            names[i] = dim
    if not {"y", "x"} <= set(names) or len(set(names)) < len(names) or "space" in names:
        given = ", ".join(str(entry["name"]) for entry in entries) or "none"
        raise SourceError(f"{name} has the axes {given[:200]}; supported are y and x, and optionally z, c and t")
    units = {names[i]: entries[i].get("unit") or entries[i].get("units") for i in space}
    return Axes(tuple(names), _factors(name, units), system)


def _axis_entries(name: str, multiscale: dict[str, Any]) -> tuple[list[dict[str, Any]], str | None]:
    system, given = None, multiscale.get("axes")
    if multiscale.get("coordinateSystems"):
        found = _coordinate_system(name, multiscale)
        system, given = found["name"], found.get("axes")
    entries = as_list(given, f"{name}: axes", 32)
    named = [{"name": a} if isinstance(a, str) else as_object(a, f"{name}: an axis") for a in entries]
    for entry in named:
        as_text(entry.get("name"), f"{name}: the name of an axis")
    return named, system


def _coordinate_system(name: str, multiscale: dict[str, Any]) -> dict[str, Any]:
    """Return the coordinate system of the datasets, which the specification calls intrinsic."""
    given = as_list(multiscale["coordinateSystems"], f"{name}: coordinateSystems")
    systems = {}
    for entry in given:
        system = as_object(entry, f"{name}: a coordinate system")
        systems[as_text(system.get("name"), f"{name}: the name of a coordinate system")] = system
    outputs = set()
    for dataset in as_list(multiscale.get("datasets"), f"{name}: datasets"):
        steps = dataset.get("coordinateTransformations") if isinstance(dataset, dict) else None
        outputs |= {_system_name(s["output"]) for s in steps or [] if isinstance(s, dict) and s.get("output")}
    chosen = outputs.pop() if outputs else list(systems)[-1]
    if outputs or chosen not in systems:
        raise SourceError(
            f"{name}: its levels are in the coordinate system {format_value(chosen)}"
            f"{' and others' if outputs else ''}; all must be in one of {', '.join(map(format_value, systems))}"
        )
    return systems[chosen]


def _system_name(value: Any) -> str:
    return str(value.get("name") if isinstance(value, dict) else value)  # in drafts of 0.6 the value is the name


def _factors(name: str, units: dict[str, Any]) -> dict[str, Fraction]:
    """Return nanometres per unit for each spatial axis; an axis without a unit uses that of the other axes."""
    bare = [dim for dim, unit in units.items() if not has_unit(unit)]
    factors = {dim: _length(name, dim, unit) for dim, unit in units.items() if dim not in bare}
    stated = sorted({str(units[dim]) for dim in factors})
    if bare and len(set(factors.values())) > 1:
        raise SourceError(
            f"{name} states no unit for {', '.join(bare)}, and the units of its other axes differ: "
            f"{', '.join(map(format_value, stated))}; add the unit to its metadata"
        )
    assumed = stated[0] if stated else "nanometer"
    factors |= {dim: to_fraction(length_in_nm(assumed)) for dim in bare}
    if bare:
        assumption = f"{assumed} is assumed, as for its other axes" if stated else "nanometres are assumed"
        warn(f"{name} states no unit for {', '.join(bare)}; {assumption}")
    return factors


def _length(name: str, dim: str, unit: Any) -> Fraction:
    try:
        return to_fraction(length_in_nm(unit))
    except UnitError as error:
        raise SourceError(
            f"{name} is measured in {format_value(unit)} along {dim}: {error}. If the size of a voxel is known, "
            "correct the unit and the scale in the metadata"
        ) from None


def _axis_name(entry: dict[str, Any]) -> str:
    given, kind = str(entry["name"]), entry.get("type")
    kind = kind.lower() if isinstance(kind, str) else None
    if given.lower() in DIMS and kind in (None, "", "space", "array"):
        return given.lower()
    if kind in ("space", "channel", "time"):
        return {"space": "space", "channel": "c", "time": "t"}[kind]
    return given.lower() if given.lower() in ("c", "t") else given


def picks_of(
    name: str, axes: tuple[str, ...], shape: Sequence[int], requested: dict[str, int | None]
) -> tuple[tuple[str, int], ...]:
    """Return the index to read along each non-spatial axis, from the requested indexes of ``c`` and ``t``."""
    kinds: dict[str, Literal["channel", "time"]] = {"c": "channel", "t": "time"}
    chosen = {
        axis: pick_index(name, what, shape[axes.index(axis)] if axis in axes else 1, requested[axis])
        for axis, what in kinds.items()
    }
    other = [a for a, n in zip(axes, shape, strict=True) if a not in (*DIMS, "c", "t") and n > 1]
    if other:
        raise SourceError(
            f"{name} has several voxels along the axis {format_value(other[0])}, which is not space, channel or time"
        )
    return tuple((axis, chosen.get(axis, 0)) for axis in axes if axis not in DIMS)


def dataset_paths(name: str, multiscale: dict[str, Any]) -> list[str]:
    """Return the normalized path of each level in the group."""
    paths = []
    for number, entry in enumerate(as_list(multiscale.get("datasets"), f"{name}: datasets")):
        given = as_object(entry, f"{name}: dataset {number}").get("path")
        if to_whole(given) is not None:
            given = format_value(given)
        # zarr-python reads a backslash as a slash: programs on Windows write it
        parts = as_text(given, f"{name}: the path of dataset {number}").replace("\\", "/").split("/")
        if ".." in parts:
            raise SourceError(f"{name}: the path {format_value(given)} of dataset {number} leads out of the group")
        paths.append("/".join(part for part in parts if part not in ("", ".")))
    if not paths:
        raise SourceError(f"{name}: the list of datasets is empty, so there is no level to open")
    return paths


def window_of(ome: dict[str, Any], channel: int) -> tuple[float, float] | None:
    """Return the contrast limits of a channel in the metadata, or None if there are no valid ones."""
    found: Any = ome
    for key in ("omero", "channels", channel, "window"):
        if isinstance(found, dict):
            found = found.get(key)
        else:
            found = found[key] if isinstance(found, list) and isinstance(key, int) and key < len(found) else None
    limits = [found.get("start"), found.get("end")] if isinstance(found, dict) else []
    numbers = [float(n) for limit in limits if (n := to_number(limit, text=True)) is not None]
    return (numbers[0], numbers[1]) if len(numbers) == 2 and numbers[0] < numbers[1] else None
