"""Draw all layers of a Dataset over each other, with the annotations of a link."""

from __future__ import annotations

from typing import Unpack

import numpy as np
import xarray as xr

from imageryxr.core.array_labels import layer_type_of, spatial_arrays
from imageryxr.core.display import LAYER, LAYER_ORDER, OPACITY, VISIBLE, SegmentDisplay
from imageryxr.errors import LayerError
from imageryxr.ops.tree_annotations import annotations_of_view
from imageryxr.render.annotate import annotate
from imageryxr.render.overlay import OverlayOptions, composite, grey_volume, label_rgba, overlay, to_rgba
from imageryxr.render.paint import grey_to_rgba


def overlay_view(
    dataset: xr.Dataset, *, contrast_limits: tuple[float, float] | None = None, **options: Unpack[OverlayOptions]
) -> xr.DataArray:
    """Draw all layers of a Dataset over each other, as in the viewer.

    Lazy: reads nothing. The image is drawn below the segmentation; the order of the variables does not matter, because
    merging or writing to Zarr changes it. ``attrs["layer_order"]`` of the Dataset (names from bottom to top) overrides
    this order and is required if there are several layers of one kind; ``view`` sets it. Layers whose attr ``visible``
    is False are not drawn. The first image is opaque; later images have the opacity in their attrs, as in
    Neuroglancer. ``options``, as in `overlay`, apply to all segmentations, and ``contrast_limits`` to all images. The
    annotations of a view of a link are drawn on top, in their colours; `annotate` draws other annotations.

    Parameters
    ----------
    dataset : Dataset
        Images and segmentations on the same grid; a boolean variable is drawn like a segmentation with one segment.
    contrast_limits, **options
        As in `overlay`.

    Returns
    -------
    DataArray
        uint8, dims (z, y, x, rgba).

    Raises
    ------
    LayerError
        If there is no layer to draw, or the order of several layers of one kind is not defined.
    ImageryError
        As `overlay`.

    Examples
    --------
    >>> import imageryxr as ix
    >>> sample = ix.sample("sample")
    >>> ds = ix.align(ix.open_image(sample.image), ix.open_segmentation(sample.segmentation))
    >>> ds.imagery.overlay(alpha=0.3).sizes["rgba"]
    4
    """
    picture = overlay_dataset(dataset, contrast_limits=contrast_limits, **options)
    for part, color, colors in annotations_of_view(dataset):
        if colors is None:
            picture = annotate(picture, part, color=color)
        else:
            picture = annotate(picture, part, color="color", colors={c: c for c in colors})
    return picture


def overlay_dataset(
    dataset: xr.Dataset, *, contrast_limits: tuple[float, float] | None = None, **options: Unpack[OverlayOptions]
) -> xr.DataArray:
    """Draw the images and segmentations of a Dataset over each other; see `overlay_view`."""
    layers = _sort_layers(dataset)
    kinds = [_drawn_kind(v) for v in layers]
    if kinds[0] == "image" and len(kinds) > 1 and set(kinds[1:]) == {"segmentation"}:
        return overlay(layers[0], layers[1:], contrast_limits=contrast_limits, **options)
    pictures = [
        _draw_image(layer, contrast_limits, opaque=i == 0) if kind == "image" else overlay(None, layer, **options)
        for i, (layer, kind) in enumerate(zip(layers, kinds, strict=True))
    ]
    return pictures[0] if len(pictures) == 1 else composite(*pictures)


def draw_array(array: xr.DataArray, contrast_limits: tuple[float, float] | None = None) -> xr.DataArray:
    """Return a picture of one array: ids in opaque colours, grey values as RGBA, RGBA and masks unchanged."""
    if "rgba" in array.dims or array.dtype == np.bool_:
        return array
    if layer_type_of(array) == "segmentation":
        return overlay(None, array, alpha=None if SegmentDisplay.from_attrs(array.attrs) else 1.0)
    return to_rgba(array, contrast_limits=contrast_limits)


def _sort_layers(dataset: xr.Dataset) -> list[xr.DataArray]:
    """Return the visible layers of a Dataset, from bottom to top.

    Raises `LayerError` if there are no visible layers, or their order is not defined.
    """
    found = {str(name): v for name, v in spatial_arrays(dataset).items()}
    layers = [v for v in found.values() if v.attrs.get(VISIBLE, True)]
    if not layers:
        name = next(iter(found))
        raise LayerError(
            f"the layers of the Dataset, {list(found)}, are switched off in their link; to draw one anyway, set "
            f"ds[{name!r}].attrs[{VISIBLE!r}] = True"
        )
    order = [str(name) for name in np.atleast_1d(dataset.attrs.get(LAYER_ORDER, []))]
    if all(_order_index(order, v) is not None for v in layers):
        return sorted(layers, key=lambda v: _order_index(order, v) or 0)
    kinds = [_drawn_kind(v) for v in layers]
    twice = next((kind for kind in ("image", "segmentation") if kinds.count(kind) > 1), None)
    if twice is None:
        return sorted(layers, key=lambda v: _drawn_kind(v) == "segmentation")
    names = [str(v.name) for v in layers]
    same = [name for name, kind in zip(names, kinds, strict=True) if kind == twice]
    stated = f"attrs['layer_order'] is {order}, which lacks some of them" if order else "attrs['layer_order'] is absent"
    raise LayerError(
        f"the Dataset has {len(same)} {twice} layers, {', '.join(map(repr, same))}, but {stated}, so their order is "
        f"undefined; set ds.attrs['layer_order'] = {names} (from bottom to top), or select the layers to draw, e.g. "
        f"ds[{_one_of_each(names, kinds)}]"
    )


def _order_index(order: list[str], layer: xr.DataArray) -> int | None:
    """Return the position of a layer in a list of names, by its variable name or its layer name in the viewer."""
    names = (str(layer.name), str(layer.attrs.get(LAYER, layer.name)))
    return next((order.index(name) for name in names if name in order), None)


def _one_of_each(names: list[str], kinds: list[str]) -> list[str]:
    return [names[kinds.index(kind)] for kind in ("image", "segmentation") if kind in kinds]


def _drawn_kind(layer: xr.DataArray) -> str:
    """Return "image" or "segmentation"; a mask is drawn as a segmentation with one segment."""
    return "segmentation" if layer.dtype == np.bool_ else layer_type_of(layer)


def _draw_image(image: xr.DataArray, limits: tuple[float, float] | None, *, opaque: bool) -> xr.DataArray:
    volume = grey_volume(image, limits)
    opacity = 1.0 if opaque else float(volume.attrs.get(OPACITY, 1.0))
    return label_rgba(grey_to_rgba(volume.expr, opacity), [volume], volume.attrs, "picture")
