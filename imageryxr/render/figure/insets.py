"""Insets: magnified parts of a picture."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import xarray as xr

from imageryxr.core.array_labels import grid_of
from imageryxr.core.bbox import DIMS, BBox
from imageryxr.core.colors import RGBA, parse_color
from imageryxr.core.validate import check_flag, check_whole
from imageryxr.errors import OptionError, OutOfVolumeError, param
from imageryxr.render.figure.picture import (
    Rect,
    Text,
    attach_geometry,
    choose_corner,
    geometry_of,
    smallest_text,
    squeeze_slice,
    to_pil,
)
from imageryxr.render.figure.print_size import label_pixels
from imageryxr.render.figure.scale_bars import Position, check_position, draw_bar, pixel_size

if TYPE_CHECKING:
    from PIL.Image import Image


def inset(
    picture: xr.DataArray,
    bbox: BBox,
    *,
    zoom: int = 3,
    detail: xr.DataArray | None = None,
    position: Position | None = None,
    color: Any = "white",
    line: int | None = None,
    scale: int = 1,
    scale_bar: bool = False,
    label_size: int | None = None,
    label_pt: float | None = None,
    width_mm: float | None = None,
) -> Image:
    """Draw a magnified part of a picture into one of its corners, and frame both; computes the picture.

    Parameters
    ----------
    picture : DataArray
        One slice with coordinates, as in `to_pil`. For a `montage`, draw the insets first: ``montage([inset(a, box),
        inset(b, box)])``.
    bbox : BBox
        The part to magnify. Only its extent in the plane of the picture is used.
    zoom : int, default 3
        Magnification of each side of the part.
    detail : DataArray, optional
        The same region at a finer level, for a sharper inset. Default: the picture's own voxels.
    position : {"top right", "top left", "bottom right", "bottom left"}, optional
        The corner. Default: the first of these in which the inset does not cover the part that it magnifies.
    color : colour, default "white"
        Colour of the frames.
    line : int, optional
        Width of the frames in pixels. Default: 1/250 of the picture's smaller side, at least 2.
    scale : int, default 1
        Pixels per voxel of the picture, as in `to_pil`.
    scale_bar : bool, default False
        Whether to draw two scale bars: one in the inset and one in a free corner of the picture.
    label_size, label_pt, width_mm : optional
        Height of the text of the scale bars, as in `scale_bar`. By default the text in the inset is as high as that of
        the picture, but at most a tenth of the inset.

    Returns
    -------
    PIL.Image.Image
        The picture with its inset, of the same size. Mode RGB, or RGBA if it has transparent pixels. Its metadata
        contain the area of the inset, so that `scale_bar` uses another corner.

    Raises
    ------
    OutOfVolumeError
        If the part extends beyond the picture.
    OptionError
        If the magnified part does not fit into the picture, or ``picture`` is a Pillow picture.

    Warns
    -----
    ImageryWarning
        If the inset covers some of the part that it magnifies.

    Examples
    --------
    >>> import numpy as np, xarray as xr, imageryxr as ix
    >>> grid = ix.Grid((1, 90, 120), (8, 8, 40), (0, 0, 0))
    >>> em = xr.DataArray(np.zeros(grid.shape, np.uint8), dims=("z", "y", "x"), coords=grid.coords())
    >>> em = em.assign_attrs(resolution=grid.resolution)
    >>> ix.inset(em, ix.BBox((10, 10, 0), (22, 20, 1), resolution=(8, 8, 40))).size
    (120, 90)
    """
    from PIL import Image as PilImage

    check_position(position)
    check_whole("zoom", zoom)
    check_flag("scale_bar", scale_bar)
    _check_array(picture)
    step = pixel_size(picture, None) / scale if scale_bar else None
    plain = to_pil(picture, scale=scale)
    whole = plain.convert("RGBA")
    left, top, right, bottom = (scale * n for n in _pixel_box(picture, bbox))
    width, height = (right - left) * zoom, (bottom - top) * zoom
    line = max(2, min(whole.size) // 250) if line is None else check_whole("line", line, 1)
    margin = 2 * line
    if zoom < 1 or width + 2 * margin > whole.width or height + 2 * margin > whole.height:
        raise OptionError(
            param("zoom", text=f"{zoom}"),
            f" makes an inset of {width} × {height} pixels, which does not fit into the picture of ",
            f"{whole.width} × {whole.height}; make the part or the zoom smaller",
        )
    part = whole.crop((left, top, right, bottom)) if detail is None else _crop_detail(detail, bbox)
    part = part.resize((width, height), PilImage.Resampling.NEAREST if detail is None else PilImage.Resampling.LANCZOS)
    places = _corner_origins(whole.size, (width, height), margin)
    marked: Rect = (left, top, right, bottom)
    framed = {at: (x - line, y - line, x + width + line, y + height + line) for at, (x, y) in places.items()}
    warning = "the inset in the {corner} corner covers {pixels:,} pixels of the part that it magnifies"
    corner = choose_corner(framed, [marked], position, warning, "no corner is free: make the part or the zoom smaller")
    size = label_pixels(label_size, label_pt, width_mm, whole.width)
    heights: list[int | None] = []
    if step is not None:
        # Text of the inset is as high as that of the picture, unless it would fill the inset.
        inner = max(12, min(min(whole.size) // 22, min(part.size) // 10)) if size is None else size
        heights += draw_bar(part, step / zoom, None, None, None, label=True, text_size=inner, taken=())[2:]
    x, y = places[corner]
    whole.paste(part, (x, y))
    frames = [_draw_frame(whole, box, color, line) for box in (marked, (x, y, x + width, y + height))]
    if step is not None:
        _, bar, other = draw_bar(whole, step, None, None, None, label=True, text_size=size, taken=frames)
        frames, heights = [*frames, bar], [*heights, other]
    text = smallest_text(*(Text(height, "inset") for height in heights if height))
    is_opaque = whole.getchannel("A").getextrema()[0] == 255
    geometry = geometry_of(plain)
    views = [replace(view, has_inset=True) for view in geometry.views]
    return attach_geometry(whole.convert("RGB") if is_opaque else whole, geometry.nm, frames, text, views)


def _check_array(picture: Any) -> None:
    from PIL import Image as PilImage

    if isinstance(picture, PilImage.Image):
        raise OptionError(
            "inset was given a Pillow picture, but it needs the array of one slice, to which the box refers; draw "
            "insets first, and arrange them afterwards: montage([inset(a, box), inset(b, box)])"
        )


def _draw_frame(whole: Image, box: Rect, color: Any, line: int) -> Rect:
    """Draw a frame around a rectangle and return the outer rectangle of the frame."""
    from PIL import ImageDraw

    ink: RGBA = parse_color(color)
    left, top, right, bottom = box
    frame = (left - line, top - line, right + line, bottom + line)
    ImageDraw.Draw(whole).rectangle((*frame[:2], frame[2] - 1, frame[3] - 1), outline=ink, width=line)
    return frame


def _corner_origins(whole: tuple[int, int], size: tuple[int, int], margin: int) -> dict[str, tuple[int, int]]:
    """Return the upper left point (x, y) of an inset in each corner, the preferred corner first."""
    near, far_x, far_y = margin, whole[0] - size[0] - margin, whole[1] - size[1] - margin
    return {
        "top right": (far_x, near),
        "top left": (near, near),
        "bottom right": (far_x, far_y),
        "bottom left": (near, far_y),
    }


def _pixel_box(picture: xr.DataArray, bbox: BBox) -> tuple[int, int, int, int]:
    """Return the pixels (left, top, right, bottom) that a box covers."""
    rows, columns = (str(d) for d in squeeze_slice(picture).dims if d != "rgba")
    grid = grid_of(picture)
    start, stop = grid.select(bbox)
    ranges = dict(zip(DIMS, zip(start, stop, strict=True), strict=True))
    (top, bottom), (left, right) = ranges[rows], ranges[columns]
    sizes = dict(zip(DIMS, grid.shape, strict=True))
    if top < 0 or left < 0 or bottom > sizes[rows] or right > sizes[columns]:
        raise OutOfVolumeError(f"the part {bbox} extends beyond the picture, which covers {grid.bbox}")
    return left, top, right, bottom


def _crop_detail(detail: xr.DataArray, bbox: BBox) -> Image:
    left, top, right, bottom = _pixel_box(detail, bbox)
    rows, columns = (str(d) for d in squeeze_slice(detail).dims if d != "rgba")
    return to_pil(detail.isel({rows: slice(top, bottom), columns: slice(left, right)})).convert("RGBA")
