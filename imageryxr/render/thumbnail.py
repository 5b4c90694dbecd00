"""Thumbnails, contrast limits and summaries, computed from coarse levels."""

from __future__ import annotations

import html
import io
from base64 import b64encode
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from imageryxr.core.array_labels import grid_of, layer_type_of, spatial_arrays
from imageryxr.core.bbox import DIMS, BBox, format_triple
from imageryxr.core.display import CONTRAST_LIMITS, VISIBLE
from imageryxr.core.grid import Grid
from imageryxr.core.validate import check_pair, check_whole, name_array
from imageryxr.errors import ImageryError, LayerError
from imageryxr.graph.labelled import check_array
from imageryxr.ops.multiscale import coarsest_level_for, levels_of
from imageryxr.ops.tree import dimensions_of, layers_of, position_of, regrid_layer
from imageryxr.render.figure import to_pil
from imageryxr.render.overlay_view import draw_array, overlay_dataset

if TYPE_CHECKING:
    from PIL.Image import Image

#: Maximum number of voxels that a thumbnail or `contrast_limits` reads of an array.
MAX_VOXELS = 1 << 24


def contrast_limits(image: xr.DataArray, percentiles: Sequence[float] = (1, 99)) -> tuple[float, float]:
    """Choose the grey values to show as black and white from percentiles of the data.

    Computes: reads the box of the array at the coarsest level of its volume, or a few slices of it if it has more than
    16 million voxels. Call it once and use the result for all pictures that are compared.

    Parameters
    ----------
    image : DataArray
        Grey values, dims (z, y, x).
    percentiles : (low, high), default (1, 99)
        Percentiles of the grey values that become black and white. Voxels that are 0, the padding of most volumes, or
        NaN are ignored.

    Returns
    -------
    tuple of float
        ``(low, high)``, for the option or the attribute ``contrast_limits``.

    Raises
    ------
    OptionError
        If the percentiles are invalid.
    LayerError
        If the array is a segmentation, or is 0 everywhere.

    Examples
    --------
    >>> import imageryxr as ix
    >>> em = ix.open_image(ix.sample("sample").image)
    >>> low, high = ix.contrast_limits(em)
    >>> 0 < low < high < 256
    True
    """
    low, high = _check_percentiles(percentiles)
    check_array(image)
    if layer_type_of(image) == "segmentation":
        raise LayerError(
            f"{name_array(image.name)} is a segmentation, and percentiles of ids are meaningless; give the image"
        )
    if image.dtype.kind not in "uif":
        raise LayerError(
            f"{name_array(image.name)} has dtype {image.dtype}; give an image of grey values, integers or floats"
        )
    values = _sample_values(image)
    seen = values[np.isfinite(values) & (values != 0)] if values.dtype.kind == "f" else values[values != 0]
    if not seen.size:
        raise LayerError(f"{name_array(image.name)} is 0 everywhere in its box; choose another box")
    bottom, top = (float(v) for v in np.percentile(seen, (low, high)))
    return (bottom, top) if bottom < top else (bottom - 0.5, bottom + 0.5)


def _check_percentiles(given: Any) -> tuple[float, float]:
    expected = "two numbers from 0 to 100, the lower one first, e.g. (1, 99)"
    return check_pair("percentiles", given, expected, 0, 100, ascending=True)


def _coarsest_level(array: xr.DataArray, voxels_across: int = 1) -> xr.DataArray:
    """Return an array's box at the coarsest level that has at least ``voxels_across`` voxels across it."""
    box = grid_of(array).bbox
    for level in reversed(levels_of(array)):
        grid = grid_of(level)
        part = grid.select(box).clip(grid.box)
        if part.voxels and max(part.shape[1:]) >= min(voxels_across, max(grid_of(array).shape[1:])):
            return level.isel(dict(zip(DIMS, part.slices(), strict=True)), missing_dims="ignore")
    return array


def _sample_values(array: xr.DataArray) -> npt.NDArray[Any]:
    """Return voxels of the coarsest level, or of some of its slices if it has more than `MAX_VOXELS`."""
    level = _crop_center(_coarsest_level(array), int(MAX_VOXELS**0.5))
    level = level.expand_dims([dim for dim in DIMS if dim not in level.dims])
    depth = max(1, MAX_VOXELS // (level.sizes["y"] * level.sizes["x"]))
    if level.sizes["z"] <= depth:
        return np.asarray(level.values)
    # Slices across the whole volume represent it better than a slab, but each requires other chunks, so at most 8.
    picks = np.unique(np.linspace(0, level.sizes["z"] - 1, min(depth, 8)).round().astype(int))
    return np.concatenate([level.isel(z=[int(i)]).values for i in picks])


def _crop_center(array: xr.DataArray, most: int) -> xr.DataArray:
    """Return the centre of an array, at most ``most`` voxels wide and high."""
    starts = {d: max(0, (array.sizes[d] - most) // 2) for d in ("y", "x") if d in array.dims}
    return array.isel({d: slice(start, start + most) for d, start in starts.items()})


def thumbnail(obj: xr.DataArray | xr.Dataset | xr.DataTree, size: int = 256) -> Image:
    """Draw a small picture of the middle slice of a volume.

    Computes at a bounded cost: reads one slice of the coarsest level that is ``size`` voxels wide, or the centre of
    that slice if it is larger.

    Parameters
    ----------
    obj : DataArray, Dataset or DataTree
        Image, segmentation, mask or RGBA. The layers of a Dataset or tree are drawn over each other.
    size : int, default 256
        Maximum length in pixels of the longer side.

    Returns
    -------
    PIL.Image.Image

    Raises
    ------
    LayerError
        If there is no layer to draw.
    OptionError
        If the size is invalid.

    Examples
    --------
    >>> import imageryxr as ix
    >>> em = ix.open_image(ix.sample("sample").image)
    >>> em.imagery.thumbnail().size
    (256, 256)
    """
    from PIL import Image as PilImage

    size = check_whole("size", size, 16, 2048, unit="pixels")
    picture = _draw_middle(obj, size)
    picture.thumbnail((size, size), PilImage.Resampling.BOX)
    return picture


def _draw_middle(obj: xr.DataArray | xr.Dataset | xr.DataTree, size: int) -> Image:
    if isinstance(obj, xr.DataArray):
        return _draw_slice(obj, size)
    return to_pil(overlay_dataset(_middle_slices(obj, size)))


def _middle_slices(obj: xr.Dataset | xr.DataTree, size: int) -> xr.Dataset:
    """Return the middle slice of all visible layers on one grid, about ``size`` voxels wide.

    If the first layer has no coarse level, the slice covers only the centre of the volume. Other layers that would
    need more than `MAX_VOXELS` voxels are skipped.
    """
    layers = layers_of(obj) if isinstance(obj, xr.DataTree) else spatial_arrays(obj)
    shown = {n: a for n, a in layers.items() if a.attrs.get(VISIBLE, True)} or layers
    name, first = next(iter(shown.items()))
    whole, coarse = grid_of(first), grid_of(levels_of(first)[-1])
    extent = [min(n, 4 * size * r) for n, r in zip(whole.bbox.size_nm[:2], coarse.resolution[:2], strict=True)]
    step = max(extent) / size
    target = (max(step, whole.resolution[0]), max(step, whole.resolution[1]), whole.resolution[2])
    pixels = [max(1, round(n / r)) for n, r in zip(extent, target[:2], strict=True)]
    center = [nm / r for nm, r in zip(whole.bbox.center_nm, target, strict=True)]
    box = BBox.around(center, pixels, resolution=target)
    grid = Grid((1, pixels[1], pixels[0]), target, (box.lo[0], box.lo[1], box.lo[2]))
    out = {}
    for n, array in shown.items():
        size_x, size_y, _ = grid_of(coarsest_level_for(array, target)).resolution
        if n == name or extent[0] / size_x * extent[1] / size_y <= MAX_VOXELS:
            out[n] = _set_contrast_limits(regrid_layer(array, grid))
    return xr.Dataset(out)


def _set_contrast_limits(array: xr.DataArray) -> xr.DataArray:
    """Return an image with the minimum and maximum as contrast limits if it needs limits and has none."""
    is_grey = array.dtype.kind in "iuf" and array.dtype != np.uint8 and layer_type_of(array) == "image"
    if not is_grey or CONTRAST_LIMITS in array.attrs:
        return array
    values = array.values
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    return array.assign_attrs({CONTRAST_LIMITS: (low, high if high > low else low + 1)})


def _draw_slice(array: xr.DataArray, size: int) -> Image:
    """Return the middle slice of an array as a picture."""
    grid_of(array)
    full = array.expand_dims([d for d in DIMS if d not in array.dims and d in array.coords])
    level = full if "rgba" in full.dims else _coarsest_level(full, size)
    level = level.isel(z=[level.sizes["z"] // 2])
    level = _crop_center(level, 4 * size).load()
    return to_pil(draw_array(_set_contrast_limits(level)))


def describe_tree(tree: xr.DataTree) -> str:
    """Return a summary of a tree's layers, one line per layer; reads nothing."""
    try:
        arrays = layers_of(tree)
    except LayerError:
        return "<imagery of a tree without images or segmentations>"
    lines = []
    for name, array in arrays.items():
        grid = grid_of(array)
        size = format_triple([round(s / 1000, 3) for s in grid.bbox.size_nm])
        off = "" if array.attrs.get(VISIBLE, True) else ", switched off"
        about = f"{layer_type_of(array)}, {array.dtype}, {format_triple(grid.shape[::-1])} voxels of "
        lines.append(f"  {name}: {about}{format_triple(grid.resolution)} nm, {size} µm{off}")
    unit = dimensions_of(tree, arrays)
    place = ", ".join(f"{v:,.10g}" for v in position_of(tree, arrays, unit))
    return "\n".join([f"<imagery of {len(arrays)} layers, at ({place}) in voxels of {format_triple(unit)} nm>", *lines])


def tree_html(tree: xr.DataTree) -> str:
    """Return a summary of a tree as HTML with a thumbnail; computes like `thumbnail`."""
    text = f"<pre>{html.escape(describe_tree(tree))}</pre>"
    try:
        picture = thumbnail(tree)
    except ImageryError as error:
        return text + f"<p>{html.escape(str(error))}</p>"
    data = io.BytesIO()
    picture.save(data, format="PNG")
    return (
        text + f'<img alt="the middle of the volume" src="data:image/png;base64,{b64encode(data.getvalue()).decode()}">'
    )
