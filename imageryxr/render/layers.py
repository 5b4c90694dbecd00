"""Layers of an overlay: segmentations with their own options, and masks that may overlap."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from imageryxr.core.colors import parse_color, resolve_colors
from imageryxr.core.colors.mapping import ColorSpec
from imageryxr.core.colors.record import describe_colors, describe_masks
from imageryxr.core.grid_checks import check_same_grid
from imageryxr.errors import ColorError, GridMismatchError, LayerError, OptionError
from imageryxr.graph.composite import LayerStack, MaskedLayer, MaskUnion
from imageryxr.graph.expr import Array, Expr, Mapped
from imageryxr.graph.labelled import Volume, label_array, volume_of
from imageryxr.ops.segment_ids import segmentation_volume
from imageryxr.render.paint import Outline, Paint, check_alpha, paint_segments, parse_outline, parse_paint


@dataclass(frozen=True, eq=False)
class Layer:
    """A segmentation, or masks, with its own drawing options, for ``overlay(image, [Layer(…), …])``.

    Parameters
    ----------
    segmentation : DataArray, or masks
        As in `overlay`.
    ids, colors, alpha, rest_alpha, outline, overlap : optional
        As in `overlay`. None takes the option of the call; ``outline=False`` draws no lines in any case.

    Examples
    --------
    >>> import imageryxr as ix
    >>> sample = ix.sample(sample_path)
    >>> ds = ix.align(ix.open_image(sample.image), ix.open_segmentation(sample.segmentation))
    >>> cells = ix.Layer(ds.segmentation, alpha=0.2)
    >>> one = ix.Layer(ds.segmentation, ids=[1], colors={1: "red"}, alpha=0, outline=2)
    >>> ix.overlay(ds.image, [cells, one]).sizes["rgba"]
    4
    """

    segmentation: Any = field(repr=False)
    ids: Iterable[int] | None = None
    colors: ColorSpec | Sequence[Any] = None
    alpha: float | Mapping[Any, float] | None = None
    rest_alpha: float | None = None
    outline: Outline | int | bool | None = None
    overlap: bool | None = None

    def fill_defaults(self, call: Layer) -> Layer:
        """Return the layer with its unset options taken from the call."""
        names = ("ids", "colors", "alpha", "rest_alpha", "outline", "overlap")
        return replace(self, **{n: getattr(call, n) for n in names if getattr(self, n) is None})


@dataclass(frozen=True)
class DrawnLayer:
    """The RGBA expressions of a layer, from bottom to top."""

    exprs: tuple[Expr, ...]
    volumes: tuple[Volume, ...]
    """The volumes that the expressions read; the first one has the attributes of the picture."""
    colors: Mapping[str, Any]
    """Colours of the segments, for the attributes of the picture."""
    is_outlined: bool = False


def draw_layers(segmentation: Any, picture: Volume | None, call: Layer, axis: str) -> list[DrawnLayer]:
    """Return the layers of an overlay; the first one includes the image, if there is one.

    Raises
    ------
    LayerError, GridMismatchError, ColorError, OptionError
        If a layer or one of its options is invalid.
    """
    items = list(segmentation) if isinstance(segmentation, list | tuple) else [segmentation]
    if not items:
        raise OptionError(
            "overlay was given an empty list of segmentations; give at least one, or write to_rgba(image)"
        )
    if isinstance(segmentation, list | tuple) and all(is_mask(item) for item in items):
        items = [segmentation]
    out = []
    for number, item in enumerate(items):
        layer = (item if isinstance(item, Layer) else Layer(item)).fill_defaults(call)
        what = "the segmentation" if len(items) == 1 else f"layer {number}"
        image = picture.expr if picture is not None and number == 0 else None
        draw = _draw_masks if is_masks(layer.segmentation) else _draw_segmentation
        out.append(draw(layer, picture, image, axis, what))
    return out


def grey_to_rgba(image: Expr, opacity: float = 1.0) -> Expr:
    """Return grey values as RGBA with the given opacity."""
    return Mapped(image, partial(_gray_to_rgba, opacity=opacity), "uint8", tail=(4,))


def _gray_to_rgba(values: Array, opacity: float) -> Array:
    from imageryxr.kernels import fill

    out = fill.gray_to_rgba(values)
    if opacity < 1:
        out = np.array(out)
        out[..., 3] = int(opacity * 255 + 0.5)
    return out


def _draw_segmentation(layer: Layer, picture: Volume | None, image: Expr | None, axis: str, what: str) -> DrawnLayer:
    labels = segmentation_volume(layer.segmentation)
    if picture is not None:
        check_same_grid(picture.grid, labels.grid, f"the image and {what}")
    style = parse_outline(layer.outline)
    paint = parse_paint(layer.colors, layer.ids, layer.alpha, layer.rest_alpha, labels)
    line = None if style is None else paint.line(style.alpha)
    fill = paint if paint.has_fill or line is None else None
    expr = paint_segments(labels.expr, labels.grid, image, fill, line, style or Outline(), axis)
    return DrawnLayer((expr,), (labels,), describe_paint(paint), line is not None)


def describe_paint(paint: Paint) -> dict[str, Any]:
    """Return the colours of a paint, for the attributes of the picture."""
    selected = None if paint.selected is None else paint.selected.array.tolist()
    return describe_colors(paint.colors, selected, paint.rest > 0, paint.saturation)


# ---------------------------------------------------------------------------------------------------------
# masks


def is_mask(item: Any) -> bool:
    """Return whether an object is a single mask: a bool array without a "segment" dim."""
    return hasattr(item, "dtype") and item.dtype == np.bool_ and not (hasattr(item, "dims") and "segment" in item.dims)


def is_masks(item: Any) -> bool:
    """Return whether an object holds masks: a bool array, a dict or list of arrays, or a result of `split_masks`."""
    if isinstance(item, Mapping) and not isinstance(item, xr.Dataset):
        return True
    if isinstance(item, list | tuple) or is_mask(item):
        return True
    return isinstance(item, xr.DataArray) and "segment" in item.dims


def _draw_masks(layer: Layer, picture: Volume | None, image: Expr | None, axis: str, what: str) -> DrawnLayer:
    named = _named_masks(layer.segmentation, layer.ids)
    volumes = {key: _mask_volume(mask, picture, f"mask {key!r}") for key, mask in named.items()}
    first = next(iter(volumes.values()))
    for key, volume in volumes.items():
        check_same_grid((picture or first).grid, volume.grid, f"{'the image' if picture else what} and mask {key!r}")
    colors = _mask_colors(layer.colors, list(volumes))
    alphas = _mask_alphas(layer.alpha, list(volumes))
    style = parse_outline(layer.outline)
    first_wins = layer.overlap is False
    stack: list[Expr] = [] if image is None else [grey_to_rgba(image)]
    if style is None or any(alphas.values()):
        fills = [_draw_mask(v, colors[k], alphas[k], None, axis) for k, v in volumes.items()]
        stack.append(LayerStack(tuple(fills), first_wins))
    if style is not None:
        lines: Expr = LayerStack(
            tuple(_draw_mask(v, colors[k], 0, style, axis) for k, v in volumes.items()), first_wins
        )
        if style.merge and len(volumes) > 1:
            union = MaskUnion(tuple(v.expr for v in volumes.values()))
            lines = MaskedLayer(lines, _draw_mask(replace(first, expr=union), (0, 0, 0, 255), 0, style, axis))
        stack.append(lines)
    return DrawnLayer(tuple(stack), tuple(volumes.values()), describe_masks(colors))


def _draw_mask(volume: Volume, color: tuple[int, ...], alpha: float, style: Outline | None, axis: str) -> Expr:
    """Return one mask in its colour: outlined if a style is given, otherwise filled."""
    labels = Mapped(volume.expr, _binarize, "uint8")
    paint = Paint(resolve_colors({1: color}), alpha)
    line = None if style is None else paint.line(style.alpha)
    return paint_segments(labels, volume.grid, None, paint if style is None else None, line, style or Outline(), axis)


def _binarize(mask: Array) -> Array:
    return np.asarray(mask != 0).astype(np.uint8)


def _named_masks(masks: Any, ids: Iterable[int] | None) -> dict[Any, Any]:
    if isinstance(masks, Mapping):
        named = dict(masks)
    elif isinstance(masks, xr.DataArray) and "segment" in masks.dims:
        keys = masks["segment"].values.tolist() if "segment" in masks.coords else range(masks.sizes["segment"])
        named = {key: masks.isel(segment=i, drop=True) for i, key in enumerate(keys)}
    else:
        named = dict(enumerate(masks if isinstance(masks, list | tuple) else [masks]))
    if ids is not None:
        absent = [i for i in ids if i not in named]
        if absent:
            raise OptionError(f"ids holds {absent[0]!r}, which is not a mask; the masks are {_join_names(named)}")
        named = {i: named[i] for i in ids}
    if not named:
        raise OptionError("overlay was given no masks; give a dict name → mask or a list of them, with at least one")
    return named


def _join_names(named: Iterable[Any]) -> str:
    names = [repr(n) for n in named]
    return ", ".join(names[:10]) + (", …" if len(names) > 10 else "")


def _mask_volume(mask: Any, picture: Volume | None, what: str) -> Volume:
    if not isinstance(mask, xr.DataArray):
        mask = _add_coordinates(mask, picture, what)
    if mask.dtype.kind not in "biu":
        raise LayerError(f"{what} has dtype {mask.dtype}; a mask must be bool, or integers that are 0 outside of it")
    return volume_of(mask)


def _add_coordinates(mask: Any, picture: Volume | None, what: str) -> xr.DataArray:
    """Return an array without coordinates as a DataArray on the grid of the image."""
    if not hasattr(mask, "shape") or not hasattr(mask, "dtype"):
        raise LayerError(
            f"{what} is a {type(mask).__name__}; give a bool DataArray, or a bool array of the image's shape"
        )
    if picture is None:
        raise LayerError(
            f"{what} has no coordinates, and there is no image that has them; give a DataArray, such as "
            "(segmentation == 5), or xarray.DataArray(mask, dims=image.dims, coords=image.coords)"
        )
    shape = picture.grid.shape
    if tuple(mask.shape) not in (shape, tuple(n for n in shape if n > 1), shape[1:] if shape[0] == 1 else shape):
        hint = "; its order is (x, y, z), so give mask.T" if tuple(mask.shape[::-1]) == shape else ""
        raise GridMismatchError(
            f"{what} has shape {tuple(mask.shape)}, but the image has shape (z, y, x) {shape}{hint}"
        )
    return label_array(mask.reshape(shape), picture.grid, {}, "mask")


def _mask_colors(colors: Any, keys: list[Any]) -> dict[Any, tuple[int, ...]]:
    if isinstance(colors, list) and len(colors) == len(keys):
        return {key: parse_color(color) for key, color in zip(keys, colors, strict=True)}
    if isinstance(colors, list):
        raise ColorError(f"there are {len(colors)} colours for {len(keys)} masks; give one per mask, in the same order")
    if isinstance(colors, Mapping):
        absent = [key for key in keys if key not in colors]
        if absent:
            raise ColorError(f"colors has no colour for mask {absent[0]!r}; it has {_join_names(colors)}")
        return {key: parse_color(colors[key]) for key in keys}
    numbered = all(isinstance(k, int | np.integer) and not isinstance(k, bool) and k > 0 for k in keys)
    ids = [int(k) for k in keys] if numbered else list(range(1, len(keys) + 1))
    found = resolve_colors("husl" if colors is None and not numbered else colors, ids)
    return {key: tuple(rgb) for key, rgb in zip(keys, found.colors_for(np.array(ids, np.uint64)).tolist(), strict=True)}


def _mask_alphas(alpha: Any, keys: list[Any]) -> dict[Any, float]:
    if isinstance(alpha, Mapping):
        return {key: check_alpha(alpha.get(key, 0.2), f"alpha[{key!r}]") for key in keys}
    return dict.fromkeys(keys, 0.2 if alpha is None else check_alpha(alpha, "alpha"))
