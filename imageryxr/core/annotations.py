"""The Dataset of annotations: its form, its constructor, and the exact conversion of its properties.

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
import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from imageryxr.core.array_labels import plain_attrs
from imageryxr.core.bbox import DIMS
from imageryxr.core.colors.ids import MAX_ID
from imageryxr.errors import BoxError, LayerError, OptionError

AnnotationType = Literal["point", "line", "box", "ellipsoid"]
DIM = "annotation"
AXIS = "axis"
ENDS = ("z_end", "y_end", "x_end")
RADII = ("z_radius", "y_radius", "x_radius")

_RESERVED = {DIM, AXIS, "id", *DIMS, *ENDS, *RADII}
_ID_NAME = re.compile(r"(^|_)(id|ids|segment|segment_id|root|supervoxel)$", re.IGNORECASE)
_EXACT_FLOAT = 2**53


def make_annotations(
    annotation_type: AnnotationType,
    positions: npt.ArrayLike,
    *,
    ends: npt.ArrayLike | None = None,
    radii: npt.ArrayLike | None = None,
    ids: Any = None,
    properties: Mapping[Any, Any] | None = None,
    attrs: Mapping[str, Any] | None = None,
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
    if annotation_type not in get_args(AnnotationType):
        raise OptionError(
            f"annotation_type={annotation_type!r} is not a type of annotation; give 'point', 'line', 'box' or "
            "'ellipsoid'"
        )
    places = _check_triples(positions, "positions")
    count = len(places)
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
        named[name] = _property_variable(name, values, count)
    numbers = np.arange(count, dtype=np.uint64) if ids is None else property_values(ids, "id")
    coords: dict[str, Any] = {"id": (DIM, _check_length(numbers, "id", count))}
    if any(AXIS in variable[0] for variable in named.values()):
        coords[AXIS] = list("xyz")
    kept = {name: value for name, value in (attrs or {}).items() if value is not None}
    return xr.Dataset(variables | named, coords, plain_attrs({"annotation_type": annotation_type, **kept}))


def annotation_type_of(annotations: Any) -> AnnotationType:
    """Return the type of a Dataset of annotations, after checking its form.

    Raises
    ------
    LayerError
        If the object is not a Dataset of annotations.
    """
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


def stack_axes(annotations: xr.Dataset, names: tuple[str, str, str]) -> npt.NDArray[np.float64]:
    """Return three variables of a Dataset as float64 (n, 3), in the order of the names."""
    return np.stack([np.asarray(annotations[name].values, np.float64) for name in names], axis=1)


def is_id_name(name: Any) -> bool:
    """Return whether the name of a column is that of ids, such as ``id``, ``pt_root_id`` or ``segment``."""
    return _ID_NAME.search(str(name)) is not None


def property_values(values: Any, name: str = "") -> npt.NDArray[Any]:
    """Convert the values of a property to a numpy array that files can store, without changing a value.

    Integers stay exact: those of a column of ids (see `is_id_name`) become uint64, also from digits in strings, and a
    missing id becomes 0, the background. Other integers and booleans with missing values become float64 with NaN.
    Strings become objects, with None where they are missing. Times with a zone become datetime64 in UTC. Lists and
    dicts become JSON text.

    Parameters
    ----------
    values : Series, array or list
        Values of any dtype, including pandas' nullable, categorical and Arrow dtypes.
    name : str
        Name of the column.

    Returns
    -------
    numpy.ndarray
        Shape (n,).

    Raises
    ------
    LayerError
        If ids were converted to floats and have lost digits.
    """
    plain = _plain_array(values)
    if plain.dtype.kind == "O":
        plain = _objects_to_array(plain, name)
    if not is_id_name(name):
        return plain
    if plain.dtype.kind in "iu":
        return plain if plain.dtype.kind == "i" and plain.size and plain.min() < 0 else plain.astype(np.uint64)
    if plain.dtype.kind == "f":
        return _float_ids(plain, name)
    return plain


def _plain_array(values: Any) -> npt.NDArray[Any]:
    """Return values as a numpy array; missing values are None in an array of objects."""
    if isinstance(values, xr.DataArray):
        values = values.values
    if isinstance(values, pd.Series | pd.Index):
        values = values.array
    if isinstance(values, pd.Categorical):
        values = np.asarray(values)
    if isinstance(values, pd.api.extensions.ExtensionArray):
        if isinstance(values.dtype, pd.DatetimeTZDtype):
            return np.asarray(pd.DatetimeIndex(values).tz_convert("UTC").tz_localize(None))
        values = values.to_numpy(dtype=values.dtype.numpy_dtype if _is_complete(values) else object)
    elif not isinstance(values, np.ndarray):
        # A list of ints beyond int64 with a None would become floats; another library's column, objects or floats.
        items = values.to_list() if hasattr(values, "to_list") else list(values)
        values = np.empty(len(items), dtype=object)
        values[:] = items
    found: npt.NDArray[Any] = values
    return found.astype(object) if found.dtype.kind in "SUT" else found


def _is_complete(values: Any) -> bool:
    """Return whether an extension array has a dtype of numpy's and no missing value."""
    stated = getattr(values.dtype, "numpy_dtype", None)
    return isinstance(stated, np.dtype) and not bool(np.any(values.isna()))


def _objects_to_array(values: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
    """Return objects as numbers or times if all of them are, otherwise as strings."""
    is_missing = np.fromiter((_is_missing(v) for v in values), bool, len(values))
    present = [v.item() if isinstance(v, np.generic) else v for v in values[~is_missing].tolist()]
    kinds = {type(v) for v in present}
    if kinds and kinds <= {bytes}:
        present, kinds = [v.decode(errors="replace") for v in present], {str}
    if is_id_name(name) and kinds == {str} and all(re.fullmatch(r"[0-9]{1,20}", v) for v in present):
        present, kinds = [int(v) for v in present], {int}
    if kinds <= {int} and kinds:
        return _integers(present, is_missing, name)
    if kinds and kinds <= {int, float, bool}:
        return _scatter(
            present, is_missing, np.bool_ if kinds == {bool} and not is_missing.any() else np.float64, np.nan
        )
    if kinds and all(hasattr(v, "isoformat") and hasattr(v, "utcoffset") for v in present):
        times = pd.to_datetime(pd.Series(present), utc=True).dt.tz_localize(None).to_numpy()
        return _scatter(times, is_missing, times.dtype, np.datetime64("NaT"))
    texts = [v if isinstance(v, str) else _to_text(v) for v in present]
    return _scatter(texts, is_missing, np.dtype(object), None)


def _integers(present: list[int], is_missing: npt.NDArray[np.bool_], name: str) -> npt.NDArray[Any]:
    low, high = min(present), max(present)
    if is_id_name(name) or not is_missing.any():
        if low >= 0 and high <= MAX_ID:
            return _scatter(present, is_missing, np.uint64 if is_id_name(name) or high >= 2**63 else np.int64, 0)
        if low >= -(2**63) and high < 2**63:
            return _scatter(present, is_missing, np.int64, 0)
    elif low >= -_EXACT_FLOAT and high <= _EXACT_FLOAT:
        return _scatter(present, is_missing, np.float64, np.nan)
    elif low >= 0 and high <= MAX_ID:
        return _scatter(present, is_missing, np.uint64, 0)  # floats would lose digits
    return _scatter([str(v) for v in present], is_missing, np.dtype(object), None)


def _scatter(present: Any, is_missing: npt.NDArray[np.bool_], dtype: Any, fill: Any) -> npt.NDArray[Any]:
    out = np.full(len(is_missing), fill if is_missing.any() else 0, dtype)
    out[~is_missing] = present if isinstance(present, np.ndarray) else np.array(present, dtype=dtype)
    return out


def _is_missing(value: Any) -> bool:
    return value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and value != value)


def _to_text(value: Any) -> str:
    try:
        return json.dumps(value.tolist() if isinstance(value, np.ndarray) else value)
    except (TypeError, ValueError):
        return str(value)


def _float_ids(values: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
    """Return ids that pandas has converted to floats, because some are missing, as uint64."""
    finite = values[np.isfinite(values)]
    if finite.size and (finite != np.floor(finite)).any():
        return values
    if finite.size and np.abs(finite).max() >= _EXACT_FLOAT:
        raise LayerError(
            f"the ids in {name!r} were converted to floats, and those beyond 2**53 have lost digits; read the table "
            f"with dtype={{{name!r}: 'UInt64'}}, or leave the column out"
        )
    if finite.size and finite.min() < 0:
        return values
    return np.where(np.isfinite(values), values, 0).astype(np.uint64)


def as_triples(values: Any) -> npt.NDArray[np.float64] | None:
    """Return a column of triples, such as a list of lists or an array (n, 3), as float64 (n, 3); None if it is not one.

    A missing triple becomes NaN.
    """
    try:
        array = np.asarray(values)
    except ValueError:  # a ragged list, which may have missing triples
        array = _plain_array(values)
    if array.ndim == 2 and array.shape[1] == 3 and array.dtype.kind in "iuf":
        return array.astype(np.float64)
    if array.ndim != 1 or array.dtype.kind != "O" or not len(array):
        return None
    out = np.full((len(array), 3), np.nan)
    is_missing = np.fromiter((_is_missing(row) for row in array), bool, len(array))
    rows = array[~is_missing].tolist()
    if not rows or not all(isinstance(row, list | tuple | np.ndarray) and np.shape(row) == (3,) for row in rows):
        return None
    try:
        out[~is_missing] = np.array([np.asarray(row, np.float64) for row in rows])
    except (TypeError, ValueError):
        return None
    return out


def _axis_variables(names: tuple[str, ...], triples: npt.NDArray[np.float64]) -> dict[str, Any]:
    return {name: (DIM, np.ascontiguousarray(triples[:, 2 - axis]), {"units": "nm"}) for axis, name in enumerate(names)}


def _property_variable(name: str, values: Any, count: int) -> tuple[Any, ...]:
    if isinstance(values, xr.DataArray | xr.Variable) and values.ndim == 1:
        return (DIM, _check_length(property_values(values.values, name), name, count), dict(values.attrs))
    triples = as_triples(values)
    if triples is not None:
        return ((DIM, AXIS), _check_length(triples, name, count))
    return (DIM, _check_length(property_values(values, name), name, count))


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
