"""Convert labelled arrays to expressions, and expressions to labelled arrays."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import accumulate
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from xarray.core import indexing

from imageryxr.core.array_labels import ExtraCoord, assign_extra_coords, extra_coords, grid_of, plain_attrs
from imageryxr.core.bbox import DIMS, Index3, IndexBox, Splits
from imageryxr.core.grid import Grid
from imageryxr.core.validate import name_array
from imageryxr.errors import ImageryError, LayerError, format_value
from imageryxr.graph.dask_inputs import input_boxes
from imageryxr.graph.evaluate import evaluate
from imageryxr.graph.expr import (
    Array,
    ArrayLeaf,
    DaskLeaf,
    Expr,
    Leaf,
    LevelLeaf,
    clip_to_box,
    replace_leaves,
    view_expr,
    widen_to,
)
from imageryxr.graph.lazy_indexing import cached_array, expr_at_ranges, stored_view, unwrap
from imageryxr.graph.recover import recover_expr, recover_inputs
from imageryxr.graph.to_dask import check_query_planning, choose_splits, expr_of, to_dask
from imageryxr.sources.base import Level, Source, level_attrs

RGBA = ("r", "g", "b", "a")
# Advice for a caller who has only values.
COORDS_ADVICE = (
    "add coordinates: xarray.DataArray(values, dims=('z', 'y', 'x'), coords=Grid(values.shape, resolution, "
    "offset).coords())"
)


@dataclass(frozen=True)
class Volume:
    """The parts of a labelled array: its expression, its grid, and the labels that results inherit."""

    expr: Expr
    """Index 0 is the first voxel of the array."""
    grid: Grid
    attrs: dict[str, Any]
    name: Any
    in_memory: bool
    """Whether the array is a numpy array; then results are numpy arrays."""
    dask_inputs: dict[str, da.Array]
    """The dask arrays behind the `DaskLeaf` leaves of the expression, by name."""
    splits: Splits | None
    """The dask block sizes along z, y and x; results on the same grid keep them."""
    dropped: tuple[str, ...]
    """The dims among z, y and x that the caller has dropped."""
    extras: tuple[ExtraCoord, ...] = ()
    """The coordinates other than z, y and x."""
    below_splits: Splits | None = None
    """The block sizes before the array was rechunked; it is read in these. None unless rechunking has cut blocks."""


def check_array(given: Any) -> None:
    """Raise `LayerError` unless an argument is a DataArray."""
    if isinstance(given, xr.Dataset):
        names = list(map(str, given.data_vars))
        raise LayerError(
            f"a Dataset with the variables {names} was given, but one array is needed; give one variable, such as "
            f"ds[{names[0] if names else 'image'!r}]"
        )
    if isinstance(given, xr.DataTree):
        layers = [f"tree[{node.path!r}][{str(name)!r}]" for node in given.subtree for name in node.data_vars]
        raise LayerError(
            "a DataTree was given, but one array is needed; give one of its layers: "
            f"{', '.join(layers[:4]) or 'tree[…].image'}{', …' if len(layers) > 4 else ''}"
        )
    if isinstance(given, str | os.PathLike):
        address = format_value(os.fspath(given))
        raise LayerError(
            f"{address} is an address, but an array is needed; open it first: imageryxr.open_image({address}) or "
            f"imageryxr.open_segmentation({address})"
        )
    if not isinstance(given, xr.DataArray):
        raise LayerError(
            f"an array of type {type(given).__name__} has no coordinates; give an xarray.DataArray from ",
            f"imageryxr.open_image or open_segmentation, or {COORDS_ADVICE}",
        )


def volume_of(array: xr.DataArray, *, tail: tuple[str, ...] = ()) -> Volume:
    """Return the expression, grid and labels of an array; computes nothing.

    Parameters
    ----------
    array : DataArray
        Array with dims z, y, x in any order; a dim that was dropped to a scalar coordinate counts as one voxel.
    tail : tuple of str
        Further dims, which are moved after z, y and x, such as ``("rgba",)``.

    Raises
    ------
    LayerError
        If there are other dims, or ``array`` is not a DataArray.
    OptionError
        If dask's query planning is on.
    """
    check_query_planning()
    check_array(array)
    dropped = tuple(d for d in DIMS if d not in array.dims and d in array.coords)
    extra = [str(d) for d in array.dims if d not in (*DIMS, *tail)]
    absent = [d for d in (*DIMS, *tail) if d not in (*array.dims, *dropped)]
    if extra or absent:
        problem = f"has dims {tuple(array.dims)}"
        if not extra:
            advice = f"it lacks {absent[0]!r}; for one slice, add it with .expand_dims({absent[0]}=[position in nm])"
        elif extra == ["rgba"]:
            advice = "it is an RGBA picture; apply this to the image or segmentation and draw the picture afterwards, "
            advice += "or select a channel with .isel(rgba=0)"
        elif len(extra) == len(absent):
            advice = f"if only the names differ, use .rename({dict(zip(extra, absent, strict=True))})"
        else:
            advice = f"select along {extra[0]!r} first, e.g. .isel({extra[0]}=0)"
        raise LayerError(f"{name_array(array.name)} {problem}, but dims {(*DIMS, *tail)} are needed: {advice}")
    grid = grid_of(array)
    data = _volume_data(array, grid.shape, dropped, tail)
    if is_dask(array):
        splits: Splits | None = tuple(array.chunksizes[d] if d in array.dims else (1,) for d in DIMS)
    else:
        splits = next((g.chunks[:3] for g in data.dask_inputs.values()), None)
    below = (
        data.splits
        if data.splits is not None and splits is not None and not _keeps_blocks_whole(splits, data.splits)
        else None
    )
    extras = extra_coords(array, grid)
    return Volume(
        data.expr, grid, dict(array.attrs), array.name, data.in_memory, data.dask_inputs, splits, dropped, extras, below
    )


def _keeps_blocks_whole(splits: Splits, below: Splits) -> bool:
    """Return whether each block of ``below`` lies within one block of ``splits``."""
    return all({*accumulate(a)} <= {*accumulate(b)} for a, b in zip(splits, below, strict=True))


def is_dask(array: xr.DataArray) -> bool:
    """Return whether an array is a dask array; reads nothing."""
    return isinstance(array.variable._data, da.Array)


def is_lazy(array: xr.DataArray) -> bool:
    """Return whether an array is lazily indexed, and so neither in memory nor a dask array; reads nothing."""
    return isinstance(unwrap(array.variable._data), indexing.ExplicitlyIndexed)


@dataclass(frozen=True)
class _VolumeData:
    """The expression of the voxels of an array, and its dask inputs."""

    expr: Expr
    dask_inputs: dict[str, da.Array] = field(default_factory=dict)
    in_memory: bool = False
    splits: Splits | None = None
    """Sizes of the blocks before rechunking, within the array."""


def _volume_data(array: xr.DataArray, shape: Index3, dropped: tuple[str, ...], tail: tuple[str, ...]) -> _VolumeData:
    if not is_dask(array) and is_lazy(array):
        expr = None if tail else _lazy_expr(array)
        if expr is not None:
            return _VolumeData(expr)
        # Transposing a lazily indexed array would read it, so it is converted to a dask array first.
        array = array.chunk(dict(zip(DIMS, (64, 1024, 1024), strict=True)) if not dropped else "auto")
    if is_dask(array):
        flat = expr_of(array.data) if array.dims == (*DIMS, *tail) else None
        if flat is not None and not flat[0].lead:
            return _VolumeData(flat[0], splits=flat[1])
        if any(math.isnan(c) for sizes in array.data.chunks for c in sizes):
            raise LayerError("the dask array has blocks of unknown size; call .compute_chunk_sizes() on its data first")
        found = recover_expr(array.data, [str(d) for d in array.dims], tail)
        if found is not None and not found.is_whole_input:
            return _VolumeData(found.expr, found.dask_inputs, splits=found.splits)
    full = array.expand_dims(list(dropped)) if dropped else array
    full = full.transpose(*DIMS, *tail)
    sizes = tuple(int(n) for n in full.shape[3:])
    if not is_dask(full):
        return _VolumeData(ArrayLeaf(np.asarray(full.data), tail=sizes), in_memory=True)
    data = full.data.rechunk({3 + i: -1 for i in range(len(sizes))}) if sizes else full.data
    leaf = DaskLeaf(data.name, str(data.dtype), shape, tuple(data.chunks[:3]), tail=sizes)
    return _VolumeData(leaf, {data.name: data})


def stored_expr(array: xr.DataArray) -> Expr | None:
    """Return the expression of an array, also if its values were cached; None if the values were computed."""
    volume = volume_of(array)
    return _lazy_expr(array) if volume.in_memory else volume.expr


def _lazy_expr(array: xr.DataArray) -> Expr | None:
    """Return the expression of a lazily indexed array, in any order of dims; None if the array has no expression."""
    shown = stored_view(array.variable._data)
    if shown is None:
        return None
    named = zip(array.dims, shown.axes, strict=True)
    if any(dim not in DIMS or axis not in (DIMS.index(str(dim)), None) for dim, axis in named):
        return None
    sizes = {d: len(r) for d, r in zip(DIMS, shown.ranges, strict=True) if d in array.dims}
    return expr_at_ranges(shown.expr, shown.ranges) if sizes == dict(array.sizes) else None


# ---------------------------------------------------------------------------------------------------------
# labelling


def lazy_array(expr: Expr, grid: Grid, attrs: Mapping[str, Any], name: str, chunks: Any = None) -> xr.DataArray:
    """Return the labelled array of an expression: lazily indexed, or a dask array if ``chunks`` is given."""
    if chunks is not None:
        return label_array(to_dask(expr, grid.shape, chunks=chunks, name=name), grid, attrs, name)
    array = label_array(cached_array(expr, grid.shape), grid, attrs, name)
    # xarray's chunks={} uses these sizes; without them it would make one block of the whole volume.
    array.encoding["preferred_chunks"] = dict(zip(DIMS, choose_splits(expr, grid.shape), strict=True))
    return array


def level_array(source: Source, level: Level, chunks: Any = None) -> xr.DataArray:
    """Return the labelled array of a level of a source; a source in memory is not copied."""
    name, attrs = source.layer_type, level_attrs(source, level)
    held = getattr(source, "array", None)
    if held is not None and (chunks is None or isinstance(held, da.Array)):
        array = label_array(held, level.grid, attrs, name)
        return array if chunks is None else array.chunk(chunks)
    return lazy_array(LevelLeaf(source, level.mip), level.grid, attrs, name, chunks)


def label_array(
    data: Any, grid: Grid, attrs: Mapping[str, Any], name: str, *, tail: str | None = None, lead: str | None = None
) -> xr.DataArray:
    """Return data (z, y, x) with the coordinates and attributes of a grid."""
    dims = tuple(d for d in (lead, *DIMS, tail) if d)
    return xr.DataArray(xr.Variable(dims, data, attrs_on_grid(attrs, grid)), coords=_coordinates(grid, tail), name=name)


@lru_cache(maxsize=64)
def _coordinates(grid: Grid, tail: str | None) -> xr.Coordinates:
    # Cached, since building the indexes takes longer than the rest of most verbs; arrays share the values.
    rgba: dict[str, Any] = {"rgba": ("rgba", list(RGBA))} if tail == "rgba" else {}
    return xr.Coordinates({**grid.coords(), **rgba})


def attrs_on_grid(attrs: Mapping[str, Any], grid: Grid) -> dict[str, Any]:
    """Return attributes with ``resolution`` and ``voxel_offset`` updated for a grid.

    ``voxel_offset`` is that of the whole level. A crop keeps it, so that neighbouring crops have equal attrs and xarray
    can combine them. It is removed if the voxels of the grid are not voxels of that level.
    """
    kept = {**plain_attrs(attrs), "resolution": grid.resolution}
    if not _has_voxels_of(grid, attrs):
        kept.pop("voxel_offset", None)
    return kept


def _has_voxels_of(grid: Grid, attrs: Mapping[str, Any]) -> bool:
    """Return whether the voxels of a grid are voxels of the level that the attributes describe."""
    try:
        return Grid(grid.shape, attrs["resolution"], attrs["voxel_offset"]).shift_to(grid) is not None
    except (KeyError, TypeError, ImageryError):
        return False


def label_result(
    expr: Expr,
    grid: Grid,
    *volumes: Volume,
    attrs: Mapping[str, Any],
    name: str,
    tail: str | None = None,
    lead: str | None = None,
    chunks: Any = None,
) -> xr.DataArray:
    """Return the labelled result of a verb: numpy if all volumes are in memory, otherwise a dask array.

    Dims that the caller has dropped from all volumes are dropped from the result.
    """
    expr = widen_to(expr, grid.box)
    if all(v.in_memory for v in volumes):
        data: Any = evaluate(expr, grid.box)
    else:
        kept = [v for v in volumes if v.splits is not None and v.grid == grid] if chunks is None else []
        below = kept[0].below_splits if kept else None
        chunks = kept[0].splits if kept else chunks
        expr, dask_inputs = _with_dask_leaves(expr, volumes)
        data = to_dask(expr, grid.shape, dask_inputs=dask_inputs, chunks=chunks if below is None else below, name=name)
        if below is not None:
            # The array is read in the blocks before rechunking, which are cut afterwards.
            first = len(expr.lead)
            data = data.rechunk({first + i: sizes for i, sizes in enumerate(chunks)}, method="tasks")
    array = label_array(data, grid, attrs, name, tail=tail, lead=lead)
    array = assign_extra_coords(array, grid, [extra for v in volumes for extra in v.extras])
    dropped = [d for d in volumes[0].dropped if all(d in v.dropped for v in volumes) and array.sizes[d] == 1]
    return array.isel(dict.fromkeys(dropped, 0)) if dropped else array


def _with_dask_leaves(expr: Expr, volumes: Sequence[Volume]) -> tuple[Expr, dict[str, da.Array]]:
    # A numpy array would be copied into every task; as a dask array each task receives its part only.
    dask_inputs = {name: array for v in volumes for name, array in v.dask_inputs.items()}
    if any(v.in_memory for v in volumes):
        expr = replace_leaves(expr, lambda leaf: _as_dask_leaf(leaf, dask_inputs))
    return expr, dask_inputs


def _as_dask_leaf(leaf: Leaf, dask_inputs: dict[str, da.Array]) -> Expr:
    """Return a `DaskLeaf` for an array in memory, and add its dask array to ``dask_inputs``; keep other leaves."""
    if not isinstance(leaf, ArrayLeaf):
        return leaf
    sizes = tuple(min(n, b) for n, b in zip(leaf.bounds.shape, (64, 1024, 1024), strict=True))
    array = da.from_array(leaf.array, chunks=(*(-1 for _ in leaf.lead), *sizes, *(-1 for _ in leaf.tail)))
    first = len(leaf.lead)
    dask_inputs[array.name] = array
    splits = tuple(array.chunks[first : first + 3])
    return DaskLeaf(array.name, str(array.dtype), leaf.bounds.shape, splits, leaf.lead, leaf.tail)


def as_dask(array: xr.DataArray) -> xr.DataArray:
    """Return a lazily indexed array as a dask array; reads nothing."""
    volume = volume_of(array)
    return label_result(volume.expr, volume.grid, volume, attrs=volume.attrs, name=str(array.name or "volume"))


def crop_volume(volume: Volume, box: IndexBox) -> Volume:
    """Return the volume of a box of indexes; its expression still contains the data beyond the box."""
    expr = view_expr(volume.expr, volume.grid.box, box)
    return replace(volume, expr=expr, grid=volume.grid.crop(box), splits=None, below_splits=None)


def clip_volume(volume: Volume) -> Volume:
    """Return a volume whose values outside its array are 0; the expression of a crop may have data there."""
    return replace(volume, expr=clip_to_box(volume.expr, volume.grid.box))


@dataclass(frozen=True)
class BoxReader:
    """Callable that computes any box of an array; exports call it region by region."""

    volume: Volume
    tail: tuple[int, ...]

    def __call__(self, box: IndexBox) -> Array:
        """Compute the values of a box in this thread."""
        if not self.volume.dask_inputs:
            return evaluate(self.volume.expr, box)
        return evaluate(self.volume.expr, box, input_boxes(self.volume.expr, self.volume.dask_inputs, box).compute())


def box_reader(array: xr.DataArray) -> BoxReader:
    """Return the reader of an array (z, y, x) or (z, y, x, rgba), which reads through the array's expression."""
    tail = ("rgba",) if "rgba" in array.dims else ()
    volume = volume_of(array, tail=tail)
    if volume.dask_inputs:
        expr, dask_inputs = recover_inputs(volume.expr, volume.dask_inputs)
        volume = replace(volume, expr=expr, dask_inputs=dask_inputs)
    return BoxReader(volume, tuple(array.sizes[t] for t in tail))
