"""Cut planes at any angle through a volume."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import xarray as xr

from imageryxr.core.array_labels import ArrayOrDataset, grid_of, layer_type_of, plain_attrs, spatial_arrays
from imageryxr.core.bbox import BBox, Index3, Triple, check_point, check_resolution, to_fraction
from imageryxr.core.display import NM_PER_PIXEL, VISIBLE
from imageryxr.core.grid import Grid, out_of_volume_error
from imageryxr.core.orientation import Floats, axes_of_quaternion
from imageryxr.core.validate import check_choice, check_counts, check_number, list_choices, name_array
from imageryxr.errors import LayerError, LinkWarning, OptionError, OutOfVolumeError, warn
from imageryxr.graph.labelled import clip_volume, label_result, volume_of
from imageryxr.graph.oblique import Cut, plane_expr
from imageryxr.ops.align import METHODS, Method
from imageryxr.ops.multiscale import coarsest_level_for, level_grids
from imageryxr.ops.tree import dimensions_of, displayed_axes, layers_of, position_of
from imageryxr.ops.tree_annotations import MARGIN, plane_annotations

Point = list[Fraction]

# Directions of the columns, the rows and the depth of planes along the axes.
_AXES: dict[str, tuple[str, str, str]] = {"z": ("x", "y", "z"), "y": ("x", "z", "y"), "x": ("y", "z", "x")}


def plane(
    obj: ArrayOrDataset,
    center: Sequence[float],
    size: Sequence[int],
    *,
    normal: str | Sequence[float] = "z",
    up: Sequence[float] | None = None,
    orientation: Sequence[float] | None = None,
    nm_per_pixel: float | None = None,
    resolution: Sequence[float] = (1, 1, 1),
    method: Method | None = None,
) -> ArrayOrDataset:
    """Cut a plane, or a stack of parallel planes, through a volume at any angle, with square pixels.

    Lazy: reads nothing. When computed, the part around the plane of each storage chunk that it crosses is read once.

    Parameters
    ----------
    obj : DataArray or Dataset
        Image or segmentation, dims (z, y, x).
    center : sequence of 3 numbers
        The point (x, y, z) at the centre of pixel ``(height // 2, width // 2)``, in units of ``resolution``. In voxels,
        the centre of voxel 52 is 52.5; at 52, the border of two slices, the image is their mean.
    size : sequence of 2 or 3 int
        Width and height in pixels and, for a stack, the number of planes; the middle plane contains the centre.
    normal : {"z", "y", "x"} or sequence of 3 numbers, default "z"
        The direction (x, y, z) perpendicular to the plane, in nm. A name gives a slice along the axes: columns along x
        and rows along y for "z"; x and z for "y"; y and z for "x".
    up : sequence of 3 numbers, optional
        The direction (x, y, z) that points up in the picture, for a ``normal`` given in numbers. Default: −y, or −z
        if ``normal`` is along y.
    orientation : sequence of 4 numbers, optional
        Instead of ``normal``, Neuroglancer's ``crossSectionOrientation``, a quaternion (x, y, z, w).
    nm_per_pixel : float, optional
        Size of a pixel, and distance between planes. Default: the smallest side of a voxel of ``obj``.
    resolution : (x, y, z), default (1, 1, 1)
        Nanometres per unit of ``center``.
    method : {"nearest", "linear"}, optional
        Default: "linear" for images, "nearest" for segmentations, which accept no other method: a pixel has the id of
        the voxel that contains its centre. Linear values of integers are rounded half up, and lie between the values
        of their voxels. For a boolean array, the method is always "nearest".

    Returns
    -------
    DataArray or Dataset
        Dims (z, y, x): x runs across the picture, y down, and z along the normal. Coordinates are in nm, in a frame
        rotated with the plane; for ``normal="z"`` they are those of the volume. The attr ``plane_center`` is in nm;
        ``plane_axes`` has nine numbers: the directions (x, y, z), in the volume, of the picture's x, y and z axes. The
        value is 0 outside the volume, so an outline also runs along the edge of the data. For a Dataset, each variable
        has these attrs, and the result has the attrs of the Dataset.

    Raises
    ------
    BoxError, OptionError
        If an argument is invalid.
    OutOfVolumeError
        If the picture lies wholly outside the volume.

    Warns
    -----
    LinkWarning
        If layers of a Dataset are omitted because the picture lies outside of them.

    Examples
    --------
    >>> import imageryxr as ix
    >>> em = ix.open_image(ix.sample("sample").image)
    >>> side = ix.plane(em, (4600.5, 2560.5, 130.5), (256, 200), normal=(1, 1, 0.2), resolution=(8, 8, 40))
    >>> side.shape, side.attrs["resolution"]
    ((1, 200, 256), (8.0, 8.0, 8.0))
    """
    if isinstance(obj, xr.Dataset):
        layers = spatial_arrays(obj)
        if nm_per_pixel is None:
            nm_per_pixel = min(min(grid_of(v).resolution) for v in layers.values())
        common: dict[str, Any] = {"normal": normal, "up": up, "orientation": orientation, "resolution": resolution}

        def cut(layer: xr.DataArray) -> xr.DataArray:
            return plane(layer, center, size, nm_per_pixel=nm_per_pixel, **common)

        cuts = _cut_layers(layers, cut)
        return xr.Dataset(cuts, attrs=plain_attrs(obj.attrs))
    step = min(grid_of(obj).resolution) if nm_per_pixel is None else _check_step(nm_per_pixel)
    axes = axes_of_quaternion(orientation) if orientation is not None else _plane_axes(normal, up)
    return _cut_plane(obj, center, _check_size(size), axes, step, check_resolution(resolution), method)


def _cut_plane(
    obj: xr.DataArray, center: Sequence[float], shape: Index3, axes: Floats, step: float, unit: Triple, method: Any
) -> xr.DataArray:
    """Cut a plane whose columns, rows and depth run along ``axes``."""
    volume, chosen = clip_volume(volume_of(obj)), _choose_method(obj, method)
    point = [to_fraction(c) * to_fraction(u) for c, u in zip(check_point(center, "center"), unit, strict=True)]
    middle = np.array([float(p) for p in point])
    grid = _plane_grid(middle, axes, step, shape)
    _check_overlap(obj, volume.grid, middle, axes, step, shape, unit)
    expr = plane_expr(volume.expr, _pixel_to_voxel_map(volume.grid, point, axes, step, shape, chosen), shape)
    attrs = {**volume.attrs, "plane_center": middle.tolist(), "plane_axes": axes.ravel().tolist()}
    name = str(obj.name) if obj.name is not None else layer_type_of(obj)
    # Coordinates along z, y or x do not apply to the axes of a rotated plane.
    scalars = tuple(extra for extra in volume.extras if not extra.variable.dims)
    return label_result(expr, grid, replace(volume, extras=scalars), attrs=attrs, name=name)


def tree_plane(tree: xr.DataTree, size: Sequence[int], *, nm_per_pixel: float | None = None) -> xr.Dataset:
    """Cut the plane that a link shows: through its position, with its orientation and zoom.

    Lazy: reads nothing. Each layer is read from the coarsest level that is as fine as the picture. A link with the
    layout "xz" or "yz" shows that plane, with z pointing down or left as in the viewer. If the link has other display
    dimensions, "x", "y" and "z" in the name of a layout refer to these.

    Parameters
    ----------
    tree : DataTree
        Tree from `open_neuroglancer`.
    size : sequence of 2 or 3 int
        Width and height in pixels and, for a stack, the number of planes.
    nm_per_pixel : float, optional
        Size of a pixel. Default: the zoom of the link, or the smallest side of its voxels.

    Returns
    -------
    Dataset
        A variable per visible layer; see `plane` and ``view``. Its overlay draws the annotations in the plane on top.

    Raises
    ------
    ImageryError
        As in `plane`.

    Examples
    --------
    >>> import imageryxr as ix
    >>> sample = ix.sample("sample")
    >>> state = {"layers": [{"type": "image", "name": "em", "source": sample.image}],
    ...          "crossSectionOrientation": [0.5, 0.5, 0.5, 0.5]}
    >>> ix.open_neuroglancer(state, allow_local=True).imagery.plane((120, 80)).em.shape
    (1, 80, 120)
    """
    arrays = layers_of(tree)
    unit = dimensions_of(tree, arrays)
    step = float(tree.attrs.get(NM_PER_PIXEL, min(unit))) if nm_per_pixel is None else _check_step(nm_per_pixel)
    center, shape, axes = position_of(tree, arrays, unit), _check_size(size), displayed_axes(tree)
    layers = {n: a for n, a in arrays.items() if a.attrs.get(VISIBLE, True)}
    cuts = _cut_layers(
        layers, lambda a: _cut_plane(coarsest_level_for(a, (step, step, step)), center, shape, axes, step, unit, None)
    )
    middle = np.array([float(c) * float(u) for c, u in zip(center, unit, strict=True)])
    pixels = np.array([shape[2] + 2 * MARGIN, shape[1] + 2 * MARGIN, shape[0]], np.float64)
    return xr.Dataset(cuts, attrs=plain_attrs({**tree.attrs, **plane_annotations(tree, middle, axes, pixels * step)}))


def _cut_layers(
    layers: Mapping[Any, xr.DataArray], cut: Callable[[xr.DataArray], xr.DataArray]
) -> dict[Any, xr.DataArray]:
    """Cut each layer that the picture overlaps, and warn about the others."""
    out, outside = {}, {}
    for name, array in layers.items():
        try:
            out[name] = cut(array)
        except OutOfVolumeError as error:
            outside[name] = error
    if outside and not out:
        raise next(iter(outside.values()))
    for name in outside:
        warn(f"the layer {name!r} does not overlap the picture and is omitted", LinkWarning)
    return out


# ---------------------------------------------------------------------------------------------------------
# directions


def _plane_axes(normal: Any, up: Any) -> Floats:
    """Return the directions (x, y, z) of the columns, the rows and the depth of a plane."""
    if isinstance(normal, str):
        if normal not in _AXES or up is not None:
            raise OptionError(
                f"normal={normal!r}, up={up!r}: a named normal is 'z', 'y' or 'x' and cannot be combined with up; "
                "otherwise give numbers (x, y, z)"
            )
        return np.array([[float(axis == name) for axis in "xyz"] for name in _AXES[normal]])
    depth = _direction(normal, "normal")
    if up is None:
        up = (0, -1, 0) if abs(depth[1]) < 1 - 1e-6 else (0, 0, -1)
    down = -_direction(up, "up")
    down = down - depth * (down @ depth)
    length = float(np.linalg.norm(down))
    if length < 1e-6:
        raise OptionError(f"up={up!r} is parallel to normal={normal!r}; give a direction that lies in the plane")
    down /= length
    down -= depth * (down @ depth)  # Repeated, because the first step is inexact if up and normal are nearly parallel.
    down /= np.linalg.norm(down)
    return np.stack([np.cross(down, depth), down, depth])


def _direction(value: Any, name: str) -> Floats:
    vector = np.array(check_point(value, name), np.float64)
    length = float(np.linalg.norm(vector))
    if not length > 0:
        raise OptionError(f"{name}={value!r} has length 0; give a direction (x, y, z), such as (1, 0, 0)")
    return vector / length


# ---------------------------------------------------------------------------------------------------------
# positions


def _plane_grid(middle: Floats, axes: Floats, step: float, shape: Index3) -> Grid:
    """Return the grid of a plane in coordinates rotated with it."""
    offsets = [float(p) / step - n // 2 - 0.5 for p, n in zip(axes @ middle, shape[::-1], strict=True)]
    return Grid(shape, (step, step, step), (offsets[0], offsets[1], offsets[2]))


def _check_overlap(
    obj: xr.DataArray, grid: Grid, middle: Floats, axes: Floats, step: float, shape: Index3, unit: Triple
) -> None:
    """Raise `OutOfVolumeError` unless the bounding box of a plane's pixels overlaps the volume."""
    ends = np.array([((-(n // 2) - 0.5) * step, (n - n // 2 - 0.5) * step) for n in shape[::-1]])
    reach = axes[:, :, None] * ends[:, None, :]  # plane axis, (x, y, z), end
    low, high = middle + reach.min(axis=2).sum(axis=0), middle + reach.max(axis=2).sum(axis=0)
    box = BBox((low / unit).tolist(), (high / unit).tolist(), resolution=unit)
    start = np.array(grid.voxel_offset) * grid.resolution
    stop = start + np.array(grid.shape[::-1]) * grid.resolution
    if (low >= stop).any() or (high <= start).any():
        raise out_of_volume_error(box, grid, "the volume", level_grids(obj))


def _pixel_to_voxel_map(grid: Grid, middle: Point, axes: Floats, step: float, shape: Index3, method: str) -> Cut:
    moves = axes * step / np.array(grid.resolution)  # voxels (x, y, z) per pixel along x, y and z of the plane
    corner = np.array([n // 2 for n in shape[::-1]]) @ moves
    base, rest = [], []
    for place, size, offset, back in zip(middle, grid.resolution, grid.voxel_offset, corner, strict=True):
        voxel = place / to_fraction(size) - to_fraction(offset)
        base.append(math.floor(voxel))
        rest.append(float(voxel - base[-1]) - float(back))
    steps = [tuple(float(v) for v in move[::-1]) for move in moves[::-1]]
    (bx, by, bz), (x, y, z) = base, rest
    return Cut((bz, by, bx), (z, y, x), (steps[0], steps[1], steps[2]), method)  # type: ignore[arg-type]


def _choose_method(obj: xr.DataArray, method: Any) -> str:
    layer = layer_type_of(obj)
    if "rgba" in obj.dims:
        raise LayerError("a plane cannot be cut through an RGBA picture; cut the layers first, then draw the overlay")
    if obj.dtype.kind not in "buif":
        raise LayerError(
            f"{name_array(obj.name)} has dtype {obj.dtype}, which cannot be resampled; give integers or floats"
        )
    allowed = [m for m in METHODS[layer] if m in ("nearest", "linear")]
    if obj.dtype == np.bool_ and (method is None or check_choice("method", method, METHODS["image"]) == "linear"):
        return "nearest"  # Booleans cannot be interpolated.
    expected = f"{list_choices(allowed)} to cut a {layer}"
    return str(check_choice("method", method, (*allowed, None), expected=expected) or allowed[0])


def _check_size(size: Any) -> Index3:
    expected = "2 or 3 whole numbers of pixels: across, down, planes; e.g. (512, 512)"
    width, height, *depth = check_counts("size", size, expected, length=(2, 3), high=(1 << 20) - 1)
    return (depth[0] if depth else 1, height, width)


def _check_step(nm_per_pixel: Any) -> float:
    return check_number("nm_per_pixel", nm_per_pixel, above=0, unit="nm")
