"""Read the centres of cutouts from a table, an array or annotations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from imageryxr.core.annotation_values import as_triples, is_triple
from imageryxr.core.annotations import AXIS, DIM, annotation_centers
from imageryxr.core.array_labels import CUTOUT
from imageryxr.core.bbox import DIMS, Triple, tidy
from imageryxr.errors import BoxError, OptionError
from imageryxr.ops.annotation_tables import convert_table, position_columns, table_columns

Points = npt.NDArray[np.float64]


def read_centers(centers: Any, unit: Triple) -> tuple[Points, dict[str, Any]]:
    """Return the centres (n, 3) as (x, y, z) in nm, and the other columns as variables along ``cutout``."""
    is_annotations = _is_annotations(centers)
    _check_position_columns(centers, unit)
    table = convert_table(_single_point(centers), resolution=unit)
    if not table.sizes[DIM]:
        raise BoxError("centers has no rows; give at least one point (x, y, z)")
    points = annotation_centers(table)
    bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if len(bad):  # a Dataset of annotations after `Dataset.where`
        raise BoxError(
            f"{len(bad):,} of {len(points):,} centers are missing or not finite, the first in row {bad[0]}; remove "
            "these rows with annotations.dropna('annotation', subset=['x', 'y', 'z'])"
        )
    is_named = is_annotations or _has_ids(centers)
    columns: dict[str, Any] = {}
    for name, variable in table.variables.items():
        if name in DIMS or DIM not in variable.dims or (name == "id" and not is_named):
            continue
        if variable.ndim == 1:
            columns[str(name)] = (CUTOUT, variable.values, variable.attrs)
        elif variable.ndim == 2:
            values = variable.transpose(DIM, ...).values
            labels = "xyz" if AXIS in variable.dims else range(values.shape[1])
            columns |= {f"{name}_{label}": (CUTOUT, values[:, i], variable.attrs) for i, label in enumerate(labels)}
    return points, columns


def _is_annotations(centers: Any) -> bool:
    return isinstance(centers, xr.Dataset) and DIM in centers.dims


def is_table(value: Any) -> bool:
    """Return whether a value is a table or an array of points, and not an array with the dims z, y and x."""
    if isinstance(value, xr.DataArray | xr.DataTree):
        return False
    if isinstance(value, xr.Dataset):
        return DIM in value.dims
    return isinstance(value, Mapping | np.ndarray | list | tuple) or hasattr(value, "columns")


def _check_position_columns(centers: Any, unit: Triple) -> None:
    """Raise `OptionError` for a table with several columns of positions, as `cutouts` has no argument to choose one."""
    if _is_annotations(centers):
        return
    columns, names = table_columns(centers)
    if columns is None or not {"x", "y", "z"} - {*names}:
        return
    found = position_columns(columns, names)
    if len(found) > 1:
        given = tuple(tidy(u) for u in unit)
        raise OptionError(
            f"centers has {len(found)} columns of positions, {', '.join(map(repr, found[:4]))}; select one: "
            f"cutouts(…, ix.as_annotations(table, position={found[0]!r}, resolution={given}), …), without resolution"
        )


def _single_point(centers: Any) -> Any:
    """Return an array (1, 3) for one point, and other centres unchanged."""
    if isinstance(centers, xr.Dataset | Mapping) or hasattr(centers, "columns"):
        return centers
    if isinstance(centers, np.ndarray) and centers.dtype.names:
        return centers
    if isinstance(centers, str):
        centers = [centers]
    try:
        array = np.asarray(centers)
    except ValueError:  # rows of different lengths
        row = next((i for i, values in enumerate(centers) if not is_triple(values)), 0)
        raise BoxError(
            f"centers are not points of three numbers: row {row} is {str(centers[row])[:60]}; give (x, y, z) for each"
        ) from None
    if array.shape == (3,) and array.dtype.kind in "iuf":
        return array[np.newaxis]
    triples = as_triples(centers, bare=True)
    return centers if triples is None else triples


def _has_ids(table: Any) -> bool:
    names = getattr(table, "columns", table if isinstance(table, Mapping) else ())
    return "id" in names or getattr(getattr(table, "index", None), "name", None) == "id"
