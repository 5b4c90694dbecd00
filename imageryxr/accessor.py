"""The ``.imagery`` accessor: the public functions as methods of arrays and Datasets."""

from __future__ import annotations

import functools
from collections.abc import Callable
from textwrap import wrap
from typing import Any

import xarray as xr

from imageryxr.core.bbox import format_triple
from imageryxr.core.colors.record import colors_of
from imageryxr.core.grid import Grid, grid_of
from imageryxr.errors import ImageryError
from imageryxr.export import export, plan_export
from imageryxr.export.masks import save_masks
from imageryxr.measure.contacts import contacts
from imageryxr.measure.cutouts import cutouts
from imageryxr.measure.overlaps import overlaps
from imageryxr.measure.segments import measure
from imageryxr.measure.table import to_dataframe
from imageryxr.neuroglancer.link import neuroglancer_link
from imageryxr.ops.align import align, aligned_names, regrid
from imageryxr.ops.cave_table import table
from imageryxr.ops.datastack import align_tree, around, bbox
from imageryxr.ops.labels import select_ids, split_masks, unique_ids
from imageryxr.ops.open import box_around, crop
from imageryxr.ops.plane import plane, tree_plane
from imageryxr.ops.points import sample_points
from imageryxr.ops.tree import view
from imageryxr.render.annotate import annotate
from imageryxr.render.figure import inset, legend, montage, save_figure, scale_bar, to_pil
from imageryxr.render.overlay import composite, outline, overlay, to_rgba
from imageryxr.render.overlay_view import overlay_view
from imageryxr.render.plot import plot
from imageryxr.render.thumbnail import contrast_limits, describe_tree, thumbnail, tree_html


def _method(function: Callable[..., Any]) -> Callable[..., Any]:
    """Convert a function of an xarray object to a method of its accessor, with the same docstring and signature."""

    @functools.wraps(function)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return function(self._obj, *args, **kwargs)

    return method


def _describe(accessor: Any, what: str) -> str:
    """Return the repr of an accessor: a description of its object, and the names of its methods."""
    kind = type(accessor)
    methods = [name for name, value in vars(kind).items() if callable(value) and not name.startswith("_")]
    lines = wrap(", ".join([*methods, "grid"]), 96, initial_indent="  ", subsequent_indent="  ")
    return "\n".join([f"<imagery of {what}>", *lines])


def _array_text(array: xr.DataArray) -> str:
    """Return a description of an array, without reading data."""
    sizes = " × ".join(f"{size:,}" for size in array.shape)
    name = repr(str(array.name)) if array.name is not None else "an array"
    text = f"{name}: {array.dtype}, ({', '.join(map(str, array.dims))}) {sizes}"
    try:
        return f"{text}, voxels of {format_triple(grid_of(array).resolution)} nm"
    except ImageryError:
        return f"{text}, without a grid in nm"


def _layers_method(function: Callable[..., Any]) -> Callable[..., Any]:
    """Convert a function of (image, segmentation) to a method of a Dataset that contains both."""

    @functools.wraps(function)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        image, segmentation = aligned_names(self._obj)
        return function(self._obj[image], self._obj[segmentation], *args, **kwargs)

    return method


def _segmentation_method(function: Callable[..., Any]) -> Callable[..., Any]:
    """Convert a function of a segmentation to a method of a Dataset of an image and a segmentation."""

    @functools.wraps(function)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return function(self._obj[aligned_names(self._obj)[1]], *args, **kwargs)

    return method


def _measure_method(function: Callable[..., Any]) -> Callable[..., Any]:
    """Convert a function of (segmentation, image) to a method of a Dataset that contains both."""

    @functools.wraps(function)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        image, segmentation = aligned_names(self._obj)
        return function(self._obj[segmentation], self._obj[image], *args, **kwargs)

    return method


class ImageryArray:
    """The functions of imageryxr as methods of an array: ``da.imagery.crop(bbox)`` is ``imageryxr.crop(da, bbox)``.

    Examples
    --------
    >>> import imageryxr as ix
    >>> em = ix.open_image(ix.sample(sample_path).image)
    >>> em.imagery.grid.resolution
    (8.0, 8.0, 40.0)
    >>> em.imagery.crop(ix.BBox.around((4300, 2200, 120), (64, 64), resolution=(8, 8, 40))).shape
    (1, 64, 64)
    """

    __slots__ = ("_obj",)

    def __init__(self, obj: xr.DataArray) -> None:
        self._obj = obj

    @property
    def grid(self) -> Grid:
        """The grid of the array."""
        return grid_of(self._obj)

    def __repr__(self) -> str:
        return _describe(self, _array_text(self._obj))

    around = _method(box_around)
    crop = _method(crop)
    cutouts = _method(cutouts)
    plane = _method(plane)
    align = _method(align)
    regrid = _method(regrid)
    unique_ids = _method(unique_ids)
    measure = _method(measure)
    contacts = _method(contacts)
    overlaps = _method(overlaps)
    sample_points = _method(sample_points)
    select_ids = _method(select_ids)
    split_masks = _method(split_masks)
    save_masks = _method(save_masks)
    outline = _method(outline)
    overlay = _method(overlay)
    to_rgba = _method(to_rgba)
    composite = _method(composite)
    annotate = _method(annotate)
    colors_of = _method(colors_of)
    to_pil = _method(to_pil)
    montage = _method(montage)
    scale_bar = _method(scale_bar)
    inset = _method(inset)
    legend = _method(legend)
    save_figure = _method(save_figure)
    export = _method(export)
    plan_export = _method(plan_export)
    plot = _method(plot)
    thumbnail = _method(thumbnail)
    contrast_limits = _method(contrast_limits)
    neuroglancer_link = _method(neuroglancer_link)


class ImageryDataset:
    """The functions of imageryxr as methods of a Dataset of an image and a segmentation.

    Examples
    --------
    >>> import imageryxr as ix
    >>> sample = ix.sample(sample_path)
    >>> ds = ix.align(ix.open_image(sample.image), ix.open_segmentation(sample.segmentation))
    >>> ds.imagery.overlay(alpha=0.3).dims
    ('z', 'y', 'x', 'rgba')
    """

    __slots__ = ("_obj",)

    def __init__(self, obj: xr.Dataset) -> None:
        self._obj = obj

    @property
    def grid(self) -> Grid:
        """The grid of the arrays."""
        return grid_of(self._obj)

    def __repr__(self) -> str:
        arrays = "; ".join(_array_text(array) for array in self._obj.data_vars.values())
        return _describe(self, f"a Dataset with {arrays or 'no arrays'}")

    around = _method(box_around)
    crop = _method(crop)
    cutouts = _method(cutouts)
    plane = _method(plane)
    align = _layers_method(align)
    overlay = _method(overlay_view)
    outline = _segmentation_method(outline)
    unique_ids = _segmentation_method(unique_ids)
    measure = _measure_method(measure)
    contacts = _segmentation_method(contacts)
    to_dataframe = _method(to_dataframe)
    split_masks = _segmentation_method(split_masks)
    sample_points = _method(sample_points)
    export = _method(export)
    plan_export = _method(plan_export)
    plot = _method(plot)
    thumbnail = _method(thumbnail)
    neuroglancer_link = _method(neuroglancer_link)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(ImageryArray, name):
            raise AttributeError(f"the imagery accessor of a Dataset has no attribute {name!r}")
        arrays = " or ".join(f"ds[{str(key)!r}].imagery.{name}(…)" for key in list(self._obj.data_vars)[:3])
        raise AttributeError(f"{name} needs an array, but this is a Dataset; write {arrays or f'da.imagery.{name}(…)'}")


class ImageryTree:
    """The functions of imageryxr as methods of a tree of layers from `open_neuroglancer` or `open_datastack`.

    Examples
    --------
    >>> import imageryxr as ix
    >>> sample = ix.sample(sample_path)
    >>> state = {"layers": [{"type": "image", "name": "em", "source": sample.image}]}
    >>> tree = ix.open_neuroglancer(state, allow_local=True)
    >>> tree.imagery.view(size=(64, 48)).em.shape
    (1, 48, 64)
    >>> import xarray as xr
    >>> tree = xr.DataTree(xr.Dataset(attrs={"viewer_resolution": (4, 4, 40)}))
    >>> tree.imagery.around((1000, 1000, 50), (512, 512), resolution="viewer")
    BBox(lo=(744, 744, 50), hi=(1256, 1256, 51), resolution=(4.0, 4.0, 40.0))
    """

    __slots__ = ("_obj",)

    def __init__(self, obj: xr.DataTree) -> None:
        self._obj = obj

    bbox = _method(bbox)
    around = _method(around)
    align = _method(align_tree)
    view = _method(view)
    table = _method(table)
    cutouts = _method(cutouts)
    plane = _method(tree_plane)
    thumbnail = _method(thumbnail)
    neuroglancer_link = _method(neuroglancer_link)

    def __repr__(self) -> str:
        return describe_tree(self._obj)

    def _repr_html_(self) -> str:
        return tree_html(self._obj)
