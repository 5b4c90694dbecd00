"""Apply the verbs of volumes to arrays of cutouts, which have the leading dim ``cutout``."""

from __future__ import annotations

import functools
import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt
import xarray as xr

from imageryxr.core.array_labels import CUTOUT, grid_of, layer_type_of
from imageryxr.core.bbox import DIMS
from imageryxr.core.grid import Grid
from imageryxr.core.validate import name_array
from imageryxr.graph.cutout_arrays import check_same_cutouts, contains_cutouts, first_cutout, map_cutouts, route_cutouts
from imageryxr.graph.expr import Array
from imageryxr.ops.cutout_align import ranges_with_data
from imageryxr.ops.cutout_columns import apply_columns, name_colors
from imageryxr.ops.segment_ids import record_ids

P = ParamSpec("P")
R = TypeVar("R")


def accepts_cutouts(*, slicewise: bool = True) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that applies a verb of volumes to each cutout, if its arrays have the dim ``cutout``.

    The verb is called with the arrays of one block in memory, so it cannot read data beyond the border of a cutout.

    Parameters
    ----------
    slicewise : bool
        Whether the verb processes each z slice independently, so that all slices of a block can be computed in one call
        (unless its argument ``axis`` names another axis).
    """
    # Pictures of one cutout equal those of a stack: no outline is drawn where the volume ends.
    return route_cutouts(functools.partial(apply_verb, slicewise=slicewise), singles=slicewise)


def apply_verb(verb: Callable[..., Any], args: Any, kwargs: Any, slicewise: bool) -> xr.DataArray:
    """Return the result of a verb for each cutout; see `accepts_cutouts`."""
    bound = inspect.signature(verb).bind(*args, **kwargs)
    if not any(map(contains_cutouts, bound.arguments.values())):
        stacked = {name: _stack_single(value) for name, value in bound.arguments.items()}
        bound = inspect.BoundArguments(bound.signature, OrderedDict(stacked))
        return apply_verb(verb, bound.args, bound.kwargs, slicewise).isel({CUTOUT: 0})
    options = apply_columns(dict(bound.arguments))
    arrays: list[xr.DataArray] = []
    call = _Call(verb, {name: _extract(value, arrays) for name, value in options.items()})
    found = _apply(call, arrays, slicewise and bound.arguments.get("axis", "z") == "z")
    if "ids" in bound.arguments and "ids" not in options and options.get("colors") is not bound.arguments.get("colors"):
        return name_colors(found, bound.arguments["ids"], bound.arguments["segmentation"])
    return found


def _stack_single(value: Any) -> Any:
    """Return an argument with the dim ``cutout`` added to its single cutouts."""
    if not isinstance(value, xr.DataArray):
        return _map_inside(value, _stack_single)
    if not contains_cutouts(value, singles=True):
        return value
    columns = {name: c.variable.set_dims((CUTOUT,)) for name, c in value.coords.items() if not c.ndim}
    return value.drop_vars(columns).expand_dims(CUTOUT).assign_coords(columns)


@dataclass(frozen=True)
class _Slot:
    """Placeholder for an array in the arguments of a call."""

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
    if isinstance(value, Mapping) and not isinstance(value, xr.Dataset):
        return {key: change(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return tuple(map(change, value)) if type(value) is tuple else list(map(change, value))
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
    holds_cells: bool

    @classmethod
    def of(cls, array: xr.DataArray) -> _Labels:
        """Return the labels of an array of cutouts."""
        tail = tuple(map(str, array.dims[4:]))
        return cls(grid_of(first_cutout(array)), dict(array.attrs), array.name, tail, _holds_cells(array))

    def label(self, values: Array) -> xr.DataArray:
        """Return values (z, y, x) with these labels: a part of a cutout, or the slices of several."""
        z, y, x = values.shape[:3]
        grid = Grid((z, y, x), self.grid.resolution, self.grid.voxel_offset)
        array = xr.DataArray(values, grid.coords(), (*DIMS, *self.tail), self.name, dict(self.attrs))
        return array.assign_coords(rgba=list("rgba")) if "rgba" in self.tail else array


def _apply(call: _Call, arrays: list[xr.DataArray], by_slice: bool) -> xr.DataArray:
    first = arrays[0]
    for other in arrays[1:]:
        check_same_cutouts(first, other, f"{name_array(first.name)} and {name_array(other.name, 'the other')}")
    labels = [_Labels.of(a) for a in arrays]
    zeros = [one.label(np.zeros(a.shape[1:], a.dtype)) for one, a in zip(labels, arrays, strict=True)]
    template = call(zeros)
    ranges = _ranges_to_draw(arrays) if template.shape[:3] == first.shape[1:4] else None
    run = _Block(call, tuple(labels), by_slice, ranges is not None)
    name = str(template.name or "cutouts")
    data = map_cutouts(run, arrays, template.shape, template.dtype, rows=ranges, name=name)
    columns = {n: c.variable for a in arrays for n, c in a.coords.items() if c.dims == (CUTOUT,)}
    coords = {**{name: c.variable for name, c in template.coords.items()}, **columns}
    return xr.DataArray(data, coords, (CUTOUT, *template.dims), template.name, template.attrs)


def _ranges_to_draw(arrays: list[xr.DataArray]) -> npt.NDArray[np.int64] | None:
    """Return the part of each cutout that the segmentations cover; None if they cover all of it, or if it is unknown.

    Only this part is drawn, so that no outline is drawn along the edge of a segmentation.
    """
    found = [ranges_with_data(array) for array in arrays if _holds_cells(array)]
    known = [ranges for ranges in found if ranges is not None]
    if not known or len(known) < len(found) or not all(np.array_equal(known[0], other) for other in known):
        return None
    whole = [0, 0, 0, *arrays[0].shape[1:4]]
    return known[0] if (known[0] != whole).any() else None


def _holds_cells(array: xr.DataArray) -> bool:
    return array.ndim <= 4 and array.dtype.kind in "iub" and layer_type_of(array) == "segmentation"


@dataclass(frozen=True)
class _Block:
    """Function of the blocks of several arrays of cutouts, which a task calls."""

    call: _Call
    labels: tuple[_Labels, ...]
    by_slice: bool
    has_ranges: bool
    """Whether the last argument is the part of each cutout that the segmentations cover."""

    def __call__(self, *blocks: Array) -> Array:
        """Return the results of all cutouts of a block."""
        if not self.has_ranges:
            return self._run_all(blocks)
        *arrays, ranges = blocks
        found = self._run_all(arrays)
        is_part = (ranges != [0, 0, 0, *arrays[0].shape[1:4]]).any(axis=1)
        for i in np.flatnonzero(is_part):
            start, stop = ranges[i].reshape(2, 3)
            part = tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
            values = [array[i] for array in arrays]
            without = [v * 0 if one.holds_cells else v for one, v in zip(self.labels, values, strict=True)]
            found[i] = self._run(without)
            if (start < stop).all():
                found[i][part] = self._run([v[part] for v in values])
        return found

    def _run_all(self, blocks: Sequence[Array]) -> Array:
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
