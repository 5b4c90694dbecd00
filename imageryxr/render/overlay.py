"""Draw overlays, outlines and composites as lazy RGBA arrays."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, TypedDict

import numpy as np
import numpy.typing as npt
import xarray as xr

from imageryxr.core.bbox import DIMS
from imageryxr.core.colors.mapping import ColorSpec
from imageryxr.core.display import CONTRAST_LIMITS, DRAWN_COLORS
from imageryxr.core.validate import check_axis, check_pair, name_array
from imageryxr.errors import LayerError, Message, OptionError, Wording, param, warn
from imageryxr.graph.cutout_arrays import check_same_positions
from imageryxr.graph.expr import Array, Expr, Mapped
from imageryxr.graph.labelled import Volume, label_result, volume_of
from imageryxr.ops.cutout_verbs import accepts_cutouts
from imageryxr.ops.segment_ids import segmentation_volume
from imageryxr.render.layers import Layer, Outline, Side, is_mask
from imageryxr.render.masks import draw_masks
from imageryxr.render.paint import Canvas, LayerStack, grey_to_rgba, paint_segments

Masks = Mapping[Any, xr.DataArray | npt.NDArray[Any]] | npt.NDArray[Any]
Drawable = xr.DataArray | Layer | Masks
"""A layer that `overlay` draws over an image."""


class OverlayOptions(TypedDict, total=False):
    """The options of `overlay` for segmentations."""

    ids: Iterable[int] | None
    colors: ColorSpec | Sequence[Any]
    alpha: float | Mapping[Any, float] | None
    rest_alpha: float | None
    outline: Outline | int | bool | None
    overlap: bool | None
    axis: str


@accepts_cutouts()
def overlay(
    image: xr.DataArray | None,
    segmentation: Drawable | Sequence[Drawable],
    *,
    ids: Iterable[int] | None = None,
    colors: ColorSpec | Sequence[Any] = None,
    alpha: float | Mapping[Any, float] | None = None,
    rest_alpha: float | None = None,
    outline: Outline | int | bool | None = None,
    overlap: bool | None = None,
    contrast_limits: tuple[float, float] | None = None,
    axis: str = "z",
) -> xr.DataArray:
    """Draw segments in colour over an image.

    Lazy: reads nothing; arrays in memory are drawn at once. Each block reads image and segmentation once and draws them
    in one pass.
    Outside of its volume the image is 0, which is drawn like any other 0: opaque, and black unless ``contrast_limits``
    map 0 to another grey. Without an image, the picture is transparent there.

    Parameters
    ----------
    image : DataArray or None
        Grey values (z, y, x), or (cutout, z, y, x) from `cutouts`: uint8, or another type with contrast limits. None
        draws the segments without an image.
    segmentation : DataArray, masks, `Layer`, or list of these
        Ids (z, y, x) on the grid of the image; use `align` first if the grids differ. Or masks, which may overlap: a
        dict name → bool array, a list of bool arrays, or a result of `split_masks`; NumPy arrays get the image's
        coordinates. In a list, later layers are drawn over earlier ones; a `Layer` has its own options.
    ids : iterable of int, optional
        Only these segments are drawn. Default: those that ``colors`` lists, those selected in the layer's link, or
        all. For `cutouts`, a column such as ``boxes.pre_id`` or its name, or a list of columns such as
        ``ids=["pre_id", "post_id"]``, selects other ids in each cutout; ``colors`` may then be a list with a colour for
        each column, a dict name of the column → colour, or one colour.
    colors : optional
        None for the colours in the layer's attrs, or for colours that depend only on the id and are the same in every
        figure; a dict id → colour; the name of a palette; ``"neuroglancer"`` or ``("neuroglancer", seed)`` for the
        viewer's colours. A colour is a name, a hex string, floats from 0 to 1 or ints from 0 to 255; its alpha, if it
        has one, is multiplied by ``alpha``. For masks: a dict name → colour, a list in their order, or a palette; by
        default ``"husl"``. A palette's colours are assigned to ``ids`` in order. Without ``ids``, the hash of an id
        picks the colour, so two cells may share one: for a figure of a few dozen cells give
        ``palette(unique_ids(segmentation), name)``.
    alpha : float or dict, optional
        Opacity of the fill, 0 to 1; 0 draws outlines only. A dict id → alpha sets it for single segments. Default:
        that in the layer's attrs, or 0.2.
    rest_alpha : float, optional
        Opacity of the segments that are not in ``ids`` or, without ``ids``, not in the dict ``colors``. Segments
        without a colour in the dict get the default colour of their id. Default: that in the layer's attrs, or 0.
    outline : Outline, int or bool, optional
        Outlines around the drawn segments: an `Outline`, a width in pixels, or True for ``Outline()``, 10 pixels
        wide and outside.
    overlap : bool, default True
        Whether later masks are drawn over earlier ones; if False, the first mask is drawn where masks overlap.
    contrast_limits : (low, high), optional
        The grey values that become black and white. Default: those in the image's attrs; uint8 needs none.
    axis : {"z", "y", "x"}, default "z"
        The axis across the slices in which outlines are drawn.

    Returns
    -------
    DataArray
        uint8, dims (z, y, x, rgba), straight alpha; opaque if there is an image. Attrs are those of the image without
        ``layer_type``, plus ``segmentation_source``, the colours that `colors_of` returns, and ``outline_axis`` if
        there are outlines. ``voxel_offset`` is that of the image's whole level; `grid_of` returns the picture's own
        grid.

    Raises
    ------
    GridMismatchError
        If the layers are not on the same grid.
    LayerError
        If the image is not uint8 and has no contrast limits, or a segmentation is not of an integer type.
    ColorError
        If a colour or palette is invalid, or the dict ``colors`` lacks an id of ``ids``.
    OptionError
        If another argument is outside its range.

    Warns
    -----
    MissingIdsWarning
        If requested ids do not occur in the data. The warning is issued when all blocks have been computed in one
        process, or by one `export`.

    Examples
    --------
    >>> import imageryxr as ix
    >>> sample = ix.sample("sample")
    >>> ds = ix.align(ix.open_image(sample.image), ix.open_segmentation(sample.segmentation))
    >>> picture = ix.overlay(ds.image, ds.segmentation, alpha=0.3, outline=2)
    >>> picture.dims, picture.dtype
    (('z', 'y', 'x', 'rgba'), dtype('uint8'))
    """
    canvas = Canvas(None if image is None else grey_volume(image, contrast_limits), DIMS.index(check_axis(axis)))
    layers = _list_layers(segmentation)
    call = Layer(None, ids, colors, alpha, rest_alpha, outline, overlap)
    for number, item in enumerate(layers):
        layer = (item if isinstance(item, Layer) else Layer(item)).fill_defaults(call)
        if layer.holds_masks:
            draw_masks(canvas, layer)
        else:
            _draw_segmentation(canvas, layer, "the segmentation" if len(layers) == 1 else f"layer {number}")
    attrs = {**canvas.volumes[0].attrs}
    if image is not None and canvas.volumes[1].attrs.get("source") is not None:
        attrs["segmentation_source"] = canvas.volumes[1].attrs["source"]
    if canvas.is_outlined:
        attrs["outline_axis"] = axis
    attrs[DRAWN_COLORS] = json.dumps(canvas.colors)
    expr = canvas.exprs[0] if len(canvas.exprs) == 1 else LayerStack(tuple(canvas.exprs))
    return label_rgba(expr, canvas.volumes, attrs, "overlay")


def _list_layers(segmentation: Any) -> list[Any]:
    """Return the layers of an overlay; a list of masks is one layer."""
    if not isinstance(segmentation, list | tuple):
        return [segmentation]
    if not segmentation:
        raise OptionError(
            "overlay was given an empty list of segmentations; give at least one, or write to_rgba(image)"
        )
    return [segmentation] if all(is_mask(item) for item in segmentation) else list(segmentation)


def _draw_segmentation(canvas: Canvas, layer: Layer, what: str) -> None:
    image, labels = canvas.take_image(), segmentation_volume(layer.segmentation)
    canvas.add_volume(labels, what)
    painted = paint_segments(labels, image, layer, canvas.axis)
    canvas.add_layer([painted], painted.describe_colors(layer.colors))
    canvas.is_outlined |= painted.outline is not None


@accepts_cutouts()
def outline(
    segmentation: xr.DataArray,
    *,
    width: float = 10,
    side: Side = "out",
    merge: bool = True,
    colors: ColorSpec | Sequence[Any] = None,
    alpha: float = 1.0,
    unit: Literal["px", "nm"] = "px",
    color: Any = None,
    ids: Iterable[int] | None = None,
    axis: str = "z",
) -> xr.DataArray:
    """Draw the outlines of segments on a transparent background.

    Lazy: reads nothing. Lines do not depend on the blocks. At the border of a crop they take the data beyond it into
    account, so that an outline of a crop equals the crop of an outline. No line is drawn along the edge of the data.

    Parameters
    ----------
    segmentation : DataArray
        Ids (z, y, x).
    width, side, merge, alpha, unit, color
        As in `Outline`.
    colors, ids, axis
        As in `overlay`.

    Returns
    -------
    DataArray
        uint8, dims (z, y, x, rgba), transparent between the lines. Where outlines overlap, they are drawn over each
        other in the order of the ids. Use `composite` to draw the result over a picture.

    Raises
    ------
    ImageryError
        As `overlay`.

    Examples
    --------
    >>> import imageryxr as ix
    >>> seg = ix.open_segmentation(ix.sample("sample").segmentation)
    >>> ix.outline(seg, width=3, side="in", merge=False).sizes["rgba"]
    4
    """
    layer = Layer(None, ids, colors, alpha=0, rest_alpha=0, outline=Outline(width, side, merge, alpha, unit, color))
    labels = segmentation_volume(segmentation)
    expr = replace(paint_segments(labels, None, layer, DIMS.index(check_axis(axis))), own=None)
    attrs = {**labels.attrs, "outline_axis": axis, DRAWN_COLORS: json.dumps([expr.describe_colors(colors)])}
    return label_rgba(expr, [labels], attrs, "outline")


@accepts_cutouts()
def to_rgba(image: xr.DataArray, *, contrast_limits: tuple[float, float] | None = None) -> xr.DataArray:
    """Convert grey values to an opaque RGBA picture.

    Lazy: reads nothing.

    Parameters
    ----------
    image : DataArray
        Grey values (z, y, x).
    contrast_limits : (low, high), optional
        The values that become black and white; (high, low) inverts. Default: those in the attrs; uint8 needs none.

    Returns
    -------
    DataArray
        uint8, dims (z, y, x, rgba), alpha 255.

    Raises
    ------
    LayerError
        If the image is not uint8 and no contrast limits are given or in its attrs.

    Examples
    --------
    >>> import imageryxr as ix
    >>> em = ix.open_image(ix.sample("sample").image)
    >>> ix.to_rgba(em, contrast_limits=(60, 220)).dims
    ('z', 'y', 'x', 'rgba')
    """
    volume = grey_volume(image, contrast_limits)
    return label_rgba(grey_to_rgba(volume.expr), [volume], volume.attrs, "picture")


@accepts_cutouts()
def composite(*layers: xr.DataArray) -> xr.DataArray:
    """Draw RGBA layers over each other, the first at the bottom.

    Lazy: reads nothing. Data that several layers share are read once.

    Parameters
    ----------
    *layers : DataArray
        uint8, dims (z, y, x, rgba), on the same grid; as `to_rgba`, `overlay` and `outline` return them.

    Returns
    -------
    DataArray
        uint8, dims (z, y, x, rgba), straight alpha, rounded to the nearest integer. Attrs are those of the first layer,
        with the colours of all layers, which `colors_of` returns.

    Raises
    ------
    OptionError
        If there is no layer.
    LayerError
        If a layer is not RGBA.
    GridMismatchError
        If the layers are not on the same grid.

    Examples
    --------
    >>> import imageryxr as ix
    >>> sample = ix.sample("sample")
    >>> ds = ix.align(ix.open_image(sample.image), ix.open_segmentation(sample.segmentation))
    >>> ix.composite(ix.to_rgba(ds.image), ix.outline(ds.segmentation, width=2)).name
    'composite'
    """
    if not layers:
        raise OptionError("composite was given no layers; give RGBA arrays, the bottom one first")
    volumes = [rgba_volume(layer, f"layer {i}") for i, layer in enumerate(layers)]
    for i, volume in enumerate(volumes[1:], 1):
        check_same_positions(volume, volumes[0], f"layers {i} and 0")
    drawn = [entry for v in volumes for entry in json.loads(v.attrs.get(DRAWN_COLORS, "[]"))]
    attrs = {**volumes[0].attrs, **({DRAWN_COLORS: json.dumps(drawn)} if drawn else {})}
    return label_rgba(LayerStack(tuple(v.expr for v in volumes)), volumes, attrs, "composite")


# ---------------------------------------------------------------------------------------------------------
# arguments


def label_rgba(expr: Expr, volumes: list[Volume], attrs: dict[str, Any], name: str) -> xr.DataArray:
    """Return the labelled picture of an expression on the grid of the first volume."""
    # RGBA is neither an image nor a segmentation, so it has no layer type.
    kept = {k: v for k, v in attrs.items() if k != "layer_type"}
    return label_result(expr, volumes[0].grid, *volumes, attrs=kept, name=name, tail="rgba")


def grey_volume(image: xr.DataArray, limits: tuple[float, float] | None) -> Volume:
    """Return the volume of an image as grey values from 0 (black) to 255 (white)."""
    volume = volume_of(image)
    dtype = volume.expr.dtype
    if volume.attrs.get("layer_type") == "segmentation":
        raise LayerError(
            f"{name_array(image.name)} is a segmentation, not an image; overlay takes (image, segmentation)"
        )
    if dtype == np.bool_:
        raise LayerError(f"{name_array(image.name)} is a mask (dtype bool); convert it: mask.astype('uint8') * 255")
    if dtype.kind not in "uif" or dtype.itemsize > 8:
        raise LayerError(
            f"{name_array(image.name, 'the image')} has dtype {dtype}, which cannot be shown as grey values"
        )
    limits = volume.attrs.get(CONTRAST_LIMITS) if limits is None else limits
    if limits is None and dtype == np.uint8:
        return volume
    if limits is None:
        raise LayerError(
            f"{name_array(image.name, 'the image')} has dtype {dtype} and no contrast limits; give ",
            param("contrast_limits", text="(low, high)"),
            ", e.g. ",
            param("contrast_limits", (0, 4095)),
            Wording(", or set them in its attrs", ""),
        )
    low, high = check_pair("contrast_limits", limits, "two different finite numbers (low, high), e.g. (60, 200)")
    return replace(volume, expr=Mapped(volume.expr, partial(_apply_contrast, low=low, high=high), "uint8"))


def rgba_volume(layer: xr.DataArray, what: str) -> Volume:
    """Return the volume of an RGBA array, after checking its dtype and channels."""
    if not isinstance(layer, xr.DataArray) or "rgba" not in layer.dims:
        raise LayerError(f"{what} is not an RGBA array; convert it with to_rgba(image), overlay(…) or outline(…)")
    if layer.sizes["rgba"] != 4 or layer.dtype != np.uint8:
        raise LayerError(
            f"{what} has dtype {layer.dtype} and {layer.sizes['rgba']} channels; an RGBA array must be uint8 with 4 "
            "channels"
        )
    return volume_of(layer, tail=("rgba",))


def _apply_contrast(values: Array, low: float, high: float) -> Array:
    from imageryxr.kernels import fill

    if values.size:
        smallest, largest = float(np.min(values)), float(np.max(values))
        if smallest < largest:  # a block of one value is usually background outside the volume
            _warn_if_outside(smallest, largest, low, high, f"the values of a block ({smallest:g} to {largest:g})")
    return fill.to_uint8(values, low, high)


def _warn_if_outside(smallest: float, largest: float, low: float, high: float, what: str) -> None:
    bottom, top = min(low, high), max(low, high)
    if largest < bottom or smallest > top:
        shown = "black" if (largest < bottom) == (low < high) else "white"
        warn(
            Message(
                param("contrast_limits", text=f"({low:g}, {high:g})"),
                f" lie wholly outside {what}, so the picture is all {shown}; limits in attrs ",
                "apply to the stored values: after arithmetic, give ",
                param("contrast_limits"),
                " for the new values, or compute them with imageryxr.contrast_limits(image)",
            )
        )
