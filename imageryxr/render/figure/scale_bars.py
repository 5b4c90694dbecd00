"""Scale bars."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import xarray as xr

from imageryxr.core.array_labels import grid_of
from imageryxr.core.colors import RGBA, parse_color
from imageryxr.core.validate import check_choice, check_flag, check_whole
from imageryxr.errors import GridError, Message, OptionError, param
from imageryxr.render.figure.picture import (
    Rect,
    Text,
    as_picture,
    attach_geometry,
    choose_corner,
    geometry_of,
    smallest_text,
    squeeze_slice,
    stale_pixel_size,
    to_pil,
)
from imageryxr.render.figure.print_size import check_length, label_pixels
from imageryxr.render.figure.text import (
    BLACK,
    MIDDLE,
    WHITE,
    contrasting_color,
    draw_text,
    fit_text_size,
    has_low_contrast,
    luminance,
    text_extent,
)

if TYPE_CHECKING:
    from PIL.Image import Image

Position: TypeAlias = Literal["bottom right", "bottom left", "top right", "top left"]

# Width in pixels to which the advice enlarges a picture that has no room for a bar.
LEGIBLE_WIDTH = 64


def scale_bar(
    image: xr.DataArray | Image,
    *,
    nm_per_pixel: float | None = None,
    length: float | None = None,
    position: Position | None = None,
    color: Any = None,
    label: bool = True,
    label_size: int | None = None,
    label_pt: float | None = None,
    width_mm: float | None = None,
    scale: int = 1,
) -> Image:
    """Draw a scale bar onto a copy of a picture; computes the picture.

    Parameters
    ----------
    image : DataArray or PIL.Image.Image
        One slice, as in `to_pil`, or a picture.
    nm_per_pixel : float, optional
        Width of a pixel in nm. Default: from the coordinates of an array, or from the metadata that `to_pil`, `inset`,
        `montage` and similar functions store in a picture. Required if the picture was cropped or resized since.
    length : float, optional
        Length of the bar in nm. Default: the longest of 1, 2, 5, 10, 20, … that is at most a quarter of the width of
        the picture or, in a montage, of a tile. The bar lies within one tile.
    position : {"bottom right", "bottom left", "top right", "top left"}, optional
        Corner of the bar. Default: the first of these without an inset, legend or other scale bar.
    color : colour, optional
        Colour in any form that `parse_color` reads. Default: black or white, whichever has more contrast to the
        picture.
    label : bool, default True
        Whether to write the length, such as "500 nm" or "2 µm", next to the bar.
    label_size : int, optional
        Height of the text in pixels. Default: 1/22 of the smaller side, at least 12.
    label_pt : float, optional
        Height of the text in points at the printed width, instead of ``label_size``.
    width_mm : float, optional
        Printed width of the picture, for ``label_pt``. Default: its width at 300 pixels per inch.
    scale : int, default 1
        Pixels per voxel of a DataArray, as in `to_pil`.

    Returns
    -------
    PIL.Image.Image
        Picture of the same size. Mode L stays L if the colour is grey, RGBA stays RGBA, other modes become RGB.

    Raises
    ------
    OptionError
        If the size of a pixel is unknown, or the bar is longer than the picture or a tile of it.

    Warns
    -----
    ImageryWarning
        If the text is omitted because it would be illegible on a small picture, or the bar covers an inset, a legend or
        another bar.

    Examples
    --------
    >>> import imageryxr as ix
    >>> from PIL import Image
    >>> ix.scale_bar(Image.new("L", (400, 300)), nm_per_pixel=4).mode
    'L'
    """
    check_position(position)
    check_flag("label", label)
    scale = check_whole("scale", scale, 1, 100, unit="pixels per voxel")
    image = image if isinstance(image, xr.DataArray) else as_picture(image)
    step = pixel_size(image, nm_per_pixel)
    if isinstance(image, xr.DataArray):
        picture = to_pil(image, scale=scale)
        step = step if nm_per_pixel is not None else step / scale
    elif scale != 1:
        raise OptionError(param("scale", scale), " only enlarges arrays, but this is a picture; give the array")
    else:
        picture = image
    size = label_pixels(label_size, label_pt, width_mm, picture.width)
    geometry = geometry_of(picture)
    canvas = picture.convert("RGBA")
    tiles = [view.rect for view in geometry.views]
    ink, at, text = draw_bar(
        canvas, step, length, position, color, label=label, text_size=size, taken=geometry.taken, tiles=tiles
    )
    if picture.mode == "L" and ink[0] == ink[1] == ink[2]:
        canvas = canvas.convert("L")
    elif picture.mode != "RGBA":
        canvas = canvas.convert("RGB")
    nm = geometry.nm if geometry.nm is not None and geometry.nm[0] == step else (step, step)
    views = [view.cover(at) for view in geometry.views]
    written = smallest_text(geometry.text, Text(text, "scale_bar") if text else None)
    return attach_geometry(canvas, nm, (*geometry.taken, at), written, views)


def check_position(position: Any) -> None:
    """Raise `OptionError` unless a position is a corner or None."""
    check_choice("position", position, (*get_args(Position), None))


def draw_bar(
    canvas: Image,
    step: float,
    length: float | None,
    position: Position | None,
    color: Any,
    *,
    label: bool,
    text_size: int | None,
    taken: Sequence[Rect],
    tiles: Sequence[Rect] = (),
) -> tuple[RGBA, Rect, int | None]:
    """Draw bar and text into a corner; return their colour, their rectangle and the height of the text.

    If the picture has several ``tiles``, the bar lies within the tile that is nearest to the corner.
    """
    areas = _corner_areas(canvas.size, tiles)
    across = min(right - left for left, _, right, _ in areas.values())
    down = min(bottom - top for _, top, _, bottom in areas.values())
    length = largest_round_length(across * step / 4) if length is None else check_length("length", length)
    side = min(across, down)
    pixels, margin, thick = max(1, round(length / step)), max(2, side // 30), max(2, side // 80)
    what = "a tile of the montage" if len(tiles) > 1 else "the picture"
    if across <= 2 * margin:
        enlarged = param("scale", math.ceil(LEGIBLE_WIDTH / across))
        raise OptionError(f"{what} is {across} pixels wide, too small for a bar; draw the array with ", enlarged)
    if pixels > across - 2 * margin:
        raise OptionError(
            f"a bar of {format_length(length)} needs {pixels} pixels of {step:g} nm, but {what} is {across} wide; give "
            f"length={largest_round_length(across * step / 4):g}, or omit length"
        )
    text = format_length(length) if label else ""
    max_size = max(12, side // 22) if text_size is None else text_size
    size = fit_text_size(text, min(max_size, 2 * down), across - 2 * margin, down - 2 * margin - thick) if text else 0
    text = text if size else ""
    width, height = text_extent(text, size) if text else (0, 0)
    gap = max(1, thick // 2, size // 8) if text else 0  # room for the rim of the text
    wide, total = max(pixels, width), thick + gap + height
    corner, box = _choose_corner(areas, (wide, total), margin, position, taken)
    left, top = box[:2]
    bottom = top + total > (areas[corner][1] + areas[corner][3]) // 2
    ink = parse_color(color) if color is not None else contrasting_color(canvas.crop(box), None)
    if text:
        draw_text(canvas, (left + (wide - width) // 2, top if bottom else top + thick + gap), text, size, ink)
    _draw_strip(canvas, (left + (wide - pixels) // 2, top + height + gap if bottom else top), (pixels, thick), ink)
    return ink, box, size or None


def _corner_areas(size: tuple[int, int], tiles: Sequence[Rect]) -> dict[str, Rect]:
    """Return the part of a picture that contains the bar of each corner: the whole, or the tile nearest the corner."""
    whole = (0, 0, *size)
    found = {}
    for name in get_args(Position):
        x, y = 0 if name.endswith("left") else 2, 3 if name.startswith("bottom") else 1
        nearest = min(tiles, key=lambda t: abs(t[x] - whole[x]) + abs(t[y] - whole[y])) if len(tiles) > 1 else whole
        found[name] = nearest
    return found


def _choose_corner(
    areas: Mapping[str, Rect], size: tuple[int, int], margin: int, position: Position | None, taken: Sequence[Rect]
) -> tuple[str, Rect]:
    """Return the corner and the rectangle of a bar with its text: the given corner, or the first one that is free."""
    places: dict[str, Rect] = {}
    for name, area in areas.items():
        left = area[0] + margin if name.endswith("left") else area[2] - margin - size[0]
        top = area[3] - margin - size[1] if name.startswith("bottom") else area[1] + margin
        places[name] = (left, top, left + size[0], top + size[1])
    warning = "the scale bar in the {corner} corner covers an inset, a legend or another bar"
    enlarge = Message("no corner is free: enlarge the picture, with ", param("scale", 2))
    corner = choose_corner(places, taken, position, warning, enlarge)
    return corner, places[corner]


def _draw_strip(canvas: Image, at: tuple[int, int], size: tuple[int, int], ink: RGBA) -> None:
    pixels, thick = size
    if has_low_contrast(canvas.crop((at[0], at[1], at[0] + pixels, at[1] + thick)), ink):
        # The rim is only above and below, because a rim at the ends would make the bar appear longer.
        rim = max(1, thick // 4)
        other = BLACK if luminance(ink) > MIDDLE else WHITE
        _fill_box(canvas, (at[0], at[1] - rim), (pixels, thick + 2 * rim), other)
    _fill_box(canvas, at, size, ink)


def _fill_box(canvas: Image, at: tuple[int, int], size: tuple[int, int], color: RGBA) -> None:
    from PIL import Image

    canvas.alpha_composite(Image.new("RGBA", size, color), (max(0, at[0]), max(0, at[1])))


def pixel_size(image: Any, nm_per_pixel: float | None) -> float:
    """Return the width of a pixel in nm: the given value, or that of the array's coordinates or picture's metadata."""
    if nm_per_pixel is not None:
        return check_length("nm_per_pixel", nm_per_pixel)
    if not isinstance(image, xr.DataArray):
        return _stored_pixel_size(image)
    columns = [str(dim) for dim in squeeze_slice(image).dims if dim != "rgba"][-1]
    try:
        return float(grid_of(image).resolution["xyz".index(columns)])
    except GridError as error:
        raise OptionError(
            f"the width of a pixel cannot be read from the array: {error}; or give nm_per_pixel=…"
        ) from None


def _stored_pixel_size(picture: Any) -> float:
    size, outdated = geometry_of(picture).nm, stale_pixel_size(picture)
    if size is None and outdated is not None:
        raise OptionError(
            f"the picture was drawn with {outdated} nm per pixel and may have been resized since; give "
            f"nm_per_pixel={outdated} if it was only cropped, or the new pixel size"
        )
    if size is None:
        raise OptionError("the picture has no known pixel size; give nm_per_pixel=…")
    return size[0]


def largest_round_length(length: float) -> float:
    """Return the largest of …, 1, 2, 5, 10, 20, 50, … that is not above a length."""
    decade = math.pow(10, math.floor(math.log10(length)))
    # Neighbouring decades are included because the computed logarithm of 1000 may be slightly below 3.
    lengths = [m * d for d in (decade / 10, decade, decade * 10) for m in (1, 2, 5)]
    return max(nice for nice in lengths if nice <= length * (1 + 1e-9))


def format_length(nm: float) -> str:
    """Return a length as text, in nm, µm or mm."""
    for unit, size in (("mm", 1e6), ("µm", 1e3)):
        if nm >= size:
            return f"{nm / size:g} {unit}"
    return f"{nm:g} nm"
