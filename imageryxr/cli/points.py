"""Draw points of a file or of a CAVE table on the picture of ``imageryxr figure``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr

import imageryxr as ix
from imageryxr.cli.commands import option
from imageryxr.cli.messages import rename_parameters
from imageryxr.cli.options import parse_numbers
from imageryxr.errors import ImageryError, OptionError


@dataclass(frozen=True)
class PointOptions:
    """Tables whose points are drawn on the slice."""

    points: str | None = option("Draw the points of a table on the slice: points.csv or points.parquet.")
    points_column: str | None = option(
        "Column of their positions, such as pre_pt_position, or three columns: x,y,z. Default: x,y,z or the only one.",
        python="position",
    )
    points_resolution: str = option("Nanometres per unit of the positions: x,y,z; 1,1,1 means nm.", "1,1,1", python=())
    table: str | None = option("Draw the rows of a CAVE table or view of --datastack, such as synapses_pni_2.")

    def read_points(self) -> list[xr.Dataset]:
        """Return the points of the table in a file."""
        if self.points is None:
            return []
        table, column = _read_table(self.points), self.points_column
        position: Any = ("x", "y", "z") if column is None else column
        if column is not None and column not in table.columns and "," in column:
            position = tuple(name.strip() for name in column.split(","))
        unit = parse_numbers(self.points_resolution, "--points-resolution", (3,))
        try:
            return [ix.as_annotations(table, position=position, resolution=unit)]
        except ImageryError as error:
            raise rename_parameters(error, resolution="points_resolution") from None

    def read_table_rows(self, rgba: xr.DataArray, ids: list[str] | None, tree: xr.DataTree | None) -> list[xr.Dataset]:
        """Return the rows of a CAVE table in a picture: those of the root ids, if any are given."""
        if self.table is None:
            return []
        if tree is None:
            raise OptionError(f"--table {self.table} is a table of a CAVE datastack; also give --datastack NAME")
        box = ix.grid_of(rgba).bbox
        return [tree.imagery.table(self.table, bbox=box, ids=ids, position=self.points_column)]


def draw_points(picture: Any, annotations: Sequence[xr.Dataset], scale: int) -> Any:
    """Return an array or Pillow picture with marks of 8 voxels' size; a voxel is ``scale`` pixels wide."""
    for part in annotations:
        picture = ix.annotate(picture, part, size=8 * scale, edgecolor="black", edgewidth=scale)
    return picture


def _read_table(path: str) -> Any:
    import pandas as pd

    suffix = Path(path).suffix.lower()
    if suffix not in (".csv", ".parquet"):
        raise OptionError(f"--points {path} is not a table; give a file that ends in .csv or .parquet")
    if not Path(path).is_file():
        raise OptionError(f"--points {path} does not exist; give the path of a .csv or .parquet file")
    try:
        return _read_csv(path) if suffix == ".csv" else pd.read_parquet(path)
    except (ValueError, OSError) as error:
        raise OptionError(f"--points {path} cannot be read: {str(error)[:200]}") from None


def _read_csv(path: str) -> Any:
    """Return the table of a CSV file, whose integers are exact."""
    import pandas as pd

    table = pd.read_csv(path, dtype_backend="numpy_nullable")
    # pandas reads 2**64 - 1, a valid id, as missing.
    names = [name for name in table.columns if table[name].dtype == "UInt64" and table[name].isna().any()]
    if names:
        texts = pd.read_csv(path, usecols=names, dtype=str)
        for name in names:
            whole = [int(text) if isinstance(text, str) else None for text in texts[name]]
            table[name] = pd.array(whole, dtype="UInt64")
    return table
