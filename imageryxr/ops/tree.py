"""View the layers of a link around its position, on one grid."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import xarray as xr

from imageryxr.core.array_labels import grid_of, layer_type_of, list_from_attr, parse_json_attr, plain_attrs
from imageryxr.core.bbox import DIMS, BBox, Triple, check_resolution, to_fraction
from imageryxr.core.display import DIMENSIONS, DISPLAY, LAYER, LAYER_ORDER, ORIENTATION, POSITION, VISIBLE
from imageryxr.core.grid import Grid, out_of_volume_error
from imageryxr.core.orientation import Floats, screen_axes, screen_dimensions
from imageryxr.core.validate import check_texts
from imageryxr.errors import LayerError, LinkWarning, OptionError, param, warn
from imageryxr.ops.align import regrid
from imageryxr.ops.multiscale import coarsest_level_for
from imageryxr.ops.tree_annotations import annotation_layers, view_annotations


def view(
    tree: xr.DataTree,
    size: Sequence[float],
    *,
    center: Sequence[float] | None = None,
    resolution: Sequence[float] | None = None,
    layers: Iterable[str] | None = None,
) -> xr.Dataset:
    """Return the layers of a link around its position, on one grid.

    Lazy: reads nothing. Each layer is read from the coarsest level that is as fine as the view. The view is in the xy
    plane, and a pixel is a voxel of the link's dimensions. The link's orientation, layout and zoom are ignored: use
    ``resolution=`` for another pixel size, and `plane` for the cross section of the link.

    Parameters
    ----------
    tree : DataTree
        Tree from `open_neuroglancer`, or any tree whose nodes contain images or segmentations.
    size : sequence of 2 or 3 numbers
        Width, height and, for a stack, depth, in voxels of the link's dimensions.
    center : sequence of 3 numbers, optional
        The centre (x, y, z) of the view, in the link's dimensions. Default: the link's position, or the centre of the
        first layer if the link has no position.
    resolution : (x, y, z), optional
        Nanometres per voxel of the view, and the unit of ``size``. Default: the link's dimensions.
    layers : iterable of str, optional
        Names of the layers to show, in this order. Default: the layers that are visible in the link.

    Returns
    -------
    Dataset
        A variable per layer, with the name of the layer and dims (z, y, x). Its attrs have the layer's contrast,
        colours, alphas and selection, which ``ds.imagery.overlay()`` uses. The attr ``annotation_layers`` has the
        annotations in the view as JSON; the overlay draws them on top.

    Raises
    ------
    OptionError
        If there is no such layer.
    OutOfVolumeError
        If no layer overlaps the view.

    Warns
    -----
    LinkWarning
        If layers are omitted because they do not overlap the view, and if the link shows another plane than xy because
        of its orientation, layout or display dimensions.

    Examples
    --------
    >>> import imageryxr as ix
    >>> sample = ix.sample("sample")
    >>> state = {"layers": [{"type": "image", "name": "em", "source": sample.image}]}
    >>> tree = ix.open_neuroglancer(state, allow_local=True)
    >>> tree.imagery.view(size=(100, 50, 4)).em.shape
    (4, 50, 100)
    """
    names = None if layers is None else check_texts("layers", layers, "a list of names of layers, such as ['em']")
    arrays = _choose_layers(layers_of(tree), names, annotation_layers(tree))
    other = _plane_warning(tree)
    if other:
        warn(other, LinkWarning)
    unit = dimensions_of(tree, arrays)
    target = unit if resolution is None else check_resolution(resolution)
    point = position_of(tree, arrays, unit) if center is None else center
    box = BBox.around(point, size, resolution=unit, size_resolution=target)
    voxels = [max(1, round(hi - lo)) for lo, hi in zip(box.lo, box.hi, strict=True)]
    grid = Grid((voxels[2], voxels[1], voxels[0]), target, (box.lo[0], box.lo[1], box.lo[2]))
    shown, outside = {}, []
    for name, array in arrays.items():
        if grid_of(array).bbox.intersection(grid.bbox) is None:
            outside.append(name)
        else:
            shown[name] = regrid_layer(array, grid)
    if not shown:
        raise out_of_volume_error(grid.bbox, grid_of(next(iter(arrays.values()))), f"the layer {next(iter(arrays))!r}")
    for name in outside:
        warn(f"the layer {name!r} does not overlap the view and is omitted", LinkWarning)
    attrs: dict[Any, Any] = {**tree.attrs, POSITION: [float(v) for v in point], **view_annotations(tree, grid, names)}
    if layers is not None or LAYER_ORDER not in attrs:
        attrs[LAYER_ORDER] = list(arrays)
    return xr.Dataset(shown, attrs=plain_attrs(attrs))


def layers_of(tree: xr.DataTree) -> dict[str, xr.DataArray]:
    """Return the images and segmentations of a tree, by the name of their layer.

    Of a layer with several levels, the finest one is returned. Raises `LayerError` if the tree has no layers.
    """
    out: dict[str, xr.DataArray] = {}
    for node in tree.subtree:
        for name, variable in node.data_vars.items():
            if set(DIMS) - {str(d) for d in variable.dims}:
                continue
            is_level = node.parent is not None and node.name is not None and node.name.isdecimal()
            parent = node.parent.name if node.parent is not None and is_level else node.name
            label = str(variable.attrs.get(LAYER, parent or name))
            known = out.setdefault(label, variable)
            if is_level and known is not variable and _voxel_volume(variable) < _voxel_volume(known):
                out[label] = variable
    if not out:
        raise LayerError("the tree has no images or segmentations: none of its variables has the dims z, y and x")
    return out


def _voxel_volume(array: xr.DataArray) -> Fraction:
    return math.prod(map(to_fraction, grid_of(array).resolution), start=Fraction(1))


def dimensions_of(tree: xr.DataTree, arrays: dict[str, xr.DataArray]) -> Triple:
    """Return nm per unit (x, y, z) of a tree's positions: from the link, the datastack or the first layer."""
    dimensions = parse_json_attr(tree.attrs.get(DIMENSIONS))
    if dimensions:
        return check_resolution([dimensions[axis][0] for axis in "xyz"], DIMENSIONS)
    viewer = tree.attrs.get("viewer_resolution")  # Only a datastack has this attr.
    return grid_of(next(iter(arrays.values()))).resolution if viewer is None else check_resolution(viewer)


def position_of(tree: xr.DataTree, arrays: dict[str, xr.DataArray], unit: Triple) -> Sequence[float]:
    """Return the position (x, y, z) of a tree, in units of its dimensions; default: the centre of the first layer."""
    position: Any = tree.attrs.get(POSITION)
    if position is not None:
        return [float(v) for v in position]
    middle = grid_of(next(iter(arrays.values()))).bbox.center_nm
    return [nm / r for nm, r in zip(middle, unit, strict=True)]


def _plane_warning(tree: xr.DataTree) -> str:
    """Return the warning for a link that shows another plane than xy, or an empty string."""
    plane = "tree.imagery.plane((width, height))"
    if _is_turned(tree):
        return (
            "the link shows a rotated cross section, but a view is aligned with the axes of its layers; "
            f"{plane} cuts the cross section"
        )
    if (np.abs(displayed_axes(tree) - np.eye(3)) < 1e-6).all():
        return ""
    display = list_from_attr(tree.attrs.get(DISPLAY))
    shown = f"the dimensions {', '.join(display)} as x, y and z (its displayDimensions)" if display else ""
    panel = _layout_panel(tree)
    panel = f"the plane {panel} (its layout)" if panel != "xy" else ""
    return (
        f"the link shows {', and '.join(filter(None, [shown, panel]))}, but a view is in the xy plane; "
        f"{plane} cuts the plane of the link"
    )


def displayed_axes(tree: xr.DataTree) -> Floats:
    """Return the directions (x, y, z) of the columns, the rows and the depth of the plane that a link shows."""
    display = screen_dimensions(list_from_attr(tree.attrs.get(DISPLAY)) or "xyz") or "xyz"
    return screen_axes(tree.attrs.get(ORIENTATION, (0, 0, 0, 1)), _layout_panel(tree), display)


def _layout_panel(tree: xr.DataTree) -> str:
    """Return the only plane that a link's layout shows: "xy", "xz" or "yz"; "xy" if it shows several or none."""
    layout = tree.attrs.get("layout")
    panel = layout.removesuffix("-3d") if isinstance(layout, str) else ""
    return panel if panel in ("xz", "yz") else "xy"


def _is_turned(tree: xr.DataTree) -> bool:
    """Return whether a tree's cross section is rotated."""
    x, y, z, w = (float(v) for v in tree.attrs.get(ORIENTATION, (0, 0, 0, 1)))
    return max(abs(x), abs(y), abs(z)) > 1e-6 * abs(w)


def _choose_layers(
    arrays: dict[str, xr.DataArray], wanted: list[str] | None, annotations: Collection[str]
) -> dict[str, xr.DataArray]:
    if wanted is None:
        on = {name: array for name, array in arrays.items() if array.attrs.get(VISIBLE, True)}
        return on or arrays
    absent = [n for n in wanted if n not in arrays and n not in annotations]
    chosen = {n: arrays[n].assign_attrs({VISIBLE: True}) for n in wanted if n in arrays}
    if absent or not chosen:
        raise OptionError(
            param("layers", wanted),
            f" contains a layer that the tree does not have; choose from {', '.join(map(repr, arrays))}",
        )
    return chosen


def regrid_layer(array: xr.DataArray, grid: Grid) -> xr.DataArray:
    """Return a layer on a grid, resampled from the coarsest level that is fine enough."""
    level = coarsest_level_for(array, grid.resolution)
    if layer_type_of(level) == "segmentation":
        return regrid(level, grid, method="nearest")
    finer = any(a < b * (1 - 1e-6) for a, b in zip(grid_of(level).resolution, grid.resolution, strict=True))
    return regrid(level, grid, method="mean" if finer else "linear")
