"""Convert measurements and annotations to tables with one row per segment, contact, overlap or annotation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import xarray as xr

from imageryxr.core.annotation_values import split_columns
from imageryxr.core.annotations import DIM
from imageryxr.errors import LayerError

if TYPE_CHECKING:
    import pandas as pd

_ROWS = ("segment", "contact", "overlap", DIM)


def to_dataframe(measurements: xr.Dataset) -> pd.DataFrame:
    """Return measurements or annotations as a table with one row per segment, contact, overlap or annotation.

    In memory: a Dataset that is lazy is computed. `xarray.Dataset.to_dataframe` would repeat each row for every axis.

    Parameters
    ----------
    measurements : Dataset
        The result of `measure`, `contacts` or `overlaps`, a Dataset of annotations, or a selection of one.

    Returns
    -------
    pandas.DataFrame
        A variable with another dim has one column per label: ``centroid_x``, ``centroid_y``, ``centroid_z``,
        ``percentiles_95``. The index of `measure` is the segment's id; contacts and overlaps have the columns
        ``segment_a`` and ``segment_b``, and annotations the column ``id``.

    Raises
    ------
    LayerError
        If the Dataset has no dim segment, contact, overlap or annotation.

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
            "imageryxr.measure, imageryxr.contacts or imageryxr.overlaps, or annotations"
        )
    columns: dict[str, xr.DataArray] = {}
    for name, variable in {**measurements.coords, **measurements.data_vars}.items():
        if rows in variable.dims and name != rows:
            columns |= split_columns(str(name), variable, rows)
    ordered = {name: (rows, column.to_numpy()) for name, column in columns.items()}
    index: dict[str, Any] = {rows: measurements.indexes[rows]} if rows in measurements.indexes else {}
    return xr.Dataset(ordered, coords=index).to_dataframe()
