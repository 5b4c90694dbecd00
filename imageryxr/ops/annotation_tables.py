"""Convert tables to Datasets of annotations."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from imageryxr.core.annotation_values import as_triples, is_missing, is_triple, property_values, split_columns
from imageryxr.core.annotations import AXIS, DIM, AnnotationType, annotation_type_of, make_annotations
from imageryxr.core.bbox import Triple, check_resolution, format_triple, tidy
from imageryxr.core.units import has_unit, length_in_nm
from imageryxr.core.validate import suggest_names
from imageryxr.errors import BoxError, Message, OptionError, format_value, param, warn

_DEFAULT = ("x", "y", "z")
_POSITION_NAME = "(^|_)(pos|position|point|pt|cent(er|re|roid)|coords?|coordinates?|xyz)"


def as_annotations(
    table: Any,
    *,
    position: Any = _DEFAULT,
    end: Any = None,
    radius: Any = None,
    resolution: Sequence[float] = (1, 1, 1),
    annotation_type: AnnotationType | None = None,
) -> xr.Dataset:
    """Convert a table of positions to a Dataset of annotations, which `annotate` draws.

    Reads the table; the result is in memory. A point at voxel position p lies at p × resolution, as in Neuroglancer, so
    the centre of a voxel has positions that end in .5.

    Parameters
    ----------
    table : DataFrame, Dataset, dict, or array_like of shape (n, 3)
        A table with a row per annotation; or an array of positions (x, y, z). The rows of a Dataset, such as that of
        `measure`, are its first dim, and positions in another unit of length, ``attrs["units"]``, are converted. A
        Dataset of annotations is returned unchanged, unless another argument is given.
    position : three names, or a name, default ("x", "y", "z")
        The columns of the positions. A single name means a column of triples, as in CAVE tables
        (``"pre_pt_position"``; also as text, "[1 2 3]" or "1, 2, 3", from a CSV file), or the prefix of three columns
        (``pre_pt_position_x``, ``…_y`` and ``…_z``). By default, if the table has no columns x, y and z but exactly one
        such column or prefix, that one is used.
    end : three names, a name, or array_like of shape (n, 3), optional
        Second ends of lines or opposite corners of boxes, named as ``position``.
    radius : three names, a name, a number, or array_like of shape (n,) or (n, 3), optional
        Radii of ellipsoids along (x, y, z), or one for all axes, in units of ``resolution``.
    resolution : sequence of 3 numbers, default (1, 1, 1)
        Nanometres per unit (x, y, z) of positions, ends and radii. ``(1, 1, 1)`` means that they are in nanometres.
    annotation_type : {"point", "line", "box", "ellipsoid"}, optional
        Default: "line" if there is an ``end``, "ellipsoid" if there is a ``radius``, otherwise "point".

    Returns
    -------
    Dataset
        Dim ``annotation``; variables ``z``, ``y``, ``x`` (float64, nm), for lines and boxes also ``z_end``, ``y_end``,
        ``x_end``, for ellipsoids ``z_radius``, ``y_radius``, ``x_radius``; the coordinate ``id`` (the column or index
        of this name, otherwise 0 to n - 1); every other column, and any other index of a DataFrame that is not 0 to
        n - 1, as a variable. A column whose name is already a variable, such as ``x``, becomes ``x_column``. Columns of
        ids (``id``, ``…_id``) are uint64, even if the table stores them as objects, digits or nullable integers; a
        missing id or an empty text is 0. Other missing values are NaN, NaT or
        None. Other columns of triples have dims (annotation, axis), and their numbers are not converted to nm. Other
        lists, and all lists of ids, become JSON text. The attr
        ``categories`` of a column of texts lists all its values, so that a part of the table has the same colours.

    Raises
    ------
    BoxError
        If a position is missing, not finite or not three numbers, or a radius is negative.
    OptionError
        If a column does not exist, columns differ in length, the id of an annotation is missing, or an ``end`` or
        ``radius`` does not fit ``annotation_type``.
    LayerError
        If a column of ids was converted to floats and has lost digits, or has numbers that cannot be ids: negative
        ones, fractions, or those beyond 2**64 - 1.

    Examples
    --------
    >>> import imageryxr as ix
    >>> synapses = {"pre_pt_position": [[4600, 2560, 130], [4700, 2600, 130]], "pre_pt_root_id": [1, 2]}
    >>> points = ix.as_annotations(synapses, position="pre_pt_position", resolution=(8, 8, 40))
    >>> points.x.values, points.pre_pt_root_id.dtype
    (array([36800., 37600.]), dtype('uint64'))
    """
    found = convert_table(table, position, end, radius, resolution, annotation_type)
    if found is not table:
        _warn_equal_ids(found["id"].values)
    return found


def convert_table(
    table: Any,
    position: Any = _DEFAULT,
    end: Any = None,
    radius: Any = None,
    resolution: Sequence[float] = (1, 1, 1),
    annotation_type: AnnotationType | None = None,
) -> xr.Dataset:
    """Return the Dataset of a table, whose ids may occur several times; see `as_annotations`."""
    unit = check_resolution(resolution)
    if isinstance(table, xr.Dataset) and DIM in table.dims:
        own = annotation_type_of(table)
        check_in_nm(unit)
        is_default = isinstance(position, Sequence) and tuple(position) == _DEFAULT
        if is_default and annotation_type in (None, own) and end is None and radius is None:
            return table
    columns, names = table_columns(table)
    used: set[Any] = set()
    if columns is None:
        places = table
    else:
        _warn_other_resolution(table, unit)
        places = _named_triples(columns, names, position, "position", used)
        if unit != (1.0, 1.0, 1.0) and any(_stated_unit(columns[name]) for name in used):
            raise OptionError(
                f"resolution={unit} was given, but the table states the unit of its positions in attrs['units']; omit "
                "resolution"
            )
    places = _triples_in_nm(places, unit, "positions")
    if end is not None and radius is not None:
        raise OptionError("end= and radius= were both given; give end= for lines and boxes, or radius= for ellipsoids")
    ends = None if end is None else _triples_in_nm(_triples(columns, names, end, "end", used), unit, "ends")
    radii = None if radius is None else _radii(columns, names, radius, len(places), unit, used)
    kind = annotation_type
    if kind is None:
        kind = "line" if end is not None else "point" if radius is None else "ellipsoid"
    rest = {} if columns is None else {name: columns[name] for name in names if name not in used}
    for name, values in _index_columns(table).items():
        if name not in names or not np.array_equal(np.asarray(columns[name]), values):
            rest[name if name not in names else f"{name}_index"] = values
    ids = rest.pop("id", None)
    _check_ids(ids)
    attrs = _table_attrs(table)
    return make_annotations(kind, places, ends=ends, radii=radii, ids=ids, properties=rest, attrs=attrs, strict=True)


def check_in_nm(unit: Triple) -> None:
    """Raise `OptionError` if a resolution is given for a Dataset of annotations, whose positions are in nm."""
    if unit != (1.0, 1.0, 1.0):
        raise OptionError(
            f"resolution={unit} was given, but the positions of annotations are in nm; omit resolution. If the "
            "positions are not in nm, pass their unit to as_annotations(table, resolution=…)"
        )


def _check_ids(ids: Any) -> None:
    """Raise if ids of annotations are missing."""
    if ids is None:
        return
    absent = np.flatnonzero(is_missing(ids))
    if len(absent):
        raise OptionError(
            f"{len(absent):,} ids of annotations are missing, the first in row {absent[0]}; remove these rows, or "
            "rename the column 'id', so that annotations are numbered"
        )


def _warn_equal_ids(ids: npt.NDArray[Any]) -> None:
    values = pd.Series(ids)
    repeated = values[values.duplicated()].unique()
    if len(repeated):
        warn(
            f"{len(repeated):,} ids of annotations occur several times, such as {repeated[0]}; color={{id: colour}} "
            "cannot distinguish these annotations. Rename the column 'id' to number the annotations"
        )


def table_columns(table: Any) -> tuple[Any, list[Any]]:
    """Return a table as a mapping with its column names; (None, []) for an array of positions."""
    if isinstance(table, np.ndarray) and table.dtype.names:
        table = {name: table[name] for name in table.dtype.names}
    if isinstance(table, xr.Dataset):
        table = _dataset_columns(table)
    if isinstance(table, Mapping) or hasattr(table, "columns"):
        names = list(getattr(table, "columns", table))
        repeated = next((name for name in names if names.count(name) > 1), None) if len(names) < 10_000 else None
        if repeated is not None:
            raise OptionError(f"the table has several columns named {repeated!r}; rename them so that each is unique")
        if not names:
            raise OptionError(
                "the table has no columns; give a table with the columns x, y and z, or np.empty((0, 3)) for no "
                "annotations"
            )
        single = next((name for name in names if isinstance(table[name], str) or np.isscalar(table[name])), None)
        if single is not None:
            raise OptionError(
                f"the column {single!r} is the single value {format_value(table[single])}; give a list with a value "
                "for each annotation, such as {'x': [1], 'y': [2], 'z': [3]}"
            )
        return table, names
    return None, []


def _dataset_columns(table: xr.Dataset) -> dict[str, xr.DataArray]:
    """Return the columns of a Dataset such as that of `measure`: its variables along the first dim."""
    rows = next((variable.dims[0] for variable in table.data_vars.values() if variable.ndim), None)
    columns: dict[str, xr.DataArray] = {}
    for key, variable in {**table.coords, **table.data_vars}.items():
        if rows not in variable.dims:
            continue
        if set(variable.dims) == {rows, AXIS}:
            columns[str(key)] = variable.transpose(rows, AXIS)
        else:
            columns |= split_columns(str(key), variable, rows)
    return columns


def _index_columns(table: Any) -> dict[Any, Any]:
    """Return the levels of the index of a DataFrame as columns; none for the default index, 0 to n - 1."""
    if not isinstance(table, pd.DataFrame):
        return {}
    index = table.index
    if index.names == [None] and index.equals(pd.RangeIndex(len(index))):
        return {}
    names = ["index" if index.nlevels == 1 else f"level_{i}" for i in range(index.nlevels)]
    columns: dict[Any, Any] = {}
    for i, (default, given) in enumerate(zip(names, index.names, strict=True)):
        name = default if given is None else given
        while name in columns:
            name = f"{name}_index"
        columns[name] = index.get_level_values(i)
    return columns


def _named_triples(columns: Any, names: list[Any], given: Any, what: str, used: set[Any]) -> Any:
    """Return the values of the columns that an argument names, and add the columns to ``used``."""
    if isinstance(given, str):
        if given in names:
            used.add(given)
            return _column_triples(columns[given], given, what) * length_of(columns[given])
        three = [f"{given}_{axis}" for axis in "xyz"]
        if set(three) - {*names}:
            raise _unknown_columns([given], names, columns, what)
    else:
        three = list(given) if isinstance(given, Sequence) else []
        if len(three) != 3 or not all(isinstance(name, str | int | tuple) for name in three):
            raise OptionError(param(what, given), " is not the name of a column or of three columns (x, y, z)")
        absent = [name for name in three if name not in names]
        if absent and tuple(three) == _DEFAULT:
            candidates = position_columns(columns, names)
            if len(candidates) == 1:
                return _named_triples(columns, names, candidates[0], what, used)
        if absent:
            raise _unknown_columns(absent, names, columns, what)
    used.update(three)
    parts = [_numbers(columns[name], name, what) * length_of(columns[name]) for name in three]
    if len({len(part) for part in parts}) > 1:
        sizes = ", ".join(f"{name!r} has {len(part):,}" for name, part in zip(three, parts, strict=True))
        raise OptionError(f"the columns of {what} differ in length: {sizes} values; give one of each per annotation")
    return np.stack(parts, axis=1)


def _triples(columns: Any, names: list[Any], given: Any, what: str, used: set[Any]) -> Any:
    """Return the values of an argument that names columns or is an array."""
    is_name = isinstance(given, str) or (isinstance(given, Sequence) and all(isinstance(name, str) for name in given))
    if not is_name:
        return given
    if columns is None:
        raise OptionError(f"{what}={given!r} names columns, but the table is an array; give {what} as an array (n, 3)")
    return _named_triples(columns, names, given, what, used)


def _radii(columns: Any, names: list[Any], given: Any, count: int, unit: Triple, used: set[Any]) -> Any:
    if isinstance(given, str) and columns is not None and given in names and as_triples(columns[given]) is None:
        used.add(given)
        given = _numbers(columns[given], given, "radius")
    else:
        given = _triples(columns, names, given, "radius", used)
    try:
        values = np.asarray(given, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise BoxError(
            f"radius={format_value(given)} is not a number, or an array of numbers (n,) or (n, 3); give the radii of "
            "each annotation"
        ) from None
    if values.ndim == 0:
        values = np.full(count, float(values))
    if values.ndim == 1:
        values = np.repeat(values[:, np.newaxis], 3, axis=1)
    return _triples_in_nm(values, unit, "radii")


def _stated_unit(values: Any) -> Any:
    unit = values.attrs.get("units") if isinstance(values, xr.DataArray) else None
    return unit if has_unit(unit) else None


def length_of(values: Any) -> float:
    """Return the nanometres of the unit that an xarray object states; 1 if it states none."""
    unit = _stated_unit(values)
    return 1.0 if unit is None else length_in_nm(unit)


def _column_triples(values: Any, name: str, what: str) -> Any:
    triples = as_triples(values, bare=True)
    if triples is None and len(values):
        first = next(iter(np.asarray(values, dtype=object)), None)
        raise BoxError(
            f"the column {what}={name!r} does not hold triples (x, y, z): its first value is {str(first)[:60]!r}; name "
            "a column of triples, or three columns of numbers"
        )
    return np.empty((0, 3)) if triples is None else triples


def _numbers(values: Any, name: Any, what: str) -> npt.NDArray[np.float64]:
    plain = property_values(values)
    if plain.dtype.kind not in "iuf" and (plain.size and not all(v is None for v in plain.tolist())):
        raise BoxError(
            f"the column {name!r} of {what} does not hold numbers (dtype {plain.dtype}); name another column"
        )
    return plain.astype(np.float64)


def _triples_in_nm(values: Any, unit: Triple, what: str) -> npt.NDArray[np.float64]:
    triples = as_triples(values, bare=True)
    if triples is None:
        try:
            shape = np.shape(values)
        except TypeError:
            raise BoxError(
                f"{what} are a {type(values).__name__}; give an array of numbers (n, 3), (x, y, z) for each annotation"
            ) from None
        except ValueError:  # rows of different lengths
            wrong = next((row for row in values if not is_triple(row)), values)
            raise BoxError(
                f"{what} contain {format_value(wrong)}, which is not (x, y, z); give three numbers for each annotation"
            ) from None
        if 0 in shape:
            return np.empty((0, 3))
        if not shape:
            raise BoxError(
                f"{what} are {format_value(values)}; give a table or an array of numbers (n, 3), such as "
                "[[4600, 2560, 130]], or what imageryxr.open_annotations returns"
            )
        raise BoxError(
            f"{what} of shape {shape} are not an array of numbers (n, 3); give (x, y, z) for each annotation"
        )
    return triples * np.array(unit, np.float64)


def position_columns(columns: Any, names: list[Any]) -> list[str]:
    """Return the valid values of ``position``: columns of triples, and prefixes of three columns."""
    triples = [name for name in names if isinstance(name, str) and _has_triples(columns[name], name)]
    stems = [name[:-2] for name in names if isinstance(name, str) and name.endswith("_x")]
    return triples + [stem for stem in stems if not {f"{stem}_{axis}" for axis in "xyz"} - {*names}]


def _has_triples(values: Any, name: str) -> bool:
    """Return whether a column holds triples, or, if it has no rows, has a name of positions."""
    if not len(values):
        return re.search(f"{_POSITION_NAME}$", name.lower()) is not None
    is_bare = re.search(f"{_POSITION_NAME}(_|$)", name.lower()) is not None
    return as_triples(values, bare=is_bare) is not None


def _unknown_columns(absent: list[Any], names: list[Any], columns: Any, what: str) -> OptionError:
    hint = suggest_names(str(absent[0]), map(str, names))
    candidates = position_columns(columns, names)
    shown = ", ".join(map(repr, names[:12])) + (", …" if len(names) > 12 else "")
    choice = param(what, text=" or ".join(map(repr, candidates[:4])))
    advice = Message("give ", choice) if candidates else f"name three of its columns: {shown}"
    return OptionError(f"the table has no column {absent[0]!r} for ", param(what), f"{hint}; ", advice)


def _warn_other_resolution(table: Any, unit: Triple) -> None:
    """Warn if caveclient has recorded that the positions of a table have another resolution."""
    stated = getattr(table, "attrs", {}).get("dataframe_resolution")
    try:
        other = check_resolution(stated)
    except BoxError:
        return
    if other != unit:
        given = tuple(tidy(u) for u in other)
        warn(
            f"the table states that its positions are in units of {format_triple(other)} nm, but resolution is "
            f"{format_triple(unit)} nm; give resolution={given}"
        )


def _table_attrs(table: Any) -> dict[str, Any]:
    attrs = getattr(table, "attrs", {})
    found = {name: attrs.get(name) for name in ("source", "timestamp")}
    return {name: value if isinstance(value, str) else str(value) for name, value in found.items() if value is not None}
