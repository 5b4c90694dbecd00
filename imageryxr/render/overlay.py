"""Colour over imagery: overlays, outlines, and layers of both."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
import xarray as xr

from imageryxr.core.bbox import DIMS
from imageryxr.core.colors.record import DRAWN_COLORS
from imageryxr.core.display import CONTRAST_LIMITS, LAYER, LAYER_ORDER, OPACITY, VISIBLE
from imageryxr.core.grid_checks import check_same_grid
from imageryxr.errors import LayerError, OptionError, warn
from imageryxr.graph.composite import LayerStack
from imageryxr.graph.expr import Array, Expr, Mapped
from imageryxr.graph.labelled import Volume, label_result, volume_of
from imageryxr.ops.align import layer_type_of
from imageryxr.ops.labels import segmentation_volume
from imageryxr.render.layers import Layer, described, prepared_layers, rgba_of
from imageryxr.render.paint import Outline, Side, paint_of, painted

__all__ = ["Layer", "Outline", "composite", "outline", "overlay", "overlay_dataset", "to_rgba"]


def overlay(
    image: xr.DataArray | None,
    segmentation: Any,
    *,
    ids: Iterable[int] | None = None,
    colors: Any = None,
    alpha: Any = None,
    rest_alpha: float | None = None,
    outline: Outline | int | bool | None = None,
    overlap: bool | None = None,
    contrast_limits: tuple[float, float] | None = None,
    axis: str = "z",
) -> xr.DataArray:
    """Draw segments in colour over an image.

    Lazy: reads nothing. A block reads image and segmentation once and draws in one pass.
    Where a box or plane reaches over the edge of its volume the image is 0, drawn as any 0: opaque, and black unless
    ``contrast_limits`` make it another grey. Without an image it is transparent there.

    Parameters
    ----------
    image : DataArray or None
        Grey values (z, y, x): uint8, or another type with contrast limits. None draws the segments on nothing.
    segmentation : DataArray, masks, `Layer`, or list of these
        Ids (z, y, x) on the same grid; `align` brings them there. Or masks, which may overlap: a dict name → bool
        array, a list of bool arrays, or what `split_masks` returns; NumPy arrays stand where the image does. Of
        several, each is laid over those before it; a `Layer` gives one options of its own.
    ids : iterable of int, optional
        Draw these only. Default: all, those that ``colors`` names, or those selected in the link that the layer
        came from.
    colors : optional
        None for colours that depend on the id alone, so that a block, a job and a figure agree, or for those that
        the layer came with; a dict id → colour; the name of a palette; ``"neuroglancer"`` or ``("neuroglancer",
        seed)`` for the viewer's colours. A colour is a name, a hex string, floats from 0 to 1 or ints from 0 to 255;
        one with an alpha is that share of ``alpha``. For masks: a dict name → colour, a list in their order, or a
        palette; by default ``"husl"``. A palette's name spreads its colours over ``ids``; where those are not given,
        the hash of an id picks one, so that two cells may share it: for a figure of a few dozen cells give
        ``palette(unique_ids(segmentation), name)``.
    alpha : float or dict, default 0.2, or what the layer came with
        How opaque the fill is, 0 to 1. 0 draws outlines only. A dict id → alpha gives segments one of their own.
    rest_alpha : float, default 0, or what the layer came with
        How opaque the segments are that are not among ``ids``, or not in a dict of ``colors`` where there are no
        ``ids``. Those that the dict has no colour for have that of their id.
    outline : Outline, int or bool, optional
        Lines around the segments drawn, too: an `Outline`, a width in pixels, or True for the default one.
    overlap : bool, default True
        For masks, whether later ones are drawn over earlier ones; with False the first one wins.
    contrast_limits : (low, high), optional
        The grey values that become black and white. Default: those in the image's attrs; uint8 needs none.
    axis : {"z", "y", "x"}, default "z"
        The axis across the slices in which outlines are drawn.

    Returns
    -------
    DataArray
        uint8, dims (z, y, x, rgba), straight alpha; opaque where there is an image. Attrs are those of the image, and
        with outlines ``outline_axis``; ``voxel_offset`` is that of the image's whole level, and `grid_of` returns that
        of the picture.

    Raises
    ------
    GridMismatchError
        If they do not lie on one grid.
    LayerError
        If the image is neither uint8 nor has contrast limits, or a segmentation is not of an integer type.
    ColorError
        If a colour or palette cannot be read, or an id of ``ids`` has no colour in the dict.
    OptionError
        If another argument is outside its range.

    Warns
    -----
    MissingIdsWarning
        When all blocks are computed in one process, or by one `export`, of ids that are not in the data.

    Examples
    --------
    >>> import imageryxr as ix
    >>> sample = ix.sample(sample_path)
    >>> ds = ix.align(ix.open_image(sample.image), ix.open_segmentation(sample.segmentation))
    >>> picture = ix.overlay(ds.image, ds.segmentation, alpha=0.3, outline=2)
    >>> picture.dims, picture.dtype
    (('z', 'y', 'x', 'rgba'), dtype('uint8'))
    """
    picture = None if image is None else _grey(image, contrast_limits)
    call = Layer(None, ids, colors, alpha, rest_alpha, outline, overlap)
    layers = prepared_layers(segmentation, picture, call, axis)
    under = None if picture is None else picture.expr
    exprs = [e for i, layer in enumerate(layers) for e in layer.exprs(under if i == 0 else None, axis)]
    volumes = [*([] if picture is None else [picture]), *(v for layer in layers for v in layer.volumes)]
    for i, volume in enumerate(volumes[1:], 1):
        check_same_grid(volume.grid, volumes[0].grid, f"layer {i} and the first one")
    attrs = {**volumes[0].attrs}
    source = layers[0].volumes[0].attrs.get("source")
    if picture is not None and source is not None:
        attrs["segmentation_source"] = source
    if any(layer.line is not None for layer in layers):
        attrs["outline_axis"] = axis
    attrs[DRAWN_COLORS] = json.dumps([layer.colors for layer in layers])
    return _drawn(exprs[0] if len(exprs) == 1 else LayerStack(tuple(exprs)), volumes, attrs, "overlay")


def overlay_dataset(dataset: xr.Dataset, **options: Any) -> xr.DataArray:
    """Draw all layers of a Dataset over each other, as the viewer shows them.

    Lazy: reads nothing. The image lies below the segmentation, whatever the order of the variables, which writing to
    Zarr or merging changes. ``attrs["layer_order"]`` of the Dataset, names from bottom to top, states another order,
    and is needed for several layers of one kind; ``view`` sets it. Layers whose attrs say that they are switched off
    are left out. The first image is opaque; a later one lies over what is below it by the opacity in its attrs, as in
    Neuroglancer. ``options``, as in `overlay`, hold for all segmentations, and ``contrast_limits`` for all images.

    Parameters
    ----------
    dataset : Dataset
        Images and segmentations on one grid; a boolean variable is a mask, drawn as a segmentation.
    **options
        As in `overlay`.

    Returns
    -------
    DataArray
        uint8, dims (z, y, x, rgba).

    Raises
    ------
    LayerError
        If there is no layer to draw, or nothing states which of several lies above.
    ImageryError
        As `overlay`.

    Examples
    --------
    >>> import imageryxr as ix
    >>> sample = ix.sample(sample_path)
    >>> ds = ix.align(ix.open_image(sample.image), ix.open_segmentation(sample.segmentation))
    >>> ds.imagery.overlay(alpha=0.3).sizes["rgba"]
    4
    """
    layers = _from_bottom_to_top(dataset)
    kinds = [_drawn_as(v) for v in layers]
    limits = options.pop("contrast_limits", None)
    if kinds[0] == "image" and len(kinds) > 1 and set(kinds[1:]) == {"segmentation"}:
        return overlay(layers[0], layers[1:], contrast_limits=limits, **options)
    pictures = [
        overlay(None, layer, **options) if kind == "segmentation" else _image_layer(layer, limits, opaque=i == 0)
        for i, (layer, kind) in enumerate(zip(layers, kinds, strict=True))
    ]
    return pictures[0] if len(pictures) == 1 else composite(*pictures)


def _from_bottom_to_top(dataset: xr.Dataset) -> list[xr.DataArray]:
    """Return the layers of a Dataset in the order in which they are drawn.

    Raises
    ------
    LayerError
        If there are none, or their order is not decided.
    """
    held = {str(n): v for n, v in dataset.data_vars.items() if not set(DIMS) - {*v.dims, *v.coords}}
    layers = [v for v in held.values() if v.attrs.get(VISIBLE, True)]
    if held and not layers:
        name = next(iter(held))
        raise LayerError(
            f"the layers of the Dataset, {list(held)}, are switched off in the link that they come from; to draw one "
            f"all the same, set ds[{name!r}].attrs[{VISIBLE!r}] = True"
        )
    if not layers:
        raise LayerError(
            f"the Dataset has the variables {list(map(str, dataset.data_vars))}, and none is a layer to draw"
        )
    order = [str(name) for name in np.atleast_1d(dataset.attrs.get(LAYER_ORDER, []))]
    if all(_place_in(order, v) is not None for v in layers):
        return sorted(layers, key=lambda v: _place_in(order, v) or 0)
    kinds = [_drawn_as(v) for v in layers]
    twice = next((kind for kind in ("image", "segmentation") if kinds.count(kind) > 1), None)
    if twice is None:
        return sorted(layers, key=lambda v: _drawn_as(v) == "segmentation")
    names = [str(v.name) for v in layers]
    same = [name for name, kind in zip(names, kinds, strict=True) if kind == twice]
    stated = f"attrs['layer_order'] is {order}, which lacks some of them" if order else "attrs['layer_order'] is absent"
    raise LayerError(
        f"the Dataset has {len(same)} {twice} layers, {', '.join(map(repr, same))}, and {stated}, so it is not decided "
        f"which lies above: set ds.attrs['layer_order'] = {names} (from bottom to top), or select the layers to draw, "
        f"e.g. ds[{_one_of_each(names, kinds)}]"
    )


def _place_in(order: list[str], layer: xr.DataArray) -> int | None:
    """Return where a layer stands in an order of names, by the name of its variable or of its layer in the viewer."""
    names = (str(layer.name), str(layer.attrs.get(LAYER, layer.name)))
    return next((order.index(name) for name in names if name in order), None)


def _one_of_each(names: list[str], kinds: list[str]) -> list[str]:
    return [names[kinds.index(kind)] for kind in ("image", "segmentation") if kind in kinds]


def _drawn_as(layer: xr.DataArray) -> str:
    """Return whether a variable is drawn as grey values or as segments; a mask is the one segment that it holds."""
    return "segmentation" if layer.dtype == np.bool_ else layer_type_of(layer)


def _image_layer(image: xr.DataArray, limits: tuple[float, float] | None, *, opaque: bool) -> xr.DataArray:
    volume = _grey(image, limits)
    opacity = 1.0 if opaque else float(volume.attrs.get(OPACITY, 1.0))
    return _drawn(rgba_of(volume.expr, opacity), [volume], volume.attrs, "picture")


def outline(
    segmentation: xr.DataArray,
    *,
    width: float = 10,
    side: Side = "out",
    merge: bool = True,
    colors: Any = None,
    alpha: float = 1.0,
    unit: Literal["px", "nm"] = "px",
    ids: Iterable[int] | None = None,
    axis: str = "z",
) -> xr.DataArray:
    """Draw the outlines of segments, as a layer of their own.

    Lazy: reads nothing. Lines are exact across block borders, and at the border of a crop they follow from the data
    beyond it where there are any; the edge of the data makes no line.

    Parameters
    ----------
    segmentation : DataArray
        Ids (z, y, x).
    width, side, merge, alpha, unit
        As in `Outline`.
    colors, ids, axis
        As in `overlay`.

    Returns
    -------
    DataArray
        uint8, dims (z, y, x, rgba), transparent between the lines; where several outlines lie over each other they
        are laid one over the other in the order of the ids. `composite` puts it over a picture.

    Raises
    ------
    ImageryError
        As `overlay`.

    Examples
    --------
    >>> import imageryxr as ix
    >>> seg = ix.open_segmentation(ix.sample(sample_path).segmentation)
    >>> ix.outline(seg, width=3, side="in", merge=False).sizes["rgba"]
    4
    """
    style = Outline(width, side, merge, alpha, unit)
    labels = segmentation_volume(segmentation)
    paint = paint_of(colors, ids, None, None, labels)
    expr = painted(labels.expr, labels.grid, None, None, paint.line(style.alpha), style, axis)
    attrs = {**labels.attrs, "outline_axis": axis, DRAWN_COLORS: json.dumps([described(replace(paint, rest=0.0))])}
    return _drawn(expr, [labels], attrs, "outline")


def to_rgba(image: xr.DataArray, *, contrast_limits: tuple[float, float] | None = None) -> xr.DataArray:
    """Turn grey values into an opaque RGBA picture.

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
        If the image is not uint8 and no limits are known.

    Examples
    --------
    >>> import imageryxr as ix
    >>> em = ix.open_image(ix.sample(sample_path).image)
    >>> ix.to_rgba(em, contrast_limits=(60, 220)).dims
    ('z', 'y', 'x', 'rgba')
    """
    volume = _grey(image, contrast_limits)
    return _drawn(rgba_of(volume.expr), [volume], volume.attrs, "picture")


def composite(*layers: xr.DataArray) -> xr.DataArray:
    """Lay RGBA layers over each other, the first at the bottom.

    Lazy: reads nothing, and what several layers need of one source is read once.

    Parameters
    ----------
    *layers : DataArray
        uint8, dims (z, y, x, rgba), on one grid; as `to_rgba`, `overlay` and `outline` give them.

    Returns
    -------
    DataArray
        uint8, dims (z, y, x, rgba), straight alpha, rounded to the nearest. Attrs are those of the first layer.

    Raises
    ------
    OptionError
        If there is no layer.
    LayerError
        If one is not RGBA.
    GridMismatchError
        If they do not lie on one grid.

    Examples
    --------
    >>> import imageryxr as ix
    >>> sample = ix.sample(sample_path)
    >>> ds = ix.align(ix.open_image(sample.image), ix.open_segmentation(sample.segmentation))
    >>> ix.composite(ix.to_rgba(ds.image), ix.outline(ds.segmentation, width=2)).name
    'composite'
    """
    if not layers:
        raise OptionError("composite was given no layers; give RGBA arrays, the bottom one first")
    volumes = [_rgba_volume(layer, i) for i, layer in enumerate(layers)]
    for i, volume in enumerate(volumes[1:], 1):
        check_same_grid(volume.grid, volumes[0].grid, f"layers {i} and 0")
    drawn = [entry for v in volumes for entry in json.loads(v.attrs.get(DRAWN_COLORS, "[]"))]
    attrs = {**volumes[0].attrs, **({DRAWN_COLORS: json.dumps(drawn)} if drawn else {})}
    return _drawn(LayerStack(tuple(v.expr for v in volumes)), volumes, attrs, "composite")


# ---------------------------------------------------------------------------------------------------------
# arguments


def _drawn(expr: Expr, volumes: list[Volume], attrs: dict[str, Any], name: str) -> xr.DataArray:
    # grey values and ids are what the attribute tells apart; a picture is neither
    kept = {k: v for k, v in attrs.items() if k != "layer_type"}
    return label_result(expr, volumes[0].grid, *volumes, attrs=kept, name=name, tail="rgba")


def _grey(image: xr.DataArray, limits: tuple[float, float] | None) -> Volume:
    volume = volume_of(image)
    dtype = volume.expr.dtype
    if volume.attrs.get("layer_type") == "segmentation":
        raise LayerError(f"{image.name!r} is a segmentation, not an image; overlay takes (image, segmentation)")
    if dtype == np.bool_:
        raise LayerError(f"{image.name!r} is a mask (dtype bool); make grey of it: mask.astype('uint8') * 255")
    limits = volume.attrs.get(CONTRAST_LIMITS) if limits is None else limits
    if limits is None and dtype == np.uint8:
        return volume
    if limits is None:
        raise LayerError(
            f"the image {image.name!r} has dtype {dtype}, and which values are black and white is not known; give "
            "contrast_limits=(low, high), e.g. contrast_limits=(0, 4095), or set them in its attrs"
        )
    if dtype.kind not in "uif" or dtype.itemsize > 8:
        raise LayerError(f"the image {image.name!r} has dtype {dtype}, which holds no grey values")
    low, high = _check_limits(limits)
    return replace(volume, expr=Mapped(volume.expr, partial(_contrast, low=low, high=high), "uint8"))


def _check_limits(limits: Any) -> tuple[float, float]:
    try:
        low, high = (float(v) for v in limits)
    except (TypeError, ValueError):
        raise OptionError(f"contrast_limits={limits!r} is not a pair of numbers (low, high), e.g. (60, 200)") from None
    if not (math.isfinite(low) and math.isfinite(high)) or low == high:
        raise OptionError(f"contrast_limits={limits!r} must be two different finite numbers (low, high)")
    return low, high


def _rgba_volume(layer: xr.DataArray, number: int) -> Volume:
    what = f"layer {number}"
    if not isinstance(layer, xr.DataArray) or "rgba" not in layer.dims:
        raise LayerError(f"{what} is no RGBA array; make it one with to_rgba(image), overlay(…) or outline(…)")
    if layer.sizes["rgba"] != 4 or layer.dtype != np.uint8:
        raise LayerError(f"{what} has dtype {layer.dtype} and {layer.sizes['rgba']} channels; RGBA is uint8 with 4")
    return volume_of(layer, tail=("rgba",))


def _contrast(values: Array, low: float, high: float) -> Array:
    from imageryxr.kernels import fill

    if values.size:
        smallest, largest = float(np.min(values)), float(np.max(values))
        if smallest < largest:  # one value alone is most often what lies outside the volume
            _warn_if_outside(smallest, largest, low, high, f"the values of a block ({smallest:g} to {largest:g})")
    return fill.to_uint8(values, low, high)


def _warn_if_outside(smallest: float, largest: float, low: float, high: float, what: str) -> None:
    bottom, top = min(low, high), max(low, high)
    if largest < bottom or smallest > top:
        shown = "black" if (largest < bottom) == (low < high) else "white"
        warn(
            f"contrast_limits=({low:g}, {high:g}) lie wholly outside {what}, so the picture is all {shown}; limits in "
            "attrs describe the values as they were stored: after arithmetic, give contrast_limits= in the new unit, "
            "or compute them with imageryxr.contrast_limits(image)"
        )
