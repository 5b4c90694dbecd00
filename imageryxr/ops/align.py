"""Resample an array onto another grid, and align an image and a segmentation on one grid."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any, Literal

import xarray as xr

from imageryxr.core.array_labels import grid_of, has_cutouts, layer_type_of
from imageryxr.core.axis_mapping import GridMap
from imageryxr.core.bbox import DIMS, BBox, check_resolution, tidy, to_fraction
from imageryxr.core.grid import Axis, Grid, check_extent, check_target_length, out_of_volume_error, warn_half_voxel
from imageryxr.core.validate import check_choice, list_choices, name_array
from imageryxr.errors import (
    BoxError,
    GridMismatchError,
    LayerError,
    OptionError,
    OutOfVolumeError,
    Wording,
    param,
)
from imageryxr.graph.cutout_arrays import check_same_centers
from imageryxr.graph.expr import Expr, Resampled, clip_to_array, view_expr
from imageryxr.graph.labelled import Volume, label_result, volume_of
from imageryxr.graph.to_dask import choose_splits
from imageryxr.ops.cutout_align import align_cutouts
from imageryxr.ops.cutout_verbs import accepts_cutouts
from imageryxr.ops.multiscale import level_grids
from imageryxr.ops.segment_ids import segmentation_volume

Method = Literal["nearest", "mode", "linear", "mean"]
Target = Literal["finest", "coarsest", "image", "segmentation"]
METHODS: dict[str, tuple[Method, ...]] = {
    "segmentation": ("nearest", "mode"),
    "image": ("linear", "nearest", "mean"),
}


@accepts_cutouts(slicewise=False)
def regrid(
    da: xr.DataArray,
    like: xr.DataArray | xr.Dataset | Grid | tuple[float, float, float],
    *,
    method: Method | None = None,
) -> xr.DataArray:
    """Resample an array onto another grid, by position in nanometres.

    Lazy: reads nothing. Blocks follow the storage chunks of ``da``; each block reads only the voxels that it needs.

    Parameters
    ----------
    da : DataArray
        Image or segmentation, dims (z, y, x).
    like : DataArray, Dataset, Grid or (x, y, z)
        The target grid: that of an array, a `Grid`, or a resolution in nm. A resolution defines a grid of voxels of
        that size, counted from 0 nm; the result has the voxels whose centres lie within ``da``.
    method : {"nearest", "mode", "linear", "mean"}, optional
        For segmentations: "nearest" (default), the id at each new centre, in exact integer arithmetic, where a centre
        on the edge between two voxels belongs to the upper one; or "mode", the id that fills most of each new voxel
        (in a tie the smallest id, and 0 last), which is better for downsampling. For images: "linear" (default),
        between voxel centres, clamped at the edge of the data; "nearest"; or "mean", the average over each new voxel,
        which is better for downsampling, since it avoids aliasing. Labels are never averaged. For a boolean array,
        "nearest" is used instead of "linear".

    Returns
    -------
    DataArray
        Array on the target grid, with the dtype and attrs of ``da``; ``resolution`` is that of the grid, and
        ``voxel_offset`` is removed if the voxels differ. Integers are rounded half up; the value is 0 where a centre
        lies outside ``da``.

    Raises
    ------
    OptionError
        If the method does not fit the layer.
    GridError
        If the coordinates do not form a grid.

    Examples
    --------
    >>> import imageryxr as ix
    >>> sample = ix.sample("sample")
    >>> em, seg = ix.open_image(sample.image), ix.open_segmentation(sample.segmentation)
    >>> fine = ix.regrid(seg, like=em)
    >>> fine.shape == em.shape, fine.dtype
    (True, dtype('uint64'))
    """
    volume = volume_of(da)
    layer = layer_type_of(da)
    chosen = _check_method(method, layer, da)
    target = _target_grid(like, volume.grid)
    if isinstance(like, xr.DataArray | xr.Dataset):
        warn_half_voxel(volume.grid, volume.attrs, target, like.attrs)
    grid = _keep_dropped_axes(target, volume.grid, set(volume.dropped))
    expr = _resample_expr(volume, grid, chosen)
    return label_result(expr, grid, volume, attrs=volume.attrs, name=str(da.name) if da.name is not None else layer)


def align(
    image: xr.DataArray,
    segmentation: xr.DataArray,
    *,
    to: Target | Grid | tuple[float, float, float] = "finest",
    bbox: BBox | None = None,
) -> xr.Dataset:
    """Align an image and a segmentation on one grid, by position in nanometres.

    Lazy: reads nothing. A layer that is on the target grid already is not resampled. Otherwise the image is resampled
    linearly, and the segmentation with the nearest id; use `regrid` for other methods.

    Parameters
    ----------
    image, segmentation : DataArray
        Layers with dims (z, y, x), at any resolutions and offsets; or `cutouts` of both around the same centres.
    to : {"finest", "coarsest", "image", "segmentation"}, Grid or (x, y, z), default "finest"
        The target grid. "finest" and "coarsest" choose, along each axis, the layer with the smaller or larger voxels;
        use "finest" for figures and "coarsest" to read less. "image" and "segmentation" choose the grid of that layer.
        A `Grid` (not for cutouts) or a resolution in nm is possible as well.
    bbox : BBox, optional
        The box of the result. Default: the intersection of both layers.

    Returns
    -------
    Dataset
        Variables ``image`` and ``segmentation``, with the same coordinates and the same dask blocks.

    Raises
    ------
    OutOfVolumeError
        If ``bbox`` lies wholly outside one of the layers.
    GridMismatchError
        If the layers do not overlap anywhere.
    LayerError
        If ``image`` is a segmentation, or ``segmentation`` an image.
    OptionError
        If ``to`` is not a target grid.

    Examples
    --------
    >>> import imageryxr as ix
    >>> sample = ix.sample("sample")
    >>> em, seg = ix.open_image(sample.image), ix.open_segmentation(sample.segmentation)
    >>> box = ix.BBox.around((4300, 2200, 120), (256, 256), resolution=(8, 8, 40))
    >>> ix.align(em, seg, bbox=box).sizes
    Frozen({'z': 1, 'y': 256, 'x': 256})
    """
    if has_cutouts(image) and has_cutouts(segmentation) and bbox is None:
        return align_cutouts(image, segmentation, to, regrid)
    image_volume, labels = _image_volume(image), segmentation_volume(segmentation)
    # A dim that one layer has dropped remains, with one voxel, if the other layer has it.
    dropped = tuple(dim for dim in image_volume.dropped if dim in labels.dropped)
    image_volume, labels = replace(image_volume, dropped=dropped), replace(labels, dropped=dropped)
    check_same_centers(image_volume, labels, "the image and the segmentation")
    warn_half_voxel(image_volume.grid, image_volume.attrs, labels.grid, labels.attrs)
    whole = _common_grid(image_volume.grid, labels.grid, to)
    if bbox is None:
        box = _common_box(image_volume.grid, labels.grid)
        grid = whole if isinstance(to, Grid) else whole.crop(whole.select(box))
    else:
        _check_inside_both(bbox, image_volume.grid, labels.grid, (image, segmentation))
        indexes = whole.select(bbox)
        check_extent(indexes, bbox, whole, "the volume of both layers")
        grid = whole.crop(indexes)
    grid = _keep_dropped_axes(grid, image_volume.grid, set(dropped))
    exprs = {
        "image": _resample_expr(image_volume, grid, "linear"),
        "segmentation": _resample_expr(labels, grid, "nearest"),
    }
    foreign = bool(image_volume.dask_inputs or labels.dask_inputs)
    splits = choose_splits(list(exprs.values()), grid.shape, group=not foreign)
    layers = {
        name: label_result(exprs[name], grid, volume, attrs=volume.attrs, name=name, chunks=splits)
        for name, volume in (("image", image_volume), ("segmentation", labels))
    }
    return _merge_layers(layers)


def _merge_layers(layers: dict[str, xr.DataArray]) -> xr.Dataset:
    """Return a Dataset of two layers on one grid; other coordinates that conflict are dropped."""
    image, segmentation = layers["image"], layers["segmentation"]
    dataset = xr.Dataset({name: layer.variable for name, layer in layers.items()}, coords=image.coords)
    for name, coord in segmentation.coords.items():
        if name not in image.coords:
            dataset = dataset.assign_coords({name: coord.variable})
        elif name not in DIMS and not image.coords[name].variable.equals(coord.variable):
            dataset = dataset.drop_vars([name])
    return dataset


def _image_volume(image: xr.DataArray) -> Volume:
    volume = volume_of(image)
    if volume.attrs.get("layer_type") == "segmentation":
        raise LayerError(
            f"{name_array(image.name)} is a segmentation but was given as the image, and ids cannot be interpolated; "
            "give the image first: align(image, segmentation)"
        )
    return volume


def _check_method(method: Any, layer: str, da: xr.DataArray) -> Method:
    allowed = METHODS[layer]
    if da.dtype.kind not in "buif":
        raise LayerError(
            f"{name_array(da.name)} has dtype {da.dtype}, which cannot be resampled; give integers or floats"
        )
    if method is None:
        return allowed[0]
    what = f"{name_array(da.name)}, a{'n image' if layer == 'image' else ' segmentation'} (dtype {da.dtype})"
    reason = "; averaged ids are meaningless" if layer == "segmentation" else ""
    advice = f"{reason}; set array.attrs['layer_type'] if the layer type is wrong"
    chosen: Method = check_choice("method", method, allowed, expected=f"{list_choices(allowed)} for {what}{advice}")
    return chosen


def _target_grid(like: Any, own: Grid) -> Grid:
    if isinstance(like, Grid):
        return like
    if isinstance(like, xr.DataArray | xr.Dataset):
        return grid_of(like)
    try:
        resolution = check_resolution(like, "like")
    except BoxError as error:
        raise OptionError(
            param("like", like),
            " is not a target grid: give an array with coordinates",
            Wording(", a Grid, or a resolution (x, y, z) in nm, such as (8, 8, 40)", ", or nm: --to 8,8,40"),
        ) from error
    axes = [_covering_axis(axis, r) for axis, r in zip(own.axes, resolution[::-1], strict=True)]
    return Grid.from_axes(axes)


def _covering_axis(axis: Axis, resolution: float) -> Axis:
    lo, hi = axis.edges()
    start, stop = Axis(1, resolution, 0).select(lo, hi)
    if not lo <= (start + Fraction(1, 2)) * to_fraction(resolution) < hi:
        raise GridMismatchError(
            f"no voxel of {resolution:g} nm, counted from 0 nm, has its centre within the array, which covers "
            f"{float(lo):g} to {float(hi):g} nm along one axis; use the array's {axis.resolution:g} nm along that "
            "axis, or give a Grid"
        )
    return Axis(stop - start, resolution, start)


def _keep_dropped_axes(grid: Grid, own: Grid, dropped: set[str]) -> Grid:
    # The caller has selected one plane along a dropped dim; this plane is not resampled.
    if not dropped:
        return grid
    axes = zip(DIMS, grid.axes, own.axes, strict=True)
    return Grid.from_axes([mine if dim in dropped else axis for dim, axis, mine in axes])


def _resample_expr(volume: Volume, grid: Grid, method: Method) -> Expr:
    shift = grid.shift_to(volume.grid)
    if shift is not None:
        return view_expr(volume.expr, volume.grid.box, grid.box.shift(shift))
    if volume.expr.dtype.kind == "b" and method == "linear":
        method = "nearest"  # Booleans cannot be interpolated.
    check_target_length(grid, volume.grid)
    grid_map = GridMap.from_grids(grid, volume.grid)
    resampled = Resampled(volume.expr, grid_map, method)
    return clip_to_array(resampled, grid_map.target_box(volume.grid.box), grid.box)


def _common_grid(image: Grid, segmentation: Grid, to: Any) -> Grid:
    if not isinstance(to, str):
        return _parse_target(to, image)
    if to in ("image", "segmentation"):
        return image if to == "image" else segmentation
    if to in ("finest", "coarsest"):
        pick = min if to == "finest" else max
        axes = [pick(pair, key=lambda a: a.resolution) for pair in zip(image.axes, segmentation.axes, strict=True)]
        return Grid.from_axes(axes)
    raise _target_error(to)


def _parse_target(to: Any, image: Grid) -> Grid:
    try:
        return _target_grid(to, image)
    except OptionError:
        raise _target_error(to) from None


def _target_error(to: Any) -> OptionError:
    options = "'finest', 'coarsest', 'image', 'segmentation'"
    return OptionError(
        param("to", to),
        f" is not a target grid; choose {options}",
        Wording(", a Grid, or a resolution (x, y, z) in nm, such as (8, 8, 40)", ", or nm: --to 8,8,40"),
    )


def _common_box(image: Grid, segmentation: Grid) -> BBox:
    box = image.bbox.intersection(segmentation.bbox)
    if box is None:
        raise GridMismatchError(
            f"the image and the segmentation do not overlap: the image covers {image.bbox}, the segmentation "
            f"{segmentation.bbox}, {_distance(image, segmentation)}; ",
            *_overlap_advice(image, segmentation),
        )
    return box


def _distance(image: Grid, segmentation: Grid) -> str:
    edges = [(DIMS[i], *image.axes[i].edges(), *segmentation.axes[i].edges()) for i in (2, 1, 0)]
    gaps = [(dim, max(low - other_high, other_low - high)) for dim, low, high, other_low, other_high in edges]
    return " and ".join(f"{tidy(float(gap)):,} nm apart along {dim}" for dim, gap in gaps if gap >= 0)


def _overlap_advice(image: Grid, segmentation: Grid) -> tuple[str | Wording, ...]:
    hint = _unit_hint(image, segmentation)
    if hint:
        return (hint,)
    correction = ", or correct a wrong offset, such as segmentation.assign_coords(x=segmentation.x + 4000) in nm"
    return "check that both show the same volume", Wording(correction, "")


def _unit_hint(image: Grid, segmentation: Grid) -> str:
    """Return advice for layers that overlap only if the coordinates of one are in micrometres; otherwise ""."""
    for name, small, large in (("image", image, segmentation), ("segmentation", segmentation, image)):
        x, y, z = (1000 * r for r in small.resolution)
        is_plausible = all(a / 100 < b < a * 100 for a, b in zip((x, y, z), large.resolution, strict=True))
        if is_plausible and Grid(small.shape, (x, y, z), small.voxel_offset).bbox.intersection(large.bbox) is not None:
            return (
                f"they overlap if the coordinates of the {name} are in micrometres: set {name}[dim].attrs['units'] = "
                "'um' for dim in 'zyx'"
            )
    return ""


def _check_inside_both(bbox: BBox, image: Grid, segmentation: Grid, layers: tuple[xr.DataArray, ...]) -> None:
    for name, grid in (("image", image), ("segmentation", segmentation)):
        if not grid.select(bbox).clip(grid.box).voxels:
            levels = [level for array in layers for level in level_grids(array)]
            error = out_of_volume_error(bbox, grid, f"the {name}", levels)
            hint = "" if image.bbox.intersection(segmentation.bbox) else _unit_hint(image, segmentation)
            raise (
                OutOfVolumeError(error.message, f". The image and the segmentation do not overlap; {hint}")
                if hint
                else error
            )


def aligned_names(dataset: xr.Dataset) -> tuple[str, str]:
    """Return the names of the image and the segmentation in a Dataset, by their layer type.

    Raises `LayerError` if there is not exactly one of each.
    """
    found: dict[str, list[str]] = {"image": [], "segmentation": []}
    for name, variable in dataset.data_vars.items():
        if set(DIMS) - {*variable.dims, *variable.coords}:
            continue
        found[layer_type_of(variable)].append(str(name))
    for layer, names in found.items():
        if layer in names:
            found[layer] = [layer]
        if len(found[layer]) != 1:
            raise LayerError(
                f"the Dataset has {len(names)} {layer} variables {names}; one variable must be named {layer!r}"
            )
    return found["image"][0], found["segmentation"][0]
