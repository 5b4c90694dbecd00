"""Convert measurements to tables with one row per segment, contact or overlap."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import xarray as xr

from imageryxr.errors import LayerError

if TYPE_CHECKING:
    import pandas as pd

_ROWS = ("segment", "contact", "overlap")


def to_dataframe(measurements: xr.Dataset) -> pd.DataFrame:
    """Return measurements as a table with one row per segment, contact or overlap.

    In memory: a Dataset that is lazy is computed. `xarray.Dataset.to_dataframe` would repeat each row for every axis.

    Parameters
    ----------
    measurements : Dataset
        The result of `measure`, `contacts` or `overlaps`, or a selection of it.

    Returns
    -------
    pandas.DataFrame
        A variable with another dim has one column per label: ``centroid_x``, ``centroid_y``, ``centroid_z``,
        ``percentiles_95``. The index of `measure` is the segment's id; contacts and overlaps have the columns
        ``segment_a`` and ``segment_b``.

    Raises
    ------
    LayerError
        If the Dataset has no dim segment, contact or overlap.

    Examples
    --------
    >>> import imageryxr as ix
    >>> seg = ix.open_segmentation(ix.sample("sample").segmentation)
    >>> table = ix.measure(seg.isel(z=slice(0, 2))).imagery.to_dataframe()
    >>> table.index.name, table.index.dtype
    ('segment', dtype('uint64'))
    """
    rows = next((dim for dim in _ROWS if dim in measurements.dims), None)
    if rows is None:
        raise LayerError(
            f"the Dataset has the dims {list(map(str, measurements.dims))}; a table needs the result of "
            "imageryxr.measure, imageryxr.contacts or imageryxr.overlaps"
        )
    columns: dict[str, xr.DataArray] = {}
    for name, variable in {**measurements.coords, **measurements.data_vars}.items():
        if rows in variable.dims and name != rows:
            columns |= _columns(str(name), variable, rows)
    ordered = {name: (rows, column.to_numpy()) for name, column in columns.items()}
    index: dict[str, Any] = {rows: measurements.indexes[rows]} if rows in measurements.indexes else {}
    return xr.Dataset(ordered, coords=index).to_dataframe()


def _columns(name: str, variable: xr.DataArray, rows: str) -> dict[str, xr.DataArray]:
    others = [dim for dim in variable.dims if dim != rows]
    if not others:
        return {name: variable}
    found: dict[str, xr.DataArray] = {}
    for i, label in enumerate(variable[others[0]].to_numpy().tolist()):
        shown = f"{label:g}" if isinstance(label, float) else str(label)
        found |= _columns(f"{name}_{shown}", variable.isel({others[0]: i}, drop=True), rows)
    return found
