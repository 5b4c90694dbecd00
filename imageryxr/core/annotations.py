"""The Dataset of annotations: its form, its constructor, and which annotations meet a box.

A Dataset of annotations has the dim ``annotation`` and

- variables ``z``, ``y``, ``x``: float64, nm; the position of a point, the first end of a line, one corner of a box, or
  the centre of an ellipsoid,
- variables ``z_end``, ``y_end``, ``x_end`` of a line or box; ``z_radius``, ``y_radius``, ``x_radius`` of an ellipsoid,
- a coordinate ``id``: uint64,
- one variable per property, with dims ``(annotation,)`` or, for positions, ``(annotation, axis)``,
- attrs ``annotation_type`` ("point", "line", "box", "ellipsoid") and, where known, ``source`` and ``timestamp``.

Every function that reads annotations builds its result with `make_annotations`, so that `imageryxr.annotate` can draw
it, and netCDF and Zarr files can store it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import xarray as xr

from imageryxr.core.annotation_values import as_triples, is_id_name, list_categories, property_values
from imageryxr.core.array_labels import plain_attrs
from imageryxr.core.bbox import DIMS, SNAP, BBox
from imageryxr.core.validate import check_choice
from imageryxr.errors import BoxError, LayerError, OptionError

Floats = npt.NDArray[np.float64]
AnnotationType = Literal["point", "line", "box", "ellipsoid"]
DIM = "annotation"
AXIS = "axis"
#: Attr of a column: JSON of all its categories, so that a part of a table has the colours of the whole.
CATEGORIES = "categories"
ENDS = ("z_end", "y_end", "x_end")
RADII = ("z_radius", "y_radius", "x_radius")

_RESERVED = {DIM, AXIS, "id", *DIMS, *ENDS, *RADII}


def make_annotations(
    annotation_type: AnnotationType,
    positions: npt.ArrayLike,
    *,
    ends: npt.ArrayLike | None = None,
    radii: npt.ArrayLike | None = None,
    ids: Any = None,
    properties: Mapping[Any, Any] | None = None,
    attrs: Mapping[str, Any] | None = None,
    strict: bool = False,
) -> xr.Dataset:
    """Return the Dataset of annotations.

    Parameters
    ----------
    annotation_type : {"point", "line", "box", "ellipsoid"}
        The type of all annotations.
    positions : array_like of shape (n, 3)
        Positions (x, y, z) in nm. For boxes, one corner of each.
    ends : array_like of shape (n, 3), optional
        For lines the second ends, for boxes the opposite corners, (x, y, z) in nm.
    radii : array_like of shape (n, 3), optional
        For ellipsoids, the radii along (x, y, z) in nm.
    ids : array_like of shape (n,), optional
        Ids of the annotations, converted by `property_values`. Default: 0 to n - 1.
    properties : mapping name → n values, optional
        Further values of each annotation, converted by `property_values`; or an array (n, 3) of positions. A property
        whose name is taken, such as ``x``, is renamed to ``x_column``.
    attrs : mapping, optional
        Further attrs, such as ``source`` and ``timestamp``. None values are omitted.
    strict : bool, default False
        Raise for numbers that cannot be ids in columns of ids; see `property_values`.

    Returns
    -------
    Dataset
        As the docstring of this module describes.

    Raises
    ------
    BoxError
        If positions, ends or radii are not finite numbers of shape (n, 3), or a radius is negative.
    OptionError
        If the type is unknown, lacks its ends or radii, or a property has another length.
    """
    check_choice("annotation_type", annotation_type, get_args(AnnotationType))
    places = _check_triples(positions, "positions")
    count = len(places)
    _refuse_unused(annotation_type, ends, radii)
    needs = {"line": ("ends", ends), "box": ("ends", ends), "ellipsoid": ("radii", radii)}.get(annotation_type)
    if needs is not None and needs[1] is None:
        raise OptionError(f"annotations of type {annotation_type!r} need {needs[0]}, (x, y, z) in nm for each")
    variables: dict[str, Any] = _axis_variables(DIMS, places)
    if annotation_type in ("line", "box"):
        variables |= _axis_variables(ENDS, _check_triples(ends, "ends", count))
    if annotation_type == "ellipsoid":
        variables |= _axis_variables(RADII, _check_radii(_check_triples(radii, "radii", count)))
    named: dict[str, Any] = {}
    for key, values in (properties or {}).items():
        name = str(key)
        while name in _RESERVED or name in named:
            name += "_column"
        named[name] = _property_variable(name, values, count, strict)
    numbers = np.arange(count, dtype=np.uint64) if ids is None else property_values(ids, "id", strict=strict)
    coords: dict[str, Any] = {"id": (DIM, _check_length(numbers, "id", count))}
    if any(AXIS in variable[0] for variable in named.values()):
        coords[AXIS] = list("xyz")
    kept = {name: value for name, value in (attrs or {}).items() if value is not None}
    return xr.Dataset(variables | named, coords, plain_attrs({"annotation_type": annotation_type, **kept}))


def annotation_type_of(annotations: Any) -> AnnotationType:
    """Return the type of a Dataset of annotations; raise `LayerError` for other objects."""
    if not isinstance(annotations, xr.Dataset):
        raise LayerError(
            f"a {type(annotations).__name__} is not a Dataset of annotations; convert a table with "
            "imageryxr.as_annotations(table, position=…, resolution=…)"
        )
    needs: tuple[str, ...] = DIMS
    stated = annotations.attrs.get("annotation_type", "point")
    if stated in ("line", "box"):
        needs += ENDS
    if stated == "ellipsoid":
        needs += RADII
    absent = [name for name in needs if name not in annotations or annotations[name].dims != (DIM,)]
    if absent or stated not in get_args(AnnotationType):
        raise LayerError(
            f"the Dataset with the variables {list(map(str, annotations.data_vars))} is not a Dataset of annotations: "
            + (f"it lacks {absent[0]!r} along {DIM!r}" if absent else f"its annotation_type is {stated!r}")
            + "; convert a table with imageryxr.as_annotations(table, position=…, resolution=…)"
        )
    found: AnnotationType = stated
    return found


def stack_axes(annotations: xr.Dataset, names: tuple[str, str, str], rows: Any = None) -> npt.NDArray[np.float64]:
    """Return three variables of a Dataset as float64 (n, 3), in the order of the names; with ``rows``, some rows."""
    columns = [annotations.variables[name].values for name in names]
    return np.stack([np.asarray(c if rows is None else c[rows], np.float64) for c in columns], axis=1)


def annotation_centers(annotations: xr.Dataset) -> Floats:
    """Return the positions (x, y, z) of annotations in nm, of lines and boxes their middles."""
    points = stack_axes(annotations, (DIMS[2], DIMS[1], DIMS[0]))
    if annotations.attrs.get("annotation_type") in ("line", "box"):
        return (points + stack_axes(annotations, (ENDS[2], ENDS[1], ENDS[0]))) / 2
    return points


def _axis_variables(names: tuple[str, ...], triples: npt.NDArray[np.float64]) -> dict[str, Any]:
    return {name: (DIM, np.ascontiguousarray(triples[:, 2 - axis]), {"units": "nm"}) for axis, name in enumerate(names)}


def _property_variable(name: str, values: Any, count: int, strict: bool) -> tuple[Any, ...]:
    attrs: dict[str, Any] = {}
    if isinstance(values, xr.DataArray | xr.Variable) and values.ndim == 1:
        values, attrs = values.values, dict(values.attrs)
    else:
        triples = None if is_id_name(name) else as_triples(values)
        # Triples of integers beyond 2**53 become text like other lists, because floats would lose digits.
        if triples is not None and not (np.abs(triples) >= 2**53).any():
            return ((DIM, AXIS), _check_length(triples, name, count))
    plain = _check_length(property_values(values, name, strict=strict), name, count)
    categories = [] if is_id_name(name) else list_categories(values, plain)
    # Text, because netCDF does not distinguish a list of one from its item.
    return (DIM, plain, ({CATEGORIES: json.dumps(categories)} if categories else {}) | attrs)


def _refuse_unused(annotation_type: str, ends: Any, radii: Any) -> None:
    """Raise `OptionError` for ends or radii that annotations of a type do not have."""
    fits = {"end": ("line", "box"), "radius": ("ellipsoid",)}
    for name, given in (("end", ends), ("radius", radii)):
        if given is not None and annotation_type not in fits[name]:
            raise OptionError(
                f"annotations of type {annotation_type!r} have no {name}; leave out {name}=, or give annotation_type="
                + " or ".join(map(repr, fits[name]))
            )


def _check_length(values: npt.NDArray[Any], name: str, count: int) -> npt.NDArray[Any]:
    if values.shape[:1] != (count,):
        raise OptionError(
            f"{name!r} has {len(values):,} values, but there are {count:,} annotations; give one for each"
        )
    return values


def _check_triples(values: Any, name: str, count: int | None = None) -> npt.NDArray[np.float64]:
    try:
        found = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        found = None
    if found is not None and found.size == 0:
        found = found.reshape(0, 3)
    if found is None or found.ndim != 2 or found.shape[1] != 3:
        given = f"{str(values)[:80]!r}" if found is None else f"an array of shape {found.shape}"
        raise BoxError(f"{name}={given} is not an array of numbers of shape (n, 3); give (x, y, z) for each annotation")
    if count is not None:
        _check_length(found, name, count)
    bad = np.flatnonzero(~np.isfinite(found).all(axis=1))
    if len(bad):
        raise BoxError(
            f"{len(bad):,} of {len(found):,} {name} are missing or not finite, the first in row {bad[0]}, "
            f"{found[bad[0]].tolist()}; remove these rows, e.g. with table.dropna(subset=[…])"
        )
    return found


def _check_radii(radii: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    bad = np.flatnonzero((radii < 0).any(axis=1))
    if len(bad):
        raise BoxError(
            f"{len(bad):,} of {len(radii):,} radii are negative, the first in row {bad[0]}, {radii[bad[0]].tolist()}; "
            "give radii of at least 0"
        )
    return radii


# ---------------------------------------------------------------------------------------------------------
# annotations in a box


def annotations_in_box(annotations: xr.Dataset, bbox: BBox) -> npt.NDArray[np.bool_]:
    """Return which annotations meet a box: points in ``[lo, hi)``, and lines, boxes and ellipsoids that overlap it.

    The result is bool (n,). Neighbouring boxes never contain the same point. Positions within 1e-6 nm of a border lie
    on it, so that the result does not depend on the rounding of positions.
    """
    kind = annotation_type_of(annotations)
    start = stack_axes(annotations, DIMS)
    if kind == "point":
        return points_in_box(start[:, ::-1], bbox)
    lo, hi = (corner[::-1] for corner in _borders(bbox))
    if kind == "ellipsoid":
        return _ellipsoids_in_box(start, stack_axes(annotations, RADII), lo, hi)
    end = stack_axes(annotations, ENDS)
    if kind == "box":
        return np.asarray(((np.maximum(start, end) >= lo) & (np.minimum(start, end) < hi)).all(axis=1))
    return _lines_in_box(start, end, lo, hi)


def points_in_box(points: Floats, bbox: BBox) -> npt.NDArray[np.bool_]:
    """Return which points (x, y, z) in nm lie in a box, as in `annotations_in_box`; NaN lies in none."""
    lo, hi = _borders(bbox)
    return np.asarray(((points >= lo) & (points < hi)).all(axis=1))


def _borders(bbox: BBox) -> tuple[Floats, Floats]:
    # Both borders move down, so that a position on a border is above it, whatever its rounding.
    return np.array(bbox.lo_nm) - float(SNAP), np.array(bbox.hi_nm) - float(SNAP)


def _lines_in_box(start: Floats, end: Floats, lo: Floats, hi: Floats) -> npt.NDArray[np.bool_]:
    """Return which lines pass through a box, by the interval of each line that lies between each pair of faces."""
    step = end - start
    with np.errstate(divide="ignore", invalid="ignore"):
        to_lo, to_hi = (lo - start) / step, (hi - start) / step
    is_level = step == 0
    is_between = (start >= lo) & (start < hi)
    enters = np.where(is_level, np.where(is_between, 0.0, 2.0), np.minimum(to_lo, to_hi)).max(axis=1)
    leaves = np.where(is_level, 1.0, np.maximum(to_lo, to_hi)).min(axis=1)
    # A line that only touches the upper face is outside: there its interval is a single position at an end.
    enters, leaves = np.maximum(enters, 0.0), np.minimum(leaves, 1.0)
    middle = start + step * ((enters + leaves) / 2)[:, np.newaxis]
    touches_hi = (enters == leaves) & (middle >= hi).any(axis=1)
    return np.asarray((enters <= leaves) & ~touches_hi)


def _ellipsoids_in_box(center: Floats, radii: Floats, lo: Floats, hi: Floats) -> npt.NDArray[np.bool_]:
    """Return which ellipsoids meet a box: the nearest point of the box, in units of the radii, is within 1."""
    gap = center - np.clip(center, lo, hi)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(gap == 0, 0.0, np.abs(gap) / radii)
    return np.asarray((share**2).sum(axis=1) <= 1)
