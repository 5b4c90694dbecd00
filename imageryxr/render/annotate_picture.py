"""Draw annotations on Pillow pictures, at the resolution of their pixels, on each slice that a picture shows."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import xarray as xr

from imageryxr.core.array_labels import CUTOUT, has_cutouts
from imageryxr.core.bbox import DIMS
from imageryxr.errors import LayerError, OptionError, param
from imageryxr.graph.cutout_arrays import contains_cutouts
from imageryxr.render.figure.picture import KEPT_ATTRS, Text, View, attach_geometry, geometry_of, smallest_text
from imageryxr.render.figure.print_size import label_pixels

if TYPE_CHECKING:
    from PIL.Image import Image

Verb = TypeVar("Verb", bound=Callable[..., Any])


def accepts_pictures(verb: Verb) -> Verb:
    """Return a verb of RGBA arrays that also draws on Pillow pictures, and on a cutout without the dim ``cutout``."""

    @functools.wraps(verb)
    def wrapper(picture: Any, *args: Any, **kwargs: Any) -> Any:
        from PIL import Image as PilImage

        if isinstance(picture, xr.DataArray) and contains_cutouts(picture, singles=True) and not has_cutouts(picture):
            return verb(picture.expand_dims(CUTOUT), *args, **kwargs).isel({CUTOUT: 0})
        if not isinstance(picture, PilImage.Image):
            return verb(picture, *args, **kwargs)
        if kwargs.get("axis") is not None:
            raise OptionError(param("axis", kwargs["axis"]), " is only for arrays; omit it for a Pillow picture")
        height = _label_height(picture, kwargs)
        options = {**kwargs, "label_size": height, "label_pt": None, "width_mm": None}
        return _draw_on_picture(picture, lambda array, axis: verb(array, *args, **{**options, "axis": axis}), options)

    return wrapper  # type: ignore[return-value]


def _draw_on_picture(picture: Image, draw: Callable[..., xr.DataArray], options: dict[str, Any]) -> Image:
    geometry = geometry_of(picture)
    if not geometry.views or any(view.has_inset for view in geometry.views):
        raise LayerError(
            "the position of this Pillow picture in the volume is unknown, because it was not made by to_pil or "
            "montage of arrays with coordinates, or was cropped, resized or given an inset since; annotate the array "
            "that overlay(…) or to_rgba(…) returned, or the picture before the last step"
        )
    canvas = picture.convert("RGBA")
    views = [_draw_on_view(canvas, view, draw) for view in geometry.views]
    text = smallest_text(geometry.text, Text(options["label_size"], "annotate") if options.get("labels") else None)
    out = canvas if picture.mode == "RGBA" else canvas.convert("RGB")
    return attach_geometry(out, geometry.nm, geometry.taken, text, views)


def _label_height(picture: Image, options: dict[str, Any]) -> int:
    """Return the height of labels in pixels; by default it grows with the slices that the picture shows."""
    given = options.get
    height = label_pixels(given("label_size"), given("label_pt"), given("width_mm"), picture.width)
    if height is not None:
        return height
    sides = [
        min(right - left, bottom - top) for left, top, right, bottom in (v.rect for v in geometry_of(picture).views)
    ]
    return max(12, round(min(sides, default=0) / 40))


def _draw_on_view(canvas: Image, view: View, draw: Callable[..., xr.DataArray]) -> View:
    """Draw on the part of a canvas that shows a slice, and return the view with the colours that were drawn."""
    from PIL import Image as PilImage

    before = canvas.copy()
    values = np.expand_dims(np.asarray(canvas.crop(view.rect)), view.axis)
    coords = {**view.grid.coords(), "rgba": list("rgba")}
    array = xr.DataArray(values, coords, (*DIMS, "rgba"), "picture", dict(view.attrs))
    drawn = draw(array, DIMS[view.axis])
    canvas.paste(PilImage.fromarray(np.ascontiguousarray(drawn.values.squeeze(view.axis))), view.rect[:2])
    for rect in view.covered:
        canvas.paste(before.crop(rect), rect[:2])
    kept = {name: drawn.attrs[name] for name in KEPT_ATTRS if name in drawn.attrs}
    return replace(view, attrs=kept)
