"""Draw masks, which may overlap, as layers of an overlay."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

from imageryxr.core.bbox import IndexBox
from imageryxr.core.colors import parse_color, resolve_colors
from imageryxr.core.display import describe_masks
from imageryxr.core.validate import to_whole
from imageryxr.errors import ColorError, GridMismatchError, LayerError, OptionError
from imageryxr.graph.expr import Array, Expr, Mapped
from imageryxr.graph.labelled import Volume, label_array, volume_of
from imageryxr.render.layers import Layer, Outline, check_alpha, parse_outline
from imageryxr.render.paint import Canvas, LayerStack, PaintedSegments, RgbaExpr, grey_to_rgba, warn_if_thin


@dataclass(frozen=True)
class MaskedLayer(RgbaExpr):
    """An RGBA layer, transparent where the layer ``by`` is transparent."""

    layer: Expr
    by: Expr

    def apply(self, box: IndexBox, *arrays: Array) -> Array:
        """Return the first layer where the second has any paint, and transparent pixels elsewhere."""
        return np.where(arrays[1][..., 3:] > 0, arrays[0], np.uint8(0))


@dataclass(frozen=True)
class MaskUnion(Expr):
    """Union of several masks: 1 where any of them is not 0."""

    masks: tuple[Expr, ...]

    dtype = np.dtype(np.uint8)

    def apply(self, box: IndexBox, *arrays: Array) -> Array:
        """Return the union."""
        return np.asarray(np.any([a != 0 for a in arrays], axis=0)).astype(np.uint8)


def draw_masks(canvas: Canvas, layer: Layer) -> None:
    """Draw a layer of masks on a canvas."""
    image = canvas.take_image()
    named = _named_masks(layer.segmentation, layer.ids)
    volumes = [_mask_volume(mask, canvas.image, f"mask {key!r}") for key, mask in named.items()]
    for key, volume in zip(named, volumes, strict=True):
        canvas.add_volume(volume, f"mask {key!r}")
    colors = _mask_colors(layer.colors, list(named))
    alphas = _mask_alphas(layer.alpha, list(named)).values()
    style = parse_outline(layer.outline)
    first_wins = layer.overlap is not None and not layer.overlap
    stack: list[Expr] = [] if image is None else [grey_to_rgba(image)]
    drawn = list(zip(volumes, colors.values(), alphas, strict=True))
    if style is None or any(alphas):
        fills = [_draw_mask(volume, color, alpha, None, canvas) for volume, color, alpha in drawn]
        stack.append(LayerStack(tuple(fills), first_wins))
    if style is not None:
        warn_if_thin(style, volumes[0].grid, canvas.axis)
        lines: Expr = LayerStack(tuple(_draw_mask(v, color, 0, style, canvas) for v, color, _ in drawn), first_wins)
        if style.merge and len(volumes) > 1:
            union = MaskUnion(tuple(v.expr for v in volumes))
            whole = _draw_mask(replace(volumes[0], expr=union), (0, 0, 0, 255), 0, style, canvas)
            lines = MaskedLayer(lines, whole)
        stack.append(lines)
    canvas.add_layer(stack, describe_masks(colors))


def _draw_mask(volume: Volume, color: tuple[int, ...], alpha: float, style: Outline | None, canvas: Canvas) -> Expr:
    """Return one mask in its colour: outlined if a style is given, otherwise filled."""
    labels, colors = Mapped(volume.expr, _binarize, "uint8"), resolve_colors({1: color})
    return PaintedSegments(labels, None, colors, volume.grid, canvas.axis, style, alpha)


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
            raise OptionError(f"ids contains {absent[0]!r}, which is not a mask; the masks are {_join_names(named)}")
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
    numbers = [to_whole(key) for key in keys]
    numbered = all(number is not None and number > 0 for number in numbers)
    ids = [number for number in numbers if number is not None] if numbered else list(range(1, len(keys) + 1))
    found = resolve_colors("husl" if colors is None and not numbered else colors, ids)
    return {key: tuple(rgb) for key, rgb in zip(keys, found.colors_for(np.array(ids, np.uint64)).tolist(), strict=True)}


def _mask_alphas(alpha: Any, keys: list[Any]) -> dict[Any, float]:
    if isinstance(alpha, Mapping):
        return {key: check_alpha(alpha.get(key, 0.2), f"alpha[{key!r}]") for key in keys}
    return dict.fromkeys(keys, 0.2 if alpha is None else check_alpha(alpha, "alpha"))
