"""Cut many boxes of one size out of a volume, as one lazy array."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import xarray as xr

from imageryxr.core.annotations import AXIS
from imageryxr.core.array_labels import CUTOUT, layer_type_of, spatial_arrays
from imageryxr.core.bbox import (
    DIMS,
    BBox,
    Index3,
    IndexBox,
    Triple,
    check_resolution,
    format_triple,
    snap_places,
    tidy,
)
from imageryxr.core.grid import Axis, Grid, check_extent
from imageryxr.core.validate import check_counts
from imageryxr.errors import BoxError, LayerError, OptionError, OutOfVolumeError, format_value, warn
from imageryxr.graph.cutout_arrays import BOUNDS, PHASE, check_same_positions
from imageryxr.graph.cutout_blocks import cutouts_to_dask, evaluate_cutouts, split_rows
from imageryxr.graph.labelled import RGBA, Volume, attrs_on_grid, clip_volume, volume_of
from imageryxr.measure.centers import Points, is_table, read_centers
from imageryxr.ops.align import align
from imageryxr.ops.multiscale import coarsest_level_for
from imageryxr.ops.tree import layers_of

CENTER = "center"


@overload
def cutouts(
    source: xr.DataArray,
    centers: Any,
    size: Sequence[int],
    *,
    resolution: Sequence[float] = (1, 1, 1),
    to: Any = "finest",
) -> xr.DataArray: ...


@overload
def cutouts(
    source: xr.Dataset | xr.DataTree,
    centers: Any,
    size: Sequence[int],
    *,
    resolution: Sequence[float] = (1, 1, 1),
    to: Any = "finest",
) -> xr.Dataset: ...


def cutouts(
    source: xr.DataArray | xr.Dataset | xr.DataTree,
    centers: Any,
    size: Sequence[int],
    *,
    resolution: Sequence[float] = (1, 1, 1),
    to: Any = "finest",
) -> xr.DataArray | xr.Dataset:
    """Cut boxes of one size around many points out of a volume, as one array with the dim ``cutout``.

    Lazy: reads nothing. Cutout i has the voxels of ``crop(source, center=centers[i], size=size)``: the voxel that
    contains the centre has the index ``size // 2`` along each axis. Computing all cutouts reads each storage chunk
    once, whatever the order of the centres; computing some of them reads their chunks only. A dask block contains
    cutouts that are close to each other in the volume and consecutive in the table.

    Parameters
    ----------
    source : DataArray, Dataset or DataTree
        An image, a segmentation or a picture, dims (z, y, x) or (z, y, x, rgba); a Dataset of layers on one grid, as
        `align` returns it; or a tree with an image and a segmentation, which are aligned first.
    centers : array_like of shape (n, 3), DataFrame, dict or Dataset
        Points (x, y, z) in units of ``resolution``; or a table with the columns ``x``, ``y`` and ``z``, or with one
        column of triples, such as ``pt_position``, also as text; or a Dataset from `as_annotations` or a CAVE table,
        whose positions are in nm. The centre of a line or a box is its middle.
    size : sequence of 2 or 3 int
        Voxels (x, y, z) of each cutout, in voxels of ``source``; 2 numbers (x, y) mean one slice.
    resolution : sequence of 3 numbers, default (1, 1, 1)
        Nanometres per unit (x, y, z) of ``centers``. ``(1, 1, 1)`` means that they are in nanometres.
    to : optional
        For a tree, the grid of the aligned layers, as in `align`: "finest" (default), "coarsest", "image",
        "segmentation", a `Grid`, or a resolution (x, y, z) in nm. For a resolution, each layer is read from its
        coarsest level that is at least as fine.

    Returns
    -------
    DataArray or Dataset
        Dims (cutout, z, y, x), and ``rgba`` for a picture, in the order of the table, with the dtype of ``source``.
        Voxels outside of ``source`` are 0, even if ``source`` is a part of a larger volume, as in `crop`. ``z``, ``y``
        and ``x`` are offsets in nm from the middle of the voxel that contains the centre. Coordinates along ``cutout``
        are the number of the row; ``center_x``, ``center_y`` and ``center_z`` in nm; and the columns and the index of
        the table. A column of triples becomes three coordinates that end in ``_x``, ``_y`` and ``_z``; several related
        segments of an annotation become ``post_0``, ``post_1``, …. A Dataset also has ``center`` (cutout, axis), in nm.
        If ``source`` is in memory, so is the result.

    Raises
    ------
    BoxError
        If a centre is not three finite numbers, there are none, or a size is not a positive integer.
    OutOfVolumeError
        If a box lies wholly outside the volume; the message states its row.
    LayerError
        If ``source`` has other dims, or a tree lacks an image or a segmentation.
    GridMismatchError
        If the variables of a Dataset lie on different grids.
    OptionError
        If a column of the table has the name of a dim or a variable of the result, or ``to`` is given for a source that
        is not a tree.

    Warns
    -----
    ImageryWarning
        If the size is larger than the volume, or seems to be in the order (z, y, x).

    Examples
    --------
    >>> import imageryxr as ix
    >>> sample = ix.sample("sample")
    >>> ds = ix.align(ix.open_image(sample.image), ix.open_segmentation(sample.segmentation))
    >>> synapses = {"x": [4300, 4650], "y": [2300, 2500], "z": [110, 131], "pre_id": [7, 9]}
    >>> boxes = ix.cutouts(ds, synapses, (64, 48, 5), resolution=(8, 8, 40))
    >>> boxes.segmentation.dims, boxes.segmentation.shape
    (('cutout', 'z', 'y', 'x'), (2, 5, 48, 64))
    >>> float(boxes.x[0]), boxes.pre_id.values
    (-256.0, array([7, 9], dtype=uint64))
    """
    shape = _check_size(size)
    unit = check_resolution(resolution)
    _check_order(source, centers)
    points, columns = read_centers(centers, unit)
    if isinstance(source, xr.DataTree):
        source = _align_tree(source, to)
    elif not (isinstance(to, str) and to == "finest"):
        raise OptionError(
            f"to={format_value(to)} is for a tree, whose layers are aligned first, but the source is a "
            f"{type(source).__name__} on one grid; resample it first: ix.cutouts(ix.align(image, segmentation, "
            "to=…), …) or ix.cutouts(ix.regrid(array, …), …)"
        )
    arrays = spatial_arrays(source) if isinstance(source, xr.Dataset) else {"": source}
    volumes = {name: _volume(array) for name, array in arrays.items()}
    first = next(iter(volumes.values()))
    grid = first.grid
    for name, volume in volumes.items():
        check_same_positions(volume, first, f"the variables {name!r} and {next(iter(volumes))!r}")
    _warn_unusual_size(shape, grid)
    starts = _first_voxels(points, grid, shape)
    _check_inside(starts, points, unit, grid, shape, next(iter(arrays.values())).name)
    coords = _coordinates(points, columns, grid, shape, {str(a.name) for a in arrays.values()})
    rows = split_rows([v.expr for v in volumes.values()], starts, shape)
    found = {
        name: _label_cutouts(volume, starts, shape, rows, coords, arrays[name].name) for name, volume in volumes.items()
    }
    if not isinstance(source, xr.Dataset):
        return found[""]
    # xarray allows no coordinate with a dim that a DataArray lacks, so only a Dataset has this one.
    center = {AXIS: list("xyz"), CENTER: ((CUTOUT, AXIS), points, {"units": "nm"})}
    return xr.Dataset(found, attrs=source.attrs).assign_coords(center)


def _label_cutouts(
    volume: Volume, starts: npt.NDArray[np.int64], shape: Index3, rows: Sequence[int], coords: xr.Coordinates, name: Any
) -> xr.DataArray:
    if volume.in_memory:
        data: Any = evaluate_cutouts(volume.expr, starts, shape)
    else:
        data = cutouts_to_dask(volume.expr, starts, shape, dask_inputs=volume.dask_inputs, rows=rows)
    tail = ("rgba",) if volume.expr.tail else ()
    attrs = attrs_on_grid(volume.attrs, volume.grid)
    attrs.pop("voxel_offset", None)  # The coordinates are offsets from the centres.
    attrs[BOUNDS] = [*volume.grid.bbox.lo_nm, *volume.grid.bbox.hi_nm]
    phase = [_phase(axis.offset) for axis in reversed(volume.grid.axes)]
    if any(phase):
        attrs[PHASE] = phase
    array = xr.DataArray(data, coords, (CUTOUT, *DIMS, *tail), name, attrs)
    return array.assign_coords(rgba=list(RGBA)) if tail else array


def _check_size(size: Any) -> Index3:
    expected = "2 or 3 positive integers: the voxels (x, y, z) of each cutout, such as (128, 128, 16)"
    x, y, z = (*check_counts("size", size, expected, length=(2, 3), error=BoxError), 1)[:3]
    return z, y, x


# ---------------------------------------------------------------------------------------------------------
# the source


def _check_order(source: Any, centers: Any) -> None:
    """Raise `LayerError` if the source is a table and the centres are an array."""
    if is_table(source) and not is_table(centers):
        raise LayerError(
            f"source is a {type(source).__name__} and centers is a {type(centers).__name__}; swap the two "
            "arguments: cutouts(source, centers, size)"
        )


def _warn_unusual_size(shape: Index3, grid: Grid) -> None:
    """Warn about a size that is larger than the volume, or that seems to be in the order (z, y, x) or in nm."""
    size, whole = shape[::-1], grid.shape[::-1]
    x, y, z = grid.resolution
    in_nm = [n / r for n, r in zip(size, grid.resolution, strict=True)]
    advice = ""
    if size != size[::-1] and all(n <= own for n, own in zip(size[::-1], whole, strict=True)):
        advice = f"; if it is in the order (z, y, x), give size={size[::-1]}"
    elif all(n == int(n) and n <= own for n, own in zip(in_nm, whole, strict=True)):
        advice = f"; if it is in nm, give size={tuple(map(int, in_nm))}"
    given = f"size={size} counts voxels (x, y, z)"
    if any(n > own for n, own in zip(size, whole, strict=True)):
        volume = f"which has {format_triple(whole)} voxels of {format_triple(grid.resolution)} nm"
        warn(f"{given} and is larger than the volume, {volume}: all cutouts contain fill values{advice}")
    elif size[0] < size[1] == size[2] and z >= 2 * max(x, y) and advice:
        box = format_triple([tidy(n * r) for n, r in zip(size, grid.resolution, strict=True)])
        warn(f"{given}: boxes of {box} nm{advice}")


def _volume(array: xr.DataArray) -> Volume:
    return clip_volume(volume_of(array, tail=("rgba",) if "rgba" in getattr(array, "dims", ()) else ()))


def _align_tree(tree: xr.DataTree, to: Any) -> xr.Dataset:
    """Return the image and the segmentation of a tree on one grid."""
    layers = layers_of(tree)
    found = {}
    for kind in ("image", "segmentation"):
        own = {name: layer for name, layer in layers.items() if layer_type_of(layer) == kind}
        if len(own) != 1 and kind not in own:
            raise LayerError(
                f"the tree has {len(own)} layers of type {kind}{' ' + ', '.join(map(repr, own)) if own else ''}; give "
                "an image and a segmentation: cutouts(align(image, segmentation), …)"
            )
        found[kind] = own.get(kind, next(iter(own.values())))
    if not isinstance(to, str | Grid):
        target = check_resolution(to, "to")
        found = {kind: coarsest_level_for(layer, target) for kind, layer in found.items()}
    dataset = align(found["image"], found["segmentation"], to=to)
    return dataset.assign_attrs({**tree.attrs, **dataset.attrs})


def _coordinates(
    points: Points, columns: Mapping[str, Any], grid: Grid, shape: Index3, variables: set[str]
) -> xr.Coordinates:
    # Voxel size // 2 contains the centre, and its offset is 0.
    axes = [Axis(n, own.resolution, -(n // 2) - 0.5) for n, own in zip(shape, grid.axes, strict=True)]
    own = {f"{CENTER}_{axis}": (CUTOUT, points[:, i], {"units": "nm"}) for i, axis in enumerate("xyz")}
    taken = {CUTOUT, CENTER, AXIS, "rgba", *own, *variables} & {*columns}
    if taken:
        name = sorted(taken)[0]
        raise OptionError(f"the column {name!r} of centers has the name of a part of the result; rename the column")
    return xr.Coordinates({**Grid.from_axes(axes).coords(), CUTOUT: np.arange(len(points)), **own, **columns})


# ---------------------------------------------------------------------------------------------------------
# positions


def _first_voxels(points: Points, grid: Grid, shape: Index3) -> npt.NDArray[np.int64]:
    """Return the index (z, y, x) of the first voxel of each box, by the rules of `BBox.around` and `Grid.select`."""
    found = np.empty((len(points), 3), np.int64)
    for axis, (own, size) in enumerate(zip(grid.axes, shape, strict=True)):
        low = np.floor(snap_places(points[:, 2 - axis] / own.resolution)) - size // 2
        found[:, axis] = np.ceil(snap_places(low - own.offset - 0.5))
    return found


def _phase(offset: float) -> float:
    """Return the difference between a voxel offset and the nearest integer; 0 on a grid of whole voxels."""
    return float(tidy(np.ceil(snap_places(np.array([-offset - 0.5])))[0] + offset))


def _check_inside(
    starts: npt.NDArray[np.int64], points: Points, unit: Triple, grid: Grid, shape: Index3, name: Any
) -> None:
    what = "the array" if name is None else f"the array {name!r}"
    box = IndexBox.of_shape(shape)
    check_extent(box, BBox((0, 0, 0), shape[::-1], resolution=grid.resolution), grid, what)
    outside = np.flatnonzero(((starts + shape <= 0) | (starts >= grid.shape)).any(axis=1))
    if not len(outside):
        return
    row = int(outside[0])
    given = points / np.array(unit)
    center = ", ".join(str(tidy(round(value, 3))) for value in given[row].tolist())
    shown = "nm" if unit == (1.0, 1.0, 1.0) else f"in units of {format_triple(unit)} nm"
    raise OutOfVolumeError(
        f"{len(outside):,} of {len(points):,} cutouts lie wholly outside {what}, which covers {grid.bbox}; row {row}: "
        f"its centre is ({center}) {shown}; {_centers_advice(given, unit, grid)}"
    )


def _centers_advice(given: Points, unit: Triple, grid: Grid) -> str:
    """Return advice: a resolution or an order with which all centres lie in the volume, if there is one."""
    x, y, z = grid.resolution
    offset, shape = np.array(grid.voxel_offset, np.float64), np.array(grid.shape[::-1], np.float64)
    for other in [(1.0, 1.0, 1.0), *((x / 2**level, y / 2**level, z) for level in range(6))]:
        index = given * other / grid.resolution
        if other != unit and ((index >= offset) & (index < offset + shape)).all():
            if other == (1.0, 1.0, 1.0):
                return "in nanometres, all centres lie inside: omit resolution"
            return f"in voxels, all centres lie inside: give resolution={tuple(map(tidy, other))}"
    index = given[:, ::-1] * unit / grid.resolution
    if ((index >= offset) & (index < offset + shape)).all():
        return "in the order (z, y, x), all centres lie inside: give centres (x, y, z)"
    size = tuple(map(tidy, grid.resolution))
    return f"give centres (x, y, z) inside it, in nm or with resolution={size}, or remove these rows"
