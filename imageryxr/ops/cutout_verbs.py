"""Apply the verbs of volumes to arrays of cutouts, which have the leading dim ``cutout``."""

from __future__ import annotations

import functools
import inspect
import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from dask.base import tokenize

from imageryxr.core.annotation_values import is_missing
from imageryxr.core.array_labels import grid_of
from imageryxr.core.bbox import DIMS
from imageryxr.core.colors.ids import to_unsigned
from imageryxr.core.colors.record import DRAWN_COLORS
from imageryxr.core.grid import Grid
from imageryxr.errors import LayerError, OptionError
from imageryxr.graph.cutout_arrays import (
    CUTOUT,
    Places,
    centers_of,
    check_same_cutouts,
    check_same_places,
    contains_cutouts,
    first_cutout,
    map_cutouts,
    route_cutouts,
)
from imageryxr.graph.expr import Array
from imageryxr.graph.labelled import is_dask, is_lazy
from imageryxr.ops.cutout_ids import CutoutIds, record_cutouts
from imageryxr.ops.segment_ids import record_ids

P = ParamSpec("P")
R = TypeVar("R")


def accepts_cutouts(*, slicewise: bool = True) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that applies a verb of volumes to each cutout, if its arrays have the dim ``cutout``.

    The verb gets the arrays of one block in memory, so a cutout has no data beyond its border.

    Parameters
    ----------
    slicewise : bool
        Whether the verb treats each z slice alone, unless its argument ``axis`` names another axis. Then all slices of
        a block are computed in one call.
    """
    return route_cutouts(functools.partial(apply_verb, slicewise=slicewise))


def apply_verb(verb: Callable[..., Any], args: Any, kwargs: Any, slicewise: bool) -> xr.DataArray:
    """Return the result of a verb for each cutout; see `accepts_cutouts`."""
    bound = inspect.signature(verb).bind(*args, **kwargs)
    options = _apply_ids(dict(bound.arguments))
    arrays: list[xr.DataArray] = []
    call = _Call(verb, {name: _extract(value, arrays) for name, value in options.items()})
    found = _apply(call, arrays, slicewise and bound.arguments.get("axis", "z") == "z")
    is_numbered = "ids" in bound.arguments and "ids" not in options and isinstance(options.get("colors"), dict)
    if is_numbered and not isinstance(bound.arguments["colors"], dict):
        ids = bound.arguments["ids"]
        return _name_colors(found, [ids] if isinstance(ids, xr.DataArray) else list(ids))
    return found


@dataclass(frozen=True)
class _Slot:
    """Place of an array in the arguments of a call."""

    number: int


def _extract(value: Any, arrays: list[xr.DataArray]) -> Any:
    """Return an argument with its arrays of cutouts replaced by slots, and append the arrays to a list."""
    if isinstance(value, xr.DataArray) and contains_cutouts(value):
        arrays.append(value.transpose(CUTOUT, *DIMS, ...))
        return _Slot(len(arrays) - 1)
    return _map_inside(value, lambda part: _extract(part, arrays))


def _fill(value: Any, arrays: list[xr.DataArray]) -> Any:
    if isinstance(value, _Slot):
        return arrays[value.number]
    return _map_inside(value, lambda part: _fill(part, arrays))


def _map_inside(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {key: change(part) for key, part in value.items()}
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(map(change, value))
    if is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: getattr(value, f.name) for f in fields(value) if f.init}
        changed = {name: change(part) for name, part in parts.items()}
        if any(changed[name] is not parts[name] for name in parts):
            return replace(value, **changed)
    return value


@dataclass(frozen=True)
class _Call:
    """A call of a verb whose arrays are given later."""

    verb: Callable[..., Any]
    arguments: dict[str, Any]

    def __call__(self, arrays: list[xr.DataArray]) -> xr.DataArray:
        """Return the result of the verb for arrays in memory, without warnings about ids that a block lacks."""
        filled = {name: _fill(value, arrays) for name, value in self.arguments.items()}
        bound = inspect.BoundArguments(inspect.signature(self.verb), OrderedDict(filled))
        with record_ids():
            found: xr.DataArray = self.verb(*bound.args, **bound.kwargs)
        return found


@dataclass(frozen=True)
class _Labels:
    """The labels of a cutout's array, without its values."""

    grid: Grid
    attrs: dict[str, Any]
    name: Any
    tail: tuple[str, ...]

    @classmethod
    def of(cls, array: xr.DataArray) -> _Labels:
        """Return the labels of an array of cutouts."""
        return cls(grid_of(first_cutout(array)), dict(array.attrs), array.name, tuple(map(str, array.dims[4:])))

    def label(self, values: Array) -> xr.DataArray:
        """Return values (z, y, x) with these labels; there may be more slices than in one cutout."""
        grid = Grid((len(values), *self.grid.shape[1:]), self.grid.resolution, self.grid.voxel_offset)
        array = xr.DataArray(values, grid.coords(), (*DIMS, *self.tail), self.name, dict(self.attrs))
        return array.assign_coords(rgba=list("rgba")) if "rgba" in self.tail else array


def _apply(call: _Call, arrays: list[xr.DataArray], by_slice: bool) -> xr.DataArray:
    first = arrays[0]
    for other in arrays[1:]:
        check_same_cutouts(first, other, f"the arrays {first.name!r} and {other.name!r}")
    labels = [_Labels.of(a) for a in arrays]
    zeros = [one.label(np.zeros(a.shape[1:], a.dtype)) for one, a in zip(labels, arrays, strict=True)]
    template = call(zeros)
    run = _Block(call, tuple(labels), by_slice)
    if any(is_dask(a) or is_lazy(a) for a in arrays):
        data: Any = map_cutouts(
            run, [as_blocks(a) for a in arrays], template.shape, template.dtype, name=str(template.name or "cutouts")
        )
    else:
        data = run(*(a.values for a in arrays))
    rows = {n: c.variable for a in arrays for n, c in a.coords.items() if c.dims == (CUTOUT,)}
    coords = {**{name: c.variable for name, c in template.coords.items()}, **rows}
    return xr.DataArray(data, coords, (CUTOUT, *template.dims), template.name, template.attrs)


def as_blocks(array: xr.DataArray) -> Any:
    """Return the dask or numpy array of cutouts; arrays that are not loaded become dask arrays."""
    return array.chunk({CUTOUT: 8}).data if is_lazy(array) else array.data


@dataclass(frozen=True)
class _Block:
    """Function of the blocks of several arrays of cutouts, which a task calls."""

    call: _Call
    labels: tuple[_Labels, ...]
    by_slice: bool

    def __call__(self, *blocks: Array) -> Array:
        """Return the results of all cutouts of a block."""
        if self.by_slice:
            stacks = [b.reshape(-1, *b.shape[2:]) for b in blocks]
            found = self._run(stacks)
            return found.reshape(len(blocks[0]), -1, *found.shape[1:])
        return np.stack([self._run(list(values)) for values in zip(*blocks, strict=True)])

    def _run(self, values: list[Array]) -> Array:
        result = self.call([one.label(v) for one, v in zip(self.labels, values, strict=True)])
        return np.asarray(result.values)


def central_slices(array: xr.DataArray) -> xr.DataArray:
    """Return the slice of each cutout that contains the centre: the dims (cutout, y, x), and ``rgba`` if present."""
    return array.isel(z=array.sizes["z"] // 2) if "z" in array.dims else array


def column_texts(values: npt.NDArray[Any]) -> list[str]:
    """Return the values of a column as texts, which are empty where a value is missing."""
    return ["" if missing else str(value) for value, missing in zip(values, is_missing(values), strict=True)]


# ---------------------------------------------------------------------------------------------------------
# ids of each cutout


def _apply_ids(arguments: dict[str, Any], *, is_reported: bool = True) -> dict[str, Any]:
    """Return the arguments of a drawing verb with ids of each cutout applied to its segmentation.

    With ``is_reported``, computing all cutouts warns about those that do not contain their ids.
    """
    ids = arguments.get("ids")
    columns = [ids] if isinstance(ids, xr.DataArray) else list(ids) if isinstance(ids, list | tuple) else []
    _check_series(ids, columns, arguments.get("segmentation"))
    if not any(_is_column(column) for column in columns):
        return arguments
    segmentation = arguments["segmentation"]
    if isinstance(segmentation, list | tuple) and len(segmentation) == 1:
        (segmentation,) = segmentation
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
    colors = arguments.get("colors")
    listed = list(colors) if isinstance(colors, list | tuple) and "neuroglancer" not in colors else None
    if listed is not None and len(listed) != len(columns):
        raise OptionError(f"colors has {len(listed)} colours for {len(columns)} columns of ids; give one for each")
    kept = {n: v for n, v in arguments.items() if n != "ids"}
    select = _SelectIds(_requested(columns, segmentation), listed is not None, is_reported)
    kept["segmentation"] = _select_rows(segmentation, select)
    if listed is not None:
        kept["colors"] = dict(enumerate(listed, 1))
    return kept


def _check_series(ids: Any, columns: list[Any], segmentation: Any) -> None:
    """Raise `OptionError` for columns of the table instead of columns of the cutouts, which are ids of each cutout."""
    inside = [column for column in columns if isinstance(column, pd.Series)]
    known = [str(n) for n, c in getattr(segmentation, "coords", {}).items() if c.dims == (CUTOUT,)]
    names = [str(series.name) for series in inside]
    advice = f"[{', '.join(f'boxes.{name}' for name in names)}]"
    if isinstance(ids, pd.Series) and str(ids.name) in known:
        names, advice = [str(ids.name)], f"boxes.{ids.name}, or ids=list(…) for these ids in all cutouts"
    if names:
        raise OptionError(
            f"ids has the pandas Series {', '.join(map(repr, names))}; for ids of each cutout give columns of the "
            f"cutouts: ids={advice}"
        )


def _name_colors(picture: xr.DataArray, columns: list[Any]) -> xr.DataArray:
    """Return a picture that records the colours of columns by their names, instead of their numbers."""
    layers = json.loads(picture.attrs.get(DRAWN_COLORS, "[]"))
    names = _column_names(columns)
    if layers:
        ids = {names[int(number) - 1]: color for number, color in layers[-1]["ids"].items()}
        layers[-1] = {**layers[-1], "ids": ids}
    return picture.assign_attrs({DRAWN_COLORS: json.dumps(layers)})


def _column_names(columns: list[Any]) -> list[str]:
    return [str(column.name) if column.name is not None else f"ids {i}" for i, column in enumerate(columns, 1)]


def select_columns(segmentation: xr.DataArray, ids: Any, *, is_reported: bool = True) -> tuple[xr.DataArray, Any]:
    """Return cutouts of a segmentation with the ids of each cutout only, and None; or all ids, and ids of all cutouts.

    Parameters
    ----------
    segmentation : DataArray
        Ids (cutout, z, y, x).
    ids : column, list of columns, iterable of int or None
        Ids of each cutout, or of all of them.
    is_reported : bool
        Whether computing all cutouts warns about those that do not contain their ids.
    """
    found = _apply_ids({"segmentation": segmentation, "ids": ids}, is_reported=is_reported)
    return found["segmentation"], found.get("ids")


def requested_columns(segmentation: xr.DataArray, ids: Any) -> CutoutIds | None:
    """Return the requested ids of each cutout, or None if ``ids`` are those of all cutouts."""
    columns = [ids] if isinstance(ids, xr.DataArray) else list(ids) if isinstance(ids, list | tuple) else []
    return _requested(columns, segmentation) if any(map(_is_column, columns)) else None


def _requested(columns: list[Any], segmentation: xr.DataArray) -> CutoutIds:
    values = np.stack([_column_values(column, segmentation) for column in columns], axis=1)
    numbers = segmentation[CUTOUT].values if CUTOUT in segmentation.coords else range(len(values))
    return CutoutIds(tuple(_column_names(columns)), tuple(map(str, numbers)), values)


def _is_column(value: Any) -> bool:
    return isinstance(value, xr.DataArray) and value.dims == (CUTOUT,)


def _column_values(column: xr.DataArray, segmentation: xr.DataArray) -> npt.NDArray[np.uint64]:
    if column.sizes[CUTOUT] != segmentation.sizes.get(CUTOUT):
        raise OptionError(
            f"ids {column.name!r} has {column.sizes[CUTOUT]:,} values for {segmentation.sizes.get(CUTOUT, 0):,} "
            "cutouts; take it from the same array, such as boxes.pre_id"
        )
    places, centers = Places.of(segmentation), centers_of(column.coords)
    if places is not None and centers is not None:
        own = Places(centers, places.resolution, None)
        check_same_places(own, places, f"ids {column.name!r} and the segmentation")
    values = np.asarray(column.values)
    if values.dtype.kind not in "iu":
        raise LayerError(f"ids {column.name!r} has dtype {values.dtype}, but ids are integers; give uint64")
    return to_unsigned(values).astype(np.uint64)


@dataclass(frozen=True)
class _SelectIds:
    """Function of a block of a segmentation and its rows, which a task calls."""

    requested: CutoutIds
    as_numbers: bool
    is_reported: bool
    key: str = ""

    def __call__(self, labels: Array, rows: Array) -> Array:
        """Return the block with the ids of each cutout only: unchanged, or replaced by the number of their column.

        Where two columns have the same id, the later one counts.
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


def _select_rows(segmentation: xr.DataArray, select: _SelectIds) -> xr.DataArray:
    """Return the segmentation with the ids of each cutout only."""
    array = segmentation.transpose(CUTOUT, *DIMS)
    if array.dtype.kind not in "iu":
        raise LayerError(f"{array.name!r} has dtype {array.dtype}, but a segmentation has integers")
    rows = np.arange(array.sizes[CUTOUT])[:, np.newaxis]
    if is_dask(array) or is_lazy(array):
        blocks = as_blocks(array)
        select = replace(select, key=tokenize(blocks.name, select.requested.values, select.as_numbers))
        data: Any = map_cutouts(select, [blocks], array.shape[1:], np.uint64, rows=rows, name="select-ids")
    else:
        data = select(array.values, rows)
    return array.copy(data=data)
