"""Labels of xarray objects: layer type, the grid that the coordinates describe, attributes, other coordinates.

Attributes are converted to types that netCDF and Zarr files can store; nested values become JSON text. Verbs keep
coordinates such as a section name along z or a scalar time as xarray does.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import xarray as xr

from imageryxr.core.bbox import DIMS, SNAP
from imageryxr.core.grid import Axis, Grid
from imageryxr.core.units import has_unit, length_in_nm
from imageryxr.core.validate import to_number, to_numbers
from imageryxr.errors import GridError, LayerError, UnitError, Wording

ArrayOrDataset = TypeVar("ArrayOrDataset", xr.DataArray, xr.Dataset)
CUTOUT = "cutout"


def has_cutouts(obj: Any) -> bool:
    """Return whether an array or a Dataset has the dim ``cutout``."""
    return isinstance(obj, xr.DataArray | xr.Dataset) and CUTOUT in obj.dims


def spatial_arrays(dataset: xr.Dataset) -> dict[Any, xr.DataArray]:
    """Return the variables of a Dataset that have z, y and x as dims or as scalar coordinates, by name.

    Raises `LayerError` if there are none.
    """
    if not isinstance(dataset, xr.Dataset):
        raise LayerError(f"an object of type {type(dataset).__name__} has no layers; give a DataArray or a Dataset")
    found = {name: v for name, v in dataset.data_vars.items() if {*DIMS} <= {*v.dims, *v.coords}}
    if not found:
        names = list(map(str, dataset.data_vars))
        raise LayerError(f"the Dataset has the variables {names}, none of which has the dims z, y and x")
    return found


def layer_type_of(array: xr.DataArray) -> Literal["image", "segmentation"]:
    """Return the layer type of an array, from its attrs, its name or its dtype."""
    declared = array.attrs.get("layer_type", array.name)
    return declared if declared in ("image", "segmentation") else layer_type_of_dtype(array.dtype)


def layer_type_of_dtype(dtype: np.dtype[Any]) -> Literal["image", "segmentation"]:
    """Return the layer type of an array that does not state it."""
    # Grey values have 8 or 16 bits or are floats, so wider integers are ids.
    return "segmentation" if dtype.kind in "iu" and dtype.itemsize > 2 else "image"


# ---------------------------------------------------------------------------------------------------------
# grid


def grid_of(da: xr.DataArray | xr.Dataset | xr.DataTree) -> Grid:
    """Return the grid that the coordinates of an array describe, without reading voxels.

    The ``units`` attribute of a coordinate may name any unit of length; the default is nanometres. The spacing of the
    coordinates determines the voxel size. ``attrs["resolution"]`` of the array (nm) and of each coordinate (in the unit
    of that coordinate) determine the size of an axis with one voxel and remove float noise, but only if they agree with
    the spacing of another axis: after a stride or `xarray.DataArray.coarsen` they describe the previous array. A scalar
    coordinate, such as ``isel(z=5)`` leaves, keeps its size.

    Parameters
    ----------
    da : DataArray, Dataset or node of a DataTree
        With dims z, y and x and coordinates in units of length. Any of the dims may be a scalar coordinate.

    Returns
    -------
    Grid

    Raises
    ------
    GridError
        If a coordinate is missing, descending or unevenly spaced, or the size of an axis with one voxel is unknown.
    UnitError
        If the units of a coordinate are not a known unit of length.

    Examples
    --------
    >>> import numpy as np, xarray as xr, imageryxr as ix
    >>> grid = ix.Grid((4, 8, 8), (4.04, 4.04, 40), (10, 20, 3))
    >>> array = xr.DataArray(np.zeros(grid.shape), coords=grid.coords(), dims=("z", "y", "x"))
    >>> ix.grid_of(array) == grid
    True
    >>> ix.grid_of(array.isel(x=slice(2, None, 2))).resolution
    (8.08, 4.04, 40.0)
    >>> ix.grid_of(array.isel(z=[2])).resolution
    (4.04, 4.04, 40.0)
    """
    if isinstance(da, xr.DataTree):
        da = da.to_dataset()
    if not isinstance(da, xr.DataArray | xr.Dataset):
        raise GridError(f"an object of type {type(da).__name__} has no grid; give a DataArray or a Dataset")
    coords, shape = da.coords.variables, da.sizes  # da[dim] would copy the coordinate and its attributes
    centers = {dim: _centers(coords, dim, shape) for dim in DIMS}
    offsets = dict(zip(DIMS, _triple_attr(da, "voxel_offset")[::-1], strict=True))
    sizes = _stated_sizes(da, centers, offsets)
    return Grid.from_axes([_make_axis(dim, centers[dim], sizes[dim], offsets[dim]) for dim in DIMS])


def _centers(coords: Mapping[Any, xr.Variable], dim: str, sizes: Mapping[Any, int]) -> npt.NDArray[np.float64]:
    """Return the voxel centres along an axis in nm."""
    if dim not in coords:
        raise GridError(
            f"the array has no coordinate {dim!r}; its coordinates are {sorted(map(str, coords))}. Add coordinates in ",
            "nm: open_image(array) adds them if array.attrs has resolution and voxel_offset, or use ",
            "array.assign_coords(imageryxr.Grid(shape, resolution, voxel_offset).coords())",
        )
    try:
        if coords[dim].dtype.kind not in "iufO":  # NumPy converts texts and dates, too
            raise TypeError("not numbers")
        values = np.atleast_1d(np.asarray(coords[dim].values, dtype=np.float64))
    except (TypeError, ValueError):
        raise GridError(f"the coordinate {dim!r} has {coords[dim].dtype} values; a grid needs numbers in nm") from None
    if len(values) == 0:
        raise GridError(
            f"the array is empty: it has no voxel along {dim!r} (sizes {dict(sizes)}); a selection by ",
            "coordinate takes nm; to select by voxel numbers, ",
            Wording("crop with BBox(lo, hi, resolution=(x, y, z))", "give --resolution x,y,z"),
        )
    if not np.isfinite(values).all():
        raise GridError(f"the coordinate {dim!r} has values that are not finite: {values[:4]}…; give numbers in nm")
    _check_even(dim, values)
    unit = _nm_per_unit(coords, dim)
    return values if unit == 1 else values * unit


def _check_even(dim: str, values: npt.NDArray[np.float64]) -> None:
    if len(values) == 1:
        return
    steps, step = np.diff(values), float((values[-1] - values[0]) / (len(values) - 1))
    if step <= 0:
        raise GridError(
            f"the coordinate {dim!r} does not ascend ({values[0]:g} to {values[-1]:g}); use .sortby({dim!r})"
        )
    if np.abs(steps - step).max() > 1e-3 * step:
        raise GridError(
            f"the coordinate {dim!r} is not evenly spaced (steps from {steps.min():g} to {steps.max():g}), "
            "so its voxels do not form a grid; select with a slice, not with a list"
        )


def _nm_per_unit(coords: Mapping[Any, xr.Variable], dim: str) -> float:
    """Return the number of nanometres per unit of a coordinate."""
    stated = coords[dim].attrs.get("units", coords[dim].attrs.get("unit"))
    if stated == "nm" or not has_unit(stated):  # `Grid.coords` states nm
        return 1.0
    try:
        return length_in_nm(stated)
    except UnitError as error:
        raise UnitError(
            f"the coordinate {dim!r} has units={str(stated)[:60]!r}: {error}; set array[{dim!r}].attrs['units'] to the "
            "unit of its numbers"
        ) from None


def _triple_attr(da: xr.DataArray | xr.Dataset, name: str) -> tuple[Any, Any, Any]:
    """Return an (x, y, z) attribute of an array, or of the first variable of a Dataset with it; else Nones."""
    holders: list[Mapping[Any, Any]] = [da.attrs]
    if isinstance(da, xr.Dataset):
        holders += [v.attrs for v in da.data_vars.values()]
    # Another program may have set the attribute, so invalid values are ignored.
    values = next((h[name] for h in holders if name in h), None)
    numbers = [float(n) for n in to_numbers(values)]
    usable = len(numbers) == 3 and (name != "resolution" or min(numbers) > 0)
    return (numbers[0], numbers[1], numbers[2]) if usable else (None, None, None)


def _stated_sizes(
    da: xr.DataArray | xr.Dataset, centers: Mapping[str, npt.NDArray[np.float64]], offsets: Mapping[str, Any]
) -> dict[str, float | None]:
    """Return the voxel size (nm) along each axis according to the attributes; None if missing or outdated.

    The attributes of the array take precedence over those of the coordinates, which users do not set.
    """
    array_sizes = dict(zip(DIMS, _triple_attr(da, "resolution")[::-1], strict=True))
    coords = da.coords.variables
    coord_sizes = {dim: _size_attr(coords, dim) for dim in DIMS}
    trusted: dict[str, float | None] = dict.fromkeys(DIMS)
    for stated in (coord_sizes, array_sizes):
        if not _is_outdated(stated, centers):
            trusted.update({dim: size for dim, size in stated.items() if size is not None})
    for dim, values in centers.items():
        if trusted[dim] is None and coords[dim].ndim == 0:
            # Only a selection of one voxel leaves a scalar coordinate, so no stride or mean can have changed its size.
            trusted[dim] = coord_sizes[dim] or array_sizes[dim]
        size = trusted[dim]
        if (
            len(values) == 1
            and size is not None
            and size == coord_sizes[dim]
            and _is_between_voxels(values[0], size, offsets[dim])
        ):
            trusted[dim] = None
    return trusted


def _size_attr(coords: Mapping[Any, xr.Variable], dim: str) -> float | None:
    value = to_number(coords[dim].attrs.get("resolution"))
    if value is None:
        return None
    size = float(value) * _nm_per_unit(coords, dim)
    return size if math.isfinite(size) and size > 0 else None


def _is_outdated(stated: Mapping[str, Any], centers: Mapping[str, npt.NDArray[np.float64]]) -> bool:
    """Return whether the stated sizes disagree with the spacing of every axis that has several voxels."""
    agree = []
    for dim, values in centers.items():
        if len(values) > 1 and stated[dim] is not None:
            step = float(values[-1] - values[0]) / (len(values) - 1)
            agree.append(abs(step - stated[dim]) <= 1e-3 * max(step, stated[dim]))
    return bool(agree) and not any(agree)


def _is_between_voxels(center: float, size: float, offset: Any) -> bool:
    """Return whether a centre lies on the edge between two voxels, as the mean of an even number of centres does."""
    if offset is None:
        return False
    steps = center / size - 0.5 - float(offset)
    return abs(steps - math.floor(steps) - 0.5) < max(1e-3, 4 * float(np.spacing(abs(steps))))


def _make_axis(dim: str, values: npt.NDArray[np.float64], size: float | None, offset: Any) -> Axis:
    if len(values) == 1:
        if size is None:
            raise GridError(
                f"the axis {dim!r} has one voxel, and nothing states its size in nm: the coordinate is one number, and "
                "attrs['resolution'] is absent or describes the array before it was coarsened, strided or averaged; "
                "set it with array.assign_attrs(resolution=(x, y, z)) in nm, e.g. (8, 8, 160) for the mean of four "
                "sections of 40 nm"
            )
        return Axis(1, size, _offset(values[0], size, offset))
    step = float((values[-1] - values[0]) / (len(values) - 1))
    spacing = _spacing(values, step, size)
    return Axis(len(values), spacing, _offset(values[0], spacing, offset))


def _spacing(values: npt.NDArray[np.float64], step: float, resolution: Any) -> float:
    # Choose the simplest spacing that reproduces the first and the last coordinate: within float64 noise, or, for
    # rounded coordinates, within a tolerance that moves no voxel.
    noise = 4 * np.finfo(float).eps * (float(np.abs(values).max()) / (len(values) - 1) + step)
    if resolution is not None and abs(float(resolution) - step) <= noise:
        return float(resolution)
    candidates = [] if resolution is None else [float(resolution)]
    candidates += [float(f"{step:.{digits}g}") for digits in range(1, 7)]
    candidates += [float(Fraction(step).limit_denominator(most)) for most in (10, 100, 1000)]
    candidates += [float(f"{step:.{digits}g}") for digits in range(7, 15)]
    near = [c for slack in (noise, 1e-6 * step / len(values)) for c in candidates if abs(c - step) <= slack]
    return near[0] if near else step


def _offset(first: float, resolution: float, offset: Any) -> int | float:
    place = first / resolution - 0.5
    # A float64 coordinate beyond 2**31 voxels is noisier than `SNAP`.
    noise = max(float(SNAP), 4 * float(np.spacing(abs(place))))
    if offset is not None and abs(place - float(offset)) < noise:
        return int(offset) if float(offset).is_integer() else float(offset)
    # Downsampling by 3 gives offsets in thirds of a voxel; a small denominator within float noise is the exact value.
    simple = Fraction(place).limit_denominator(1000)
    if abs(place - simple) >= noise:
        return place
    return int(simple) if simple.denominator == 1 else float(simple)


# ---------------------------------------------------------------------------------------------------------
# attributes

_INT64_MAX = 2**63 - 1


class LargeIds(list[int]):
    """A list of ids above the int64 range. Numpy converts it to uint64, whereas it converts a plain list to floats."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return np.array(list(self), np.uint64 if dtype is None else dtype)


def plain_attrs(attrs: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return attributes in the types that netCDF and Zarr files can store: numbers, strings and flat lists of either.

    Dicts and nested lists become JSON text, which `parse_json_attr` parses. Booleans become 0 and 1. Numpy scalars
    become Python numbers.
    """
    return {name: _plain_value(value) for name, value in attrs.items()}


def parse_json_attr(attr: Any) -> Any:
    """Parse an attribute that is the JSON text of a dict or list; return any other value unchanged."""
    if isinstance(attr, str) and attr[:1] in ("{", "["):
        try:
            return json.loads(attr)
        except ValueError:
            return attr
    return attr


def list_from_attr(attr: Any) -> list[Any]:
    """Return a list attribute as a list; a file may return it as an array, or a list of one item as that item."""
    return [] if attr is None else np.asarray(attr, dtype=object).ravel().tolist()


def _plain_value(value: Any) -> Any:
    if isinstance(value, bool | np.bool_):
        return int(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple):
        return _plain_list(value)
    return _to_json(value) if isinstance(value, dict) else value


def _plain_list(value: Any) -> Any:
    kinds = {type(item) for item in value}
    if kinds == {int} and _INT64_MAX < max(value) < 2**64 and 0 <= min(value) <= _INT64_MAX:
        return LargeIds(value)
    if kinds <= {int, float} or kinds == {str}:
        return value
    if all(issubclass(kind, int | float | np.number | np.bool_) for kind in kinds):
        return _plain_list(type(value)(_plain_value(item) for item in value))
    return _to_json(value)


def _to_json(value: Any) -> Any:
    try:
        return json.dumps(value)
    except (TypeError, ValueError):
        return value  # the caller set an attribute that JSON cannot represent


# ---------------------------------------------------------------------------------------------------------
# coordinates


@dataclass(frozen=True)
class ExtraCoord:
    """A coordinate other than z, y and x, with the grid of its values."""

    name: Any
    variable: xr.Variable
    grid: Grid

    def reindex(self, grid: Grid) -> xr.Variable | None:
        """Return the coordinate on another grid; None if the voxels along one of its dims do not coincide."""
        found = self.variable
        for dim, mine, target in zip(DIMS, self.grid.axes, grid.axes, strict=True):
            if dim not in found.dims:
                continue
            start = target.shift_to(mine)
            if start is None:
                return None
            stop = start + target.size
            found = found.isel({dim: slice(max(start, 0), max(stop, 0))})
            around = (min(max(-start, 0), target.size), min(max(stop - mine.size, 0), target.size))
            if any(around):
                found = found.pad({dim: around})  # the same fill values as xarray's reindex
        return found


def extra_coords(array: xr.DataArray, grid: Grid) -> tuple[ExtraCoord, ...]:
    """Return the coordinates of an array that are not z, y or x themselves and have no other dims."""
    return tuple(
        ExtraCoord(name, coord.variable, grid)
        for name, coord in array.coords.items()
        if name not in (*DIMS, "rgba") and set(coord.dims) <= set(DIMS)
    )


def assign_extra_coords(array: xr.DataArray, grid: Grid, extras: Sequence[ExtraCoord]) -> xr.DataArray:
    """Assign the coordinates that fit the grid of an array; drop coordinates of one name with different values."""
    found: dict[Any, xr.Variable] = {}
    conflicts = set()
    for extra in extras:
        variable = extra.reindex(grid)
        if variable is None or extra.name in (*array.dims, array.name):
            continue
        if extra.name in found and not found[extra.name].equals(variable):
            conflicts.add(extra.name)
        found.setdefault(extra.name, variable)
    kept = {name: variable for name, variable in found.items() if name not in conflicts}
    return array.assign_coords(kept) if kept else array
