"""Select other ids in each cutout, and their colours, by columns of the cutouts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass, replace
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from dask.base import tokenize

from imageryxr.core.array_labels import CUTOUT
from imageryxr.core.bbox import DIMS
from imageryxr.core.colors.ids import to_unsigned
from imageryxr.core.colors.mapping import resolve_colors
from imageryxr.core.colors.parse import parse_color
from imageryxr.core.display import DRAWN_COLORS
from imageryxr.core.validate import name_array
from imageryxr.errors import ColorError, LayerError, OptionError, format_value, warn
from imageryxr.graph.cutout_arrays import Places, as_blocks, centers_of, check_same_places, map_cutouts
from imageryxr.graph.expr import Array
from imageryxr.graph.labelled import is_dask, is_lazy
from imageryxr.ops.cutout_ids import CutoutIds, record_cutouts


def apply_columns(arguments: dict[str, Any], *, is_reported: bool = True) -> dict[str, Any]:
    """Return the arguments of a drawing verb, with the ids of each cutout selected in the segmentation.

    If ``is_reported`` is True, computing all cutouts warns about cutouts that do not contain their ids.
    """
    segmentation = arguments.get("segmentation")
    if isinstance(segmentation, list | tuple):
        _check_layers(segmentation)
        if len(segmentation) == 1:
            (segmentation,) = segmentation
    ids = arguments.get("ids")
    columns = _columns(ids, segmentation)
    check_ids(ids, segmentation)
    if not any(map(_is_column, columns)):
        return arguments
    if not isinstance(segmentation, xr.DataArray) or not all(map(_is_column, columns)):
        raise OptionError(
            "ids of each cutout need one segmentation, and every item of ids must have the dim 'cutout'; give "
            "overlay(boxes.image, boxes.segmentation, ids=[boxes.pre_id, boxes.post_id])"
        )
    if arguments.get("rest_alpha"):
        raise OptionError(
            "rest_alpha cannot be combined with ids of each cutout; draw the rest first: composite(overlay(image, "
            "segmentation, alpha=…), overlay(None, segmentation, ids=…))"
        )
    requested = _cutout_ids(columns, segmentation)
    listed = _list_colors(arguments.get("colors"), requested)
    kept = {n: v for n, v in arguments.items() if n != "ids"}
    kept["segmentation"] = _select_rows(segmentation, _SelectIds(requested, listed is not None, is_reported))
    if listed is not None:
        kept["colors"] = dict(enumerate(listed, 1))
    return kept


def _columns(ids: Any, segmentation: Any) -> list[Any]:
    """Return the items of ``ids`` if these can be columns; names of columns are replaced by the columns."""
    items = list(ids) if isinstance(ids, list | tuple) else [ids] if isinstance(ids, xr.DataArray | str) else []
    known = _known_columns(segmentation)
    return [segmentation.coords[item] if isinstance(item, str) and item in known else item for item in items]


def _known_columns(segmentation: Any) -> list[str]:
    return [str(n) for n, c in getattr(segmentation, "coords", {}).items() if c.dims == (CUTOUT,)]


def _is_column(value: Any) -> bool:
    return isinstance(value, xr.DataArray) and value.dims == (CUTOUT,)


def _check_layers(layers: Any) -> None:
    """Raise `OptionError` for a `Layer` with ids of each cutout, which only the argument ``ids`` accepts."""
    for layer in layers:
        if is_dataclass(layer) and any(map(_is_column, _columns(getattr(layer, "ids", None), None))):
            raise OptionError(
                "a Layer has ids of each cutout; draw one layer at a time: composite(overlay(image, segmentation, "
                "ids=boxes.pre_id), overlay(None, segmentation, ids=boxes.post_id))"
            )


def check_ids(ids: Any, segmentation: Any) -> None:
    """Raise `OptionError` if `ids` are values of a column instead of the column; warn if they may be such values."""
    items = ids if isinstance(ids, list | tuple) else [ids]
    count = getattr(segmentation, "sizes", {}).get(CUTOUT)
    series = [item for item in items if isinstance(item, pd.Series)]
    arrays = [item for item in items if isinstance(item, np.ndarray) and item.ndim and len(item) == count]
    names = [str(item.name) for item in series if item is not ids or str(item.name) in _known_columns(segmentation)]
    found = [_column_of(item, segmentation) for item in arrays]
    if names or any(found) or any(item.ndim == 2 or item is not ids for item in arrays):
        names = names or [name or "pre_id" for name in found]
        advice = ", ".join(f"boxes.{name}" for name in names)
        kind = f"the pandas Series {', '.join(map(repr, names))}" if series else "an array with a value for each cutout"
        raise OptionError(
            f"ids has {kind}; for ids of each cutout give columns of the cutouts: "
            f"ids={advice if items[0] is ids else f'[{advice}]'}, or ids=list(…) for these ids in all cutouts"
        )
    if arrays and len(arrays[0]) > 1:
        warn(
            f"ids is an array of {count:,} ids, as many as there are cutouts, and all of them apply to each cutout; "
            "give ids=list(…) if this is intended, or, for ids of each cutout, boxes.assign_coords(own=('cutout', "
            "ids)) and ids='own'"
        )


def _column_of(values: npt.NDArray[Any], segmentation: xr.DataArray) -> str | None:
    """Return the name of the column that has these values."""
    names = _known_columns(segmentation)
    return next((name for name in names if np.array_equal(segmentation.coords[name].values, values)), None)


def _column_names(columns: list[Any]) -> list[str]:
    return [str(column.name) if column.name is not None else f"ids {i}" for i, column in enumerate(columns, 1)]


def select_columns(segmentation: xr.DataArray, ids: Any, *, is_reported: bool = True) -> tuple[xr.DataArray, Any]:
    """Select the ids of each cutout if ``ids`` are columns; return the segmentation, and the ids left to select.

    If ``ids`` are the same for all cutouts, both are returned unchanged. If ``is_reported`` is True, computing all
    cutouts warns about cutouts that do not contain their ids.
    """
    found = apply_columns({"segmentation": segmentation, "ids": ids}, is_reported=is_reported)
    return found["segmentation"], found.get("ids")


def requested_columns(segmentation: xr.DataArray, ids: Any) -> CutoutIds | None:
    """Return the requested ids of each cutout, or None if ``ids`` apply to all cutouts."""
    columns = _columns(ids, segmentation)
    return _cutout_ids(columns, segmentation) if any(map(_is_column, columns)) else None


def _cutout_ids(columns: list[Any], segmentation: xr.DataArray) -> CutoutIds:
    values = np.stack([_column_values(column, segmentation) for column in columns], axis=1)
    numbers = segmentation[CUTOUT].values if CUTOUT in segmentation.coords else range(len(values))
    return CutoutIds(tuple(_column_names(columns)), tuple(map(str, numbers)), values)


def _column_values(column: xr.DataArray, segmentation: xr.DataArray) -> npt.NDArray[np.uint64]:
    if column.sizes[CUTOUT] != segmentation.sizes.get(CUTOUT):
        raise OptionError(
            f"{name_array(column.name, 'ids')} has {column.sizes[CUTOUT]:,} values for "
            f"{segmentation.sizes.get(CUTOUT, 0):,} cutouts; take it from the same array, such as boxes.pre_id"
        )
    places, centers = Places.of(segmentation), centers_of(column.coords)
    if places is not None and centers is not None:
        own = Places(centers, places.resolution, None)
        check_same_places(own, places, f"{name_array(column.name, 'ids')} and the segmentation")
    values = np.asarray(column.values)
    if values.dtype.kind not in "iu":
        raise LayerError(
            f"{name_array(column.name, 'ids')} has dtype {values.dtype}, but ids are integers; give uint64"
        )
    return to_unsigned(values).astype(np.uint64)


@dataclass(frozen=True)
class _SelectIds:
    """Function of a block of a segmentation and its rows, which a task calls."""

    requested: CutoutIds
    as_numbers: bool
    is_reported: bool
    key: str = ""

    def __call__(self, labels: Array, rows: Array) -> Array:
        """Return the block with only the ids of each cutout, either unchanged or as the number of their column.

        If two columns have the same id, the number is that of the later column.
        """
        out = np.zeros(labels.shape, np.uint64)
        unsigned, ids = to_unsigned(labels), self.requested.values[rows[:, 0]]
        found = np.zeros(ids.shape, np.bool_)
        for row, (values, wanted) in enumerate(zip(unsigned, ids, strict=True)):
            for number, one in enumerate(wanted.tolist(), 1):
                if one:
                    is_one = values == np.uint64(one)
                    out[row][is_one] = number if self.as_numbers else one
                    found[row, number - 1] = is_one.any()
        if self.is_reported:
            record_cutouts(self.key, self.requested, rows[:, 0], found)
        return out


def selections_of(array: da.Array) -> list[tuple[str, CutoutIds]]:
    """Return the selections of ids by `apply_columns` in the graph of an array: the key and the ids of each."""
    tasks = [getattr(layer, "task", None) for layer in array.dask.layers.values()]
    found = [getattr(task, "func", None) for task in tasks]
    return [(f.key, f.requested) for f in found if isinstance(f, _SelectIds) and f.is_reported]


def _select_rows(segmentation: xr.DataArray, select: _SelectIds) -> xr.DataArray:
    """Return the segmentation with the ids of each cutout only."""
    array = segmentation.transpose(CUTOUT, *DIMS)
    if array.dtype.kind not in "iu":
        raise LayerError(f"{name_array(array.name)} has dtype {array.dtype}, but a segmentation has integers")
    rows = np.arange(array.sizes[CUTOUT])[:, np.newaxis]
    if is_dask(array) or is_lazy(array):
        array = array.copy(data=as_blocks(array))
        select = replace(select, key=tokenize(array.data.name, select.requested.values, select.as_numbers))
    return array.copy(data=map_cutouts(select, [array], array.shape[1:], np.uint64, rows=rows, name="select-ids"))


# ---------------------------------------------------------------------------------------------------------
# colours


def _list_colors(colors: Any, requested: CutoutIds) -> list[Any] | None:
    """Return the colour of each column; None if ``colors`` are colours of ids."""
    names = requested.names
    if isinstance(colors, list | tuple) and "neuroglancer" not in colors:
        if len(colors) != len(names):
            raise OptionError(f"colors has {len(colors)} colours for {len(names)} columns of ids; give one for each")
        return list(colors)
    if isinstance(colors, Mapping) and any(isinstance(key, str) and not key.isdigit() for key in colors):
        if {*colors} != {*names}:
            raise ColorError(
                f"colors has the keys {format_value(list(colors))} for the columns of ids "
                f"{', '.join(map(repr, names))}; give a colour for each column, colors={{{names[0]!r}: 'red', …}}, or "
                "for each id"
            )
        return [colors[name] for name in names]
    ids = np.unique(requested.values)
    try:
        resolve_colors(colors, ids[ids != 0] if isinstance(colors, Mapping) else None)
    except ColorError:
        if not isinstance(colors, str) or not _is_color(colors):
            raise
        return [colors] * len(names)
    return None


def _is_color(text: str) -> bool:
    try:
        parse_color(text)
    except ColorError:
        return False
    return True


def name_colors(picture: xr.DataArray, ids: Any, segmentation: Any) -> xr.DataArray:
    """Return a picture that records the colours of columns by their names, instead of their numbers."""
    layers = json.loads(picture.attrs.get(DRAWN_COLORS, "[]"))
    names = _column_names(_columns(ids, segmentation))
    if layers:
        drawn = {names[int(number) - 1]: color for number, color in layers[-1]["ids"].items()}
        layers[-1] = {**layers[-1], "ids": drawn}
    return picture.assign_attrs({DRAWN_COLORS: json.dumps(layers)})
