"""Exact conversion of the columns of tables: ids, numbers, times, texts and triples."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from imageryxr.core.colors.ids import MAX_ID
from imageryxr.errors import LayerError

_ID_NAME = re.compile(r"(^|_)(id|ids|segment|segment_id|root|supervoxel)$", re.IGNORECASE)
_EXACT_FLOAT = 2**53
# A column with more different texts than this, such as one of names, has no categories.
_MOST_CATEGORIES = 64


def is_id_name(name: Any) -> bool:
    """Return whether the name of a column is that of ids, such as ``id``, ``pt_root_id`` or ``segment``."""
    return _ID_NAME.search(str(name)) is not None


def property_values(values: Any, name: str = "", *, strict: bool = False, are_ids: bool = False) -> npt.NDArray[Any]:
    """Convert the values of a property to a numpy array (n,) that files can store, without changing a value.

    `values` have any dtype, including pandas' nullable, categorical and Arrow dtypes. Integers stay exact: those of a
    column of ids (`are_ids`, or by its `name`, see `is_id_name`) become uint64, also from digits in strings, and a
    missing id (also an empty string) becomes 0, the background. Other integers and booleans with missing values become
    float64 with NaN. Strings become objects, with None where they are missing. Times with a zone become datetime64 in
    UTC. Lists and dicts become JSON text.

    A column of ids with numbers that cannot be ids (negative ones, fractions, and those beyond 2**64 - 1) raises
    `LayerError` if `strict`; otherwise it is converted like any other column. Ids that have lost digits, because they
    were converted to floats, always raise `LayerError`.
    """
    plain = _plain_array(values)
    if are_ids or is_id_name(name):
        return _ids(plain, name, strict)
    return _objects_to_array(plain) if plain.dtype.kind == "O" else plain


def is_missing(values: Any) -> npt.NDArray[np.bool_]:
    """Return which values of a column of ids are missing."""
    plain = _plain_array(values)
    if plain.dtype.kind == "O":
        return np.fromiter((_is_missing(v) or _is_blank(v) for v in plain), bool, len(plain))
    return np.isnan(plain) if plain.dtype.kind == "f" else np.zeros(len(plain), bool)


def plain_values(values: Any) -> list[Any]:
    """Return the values of a column as Python objects for display: None if missing, and times as text.

    If all numbers of the column are whole, they become ints: integers with missing values are often stored as floats.
    """
    plain = _plain_array(values)
    absent = is_missing(plain)
    if plain.dtype.kind in "mM":
        absent, seconds = np.isnat(plain), plain.astype(f"{plain.dtype.kind}8[s]")
        plain = (seconds if (seconds == plain)[~absent].all() else plain).astype(str)
    present = plain[~absent]
    is_float = plain.dtype.kind == "f" or (len(present) > 0 and all(isinstance(v, float) for v in present))
    if is_float and (np.floor(present) == present).all() and (np.abs(present) < _EXACT_FLOAT).all():
        plain = np.array([None if gone else int(v) for v, gone in zip(plain, absent, strict=True)], object)
    shown: list[Any] = [None if gone else value for value, gone in zip(plain.tolist(), absent, strict=True)]
    return [value.isoformat() if hasattr(value, "isoformat") else value for value in shown]


def column_texts(values: Any) -> list[str]:
    """Return the values of a column as texts, which are empty where a value is missing."""
    return ["" if value is None else str(value) for value in plain_values(values)]


def list_categories(values: Any, converted: npt.NDArray[Any]) -> list[str]:
    """Return the categories of a column of texts, in the order of a categorical dtype, otherwise sorted.

    ``converted`` are the values of the column as `property_values` returns them.
    """
    dtype = getattr(values, "dtype", None)
    if isinstance(dtype, pd.CategoricalDtype):
        found = dtype.categories.tolist()
    else:
        found = pd.unique(converted).tolist() if converted.dtype.kind == "O" else []
        found = sorted(v for v in found if v) if all(isinstance(v, str | None) for v in found) else []
    return found if len(found) <= _MOST_CATEGORIES and all(isinstance(v, str) for v in found) else []


def _ids(plain: npt.NDArray[Any], name: str, strict: bool) -> npt.NDArray[Any]:
    """Return the values of a column of ids as uint64, if they can be ids."""
    if plain.dtype.kind == "O":
        present = [v for v in plain.tolist() if not _is_missing(v) and not _is_blank(v)]
        if all(_is_whole(v) for v in present):
            numbers = [int(v) for v in present]
            _refuse(next((v for v in numbers if not 0 <= v <= MAX_ID), None), name, strict)
            if all(0 <= v <= MAX_ID for v in numbers):
                return _scatter(numbers, is_missing(plain), np.uint64, 0)
        plain = _objects_to_array(plain)
    if plain.dtype.kind == "f":
        return _float_ids(plain, name, strict)
    if plain.dtype.kind == "i" and plain.size and plain.min() < 0:
        _refuse(plain.min(), name, strict)
        return plain
    return plain.astype(np.uint64) if plain.dtype.kind in "iu" else plain


def _refuse(value: Any, name: str, strict: bool) -> None:
    """Raise `LayerError` for a number that cannot be an id, if `strict`; do nothing if `value` is None."""
    if strict and value is not None:
        raise LayerError(
            f"{name!r} is a column of ids, but holds {value}; ids are integers from 0 to 2**64 - 1. If this number "
            "means a missing id, replace it with 0; if the column does not hold ids, rename or drop it"
        )


def _is_whole(value: Any) -> bool:
    """Return whether a value is an integer or the digits of one."""
    if isinstance(value, str | bytes):
        text = value.decode(errors="replace") if isinstance(value, bytes) else value
        return re.fullmatch(r"\s*[-+]?[0-9]{1,30}\s*", text) is not None
    return isinstance(value, int | np.integer) and not isinstance(value, bool | np.bool_)


def _is_blank(value: Any) -> bool:
    return isinstance(value, str) and not value.strip()


def _plain_array(values: Any) -> npt.NDArray[Any]:
    """Return values as a numpy array; missing values are None in an array of objects."""
    if isinstance(values, xr.DataArray):
        values = values.values
    if isinstance(values, pd.Series | pd.Index):
        values = values.array
    if isinstance(values, pd.Categorical):
        values = np.asarray(values)
    if isinstance(values, pd.api.extensions.ExtensionArray):
        if isinstance(values, pd.arrays.TimedeltaArray):
            return np.asarray(values)
        if isinstance(values.dtype, pd.DatetimeTZDtype):
            return np.asarray(pd.DatetimeIndex(values).tz_convert("UTC").tz_localize(None))
        values = values.to_numpy(dtype=values.dtype.numpy_dtype if _is_complete(values) else object)
    elif not isinstance(values, np.ndarray):
        # NumPy would convert large integers beside a None, and columns of some libraries, to floats.
        items = values.to_list() if hasattr(values, "to_list") else list(values)
        values = np.fromiter(items, object, len(items))
    found: npt.NDArray[Any] = values
    if found.ndim > 1:
        found = np.fromiter((row.tolist() for row in found), object, len(found))
    return found.astype(object) if found.dtype.kind in "SUT" else found


def _is_complete(values: Any) -> bool:
    """Return whether an extension array has a NumPy dtype and no missing values."""
    stated = getattr(values.dtype, "numpy_dtype", None)
    return isinstance(stated, np.dtype) and not bool(np.any(values.isna()))


def _objects_to_array(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return objects as numbers or times if all of them are, otherwise as strings."""
    absent = np.fromiter((_is_missing(v) for v in values), bool, len(values))
    present = [v.item() if isinstance(v, np.generic) else v for v in values[~absent].tolist()]
    kinds = {type(v) for v in present}
    if kinds and kinds <= {bytes}:
        present, kinds = [v.decode(errors="replace") for v in present], {str}
    if kinds <= {int} and kinds:
        return _integers(present, absent)
    if kinds and kinds <= {int, float, bool}:
        return _scatter(present, absent, np.bool_ if kinds == {bool} and not absent.any() else np.float64, np.nan)
    if kinds and all(hasattr(v, "isoformat") and hasattr(v, "utcoffset") for v in present):
        times = pd.to_datetime(pd.Series(present), utc=True).dt.tz_localize(None).to_numpy()
        return _scatter(times, absent, times.dtype, np.datetime64("NaT", "ns"))
    texts = [v if isinstance(v, str) else _to_text(v) for v in present]
    return _scatter(texts, absent, np.dtype(object), None)


def _integers(present: list[int], absent: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    low, high = min(present), max(present)
    if not absent.any():
        if low >= -(2**63) and high < 2**63:
            return _scatter(present, absent, np.int64, 0)
        if low >= 0 and high <= MAX_ID:
            return _scatter(present, absent, np.uint64, 0)
    elif low >= -_EXACT_FLOAT and high <= _EXACT_FLOAT:
        return _scatter(present, absent, np.float64, np.nan)
    elif low >= 0 and high <= MAX_ID:
        return _scatter(present, absent, np.uint64, 0)  # floats would lose digits
    return _scatter([str(v) for v in present], absent, np.dtype(object), None)


def _scatter(present: Any, absent: npt.NDArray[np.bool_], dtype: Any, fill: Any) -> npt.NDArray[Any]:
    out = np.full(len(absent), fill if absent.any() else 0, dtype)
    out[~absent] = present if isinstance(present, np.ndarray) else np.array(present, dtype=dtype)
    return out


def _is_missing(value: Any) -> bool:
    return value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and value != value)


def _to_text(value: Any) -> str:
    try:
        return json.dumps(value, default=_to_plain)
    except (TypeError, ValueError):
        return str(value)


def _to_plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError


def _float_ids(values: npt.NDArray[Any], name: str, strict: bool) -> npt.NDArray[Any]:
    """Return ids as uint64 that pandas has converted to floats because some of them are missing."""
    finite = values[np.isfinite(values)]
    wrong = finite[(finite != np.floor(finite)) | (finite < 0)]
    if wrong.size:
        _refuse(wrong[0], name, strict)
        return values
    if finite.size and np.abs(finite).max() >= _EXACT_FLOAT:
        raise LayerError(
            f"the ids in {name!r} were converted to floats, and those beyond 2**53 have lost digits; read the table "
            f"with dtype={{{name!r}: 'UInt64'}}, select rows of a Dataset with isel, as where converts integers, or "
            "leave the column out"
        )
    return np.where(np.isfinite(values), values, 0).astype(np.uint64)


def as_triples(values: Any, *, bare: bool = False) -> npt.NDArray[np.float64] | None:
    """Return a column of triples, such as a list of lists or an array (n, 3), as float64 (n, 3); None if it is not one.

    A missing triple becomes NaN. Triples may be texts, as CSV files store them: "[1, 2, 3]" or "(1 2 3)". With `bare`,
    "1, 2, 3" is a triple too; use it only for columns of positions, because elsewhere such a text may be a number.
    """
    if isinstance(values, np.ma.MaskedArray) and values.dtype.kind in "iuf":
        values = np.ma.filled(values.astype(np.float64), np.nan)
    try:
        array = np.asarray(values)
    except ValueError:  # a ragged list, which may have missing triples
        array = _plain_array(values)
    except TypeError:  # a Dataset or a DataTree
        return None
    if array.ndim == 2 and array.shape[1] == 3 and array.dtype.kind in "iuf":
        return array.astype(np.float64)
    if array.ndim != 1 or array.dtype.kind not in "OUST" or not len(array):
        return None
    out = np.full((len(array), 3), np.nan)
    absent = np.fromiter((_is_missing(row) or _is_blank(row) for row in array), bool, len(array))
    rows = [_parse_triple(row, bare) if isinstance(row, str) else row for row in array[~absent].tolist()]
    if not rows or not all(is_triple(row) for row in rows):
        return None
    try:
        out[~absent] = np.array([np.asarray(row, np.float64) for row in rows])
    except (TypeError, ValueError):
        return None
    return out


def is_triple(row: Any) -> bool:
    """Return whether a row is a list, tuple or array of three items, none of which is a list or an array."""
    try:
        return isinstance(row, list | tuple | np.ndarray) and np.shape(row) == (3,)
    except ValueError:  # one item is a list
        return False


def _parse_triple(text: str, bare: bool) -> list[str] | None:
    """Return the three numbers of a text such as "[1, 2, 3]", or None."""
    mark = "?" if bare else ""
    found = re.fullmatch(rf"\s*[\[(]{mark}\s*([^\[\]()]*?)\s*[\])]{mark}\s*", text)
    parts = re.split(r"\s*,\s*|\s+", found[1]) if found else []
    return parts if len(parts) == 3 else None


def split_columns(name: str, variable: xr.DataArray, rows: Any) -> dict[str, xr.DataArray]:
    """Return a variable as columns along the dim ``rows``, one for each label of its other dims."""
    others = [dim for dim in variable.dims if dim != rows]
    if not others:
        return {name: variable}
    found: dict[str, xr.DataArray] = {}
    for i, label in enumerate(variable[others[0]].to_numpy().tolist()):
        shown = f"{label:g}" if isinstance(label, float) else str(label)
        found |= split_columns(f"{name}_{shown}", variable.isel({others[0]: i}, drop=True), rows)
    return found
