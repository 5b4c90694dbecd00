"""The ``.imagery`` accessor: the public functions as methods of arrays and Datasets."""

from __future__ import annotations

import functools
from collections.abc import Callable
from textwrap import wrap
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar

import xarray as xr

from imageryxr.core.array_labels import grid_of
from imageryxr.core.bbox import format_triple
from imageryxr.core.display import colors_of
from imageryxr.core.grid import Grid
from imageryxr.errors import ImageryError
from imageryxr.export import export, plan_export
from imageryxr.export.mask_pictures import save_masks
from imageryxr.measure.contacts import contacts
from imageryxr.measure.cutouts import cutouts
from imageryxr.measure.overlaps import overlaps
from imageryxr.measure.segments import measure
from imageryxr.measure.table import to_dataframe
from imageryxr.neuroglancer.link import neuroglancer_link
from imageryxr.ops.align import align, aligned_names, regrid
from imageryxr.ops.cave_table import table
from imageryxr.ops.crop import box_around, crop
from imageryxr.ops.datastack import align_tree, around, bbox
from imageryxr.ops.labels import select_ids, split_masks, unique_ids
from imageryxr.ops.plane import plane, tree_plane
from imageryxr.ops.points import sample_points
from imageryxr.ops.tree import view
from imageryxr.render.annotate import annotate
from imageryxr.render.figure import inset, legend, montage, save_figure, scale_bar, to_pil
from imageryxr.render.overlay import composite, outline, overlay, to_rgba
from imageryxr.render.overlay_view import overlay_view
from imageryxr.render.plot import plot
from imageryxr.render.thumbnail import contrast_limits, describe_tree, thumbnail, tree_html

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class _MethodOf(Generic[T]):
    """Convert functions to methods with the same docstring and signature.

    The first argument of a function is the object of the accessor, or the part of it that ``select`` returns.
    """

    def __init__(self, select: Callable[[Any], T] = lambda obj: obj) -> None:
        self.select = select

    def __call__(self, function: Callable[Concatenate[T, P], R]) -> Callable[Concatenate[Any, P], R]:
        @functools.wraps(function)
        def method(accessor: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
            return function(self.select(accessor._obj), *args, **kwargs)

        return method


_array_method = _MethodOf[xr.DataArray]()
_dataset_method = _MethodOf[xr.Dataset]()
_tree_method = _MethodOf[xr.DataTree]()
_segmentation_method = _MethodOf[xr.DataArray](lambda dataset: dataset[aligned_names(dataset)[1]])


def _layers_method(
    function: Callable[Concatenate[xr.DataArray, xr.DataArray, P], R], *, reverse: bool = False
) -> Callable[Concatenate[Any, P], R]:
    """Convert a function of (image, segmentation) to a method of a Dataset; ``reverse`` swaps the two."""

    @functools.wraps(function)
    def method(accessor: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        first, second = aligned_names(accessor._obj)[:: -1 if reverse else 1]
        return function(accessor._obj[first], accessor._obj[second], *args, **kwargs)

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


class ImageryArray:
    """The functions of imageryxr as methods of an array: ``da.imagery.crop(bbox)`` is ``imageryxr.crop(da, bbox)``.

    Examples
    --------
    >>> import imageryxr as ix
    >>> em = ix.open_image(ix.sample("sample").image)
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

    around = _array_method(box_around)
    crop = _array_method(crop)
    cutouts = _array_method(cutouts)
    plane = _array_method(plane)
    align = _array_method(align)
    regrid = _array_method(regrid)
    unique_ids = _array_method(unique_ids)
    measure = _array_method(measure)
    contacts = _array_method(contacts)
    overlaps = _array_method(overlaps)
    sample_points = _array_method(sample_points)
    select_ids = _array_method(select_ids)
    split_masks = _array_method(split_masks)
    save_masks = _array_method(save_masks)
    annotate = _array_method(annotate)
    outline = _array_method(outline)
    overlay = _array_method(overlay)
    to_rgba = _array_method(to_rgba)
    composite = _array_method(composite)
    colors_of = _array_method(colors_of)
    to_pil = _array_method(to_pil)
    montage = _array_method(montage)
    scale_bar = _array_method(scale_bar)
    inset = _array_method(inset)
    legend = _array_method(legend)
    save_figure = _array_method(save_figure)
    export = _array_method(export)
    plan_export = _array_method(plan_export)
    plot = _array_method(plot)
    thumbnail = _array_method(thumbnail)
    contrast_limits = _array_method(contrast_limits)
    neuroglancer_link = _array_method(neuroglancer_link)


class ImageryDataset:
    """The functions of imageryxr as methods of a Dataset of an image and a segmentation.

    Examples
    --------
    >>> import imageryxr as ix
    >>> sample = ix.sample("sample")
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

    around = _dataset_method(box_around)
    crop = _dataset_method(crop)
    cutouts = _dataset_method(cutouts)
    plane = _dataset_method(plane)
    align = _layers_method(align)
    overlay = _dataset_method(overlay_view)
    outline = _segmentation_method(outline)
    unique_ids = _segmentation_method(unique_ids)
    measure = _layers_method(measure, reverse=True)
    contacts = _segmentation_method(contacts)
    to_dataframe = _dataset_method(to_dataframe)
    split_masks = _segmentation_method(split_masks)
    sample_points = _dataset_method(sample_points)
    export = _dataset_method(export)
    plan_export = _dataset_method(plan_export)
    plot = _dataset_method(plot)
    thumbnail = _dataset_method(thumbnail)
    neuroglancer_link = _dataset_method(neuroglancer_link)

    if not TYPE_CHECKING:  # a type checker would accept every name

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_") or not hasattr(ImageryArray, name):
                raise AttributeError(f"the imagery accessor of a Dataset has no attribute {name!r}")
            arrays = " or ".join(f"ds[{str(key)!r}].imagery.{name}(…)" for key in list(self._obj.data_vars)[:3])
            raise AttributeError(
                f"{name} needs an array, but this is a Dataset; write {arrays or f'da.imagery.{name}(…)'}"
            )


class ImageryTree:
    """The functions of imageryxr as methods of a tree of layers from `open_neuroglancer` or `open_datastack`.

    Examples
    --------
    >>> import imageryxr as ix
    >>> sample = ix.sample("sample")
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

    bbox = _tree_method(bbox)
    around = _tree_method(around)
    align = _tree_method(align_tree)
    view = _tree_method(view)
    table = _tree_method(table)
    cutouts = _tree_method(cutouts)
    plane = _tree_method(tree_plane)
    thumbnail = _tree_method(thumbnail)
    neuroglancer_link = _tree_method(neuroglancer_link)

    def __repr__(self) -> str:
        return describe_tree(self._obj)

    def _repr_html_(self) -> str:
        return tree_html(self._obj)
