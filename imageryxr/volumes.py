"""Recipes to labelled arrays and back: where `xarray.DataArray` meets `Expr`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from imageryxr.boxes import DIMS, BBox, Index3, IndexBox
from imageryxr.errors import ImageryError, LayerError
from imageryxr.evaluation import evaluate
from imageryxr.expr import Array, ArrayLeaf, Expr, GivenLeaf, Leaf, LevelLeaf, view, with_leaves, within
from imageryxr.extra_coords import ExtraCoord, extra_coords, with_extra_coords
from imageryxr.foreign import parts_of
from imageryxr.grid import Grid, grid_of, outside_error, refuse_far
from imageryxr.lazy import Splits, choose_splits, expr_of, refuse_query_planning, to_dask
from imageryxr.plain_attrs import plain_attrs
from imageryxr.retracing import recovered
from imageryxr.sources.base import Level, Source, level_attrs

RGBA = ("r", "g", "b", "a")
# What whoever has values alone is told.
PLACE_IT = (
    "give it a place: xarray.DataArray(values, dims=('z', 'y', 'x'), coords=Grid(values.shape, resolution, "
    "offset).coords())"
)


@dataclass(frozen=True)
class Volume:
    """A labelled array taken apart: what its voxels are, where they lie, and how to label what is made of it."""

    expr: Expr
    """Index 0 is the first voxel of the array."""
    grid: Grid
    attrs: dict[str, Any]
    name: Any
    in_memory: bool
    """Whether the array is numpy: then results are, too."""
    givens: dict[str, da.Array]
    """Foreign dask arrays that leaves of the expression stand for."""
    splits: Splits | None
    """Its dask block sizes along z, y and x: results on the same grid keep them."""
    dropped: tuple[str, ...]
    """Which of z, y and x the caller has dropped."""
    extras: tuple[ExtraCoord, ...] = ()
    """Its coordinates besides z, y and x."""

    @property
    def box(self) -> IndexBox:
        """All voxels of the array."""
        return self.grid.box


def volume_of(array: xr.DataArray, *, tail: tuple[str, ...] = ()) -> Volume:
    """Take a labelled array apart; computes nothing.

    Parameters
    ----------
    array : DataArray
        Dims z, y, x in any order; a dim that was dropped to a scalar coordinate counts as one voxel.
    tail : tuple of str
        Further dims, moved behind, such as ``("rgba",)``.

    Raises
    ------
    LayerError
        If there are other dims, or it is no DataArray.
    OptionError
        If dask's query planning is on.
    """
    refuse_query_planning()
    if not isinstance(array, xr.DataArray):
        raise LayerError(
            f"an array of type {type(array).__name__} has no coordinates; give an xarray.DataArray as "
            f"imageryxr.open_image and open_segmentation return it, or {PLACE_IT}"
        )
    dropped = tuple(d for d in DIMS if d not in array.dims and d in array.coords)
    extra = [str(d) for d in array.dims if d not in (*DIMS, *tail)]
    absent = [d for d in (*DIMS, *tail) if d not in (*array.dims, *dropped)]
    if extra or absent:
        problem = f"has dims {tuple(array.dims)}"
        if not extra:
            advice = f"it lacks {absent[0]!r}"
        elif extra == ["rgba"]:
            advice = "it is a picture already: do this with what it was drawn from, and draw then, or take a channel "
            advice += "with .isel(rgba=0)"
        elif len(extra) == len(absent):
            advice = f"if these are the same by other names, give .rename({dict(zip(extra, absent, strict=True))})"
        else:
            advice = f"select along {extra[0]!r} first, e.g. .isel({extra[0]}=0)"
        named = "the array" if array.name is None else f"the array {array.name!r}"
        raise LayerError(f"{named} {problem}, but dims {(*DIMS, *tail)} are needed: {advice}")
    grid = grid_of(array)
    expr, givens, in_memory = _expr_of_data(array, grid.shape, dropped, tail)
    splits = next((g.chunks[:3] for g in givens.values()), None)
    if splits is None and is_dask(array):
        splits = tuple(array.chunksizes[d] if d in array.dims else (1,) for d in DIMS)
    extras = extra_coords(array, grid)
    return Volume(expr, grid, dict(array.attrs), array.name, in_memory, givens, splits, dropped, extras)


def is_dask(array: xr.DataArray) -> bool:
    """Tell whether an array is in dask blocks; reads nothing."""
    return isinstance(array.variable._data, da.Array)


def is_lazy(array: xr.DataArray) -> bool:
    """Tell whether an array is lazily indexed: neither in memory nor in dask blocks; reads nothing."""
    return isinstance(_unwrapped(array.variable._data), indexing.ExplicitlyIndexed)


def _expr_of_data(
    array: xr.DataArray, shape: Index3, dropped: tuple[str, ...], tail: tuple[str, ...]
) -> tuple[Expr, dict[str, da.Array], bool]:
    if is_lazy(array):
        field = _field_of(array)
        if field is not None and not tail:
            return view(field[0], field[1], field[1]), {}, False
        # Dims must be put in order on dask: what is lazily indexed would be read for that.
        array = array.chunk(dict(zip(DIMS, (64, 1024, 1024), strict=True)) if not dropped else "auto")
    full = array.expand_dims(list(dropped)) if dropped else array
    full = full.transpose(*DIMS, *tail)
    sizes = tuple(int(n) for n in full.shape[3:])
    known = expr_of(array.data) if is_dask(array) and array.dims == full.dims else None
    if known is not None and known[0].tail == sizes and not known[0].lead:
        return known[0], {}, False
    if not is_dask(full):
        return ArrayLeaf(np.asarray(full.data), tail=sizes), {}, True
    data = full.data.rechunk({3 + i: -1 for i in range(len(sizes))}) if sizes else full.data
    if any(math.isnan(c) for sizes in data.chunks for c in sizes):
        raise LayerError("the dask array has blocks of unknown size; call .compute_chunk_sizes() on its data first")
    leaf = GivenLeaf(data.name, str(data.dtype), shape, tuple(data.chunks[:3]), tail=sizes)
    return leaf, {data.name: data}, False


def _unwrapped(data: Any) -> Any:
    # xarray wraps what backends give in caches, which hold numpy once something was loaded.
    while isinstance(data, indexing.CopyOnWriteArray | indexing.MemoryCachedArray | indexing.NumpyIndexingAdapter):
        data = data.array
    return data


def _field_of(array: xr.DataArray) -> tuple[Expr, IndexBox] | None:
    """Return expression and box of a lazily indexed array that is a box of one of ours, in whatever order of dims."""
    data = _unwrapped(array.variable._data)
    inner = getattr(data, "array", None)
    if not isinstance(data, indexing.LazilyIndexedArray | indexing.LazilyVectorizedIndexedArray):
        return None
    if not isinstance(inner, FieldArray):
        return None
    ranges = [_range_of(item, n) for item, n in zip(data.key.tuple, inner.shape, strict=True)]
    if any(r is None for r in ranges):
        return None
    (z0, z1), (y0, y1), (x0, x1) = (r for r in ranges if r is not None)
    box = IndexBox((z0, y0, x0), (z1, y1, x1))
    sizes = {d: n for d, n in zip(DIMS, box.shape, strict=True) if d in array.dims}
    return (inner.expr, box) if sizes == dict(array.sizes) else None


def _range_of(item: Any, size: int) -> tuple[int, int] | None:
    """Return the half-open range of indexes that a key selects along an axis; None if it is not one in steps of 1."""
    if isinstance(item, int | np.integer):
        return int(item) % size, int(item) % size + 1
    if isinstance(item, slice):
        start, stop, step = item.indices(size)
        return (start, stop) if step == 1 and stop > start else None
    # A transposed array has keys that broadcast to its shape, each of them varying along one of its dims.
    flat = np.asarray(item)
    if flat.size == 0 or flat.size != max(flat.shape, default=1):
        return None
    flat = flat.ravel()
    return (int(flat[0]), int(flat[-1]) + 1) if (np.diff(flat) == 1).all() else None


# ---------------------------------------------------------------------------------------------------------
# labelling


class FieldArray(BackendArray):
    """An expression as xarray's lazily indexed arrays want it: read when, and as far as, it is indexed."""

    def __init__(self, expr: Expr, shape: Index3) -> None:
        self.expr = expr
        self.shape = shape
        self.dtype = expr.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Array:
        """Read what a key selects."""
        return indexing.explicit_indexing_adapter(  # type: ignore[no-any-return]
            key, self.shape, indexing.IndexingSupport.BASIC, self._read
        )

    def _read(self, key: tuple[int | slice, ...]) -> Array:
        start: list[int] = []
        stop: list[int] = []
        inner: list[int | slice] = []
        for item, size in zip(key, self.shape, strict=True):
            if isinstance(item, slice):
                wanted = range(size)[item]
                low, high = (min(wanted), max(wanted) + 1) if len(wanted) else (0, 0)
                # a slice that goes down to index 0 has no stop that is a number
                last = wanted.stop - low if len(wanted) and wanted.stop >= low else None
                inner.append(slice(wanted.start - low, last, wanted.step) if len(wanted) else slice(0, 0))
            else:
                low, high = int(item) % size, int(item) % size + 1
                inner.append(0)
            start.append(low)
            stop.append(high)
        box = IndexBox(tuple(start), tuple(stop))  # type: ignore[arg-type]
        return evaluate(self.expr, box)[tuple(inner)]


def lazy_array(expr: Expr, grid: Grid, attrs: Mapping[str, Any], name: str, chunks: Any = None) -> xr.DataArray:
    """Label an expression: lazily indexed, as `xarray.open_dataset` does it, or in dask blocks where asked for."""
    if chunks is not None:
        return labelled(to_dask(expr, grid.shape, chunks=chunks, name=name), grid, attrs, name)
    field = indexing.LazilyIndexedArray(FieldArray(expr, grid.shape))
    cached = indexing.CopyOnWriteArray(indexing.MemoryCachedArray(field))  # type: ignore[arg-type]
    array = labelled(cached, grid, attrs, name)
    # What xarray's chunks={} makes blocks of; without it, one of the whole volume.
    array.encoding["preferred_chunks"] = dict(zip(DIMS, choose_splits(expr, grid.shape), strict=True))
    return array


def level_array(source: Source, level: Level, chunks: Any = None, name: str | None = None) -> xr.DataArray:
    """Label a level of a source; an array in memory is handed out as it is."""
    name = name or source.layer_type
    attrs = level_attrs(source, level)
    held = getattr(source, "array", None)
    if held is not None and (chunks is None or isinstance(held, da.Array)):
        array = labelled(held, level.grid, attrs, name)
        return array if chunks is None else array.chunk(chunks)
    return lazy_array(LevelLeaf(source, level.mip), level.grid, attrs, name, chunks)


def labelled(
    data: Any, grid: Grid, attrs: Mapping[str, Any], name: str, *, tail: str | None = None, lead: str | None = None
) -> xr.DataArray:
    """Return data (z, y, x) with the coordinates and attributes of a grid."""
    dims = tuple(d for d in (lead, *DIMS, tail) if d)
    return xr.DataArray(xr.Variable(dims, data, placed(attrs, grid)), coords=_coordinates(grid, tail), name=name)


@lru_cache(maxsize=64)
def _coordinates(grid: Grid, tail: str | None) -> xr.Coordinates:
    # Arrays get copies of them that share the values: making indexes takes longer than the rest of most verbs.
    rgba: dict[str, Any] = {"rgba": ("rgba", list(RGBA))} if tail == "rgba" else {}
    return xr.Coordinates({**grid.coords(), **rgba})


def placed(attrs: Mapping[str, Any], grid: Grid) -> dict[str, Any]:
    """Return attributes with the place brought up to date.

    ``voxel_offset`` is that of the whole level, as the voxels are counted there: a crop keeps it, so that neighbouring
    crops have equal attrs and xarray combines them. Voxels that are counted otherwise have none.
    """
    kept = {**plain_attrs(attrs), "resolution": grid.resolution}
    if not _counts_voxels_of(grid, attrs):
        kept.pop("voxel_offset", None)
    return kept


def _counts_voxels_of(grid: Grid, attrs: Mapping[str, Any]) -> bool:
    """Return whether attributes describe the voxels that a grid is a box of."""
    try:
        return Grid(grid.shape, attrs["resolution"], attrs["voxel_offset"]).shift_to(grid) is not None
    except (KeyError, TypeError, ImageryError):
        return False


def result(
    expr: Expr,
    grid: Grid,
    *volumes: Volume,
    attrs: Mapping[str, Any],
    name: str,
    tail: str | None = None,
    lead: str | None = None,
    chunks: Any = None,
) -> xr.DataArray:
    """Label what a verb made: numpy if all that went in was, else dask; dims that the caller had dropped stay so."""
    expr = within(expr, grid.box)
    if all(v.in_memory for v in volumes):
        data: Any = evaluate(expr, grid.box)
    else:
        kept = [v.splits for v in volumes if v.splits is not None and v.grid == grid]
        chunks = kept[0] if chunks is None and kept else chunks
        expr, givens = _lend(expr, volumes)
        data = to_dask(expr, grid.shape, givens=givens, chunks=chunks, name=name)
    array = labelled(data, grid, attrs, name, tail=tail, lead=lead)
    array = with_extra_coords(array, grid, [extra for v in volumes for extra in v.extras])
    dropped = [d for d in volumes[0].dropped if all(d in v.dropped for v in volumes) and array.sizes[d] == 1]
    return array.isel(dict.fromkeys(dropped, 0)) if dropped else array


def _lend(expr: Expr, volumes: Sequence[Volume]) -> tuple[Expr, dict[str, da.Array]]:
    # A numpy array among lazy ones would travel inside every task: as a dask array each task gets its part.
    givens = {name: array for v in volumes for name, array in v.givens.items()}
    if any(v.in_memory for v in volumes):
        expr = with_leaves(expr, lambda leaf: _as_given(leaf, givens))
    return expr, givens


def _as_given(leaf: Leaf, givens: dict[str, da.Array]) -> Expr:
    """Return an array in memory as one in dask blocks, which is added to those that are handed in."""
    if not isinstance(leaf, ArrayLeaf):
        return leaf
    sizes = tuple(min(n, b) for n, b in zip(leaf.bounds.shape, (64, 1024, 1024), strict=True))
    array = da.from_array(leaf.array, chunks=(*(-1 for _ in leaf.lead), *sizes, *(-1 for _ in leaf.tail)))
    first = len(leaf.lead)
    givens[array.name] = array
    splits = tuple(array.chunks[first : first + 3])
    return GivenLeaf(array.name, str(array.dtype), leaf.bounds.shape, splits, leaf.lead, leaf.tail)


def as_dask(array: xr.DataArray) -> xr.DataArray:
    """Return a lazily indexed array in dask blocks; reads nothing."""
    volume = volume_of(array)
    return result(volume.expr, volume.grid, volume, attrs=volume.attrs, name=str(array.name or "volume"))


def crop_volume(volume: Volume, box: IndexBox) -> Volume:
    """Return the volume of a box of indexes, which still knows the data beyond it."""
    return replace(volume, expr=view(volume.expr, volume.box, box), grid=volume.grid.crop(box), splits=None)


def cropped(array: xr.DataArray, bbox: BBox, *, chunks: Any = None, outside_ok: bool = False) -> xr.DataArray:
    """Return the array of a box in space, filled with 0 where that reaches outside of it.

    Raises
    ------
    OutOfVolumeError
        If the box lies wholly outside and that is not ``outside_ok``.
    """
    grid = grid_of(array)
    box = grid.select(bbox)
    if not outside_ok and not box.clip(grid.box).voxels:
        raise outside_error(bbox, grid, f"the array {array.name!r}")
    refuse_far(box, bbox, grid, f"the array {array.name!r}")
    box = _in_plane(box, grid, array)
    tail = "rgba" if "rgba" in array.dims else None
    if set(array.dims) - {*DIMS, "rgba"}:
        return _picked(array, grid, box)
    part = crop_volume(volume_of(array, tail=(tail,) if tail else ()), box)
    name = str(array.name) if array.name is not None else "crop"
    return result(part.expr, part.grid, part, attrs=part.attrs, name=name, tail=tail, chunks=chunks)


def _in_plane(box: IndexBox, grid: Grid, array: xr.DataArray) -> IndexBox:
    # Along a dim that the caller has dropped there is the one plane, however thick the box is.
    ends = [(a, b) if d in array.dims else (0, 1) for d, a, b in zip(DIMS, box.start, box.stop, strict=True)]
    (z0, z1), (y0, y1), (x0, x1) = ends
    return IndexBox((z0, y0, x0), (z1, y1, x1))


def _picked(array: xr.DataArray, grid: Grid, box: IndexBox) -> xr.DataArray:
    # Arrays with dims of their own (a mask a segment) are cut as xarray cuts them; nothing lies beyond them.
    inside, target = box.clip(grid.box), grid.crop(box)
    part = array.isel({d: s for d, s in zip(DIMS, inside.slices(), strict=True) if d in array.dims})
    missing = zip(DIMS, box.start, inside.start, inside.stop, box.stop, strict=True)
    around = {d: (i - a, b - j) for d, a, i, j, b in missing if d in array.dims}
    if any(map(any, around.values())):
        part = part.pad(around, mode="constant", constant_values=array.dtype.type(0))
        part = part.assign_coords({d: c for d, c in target.coords().items() if d in array.dims})
    return part.assign_attrs(placed(array.attrs, target))


@dataclass(frozen=True)
class BoxReader:
    """Gives the values of any box of an array: what an export asks, region by region."""

    volume: Volume
    tail: tuple[int, ...]

    def __call__(self, box: IndexBox) -> Array:
        """Compute a box, in this thread."""
        if not self.volume.givens:
            return evaluate(self.volume.expr, box)
        return evaluate(self.volume.expr, box, parts_of(self.volume.expr, self.volume.givens, box).compute())


def box_reader(array: xr.DataArray, *, ended: bool = False) -> BoxReader:
    """Return the reader of an array (z, y, x) or (z, y, x, rgba): what is a part of a recipe is read as the recipe.

    ``ended`` says that something is made of it that looks beyond its border, where it must know no more than verbs do.
    """
    tail = ("rgba",) if "rgba" in array.dims else ()
    volume = volume_of(array, tail=tail)
    if volume.givens:
        expr, givens = recovered(volume.expr, volume.givens, ended=ended)
        volume = replace(volume, expr=expr, givens=givens)
    return BoxReader(volume, tuple(array.sizes[t] for t in tail))
